"""The process of the gate: connects its parts, runs them, and shuts down.

One gate at a time answers on a node. This gate has the lock of the journal, and a second gate waits
for the lock. So an upgrade hands the work over within milliseconds. An alarm ends a stalled gate.
Its container then restarts, and calls wait meanwhile.

The configuration is the agent's file with the last accepted configuration (`state.config`). So the
gate needs no API server, and continues without an agent (H3). The objects of groups are in the
accountant's file (`state.accountant_status`). Without an accountant the last objects stay. The gate
polls both files every `POLL_SECONDS`.
"""

import logging
import os
import signal
import socket
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from pinwarden.common.guard import Guard, shown
from pinwarden.node.gate.container import parse
from pinwarden.node.gate.dispatcher import KINDS as GATE_KINDS
from pinwarden.node.gate.dispatcher import Dispatcher
from pinwarden.node.gate.journal import Journal
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.gate.publisher import GatePublisher
from pinwarden.node.holder import protocol
from pinwarden.node.holder.protocol import Packet, PacketKind
from pinwarden.node.pods.policy import NodePolicy
from pinwarden.node.state import accountant_status
from pinwarden.node.state.config import ConfigFollower, Configuration
from pinwarden.node.state.gate_lock import JOURNAL
from pinwarden.node.state.gate_status import NAME
from pinwarden.node.state.shutdown import Shutdown, ShutdownError, shutdown_on_signals
from pinwarden.node.state.statefile import PolledFile

POLL_SECONDS = 0.05
STALL_SECONDS = 20
LINGER_SECONDS = 50.0
KINDS = (*GATE_KINDS, "configuration", "file", "packet", "turn")
"""The kinds of items that the process guards."""
_STANDBY_SECONDS = 0.02
_HOLDER_SECONDS = 5.0
_RETRY_SECONDS = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateSettings:
    """The paths of the gate.

    `configuration` is the agent's file. `run_dir` is in a tmpfs and outlives the container.
    """

    configuration: Path
    run_dir: Path
    cgroup_root: Path
    proc_root: Path

    @property
    def holder_socket(self) -> Path:
        """The holder's socket for gates."""
        return self.run_dir / protocol.GATES_SOCKET

    @property
    def journal(self) -> Path:
        """The file of received notifications."""
        return self.run_dir / JOURNAL

    @property
    def status_file(self) -> Path:
        """The status file for the agent."""
        return self.run_dir / NAME

    @property
    def accountant_status(self) -> Path:
        """The status file of the accountant."""
        return self.run_dir / accountant_status.NAME


def ability(run_dir: Path) -> str:
    """Return why pods cannot be gated on this node now, or "" if they can."""
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    except OSError:
        actions = []
    if "user_notif" not in actions:
        return "the kernel has no seccomp user notification (pinwarden needs Linux 5.9)"
    try:
        protocol.connect(run_dir / protocol.GATES_SOCKET, _RETRY_SECONDS).close()
        Journal(run_dir / JOURNAL).close()
    except BlockingIOError:
        return ""
    except OSError as error:
        return f"no holder answers at {run_dir / protocol.GATES_SOCKET}: {error.strerror or error}"
    return "a holder answers, but no gate: gated calls wait"


def run(settings: GateSettings) -> None:
    """Answer until SIGTERM or SIGINT. Raises OSError, and ValueError without a cgroup hierarchy."""
    with shutdown_on_signals() as ending, suppress(ShutdownError), ExitStack() as resources:
        settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal = resources.enter_context(closing(_journal(settings.journal)))
        pods = PodLimits(settings.cgroup_root, settings.proc_root)
        guard = Guard(KINDS)
        publisher = GatePublisher(settings.status_file, guard.failures)
        dispatcher = Dispatcher(journal, pods, settings.proc_root, publisher, guard=guard)
        resources.callback(dispatcher.close)
        process = _GateProcess(settings, dispatcher, guard)
        ending.at_once = False  # a packet being read may contain the only copy of a listener
        process.start(ending)
        while not ending.asked:
            signal.alarm(STALL_SECONDS)
            process.turn()
        process.linger()


class _GateProcess:
    """A dispatcher with its configuration and its holder."""

    def __init__(self, settings: GateSettings, dispatcher: Dispatcher, guard: Guard) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._guard = guard
        self._newest: Configuration | None = None
        self._configuration = ConfigFollower(settings.configuration)
        self._accountant_status = PolledFile(settings.accountant_status)
        self._next_poll = self._next_connect = float("-inf")
        self._holder: socket.socket | None = None

    def start(self, ending: Shutdown) -> None:
        """Read the configuration, get all listeners, and continue the work of an earlier gate.

        Raises ShutdownError on shutdown.
        """
        self._poll_files(time.monotonic())
        while self._holder is None:
            signal.alarm(STALL_SECONDS)
            self._connect()
            if ending.asked:
                raise ShutdownError
            if self._holder is None:
                time.sleep(_RETRY_SECONDS)
        self._dispatcher.recover()
        _log.info(
            "the gate answers, process %d, %d listeners",
            os.getpid(),
            len(self._dispatcher.listeners),
        )

    def turn(self) -> None:
        """Poll the files, connect to the holder if needed, and answer once."""
        now = time.monotonic()
        self._poll_files(now)
        if self._holder is None and now >= self._next_connect:
            self._next_connect = now + _RETRY_SECONDS
            self._connect()
        with self._guard.item("turn"):
            self._dispatcher.turn()
            return
        time.sleep(_RETRY_SECONDS)  # calls wait: the limits of the pods could not be updated

    def linger(self) -> None:
        """Continue for a while if no holder has the listeners: this process has the last copies."""
        deadline = time.monotonic() + LINGER_SECONDS
        self.turn()  # learn of a holder that has just ended
        while self._holder is None and self._dispatcher.listeners and time.monotonic() < deadline:
            signal.alarm(STALL_SECONDS)
            self.turn()
        self._dispatcher.end()

    def _poll_files(self, now: float) -> None:
        if now < self._next_poll:
            return
        self._next_poll = now + POLL_SECONDS
        with self._guard.item("file", "the configuration"):
            self._newest = self._configuration.read_if_changed() or self._newest
        if self._newest is not None and self._guard.due("configuration"):
            with self._guard.item("configuration"):
                self._configure(self._newest)
                self._newest = None
        with self._guard.item("file", "the accountant's status file"):
            if status := self._accountant_status.read_if_changed(accountant_status.load):
                self._dispatcher.set_objects(status.objects)

    def _configure(self, configuration: Configuration) -> None:
        policy = NodePolicy(configuration.spec, configuration.unsupported, configuration.generation)
        groups = configuration.spec.groups
        self._dispatcher.configure(policy, groups)
        _log.info(
            "configuration in force: generation %s, %d limits, %d groups",
            policy.generation,
            len(policy.limits),
            len(groups),
        )

    def _connect(self) -> None:
        """Exchange missing listeners with the holder. On failure, try again later."""
        try:
            connection = protocol.connect(self._settings.holder_socket, _HOLDER_SECONDS)
        except OSError as error:
            _log.debug("no holder answers: %s", error)
            return
        try:
            protocol.send(connection, Packet(PacketKind.GATE))
            known = self._dispatcher.listeners
            received: set[int] = set()
            while (
                packet := protocol.receive(connection)
            ) and packet.kind is not PacketKind.COMPLETE:
                received.add(packet.number)
                self._take(packet)
            if packet is None:
                raise ConnectionResetError("it ended before it sent all listeners")
            for number in known.keys() - received:
                descriptor, container = known[number]
                packet = Packet(PacketKind.LISTENER, number, container.message, (descriptor,))
                protocol.send(connection, packet)
        except OSError as error:
            _log.warning("the holder did not send all listeners, trying again: %s", error)
            connection.close()
            return
        self._holder = connection
        self._dispatcher.watch(connection.fileno(), self._receive)

    def _receive(self) -> None:
        """Receive a new listener from the holder, or notice its end."""
        if self._holder is None:
            return
        packet = None
        with self._guard.item("packet"):
            packet = protocol.receive(self._holder)
        if packet is None:
            self._dispatcher.forget(self._holder.fileno())
            self._holder.close()
            self._holder = None
        else:
            self._take(packet)

    def _take(self, packet: Packet) -> None:
        if packet.kind is not PacketKind.LISTENER:
            protocol.close(packet.descriptors)
            return
        if not packet.descriptors:
            _log.error("the holder sent a listener without its descriptor; its calls wait")
            return
        descriptor, *others = packet.descriptors
        protocol.close(others)
        if packet.number in self._dispatcher.listeners:
            os.close(descriptor)
            return
        with self._guard.item("packet", "listener"):
            try:
                self._dispatcher.add(packet.number, descriptor, parse(packet.message))
            except ValueError as error:
                _log.error(
                    "a listener is closed, because no container runtime sent it: %s",
                    shown(str(error)),
                )
            else:
                return
        os.close(descriptor)


def _journal(path: Path) -> Journal:
    """Return the journal once no other gate has it. Raises OSError."""
    waited = False
    while True:
        with suppress(BlockingIOError):
            return Journal(path)
        if not waited:
            _log.info("another gate answers; this gate stands by")
        waited = True
        time.sleep(_STANDBY_SECONDS)
