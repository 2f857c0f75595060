"""The protobuf encoding."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.nri.wire import Fields, WireError, encode

NUMBERS = st.integers(0, 2**64 - 1)
TEXTS = st.text(st.characters(codec="utf-8"))


@given(number=NUMBERS, text=TEXTS, texts=st.lists(TEXTS), parts=st.lists(NUMBERS))
def test_encoded_message_has_its_fields(
    number: int, text: str, texts: list[str], parts: list[int]
) -> None:
    data = encode({1: number, 2: text, 300: texts, 4: [encode({1: part}) for part in parts]})
    fields = Fields(data)
    assert (fields.number(1), fields.text(2), list(fields.texts(300))) == (number, text, texts)
    assert [part.number(1) for part in fields.messages(4)] == parts


def test_known_bytes_of_the_documentation_are_read() -> None:
    assert Fields(bytes.fromhex("089601")).number(1) == 150
    assert encode({1: 150}) == bytes.fromhex("089601")
    assert Fields(bytes.fromhex("120774657374696e67")).text(2) == "testing"


def test_absent_field_has_its_default() -> None:
    fields = Fields(b"")
    assert (fields.number(1), fields.text(2), fields.octets(2)) == (0, "", b"")
    assert (fields.texts(3), fields.message(4), fields.strings(5)) == ((), None, {})


def test_last_value_counts_and_parts_of_a_message_are_merged() -> None:
    assert Fields(encode({1: [1, 2]})).number(1) == 2
    merged = Fields(encode({1: [encode({1: 5}), encode({2: 6})]})).message(1)
    assert merged is not None
    assert (merged.number(1), merged.number(2)) == (5, 6)


def test_empty_message_is_there_and_an_empty_text_of_a_list_too() -> None:
    assert Fields(encode({1: b""})).message(1) is not None
    assert Fields(encode({1: [""]})).texts(1) == ("",)


def test_fields_of_a_fixed_size_are_skipped() -> None:
    fixed = bytes([1 << 3 | 1]) + bytes(8) + bytes([2 << 3 | 5]) + bytes(4)
    assert Fields(fixed + encode({3: 7})).number(3) == 7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x08", "cut off"),
        (b"\x08" + b"\xff" * 10, "too long"),
        (b"\x12\x05abc", "cut off"),
        (b"\x09abc", "cut off"),
        (b"\x00\x01", "number 0"),
        (b"\x0b", "unknown type 3"),
    ],
)
def test_broken_message_is_rejected(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        Fields(data)


def test_field_of_another_type_is_rejected() -> None:
    with pytest.raises(WireError, match="no number"):
        Fields(encode({1: "text"})).number(1)
    with pytest.raises(WireError, match="is a number"):
        Fields(encode({1: 5})).text(1)
    with pytest.raises(WireError, match="no text"):
        Fields(encode({1: b"\xff"})).text(1)


@given(st.binary(max_size=64))
def test_any_bytes_are_fields_or_a_wire_error(data: bytes) -> None:
    with suppress(WireError):
        Fields(data)
