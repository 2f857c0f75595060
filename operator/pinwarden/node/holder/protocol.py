"""Packets with listeners between processes over a Unix socket.

A `LISTENER` packet has the descriptor and the message of the container runtime. A gate sends
`GATE`. The answer is every listener, then `COMPLETE`, and later each new listener. The gate sends
the listeners missing at the holder. A new holder sends `SUCCESSOR` to the running holder. The
answer is the two listening sockets, and then every listener and `COMPLETE`. So no connection is
ever refused. The new holder sends `TAKEN` at the end.
"""

import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

RUNTIME_SOCKET, GATES_SOCKET = "seccomp.sock", "holder.sock"
"""The holder's sockets in the folder of the gate: for container runtimes, for gates and holders."""
MESSAGE_BYTES = 64 << 10
_HEAD = struct.Struct("=BQ")
_DESCRIPTORS = 8


class PacketKind(IntEnum):
    """The kind of a packet."""

    GATE = 1
    SUCCESSOR = 2
    LISTENER = 3
    COMPLETE = 4
    SOCKETS = 5
    TAKEN = 6


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet. `number` names a listener in all processes. `message` is the runtime's message.

    The receiver owns the `descriptors`.
    """

    kind: PacketKind
    number: int = 0
    message: bytes = b""
    descriptors: tuple[int, ...] = ()


def new_number() -> int:
    """Return a random number for a new listener."""
    return int.from_bytes(os.urandom(8)) >> 1


def connect(path: Path, seconds: float) -> socket.socket:
    """Return a connection to a holder with a timeout for each operation.

    Raises OSError if no holder answers.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(seconds)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def send(connection: socket.socket, packet: Packet) -> None:
    """Send a packet. The caller keeps its descriptors. Raises OSError."""
    data = _HEAD.pack(packet.kind, packet.number) + packet.message
    socket.send_fds(connection, [data], list(packet.descriptors))


def receive(connection: socket.socket) -> Packet | None:
    """Return the next packet, or None if the peer is gone.

    Raises OSError, also for other data and for a packet without its descriptors.
    """
    data, descriptors, flags, _ = socket.recv_fds(
        connection, _HEAD.size + MESSAGE_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        close(descriptors)
        return None
    try:
        kind, number = _HEAD.unpack_from(data)
        packet = Packet(PacketKind(kind), number, data[_HEAD.size :], tuple(descriptors))
    except (struct.error, ValueError) as error:
        close(descriptors)
        raise OSError(f"the data is not a packet: {error}") from error
    if flags & socket.MSG_CTRUNC:
        close(descriptors)
        raise OSError("a packet is without its descriptors: there is no room for them")
    return packet


def close(descriptors: Iterable[int]) -> None:
    """Close unwanted descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)
