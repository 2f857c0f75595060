"""Maps of sets without empty sets."""

from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def discard(sets: dict[_Key, set[_Value]], key: _Key, value: _Value) -> None:
    """Remove `value` from the set at `key`, and the set with its last value."""
    values = sets[key]
    values.discard(value)
    if not values:
        del sets[key]
