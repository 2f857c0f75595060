"""Amounts of bytes for people."""

from typing import Final

_UNITS: Final = (("Pi", 2**50), ("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


def short(amount: int) -> str:
    """`64Mi`, `12.5Mi`, `100`: a whole number is exact, one with a decimal place is rounded."""
    for suffix, unit in _UNITS:
        if amount >= unit:
            whole, rest = divmod(amount, unit)
            return f"{amount / unit:.1f}{suffix}" if rest else f"{whole}{suffix}"
    return str(amount)
