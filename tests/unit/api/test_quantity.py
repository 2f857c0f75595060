"""Quantities parse as `resource.ParseQuantity` does and keep their text."""

import re
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
def test_quantity_has_value_of_apimachinery(text: str, value: Fraction | int) -> None:
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
def test_invalid_text_is_rejected_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        Quantity(text)


@given(st.integers(0, 10**12), st.sampled_from([*DECIMAL, *BINARY]))
def test_whole_number_with_suffix_is_their_product(number: int, suffix: str) -> None:
    factor = Fraction(2 ** BINARY[suffix]) if suffix in BINARY else Fraction(10) ** DECIMAL[suffix]
    expected = number * factor
    assert Quantity(f"{number}{suffix}").value == (
        min(expected, MAX_INT64) if suffix in BINARY else expected
    )


@given(st.decimals(min_value=0, max_value=10**9, places=12))
def test_value_finer_than_nano_is_rounded_up(number: Decimal) -> None:
    rounded = Quantity(f"{number:f}").value
    assert 0 <= rounded - Fraction(number) < Fraction(1, 10**9)
    assert (rounded * 10**9).denominator == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("64MB", "write 64M (powers of 1000) or 64Mi (powers of 1024)"),
        ("6GiB", "write 6Gi"),
        ("1.5gb", "write 1.5G (powers of 1000) or 1.5Gi (powers of 1024)"),
        ("64K", "write 64k (powers of 1000) or 64Ki (powers of 1024)"),
        ("64 Mi", "write 64Mi"),
        ("64 bytes", "write 64"),
        ("unlimited", "set no limit"),
        ("0x10", "decimal"),
        ("64,5Mi", "without commas"),
        ("lots", "must be a number of bytes with a suffix such as Ki, Mi or Gi, or none"),
    ],
)
def test_answer_to_misspelling_has_correct_spelling(text: str, answer: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity") as error:
        Quantity(text)
    assert answer in str(error.value)


@given(
    st.integers(0, 10**6), st.sampled_from("kKmMgGtTpP"), st.sampled_from(["B", "b", "iB", "ib"])
)
def test_amount_in_answer_is_a_quantity(number: int, letter: str, unit: str) -> None:
    with pytest.raises(ValueError, match="write") as error:
        Quantity(f"{number}{letter}{unit}")
    said = re.findall(r"\d+[kKMGTP]i?", str(error.value).partition("write ")[2])
    assert said
    assert all(Quantity(text).bytes >= number for text in said)


@given(
    st.decimals(min_value=4, max_value=2**20, places=6),
    st.sampled_from(["Ki", "Mi", "Gi"]),
    st.integers(0),
)
@pytest.mark.rule("P13")
def test_fraction_of_a_byte_changes_no_comparison(number: Decimal, suffix: str, total: int) -> None:
    """A sum of whole bytes exceeds 1.2Gi exactly where it exceeds its bytes rounded down."""
    amount = Quantity(f"{number:f}{suffix}")
    for whole in (total, amount.bytes, amount.bytes + 1):
        assert (whole > amount.bytes) == (whole > amount.value)


@given(st.integers(-(10**20), 10**20))
def test_quantity_keeps_text_and_value(number: int) -> None:
    assert str(Quantity(number)) == str(number)
    assert Quantity(number).value == number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-1", "negative"),
        ("0.5", "0 or at least a page"),
        ("64m", r"m is a thousandth: write 64M \(powers of 1000\) or 64Mi \(powers of 1024\)"),
        ("64000m", "m is a thousandth"),
    ],
)
def test_bytes_rejects_invalid_number_of_bytes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = Quantity(text).bytes
