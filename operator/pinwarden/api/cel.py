"""Pieces of the structural schema that the models carry with them."""

from pydantic.config import JsonDict

ONCE = "self.all(one, self.exists_one(other, other == one))"
"""CEL: a list names nothing twice. The list stays atomic: as a `set`, it would be merged with what other clients apply."""


def cel(rule: str, message: str, field: str | None = None, expression: str = "") -> JsonDict:
    """Return one entry of `x-kubernetes-validations`.

    `field` names the field that the server blames (`fieldPath`). `expression` computes the message (`messageExpression`).
    """
    return {
        "rule": rule,
        "message": message,
        **({"messageExpression": expression} if expression else {}),
        **({"fieldPath": field} if field else {}),
    }
