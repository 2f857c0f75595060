"""A recommendation fits the observed peak with headroom, and is a round number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.plan.recommendation import HEADROOM, recommend


@pytest.mark.rule("H2")
@pytest.mark.parametrize("peak", [None, 0])
def test_recommendation_without_peak_is_none(peak: int | None) -> None:
    assert recommend(peak) is None


@pytest.mark.parametrize(
    ("peak", "expected"),
    [
        (1, "4Ki"),
        (4096, "8Ki"),
        (64 * 2**10, "80Ki"),
        (64 * 2**20, "80Mi"),
        (2**30, "1280Mi"),
        (5 * 2**30, "6Gi"),
    ],
)
def test_recommendation_has_documented_examples(peak: int, expected: str) -> None:
    assert recommend(peak) == expected


@given(st.integers(1, 2**50))
def test_recommendation_has_headroom_within_bounds(peak: int) -> None:
    amount = recommend(peak)
    assert amount is not None
    assert amount.bytes % 4096 == 0
    assert (
        peak * (1 + HEADROOM) - 1 <= amount.bytes <= max(4096, peak * (1 + HEADROOM)) * 1.125 + 4096
    )


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_recommendation_grows_with_peak(one: int, other: int) -> None:
    low, high = (recommend(peak) for peak in sorted((one, other)))
    assert (low.bytes if low else 0) <= (high.bytes if high else 0)
