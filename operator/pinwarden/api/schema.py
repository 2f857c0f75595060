"""Pieces of the structural schema that the models carry with them."""

from pydantic.config import JsonDict


def cel(rule: str, message: str, field: str | None = None) -> JsonDict:
    """One entry of `x-kubernetes-validations`; `field` names the field that the server blames (`fieldPath`)."""
    return {"rule": rule, "message": message, **({"fieldPath": field} if field else {})}
