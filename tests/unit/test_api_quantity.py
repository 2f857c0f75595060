"""Quantities parse as `resource.ParseQuantity` does and keep their text."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.quantity import MAX_INT64, Quantity

DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64Mi", 64 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("1.", 1),
        (".5Ki", 512),
        ("+8", 8),
        ("1E", 10**18),
        ("1E3", 1000),
        ("1e-3", Fraction(1, 1000)),
        ("0.1n", Fraction(1, 10**9)),
        ("-0.1n", Fraction(-1, 10**9)),
        ("16Ei", MAX_INT64),
        ("1e30", 10**30),
    ],
)
def test_values_that_apimachinery_gives(text: str, value: Fraction | int) -> None:
    assert Quantity(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Mi",
        "1 Mi",
        "1mi",
        "1KI",
        "1.1.1",
        "--1",
        "1i",
        "1e",
        "1e1.5",
        "0x10",
        "1_000",
        "٣",
        "1e99999",
        "1Mi\n",
    ],
)
def test_other_texts_are_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        Quantity(text)


@given(st.integers(0, 10**12), st.sampled_from([*DECIMAL, *BINARY]))
def test_a_whole_number_with_a_suffix_is_their_product(number: int, suffix: str) -> None:
    factor = Fraction(2 ** BINARY[suffix]) if suffix in BINARY else Fraction(10) ** DECIMAL[suffix]
    expected = number * factor
    assert Quantity(f"{number}{suffix}").value == (min(expected, MAX_INT64) if suffix in BINARY else expected)


@given(st.decimals(min_value=0, max_value=10**9, places=12))
def test_what_is_finer_than_nano_is_rounded_up(number: Decimal) -> None:
    rounded = Quantity(f"{number:f}").value
    assert 0 <= rounded - Fraction(number) < Fraction(1, 10**9)
    assert (rounded * 10**9).denominator == 1


@given(st.integers(-(10**20), 10**20))
def test_text_and_value_survive(number: int) -> None:
    assert str(Quantity(number)) == str(number)
    assert Quantity(number).value == number


@pytest.mark.parametrize(("text", "message"), [("-1", "negative"), ("1500m", "whole number of bytes")])
def test_bytes_refuses_what_is_no_number_of_bytes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = Quantity(text).bytes
