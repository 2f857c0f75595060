"""Sets of argument values as bit patterns, as a seccomp filter compares them. Pure.

A pattern fixes some bits of one argument. A box has a pattern for each of the six arguments of a
call, and is the set of calls that match all of them. Any comparison of a seccomp rule is a union of
disjoint patterns, so sets of calls can be intersected and subtracted exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 64
MOST_BOXES: Final = 256
"""The largest union of boxes."""
_FULL: Final = (1 << WIDTH) - 1


@dataclass(frozen=True, slots=True, order=True)
class BitPattern:
    """All numbers with the bits `value` under `mask`."""

    mask: int
    value: int

    def meets(self, other: "BitPattern") -> bool:
        """Return whether both patterns match some number."""
        return not (self.value ^ other.value) & self.mask & other.mask

    def intersect(self, other: "BitPattern") -> "BitPattern":
        """Return the pattern for the numbers of both patterns, which must meet."""
        return BitPattern(self.mask | other.mask, self.value | other.value)


ANY: Final = BitPattern(0, 0)
Box = tuple[BitPattern, ...]
EVERYTHING: Final[Box] = (ANY,) * 6


def comparison(operator: str, value: int, value_two: int) -> list[BitPattern]:
    """Return disjoint patterns for the numbers that meet a comparison of a rule.

    With SCMP_CMP_MASKED_EQ, `value` is the mask. Raises ValueError for an unknown operator, and for
    a value with bits outside its mask.
    """
    equal = BitPattern(_FULL, value)
    match operator:
        case "SCMP_CMP_EQ":
            return [equal]
        case "SCMP_CMP_NE":
            return complement([equal], WIDTH)
        case "SCMP_CMP_LT":
            return _below(value)
        case "SCMP_CMP_LE":
            return [*_below(value), equal]
        case "SCMP_CMP_GE":
            return complement(_below(value), WIDTH)
        case "SCMP_CMP_GT":
            return complement([*_below(value), equal], WIDTH)
        case "SCMP_CMP_MASKED_EQ" if not value_two & ~value:
            return [BitPattern(value, value_two)]
        case "SCMP_CMP_MASKED_EQ":
            raise ValueError(f"the value {value_two:#x} has bits outside the mask {value:#x}")
    raise ValueError(f"the comparison {operator!r} is unknown")


def _below(number: int) -> list[BitPattern]:
    """Return disjoint patterns for all smaller numbers: each has its first difference at a 1."""
    return [
        BitPattern(_FULL & ~(bit - 1), number & ~(2 * bit - 1))
        for bit in (1 << position for position in range(WIDTH))
        if number & bit
    ]


def complement(patterns: Iterable[BitPattern], width: int) -> list[BitPattern]:
    """Return disjoint patterns for all other numbers of `width` bits."""
    rest = [ANY]
    for taken in patterns:
        rest = [part for pattern in rest for part in _without(pattern, taken, width)]
    return sorted(rest)


def _without(whole: BitPattern, taken: BitPattern, width: int) -> list[BitPattern]:
    """Return patterns for the numbers of `whole` without those of `taken`.

    Each bit fixed only by `taken` has a pattern: the numbers with their first difference at this
    bit.
    """
    if not whole.meets(taken):
        return [whole]
    parts = []
    mask, value = whole.mask, whole.value
    bits = taken.mask & ~whole.mask & (1 << width) - 1
    while bits:
        bit = 1 << bits.bit_length() - 1
        bits ^= bit
        parts.append(BitPattern(mask | bit, value | (~taken.value & bit)))
        mask, value = mask | bit, value | (taken.value & bit)
    return parts


def box(argument: int, pattern: BitPattern) -> Box:
    """Return the box with a condition on one argument."""
    return (*EVERYTHING[:argument], pattern, *EVERYTHING[argument + 1 :])


class TooManyBoxesError(ValueError):
    """A union of more than `MOST_BOXES` boxes."""


def intersect(boxes: Iterable[Box], others: Iterable[Box]) -> list[Box]:
    """Return the calls in both unions, disjoint if both are. Raises TooManyBoxesError."""
    others = list(others)
    return _bounded(
        [
            tuple(mine.intersect(theirs) for mine, theirs in zip(one, other, strict=True))
            for one in boxes
            for other in others
            if _meet(one, other)
        ]
    )


def subtract(boxes: Iterable[Box], others: Iterable[Box]) -> list[Box]:
    """Return the calls of a union without those of another, disjoint if `boxes` is.

    Raises TooManyBoxesError.
    """
    rest = list(boxes)
    for taken in others:
        rest = _bounded([part for whole in rest for part in _subtract_box(whole, taken)])
    return rest


def disjoint(boxes: Iterable[Box]) -> list[Box]:
    """Return the same union with each call in one box. Raises TooManyBoxesError."""
    union: list[Box] = []
    for added in boxes:
        union = _bounded(union + subtract([added], union))
    return union


def _bounded(boxes: list[Box]) -> list[Box]:
    if len(boxes) > MOST_BOXES:
        raise TooManyBoxesError(f"a call needs more than {MOST_BOXES} rules")
    return boxes


def _meet(one: Box, other: Box) -> bool:
    return all(mine.meets(theirs) for mine, theirs in zip(one, other, strict=True))


def _subtract_box(whole: Box, taken: Box) -> list[Box]:
    if not _meet(whole, taken):
        return [whole]
    parts: list[Box] = []
    rest = list(whole)
    for argument, pattern in enumerate(taken):
        for outside in _without(rest[argument], pattern, WIDTH):
            parts.append((*rest[:argument], outside, *rest[argument + 1 :]))
        rest[argument] = rest[argument].intersect(pattern)
    return parts
