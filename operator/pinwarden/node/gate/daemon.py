"""The gate as a process: puts its parts together, runs them, and ends them.

One gate at a time answers on a node: it has the journal's lock, and another one waits for it, which is how an upgrade passes the work on
within milliseconds. A gate that stalls is ended by an alarm of its own, so that its container is started again: calls wait meanwhile.

The configuration is the file that the agent keeps of what is in force (`configuration.LastConfiguration`), so the gate needs no API server,
and goes on without an agent (H3). What belongs to groups of shared memory is in the accountant's file (`agent.shared.record`); without an
accountant the last of it stays. The gate looks whether a file is another one `LOOKS_SECONDS` apart.
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
from pinwarden.node.holder.protocol import Kind, Packet
from pinwarden.node.pods.policy import NodePolicy
from pinwarden.node.state import accountant_status as shared
from pinwarden.node.state.config import ConfigFollower, Configuration
from pinwarden.node.state.gate_status import NAME
from pinwarden.node.state.shutdown import Shutdown, ShutdownError, shutdown_on_signals
from pinwarden.node.state.statefile import PolledFile

LOOKS_SECONDS = 0.05
STALL_SECONDS = 20
PARTING_SECONDS = 50.0
HOLDER, JOURNAL = "holder.sock", "gate.journal"
KINDS = (*GATE_KINDS, "configuration", "file", "packet", "turn")
"""Kinds of items that the gate's process guards."""
_STANDBY_SECONDS = 0.02
_HOLDER_SECONDS = 5.0
_RETRY_SECONDS = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateSettings:
    """Where things are. `configuration` is the agent's file, `run_dir` a folder in a tmpfs that outlives the gate's container."""

    configuration: Path
    run_dir: Path
    cgroup_root: Path
    proc_root: Path

    @property
    def holder_socket(self) -> Path:
        """Where the holder takes gates."""
        return self.run_dir / HOLDER

    @property
    def journal(self) -> Path:
        """The calls that were received."""
        return self.run_dir / JOURNAL

    @property
    def record(self) -> Path:
        """What the agent reads of the gate."""
        return self.run_dir / NAME

    @property
    def shared(self) -> Path:
        """What the accountant tells of shared memory."""
        return self.run_dir / shared.NAME


def ability(run_dir: Path) -> str:
    """Why pods cannot be gated on this node now; empty where they can."""
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    except OSError:
        actions = []
    if "user_notif" not in actions:
        return "the kernel has no seccomp user notification (Linux 5.0, with CONTINUE 5.5)"
    try:
        protocol.connect(run_dir / HOLDER, _RETRY_SECONDS).close()
        Journal(run_dir / JOURNAL).close()
    except BlockingIOError:
        return ""
    except OSError as error:
        return f"no holder answers at {run_dir / HOLDER}: {error.strerror or error}"
    return "a holder answers, but no gate: gated calls wait"


def run(settings: GateSettings) -> None:
    """Answers until SIGTERM or SIGINT. Raises OSError, and ValueError when there is no cgroup hierarchy."""
    with shutdown_on_signals() as ending, suppress(ShutdownError), ExitStack() as resources:
        settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal = resources.enter_context(closing(_journal(settings.journal)))
        pods = PodLimits(settings.cgroup_root, settings.proc_root)
        guard = Guard(KINDS)
        record = GatePublisher(settings.record, guard.failures)
        gate = Dispatcher(journal, pods, settings.proc_root, record, guard=guard)
        resources.callback(gate.close)
        process = _Process(settings, gate, guard)
        ending.at_once = False  # the only copy of a listener could be in a packet that is being read
        process.start(ending)
        while not ending.asked:
            signal.alarm(STALL_SECONDS)
            process.turn()
        process.part()


class _Process:
    """A gate with its configuration and its holder."""

    def __init__(self, settings: GateSettings, gate: Dispatcher, guard: Guard) -> None:
        self._settings = settings
        self._gate = gate
        self._guard = guard
        self._newest: Configuration | None = None
        self._configuration = ConfigFollower(settings.configuration)
        self._shared = PolledFile(settings.shared)
        self._looks = self._connects = float("-inf")
        self._holder: socket.socket | None = None

    def start(self, ending: Shutdown) -> None:
        """Take over the configuration, all listeners, and what an earlier gate left. Raises ShutdownError."""
        self._look_at_files(time.monotonic())
        while self._holder is None:
            signal.alarm(STALL_SECONDS)
            self._connect()
            if ending.asked:
                raise ShutdownError
            if self._holder is None:
                time.sleep(_RETRY_SECONDS)
        self._gate.recover()
        _log.info("the gate answers, process %d, %d listeners", os.getpid(), len(self._gate.listeners))

    def turn(self) -> None:
        """Does what is due, and answers."""
        now = time.monotonic()
        self._look_at_files(now)
        if self._holder is None and now >= self._connects:
            self._connects = now + _RETRY_SECONDS
            self._connect()
        with self._guard.item("turn"):
            self._gate.turn()
            return
        time.sleep(_RETRY_SECONDS)  # calls wait: what is known of the pods cannot be brought up to date

    def part(self) -> None:
        """Goes on while no holder has its listeners, for a while: with this copy of them the last would be gone."""
        deadline = time.monotonic() + PARTING_SECONDS
        self.turn()  # a holder that has just ended may not have been heard of yet
        while self._holder is None and self._gate.listeners and time.monotonic() < deadline:
            signal.alarm(STALL_SECONDS)
            self.turn()
        self._gate.end()

    def _look_at_files(self, now: float) -> None:
        if now < self._looks:
            return
        self._looks = now + LOOKS_SECONDS
        with self._guard.item("file", "the configuration"):
            self._newest = self._configuration.read_if_changed() or self._newest
        if self._newest is not None and self._guard.due("configuration"):
            with self._guard.item("configuration"):
                self._configure(self._newest)
                self._newest = None
        with self._guard.item("file", "the accountant's record"):
            if told := self._shared.read_if_changed(shared.load):
                self._gate.set_objects(told.objects)

    def _configure(self, configuration: Configuration) -> None:
        policy = NodePolicy(configuration.spec, configuration.unsupported, configuration.generation)
        groups = configuration.spec.groups
        self._gate.configure(policy, groups)
        _log.info(
            "configuration in force: generation %s, %d limits, %d groups",
            policy.generation,
            len(policy.limits),
            len(groups),
        )

    def _connect(self) -> None:
        """Gets what the holder has, and gives what it lacks; tries again at the next turn where that fails."""
        try:
            connection = protocol.connect(self._settings.holder_socket, _HOLDER_SECONDS)
        except OSError as error:
            _log.debug("no holder answers: %s", error)
            return
        try:
            protocol.send(connection, Packet(Kind.GATE))
            known = self._gate.listeners
            told: set[int] = set()
            while (packet := protocol.receive(connection)) and packet.kind is not Kind.COMPLETE:
                told.add(packet.number)
                self._take(packet)
            if packet is None:
                raise ConnectionResetError("it ended before all was told")
            for number in known.keys() - told:
                descriptor, identity = known[number]
                packet = Packet(Kind.LISTENER, number, identity.message, (descriptor,))
                protocol.send(connection, packet)
        except OSError as error:
            _log.warning("the holder does not tell all: %s", error)
            connection.close()
            return
        self._holder = connection
        self._gate.watch(connection.fileno(), self._hear)

    def _hear(self) -> None:
        """A new listener, or the holder's end."""
        if self._holder is None:
            return
        packet = None
        with self._guard.item("packet"):
            packet = protocol.receive(self._holder)
        if packet is None:
            self._gate.forget(self._holder.fileno())
            self._holder.close()
            self._holder = None
        else:
            self._take(packet)

    def _take(self, packet: Packet) -> None:
        if packet.kind is not Kind.LISTENER:
            protocol.close(packet.descriptors)
            return
        if not packet.descriptors:
            _log.error("the holder told of a listener without its descriptor; its calls wait")
            return
        descriptor, *others = packet.descriptors
        protocol.close(others)
        if packet.number in self._gate.listeners:
            os.close(descriptor)
            return
        with self._guard.item("packet", "listener"):
            try:
                self._gate.add(packet.number, descriptor, parse(packet.message))
            except ValueError as error:
                _log.error("who sent a listener is no container runtime: %s", shown(str(error)))
            else:
                return
        os.close(descriptor)


def _journal(path: Path) -> Journal:
    """The journal, as soon as no other gate has it. Raises OSError."""
    waited = False
    while True:
        with suppress(BlockingIOError):
            return Journal(path)
        if not waited:
            _log.info("another gate answers; this one stands by")
        waited = True
        time.sleep(_STANDBY_SECONDS)
