"""Texts of amounts are never misleading."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.quantity import Quantity
from pinwarden.common.text import compared, exact, short

MIB = 2**20
amounts = st.integers(0, 2**52) | st.builds(
    lambda unit, count, more: max(0, unit * count + more),
    st.sampled_from([1, 2**10, MIB, 2**30, 2**40]),
    st.integers(0, 5000),
    st.sampled_from([-4096, -1, 0, 1, 4096]),
)


def value(text: str) -> Fraction:
    return Quantity(text.removeprefix(">")).value


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (100, "100"),
        (4096, "4Ki"),
        (40 * MIB, "40Mi"),
        (3 * 2**29, "1.5Gi"),
        (25 * 2**19, "12.5Mi"),
        (8 * MIB + 4096, "8196Ki"),
        (40 * MIB + 4096, ">40.0Mi"),
        (40 * MIB - 4096, ">39.9Mi"),
        (1500, "1500"),
        (2**50, "1Pi"),
    ],
)
def test_amount_is_shown_as_text(amount: int, text: str) -> None:
    assert short(amount) == text


@given(amounts)
def test_text_without_a_mark_is_exact_and_with_a_mark_cut(amount: int) -> None:
    text = short(amount)
    assert len(text) <= 9
    if not text.startswith(">"):
        assert value(text) == amount
    else:
        assert value(text) < amount < value(text) * Fraction(11, 10)
    assert value(exact(amount)) == amount


@given(amounts, amounts)
def test_texts_keep_the_order_of_amounts(first: int, second: int) -> None:
    if first < second:
        assert value(short(first)) <= value(short(second))


@given(amounts, amounts)
@pytest.mark.rule("H2")
def test_compared_amounts_read_the_same_only_if_equal(first: int, second: int) -> None:
    texts = compared(first, second)
    assert (texts[0] == texts[1]) == (first == second)


@given(st.integers(0, 5000), st.sampled_from([1, 2**10, MIB, 2**30]), st.integers(1, 2**40))
def test_amount_beside_a_round_limit_never_reads_like_the_limit(
    count: int, unit: int, distance: int
) -> None:
    limit = count * unit
    for amount in (limit + distance, max(0, limit - distance)):
        if amount != limit:
            assert short(amount) != exact(limit)
            assert short(amount) != short(limit) or short(limit).startswith(">")
