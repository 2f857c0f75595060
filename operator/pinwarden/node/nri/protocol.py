"""Framing between an NRI plugin and the runtime: ttrpc messages over two connections of one socket.

A frame of the multiplexer is the number of a connection, a length, and a part of the stream of
this connection. On the connection `PLUGIN` the runtime calls the plugin, on `RUNTIME` the plugin
calls the runtime. A ttrpc message is a length, the number of a call, a kind, flags, and a payload
(a Request or Response in protobuf encoding). All numbers are big-endian.

See pkg/net/multiplex of containerd/nri, and PROTOCOL.md of containerd/ttrpc.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

PLUGIN: Final = 1
RUNTIME: Final = 2
REQUEST: Final = 1
RESPONSE: Final = 2
_FRAME: Final = struct.Struct(">II")
_MESSAGE: Final = struct.Struct(">IIBB")
MOST_BYTES: Final = 4 << 20
"""The longest payload of a ttrpc message (`messageLengthMax`)."""
_MOST_FRAME: Final = _MESSAGE.size + MOST_BYTES
_SENT_FRAME: Final = 4096
"""The longest frame for the runtime, which reads into a buffer of this size."""


class ProtocolError(ValueError):
    """Bytes against the protocol. The connection cannot be used any more."""


class Message(NamedTuple):
    """A ttrpc message. `call` is the number of the started or answered call."""

    connection: int
    call: int
    kind: int
    payload: bytes


def encode(message: Message) -> bytes:
    """Return the frames of a message. Raises ProtocolError for a payload over `MOST_BYTES`."""
    if len(message.payload) > MOST_BYTES:
        raise ProtocolError(f"a message of {len(message.payload)} bytes is too long")
    header = _MESSAGE.pack(len(message.payload), message.call, message.kind, 0)
    stream = header + message.payload
    parts = [stream[at : at + _SENT_FRAME] for at in range(0, len(stream), _SENT_FRAME)]
    return b"".join(_FRAME.pack(message.connection, len(part)) + part for part in parts)


class Decoder:
    """Joins received bytes to messages."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._streams = {PLUGIN: bytearray(), RUNTIME: bytearray()}

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages complete by now. Raises ProtocolError."""
        self._received += data
        while len(self._received) >= _FRAME.size:
            connection, length = _FRAME.unpack_from(self._received)
            if length > _MOST_FRAME:
                raise ProtocolError(f"a frame of {length} bytes is too long")
            if len(self._received) < _FRAME.size + length:
                return
            part = self._received[_FRAME.size : _FRAME.size + length]
            del self._received[: _FRAME.size + length]
            if connection in self._streams:
                self._streams[connection] += part
                yield from self._complete(connection)

    def _complete(self, connection: int) -> Iterator[Message]:
        stream = self._streams[connection]
        while len(stream) >= _MESSAGE.size:
            length, call, kind, _ = _MESSAGE.unpack_from(stream)
            if length > MOST_BYTES:
                raise ProtocolError(f"a message of {length} bytes is too long")
            if len(stream) < _MESSAGE.size + length:
                return
            payload = bytes(stream[_MESSAGE.size : _MESSAGE.size + length])
            del stream[: _MESSAGE.size + length]
            yield Message(connection, call, kind, payload)
