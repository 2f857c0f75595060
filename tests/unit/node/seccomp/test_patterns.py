"""Comparisons of a seccomp rule as sets of bit patterns, and the algebra of boxes."""

import operator
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.seccomp.patterns import (
    BitPattern,
    Box,
    comparison,
    disjoint,
    intersect,
    subtract,
)

WORDS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**64 - 1])
COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "EQ": operator.eq,
    "GE": operator.ge,
    "GT": operator.gt,
}
SMALL = st.integers(0, 3)
PATTERNS = st.builds(lambda mask, value: BitPattern(mask, value & mask), SMALL, SMALL)
BOXES = st.tuples(PATTERNS, PATTERNS).map(lambda two: (*two, *[BitPattern(0, 0)] * 4))
CALLS = [(first, second) for first in range(4) for second in range(4)]


def matches(pattern: BitPattern, number: int) -> bool:
    return number & pattern.mask == pattern.value


def count(boxes: list[Box], call: tuple[int, int]) -> int:
    return sum(all(map(matches, box, (*call, 0, 0, 0, 0))) for box in boxes)


@given(name=st.sampled_from(sorted(COMPARISONS)), value=WORDS, number=WORDS)
def test_comparison_has_one_pattern_for_each_number_that_meets_it(
    name: str, value: int, number: int
) -> None:
    for candidate in {number, value, max(value - 1, 0), min(value + 1, 2**64 - 1)}:
        found = [
            each for each in comparison(f"SCMP_CMP_{name}", value, 0) if matches(each, candidate)
        ]
        assert len(found) == COMPARISONS[name](candidate, value)


@given(mask=WORDS, value=WORDS, number=WORDS)
def test_masked_comparison_is_its_pattern(mask: int, value: int, number: int) -> None:
    (pattern,) = comparison("SCMP_CMP_MASKED_EQ", mask, value & mask)
    assert matches(pattern, number) == (number & mask == value & mask)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("SCMP_CMP_MASKED_EQ", 4, "outside the mask 0x3"), ("SCMP_CMP_ODD", 0, "unknown")],
)
def test_comparison_without_patterns_is_rejected(name: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        comparison(name, 3, value)


@given(st.lists(BOXES, max_size=4), st.lists(BOXES, max_size=4))
def test_boxes_intersect_and_subtract_like_sets(one: list[Box], other: list[Box]) -> None:
    one = disjoint(one)
    common, rest = intersect(one, disjoint(other)), subtract(one, other)
    for call in CALLS:
        is_in, is_other = count(one, call), count(other, call) > 0
        assert is_in <= 1
        assert count(common, call) == (is_in and is_other)
        assert count(rest, call) == (is_in and not is_other)
