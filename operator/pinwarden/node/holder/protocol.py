"""How listeners go from one process to another: packets over a Unix socket, each with what the runtime said and the descriptor itself.

A gate says `GATE` and gets every listener, then `COMPLETE`, then new ones as they come; it sends those that the holder does not have. A
holder that takes another one's place says `SUCCESSOR`, and gets first the two listening sockets, so that no connection is ever refused,
then the same; it says `TAKEN` when it has all.
"""

import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

MESSAGE_BYTES = 64 << 10
_HEAD = struct.Struct("=BQ")
_DESCRIPTORS = 8


class Kind(IntEnum):
    """What a packet is."""

    GATE = 1
    SUCCESSOR = 2
    LISTENER = 3
    COMPLETE = 4
    SOCKETS = 5
    TAKEN = 6


@dataclass(frozen=True, slots=True)
class Packet:
    """`number` tells listeners apart, across processes; `message` is the runtime's. Whoever received it owns the `descriptors`."""

    kind: Kind
    number: int = 0
    message: bytes = b""
    descriptors: tuple[int, ...] = ()


def new_number() -> int:
    """A number for a listener that just came."""
    return int.from_bytes(os.urandom(8)) >> 1


def connect(path: Path, seconds: float) -> socket.socket:
    """A connection to a holder; every call on it ends within `seconds`. Raises OSError when there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(seconds)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def send(connection: socket.socket, packet: Packet) -> None:
    """Sends it; the descriptors stay the caller's too. Raises OSError."""
    data = _HEAD.pack(packet.kind, packet.number) + packet.message
    socket.send_fds(connection, [data], list(packet.descriptors))


def receive(connection: socket.socket) -> Packet | None:
    """The next packet; None when the other side is gone. Raises OSError, also for what is no packet, or has lost a descriptor."""
    data, descriptors, flags, _ = socket.recv_fds(
        connection, _HEAD.size + MESSAGE_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        close(descriptors)
        return None
    try:
        kind, number = _HEAD.unpack_from(data)
        packet = Packet(Kind(kind), number, data[_HEAD.size :], tuple(descriptors))
    except (struct.error, ValueError) as error:
        close(descriptors)
        raise OSError(f"what came is no packet: {error}") from error
    if flags & socket.MSG_CTRUNC:
        close(descriptors)
        raise OSError("a packet came without its descriptors: there is no room for them")
    return packet


def close(descriptors: Iterable[int]) -> None:
    """Let go of what came and is not wanted."""
    for descriptor in descriptors:
        os.close(descriptor)
