"""Sums of what nodes report, and amounts of bytes for people."""

from collections.abc import Iterable
from typing import Final

MOST: Final = 2**63 - 1
"""What an int64 of the API holds. Only a node that lies reports figures whose sum is larger; `Complete` says so then."""

_UNITS: Final = (("Pi", 2**50), ("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


def total(figures: Iterable[int]) -> int:
    """The sum, cut at `MOST`: what one node reports must not keep the API server from taking the status of a limit."""
    return min(MOST, sum(figures))


def short(amount: int) -> str:
    """`64Mi`, `12.5Mi`, `100`: a whole number is exact, one with a decimal place is rounded."""
    for suffix, unit in _UNITS:
        if amount >= unit:
            whole, rest = divmod(amount, unit)
            return f"{amount / unit:.1f}{suffix}" if rest else f"{whole}{suffix}"
    return str(amount)
