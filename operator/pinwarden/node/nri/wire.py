"""The protobuf encoding, as far as the messages of NRI need it.

The `protobuf` package would add a half to the memory of this process (18.9 against 12.6 MB). Only
varints and length-delimited fields have a meaning in these messages; fields of a fixed size are
skipped. See the encoding of protocol buffers.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Final

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MOST_VARINT: Final = 10
_MORE: Final = 0x80
_FULL: Final = (1 << 64) - 1


class WireError(ValueError):
    """No protobuf message, or a field of an unexpected type."""


class Fields:
    """The fields of a message by number. An absent field has its default: 0, "" or no items.

    With `wanted`, the message has only these fields. Raises WireError if the bytes are no message,
    and if a field has another type.
    """

    def __init__(self, data: bytes, wanted: Container[int] | None = None) -> None:
        self._values: dict[int, list[int | bytes]] = {}
        for number, value in _fields(data, wanted):
            self._values.setdefault(number, []).append(value)

    def encoded(self) -> bytes:
        """Return the message of these fields."""
        return encode(self._values)

    def number(self, field: int) -> int:
        """Return an unsigned number."""
        value = self._last(field, 0)
        if not isinstance(value, int):
            raise WireError(f"field {field} is no number")
        return value

    def text(self, field: int) -> str:
        """Return a string."""
        return _text(field, self._last(field, b""))

    def octets(self, field: int) -> bytes:
        """Return bytes."""
        return _bytes(field, self._last(field, b""))

    def texts(self, field: int) -> tuple[str, ...]:
        """Return a repeated string."""
        return tuple(_text(field, value) for value in self._values.get(field, []))

    def message(self, field: int) -> "Fields | None":
        """Return a message, None without it. Several parts of one message are merged."""
        encoded = self.joined(field)
        return None if encoded is None else Fields(encoded)

    def joined(self, field: int) -> bytes | None:
        """Return an encoded message, None without it. Several parts of one message are joined."""
        return b"".join(self.parts(field)) if field in self._values else None

    def messages(self, field: int) -> "Iterator[Fields]":
        """Yield a repeated message."""
        for part in self.parts(field):
            yield Fields(part)

    def parts(self, field: int) -> tuple[bytes, ...]:
        """Return a repeated message, encoded."""
        return tuple(_bytes(field, value) for value in self._values.get(field, []))

    def strings(self, field: int) -> dict[str, str]:
        """Return a map of strings."""
        return {entry.text(1): entry.text(2) for entry in self.messages(field)}

    def _last(self, field: int, default: int | bytes) -> int | bytes:
        return self._values.get(field, [default])[-1]


def _text(field: int, value: int | bytes) -> str:
    try:
        return _bytes(field, value).decode()
    except UnicodeDecodeError as error:
        raise WireError(f"field {field} is no text") from error


def _bytes(field: int, value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise WireError(f"field {field} is a number")
    return value


def _fields(data: bytes, wanted: Container[int] | None) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise WireError("a field has the number 0")
        if kind == _VARINT:
            value, at = _varint(data, at)
            if wanted is None or number in wanted:
                yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_FIXED_64, _FIXED_32):
            length = 8 if kind == _FIXED_64 else 4
        else:
            raise WireError(f"field {number} has the unknown type {kind}")
        if at + length > len(data):
            raise WireError(f"field {number} is cut off")
        if kind == _BYTES and (wanted is None or number in wanted):
            yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < _MORE:
        return data[at], at + 1
    value = 0
    for position, byte in enumerate(data[at : at + _MOST_VARINT]):
        value |= (byte & ~_MORE) << 7 * position
        if byte < _MORE:
            return value & _FULL, at + position + 1
    raise WireError("a number is cut off or too long")


def encode(fields: Mapping[int, object]) -> bytes:
    """Return a message of numbers, texts, messages as bytes, and lists of them.

    A number of 0 and an empty text are left out, as proto3 does. Bytes stay, also
    empty: a present empty message is not an absent one.
    """
    return b"".join(_encode(number, value) for number, value in fields.items())


def _encode(number: int, value: object) -> bytes:
    match value:
        case int():
            return _number(number << 3) + _number(value) if value else b""
        case str():
            return _encode(number, value.encode()) if value else b""
        case bytes():
            return _number(number << 3 | _BYTES) + _number(len(value)) + value
        case list() | tuple():
            return b"".join(_item(number, item) for item in value)
    raise TypeError(f"field {number} cannot be encoded: {value!r}")


def _item(number: int, item: object) -> bytes:
    """Return an item of a list, which stays even if empty."""
    return _encode(number, item.encode() if isinstance(item, str) else item)


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value >= _MORE:
        encoded.append(value & ~_MORE & 0xFF | _MORE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
