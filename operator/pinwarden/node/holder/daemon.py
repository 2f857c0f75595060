"""Keeps the descriptors of listeners. The holder does nothing else, so no other work can end it.

While any process has a copy of a listener's descriptor open, calls wait for an answer. Without a
copy, the calls end with ENOSYS until the container ends. So the container runtime sends each
descriptor to the holder, and the gate gets a copy. If one of them dies, its successor gets the
copies from the other. A new holder takes over the sockets and the descriptors of the running
holder. The latter then only keeps its own copies.

The holder serves all connections in one thread and waits for none of them. With imports from the
standard library only, the holder starts fast.

The kernel closes a received descriptor if the receiver has no room. So the holder receives from the
container runtime only with room for all descriptors.
"""

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pinwarden.common.guard import Guard
from pinwarden.node.holder import protocol
from pinwarden.node.holder.protocol import MESSAGE_BYTES, Packet, PacketKind

SECONDS = 5.0
PAUSE_SECONDS = 0.5
_DESCRIPTORS = 4
_BACKLOG = 512
_ENDED = select.EPOLLHUP | select.EPOLLERR
_log = logging.getLogger(__name__)


class Holder:
    """Listens on two sockets from its creation.

    `runtime` is the path in the profiles, `gates` the path for gates and successors.
    """

    def __init__(self, runtime: Path, gates: Path) -> None:
        """Take over from the running holder, or create the sockets. Raises OSError."""
        self._guard = Guard(("descriptor",))
        self._listeners: dict[int, tuple[int, bytes]] = {}
        self._gate: socket.socket | None = None
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._arriving: dict[int, tuple[socket.socket, float, bytes, list[int]]] = {}
        taken = self._take_over(gates)
        self._runtime, self._gates = taken or (
            _listen(runtime, socket.SOCK_STREAM),
            _listen(gates, socket.SOCK_SEQPACKET),
        )
        self._watch(self._runtime, self._accept_runtime)
        self._watch(self._gates, self._accept_gate)

    @property
    def listener_count(self) -> int:
        """The number of listeners."""
        return len(self._listeners)

    def turn(self, seconds: float) -> None:
        """Serve the sockets once, and wait for up to `seconds` before."""
        for descriptor, event in self._poll.poll(seconds):
            if ready := self._ready.get(descriptor):
                with self._guard.item("descriptor"):
                    ready(event)
                if not self._guard.due("descriptor"):
                    self._give_up(descriptor)
        now = time.monotonic()
        for descriptor, (_, deadline, _, _) in list(self._arriving.items()):
            if now > deadline:
                _log.warning(
                    "a container runtime connected and did not finish within %.0f s", SECONDS
                )
                self._end_arrival(descriptor)

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor, _ in self._listeners.values():
            os.close(descriptor)
        for connection in (self._runtime, self._gates, self._gate):
            if connection is not None:
                connection.close()
        self._poll.close()

    def _give_up(self, descriptor: int) -> None:
        """Close a failing connection. A listening socket stays open."""
        if descriptor in self._arriving:
            self._end_arrival(descriptor)
        elif self._gate is not None and descriptor == self._gate.fileno():
            self._drop_gate()
        else:
            time.sleep(PAUSE_SECONDS)

    def _watch(self, source: socket.socket, ready: Callable[[int], None]) -> None:
        source.setblocking(False)
        self._ready[source.fileno()] = ready
        self._poll.register(source, select.EPOLLIN)

    def _unwatch(self, source: socket.socket) -> None:
        self._poll.unregister(source)
        del self._ready[source.fileno()]

    # -- listeners --------------------------------------------------------------------------------

    def _accept_runtime(self, _: int) -> None:
        if connection := _accept(self._runtime):
            number = connection.fileno()
            self._arriving[number] = (connection, time.monotonic() + SECONDS, b"", [])
            self._watch(connection, lambda _: self._read_runtime(number))

    def _read_runtime(self, number: int) -> None:
        connection, deadline, before, kept = self._arriving[number]
        try:
            _need_room()
        except OSError as error:
            _log.error(
                "a container runtime has to wait, its listener cannot be received: %s", error
            )
            time.sleep(PAUSE_SECONDS)
            self._arriving[number] = (connection, time.monotonic() + SECONDS, before, kept)
            return
        try:
            data, came, flags, _ = socket.recv_fds(
                connection, MESSAGE_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError as error:
            _log.warning("a container runtime disconnected: %s", error)
            self._end_arrival(number)
            return
        if flags & socket.MSG_CTRUNC:
            _log.error("a listener is lost: its descriptor could not be received")
        kept += came
        self._arriving[number] = (connection, deadline, before + data, kept)
        if not data or len(before) + len(data) > MESSAGE_BYTES:
            self._end_arrival(number)

    def _end_arrival(self, number: int) -> None:
        connection, _, message, came = self._arriving.pop(number)
        self._unwatch(connection)
        connection.close()
        for extra in came[1:]:
            os.close(extra)
        if not came:
            return
        if not message or len(message) > MESSAGE_BYTES:
            _log.error("a descriptor without the message of its container is closed")
            os.close(came[0])
            return
        listener = protocol.new_number()
        if self._keep(listener, came[0], message):
            self._send_to_gate(Packet(PacketKind.LISTENER, listener, message, (came[0],)))

    def _keep(self, number: int, descriptor: int, message: bytes) -> bool:
        """Keep a listener and return whether it is kept.

        `epoll(7)` rejects descriptors such as regular files, which cannot be listeners.
        """
        try:
            self._poll.register(descriptor, 0)  # epoll always reports a hang-up
        except OSError as error:
            _log.error("a descriptor that is not a listener is closed: %s", error)
            os.close(descriptor)
            return False
        self._listeners[number] = (descriptor, message)
        self._ready[descriptor] = lambda event: self._release(number) if event & _ENDED else None
        return True

    def _release(self, number: int) -> None:
        """Close a listener without processes."""
        descriptor, _ = self._listeners.pop(number)
        self._poll.unregister(descriptor)
        del self._ready[descriptor]
        os.close(descriptor)

    # -- gates and successors ---------------------------------------------------------------------

    def _accept_gate(self, _: int) -> None:
        connection = _accept(self._gates)
        if connection is None:
            return
        connection.settimeout(SECONDS)
        try:
            packet = protocol.receive(connection)
            if packet is not None:
                protocol.close(packet.descriptors)
            if packet is not None and packet.kind is PacketKind.GATE:
                self._drain_gate()
                self._send_all(connection)
                self._drop_gate()
                self._gate = connection
                self._watch(connection, lambda _: self._read_gate(connection))
                connection.settimeout(SECONDS)
                return
            if packet is not None and packet.kind is PacketKind.SUCCESSOR:
                self._hand_over(connection)
        except OSError as error:
            _log.warning("a connection of a gate or a new holder failed: %s", error)
        connection.close()

    def _drain_gate(self) -> None:
        """Receive the last packets of the previous gate, which may contain the last copies."""
        while self._gate is not None:
            sent = select.poll()
            sent.register(self._gate, select.POLLIN)
            if not sent.poll(0):
                return
            self._read_gate(self._gate)

    def _send_all(self, connection: socket.socket) -> None:
        for number, (descriptor, message) in self._listeners.items():
            protocol.send(connection, Packet(PacketKind.LISTENER, number, message, (descriptor,)))
        protocol.send(connection, Packet(PacketKind.COMPLETE))

    def _read_gate(self, connection: socket.socket) -> None:
        """Receive a listener from the gate, or notice its end."""
        try:
            packet = protocol.receive(connection)
        except OSError as error:
            _log.warning("the gate's connection failed: %s", error)
            packet = None
        if packet is None:
            self._drop_gate()
            return
        self._take(packet)

    def _take(self, packet: Packet) -> None:
        """Keep the listener of a packet if it is new, and close all other descriptors."""
        wanted = packet.kind is PacketKind.LISTENER and packet.number not in self._listeners
        protocol.close(packet.descriptors[1:] if wanted else packet.descriptors)
        if wanted and packet.descriptors:
            self._keep(packet.number, packet.descriptors[0], packet.message)

    def _send_to_gate(self, packet: Packet) -> None:
        if self._gate is None:
            return
        try:
            protocol.send(self._gate, packet)
        except OSError as error:
            _log.warning("a listener is not sent to the gate until it connects again: %s", error)
            self._drop_gate()

    def _drop_gate(self) -> None:
        if self._gate is not None:
            self._unwatch(self._gate)
            self._gate.close()
            self._gate = None

    def _hand_over(self, connection: socket.socket) -> None:
        """Send everything to a successor and keep the listeners too.

        Raises OSError if the successor does not confirm all of them.
        """
        while self._arriving:
            self.turn(0.1)
        sockets = (self._runtime.fileno(), self._gates.fileno())
        protocol.send(connection, Packet(PacketKind.SOCKETS, descriptors=sockets))
        self._send_all(connection)
        packet = protocol.receive(connection)
        if packet is None or packet.kind is not PacketKind.TAKEN:
            raise OSError("the successor did not confirm all listeners")
        for source in (self._runtime, self._gates):
            self._unwatch(source)
            source.close()
        self._drop_gate()
        _log.info(
            "another holder has taken over; this holder keeps its %d listeners",
            len(self._listeners),
        )

    def _take_over(self, gates: Path) -> tuple[socket.socket, socket.socket] | None:
        """Take over the listeners and return the sockets of the running holder, or None."""
        try:
            with protocol.connect(gates, 3 * SECONDS) as connection:
                protocol.send(connection, Packet(PacketKind.SUCCESSOR))
                return self._take_all(connection)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            _log.error("the running holder does not hand over, its sockets are replaced: %s", error)
            return None

    def _take_all(self, connection: socket.socket) -> tuple[socket.socket, socket.socket]:
        sockets: list[socket.socket] = []
        while packet := protocol.receive(connection):
            if packet.kind is PacketKind.SOCKETS:
                sockets = [socket.socket(fileno=descriptor) for descriptor in packet.descriptors]
                continue
            self._take(packet)
            if packet.kind is PacketKind.COMPLETE and len(sockets) == 2:
                protocol.send(connection, Packet(PacketKind.TAKEN))
                return sockets[0], sockets[1]
        raise OSError("it ended before it sent all listeners")


def run(runtime: Path, gates: Path) -> None:
    """Run until SIGTERM or SIGINT. Raises OSError."""
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    holder = Holder(runtime, gates)
    _log.info(
        "the holder listens on %s, with %d listeners taken over", runtime, holder.listener_count
    )
    while not ended:
        holder.turn(1.0)
    _log.info(
        "the holder ends; %d listeners stay open while a gate has them", holder.listener_count
    )


def _accept(source: socket.socket) -> socket.socket | None:
    """Return the next connection, or None if there is none or no room."""
    try:
        connection, _ = source.accept()
    except BlockingIOError:
        return None
    except OSError as error:
        _log.error("a connection has to wait: %s", error)
        time.sleep(PAUSE_SECONDS)
        return None
    return connection


def _need_room() -> None:
    """Raise OSError if the descriptors of a message could not be received now."""
    with ExitStack() as tried:
        for _ in range(_DESCRIPTORS):
            tried.callback(os.close, os.open("/", os.O_PATH | os.O_CLOEXEC))


def _listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    """Return a listening socket for root only. It replaces an existing socket."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, kind)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(umask)
    listener.listen(_BACKLOG)
    return listener
