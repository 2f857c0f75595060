"""Extensions of the structural schema for the models."""

from pydantic.config import JsonDict

ONCE = "self.all(one, self.exists_one(other, other == one))"
"""CEL: a list has no duplicates.

The list stays atomic; the server would merge a `set` with the lists of other clients.
"""


def cel(rule: str, message: str, field: str | None = None, expression: str = "") -> JsonDict:
    """Return one entry of `x-kubernetes-validations`.

    `field` names the field that the server blames (`fieldPath`). `expression` computes the message
    (`messageExpression`).
    """
    return {
        "rule": rule,
        "message": message,
        **({"messageExpression": expression} if expression else {}),
        **({"fieldPath": field} if field else {}),
    }
