"""Text for users: amounts in bytes, and untrusted names.

An amount without a mark is exact. `>40.0Mi` is more than 40.0Mi and less than 40.1Mi: amounts are
cut and never rounded up. So an amount below or above a limit never reads like the limit.
"""

from collections.abc import Iterable
from typing import Final

MOST: Final = 2**63 - 1
"""The largest int64 of the API.

Only a lying node reports a larger sum; `Complete` then reports this.
"""

_UNITS: Final = (("Pi", 2**50), ("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10), ("", 1))
_DIGITS: Final = 10_000


def total(figures: Iterable[int]) -> int:
    """Return the sum, at most `MOST`, because the API server rejects a larger number."""
    return min(MOST, sum(figures))


def short(amount: int) -> str:
    """Return the exact amount, as `40Mi`, `1.5Gi` or `8196Ki`, or a cut one, as `>40.0Mi`.

    An amount is cut if four digits and one decimal are too few.
    """
    largest = next(
        (number for number, (_, unit) in enumerate(_UNITS) if amount >= unit), len(_UNITS) - 1
    )
    suffix, unit = _UNITS[largest]
    tenths, rest = divmod(amount * 10, unit)
    if not rest:
        whole, tenth = divmod(tenths, 10)
        return f"{whole}.{tenth}{suffix}" if tenth else f"{whole}{suffix}"
    text = exact(amount)
    return text if amount // _unit(amount) < _DIGITS else f">{tenths // 10}.{tenths % 10}{suffix}"


def readable(amount: int | None) -> str | None:
    """Return `short` of a known amount, None for an unknown one: unknown, not zero (H2)."""
    return None if amount is None else short(amount)


def exact(amount: int) -> str:
    """Return the amount in the largest dividing unit, as Kubernetes writes amounts: `40964Ki`."""
    unit = _unit(amount)
    return f"{amount // unit}{next(suffix for suffix, size in _UNITS if size == unit)}"


def compared(amount: int, other: int) -> tuple[str, str]:
    """Return both amounts for one sentence: different amounts never read the same."""
    texts = short(amount), short(other)
    return (exact(amount), exact(other)) if amount != other and texts[0] == texts[1] else texts


def printable(text: str) -> str:
    """Return the text without line ends, quotation marks and control characters.

    A process chooses its own name.
    """
    return "".join(
        character if character.isprintable() and character != '"' else "?" for character in text
    )


def _unit(amount: int) -> int:
    return (
        next(unit for _, unit in _UNITS if amount >= unit and amount % unit == 0) if amount else 1
    )
