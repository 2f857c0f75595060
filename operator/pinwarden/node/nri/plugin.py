"""One connection to the runtime: registers the plugin, and answers the runtime's calls.

If a request cannot be understood, or the gate's rules cannot be merged, the container is created
with its own policy, and a log line says so. If the node requires the gate, the plugin rejects the
container in the second case. It never rejects a request in the first case: the pod may be needed to
repair the node.

The runtime rejects a container itself if the plugin ends or takes too long while it is asked,
because the plugin validates adjustments too.
"""

import logging
import select
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from pinwarden.api.reasons import RESTART_GATES
from pinwarden.common.guard import Guard, shown
from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.nri import memlock, messages
from pinwarden.node.nri.adjustment import NO_GATE, Rules
from pinwarden.node.nri.governed import NodePods
from pinwarden.node.nri.messages import Container, Event, Pod, State
from pinwarden.node.nri.protocol import (
    PLUGIN,
    REQUEST,
    RESPONSE,
    RUNTIME,
    Decoder,
    Message,
    encode,
)
from pinwarden.node.seccomp.gated_calls import LISTENER_PATH
from pinwarden.node.state.nri_status import MOST_LOWERED, MOST_UNGATED, LoweredLimits

NAME: Final = "pinwarden"
RUNTIME_NAME: Final = "containerd"
INDEX: Final = "90"
"""Plugins are called in the order of their indices; late, so that the policy is the final one."""
KINDS: Final = ("request",)
BEFORE: Final = f"it was created before the NRI plugin connected; {RESTART_GATES}"
_NO_GATE_NOW: Final = "no gate runs yet; the kubelet tries again"
_REGISTRATION_SECONDS: Final = 5.0
_RECEIVE_BYTES: Final = 64 << 10
_REPORT_SECONDS: Final = 0.05
"""How long a call of the runtime may wait for the report of older containers."""
_MOST_BYTES: Final = 128 << 10
_MOST_SECONDS: Final = 1.0
"""The bytes of a container from before, and the time for all of them, that the plugin can afford.

An author chooses the size of arguments and variables, and the runtime waits for 2 s. Containers
beyond are omitted from the reasons of ungated containers.
"""
_EVENTS: Final = tuple(Event)
_WITH_PROCESSES: Final = (State.CREATED, State.PAUSED, State.RUNNING)
_log = logging.getLogger(__name__)


class ContainerRejectedError(Exception):
    """The node requires the gate, and a container cannot get it."""


class Plugin:
    """The plugin on a connection. Only `turn` waits for the runtime."""

    def __init__(
        self,
        connection: socket.socket,
        rules: Rules,
        guard: Guard,
        gate_runs: Callable[[], bool],
        lowered: OrderedDict[str, LoweredLimits],
        publish: Callable[[], None],
    ) -> None:
        """Register. `guard` knows `KINDS`. Raises OSError.

        The plugin adds to `lowered`, by container id, and `publish` writes these limits to disk.
        """
        self._connection = connection
        self._rules = rules
        self._guard = guard
        self._gate_runs = gate_runs
        self._lowered = lowered
        self._publish = publish
        self._decoder = Decoder()
        self._parts: list[bytes] = []
        self._found: list[bytes] = []
        self._unseen: set[str] = set()
        """The containers with lowered limits that the runtime has not named yet."""
        self._running = self._gated = self._omitted = 0
        self._spent = 0.0
        self._pods: dict[str, Pod] = {}
        self.node = NodePods()
        """The pods of the newest configuration."""
        self.runtime = ""
        """Name and version of the runtime, empty before it has configured the plugin."""
        self._unsupported = ""
        self._adjusted: tuple[Pod, Container] | None = None
        """The last container that was adjusted, until the runtime asks for validation."""
        self._gates = False
        """Whether this container got the gate."""
        self.ungated: OrderedDict[str, str] = OrderedDict()
        """Why containers run ungated although the gate was wanted, by container id."""
        self._methods: Mapping[str, Callable[[bytes], bytes]] = {
            "Configure": self._configure,
            "Synchronize": self._synchronize,
            "CreateContainer": self._create,
            "ValidateContainerAdjustment": self._validate,
            "StateChange": self._forget,
        }
        request = messages.register(NAME, INDEX, _REGISTRATION_SECONDS)
        self._connection.sendall(encode(Message(RUNTIME, 1, REQUEST, request)))

    def turn(self, seconds: float) -> None:
        """Wait for up to `seconds`, and answer the calls of the runtime.

        Without a call, report some of the containers that ran before the plugin connected. Raises
        OSError if the runtime ended the connection or rejects the plugin, and ProtocolError if the
        connection cannot be used any more.
        """
        if self._found and not select.select([self._connection], [], [], 0)[0]:
            self._report_found()
            return
        self._connection.settimeout(seconds)
        try:
            data = self._connection.recv(_RECEIVE_BYTES)
        except TimeoutError:
            return
        finally:
            self._connection.settimeout(_REGISTRATION_SECONDS)
        if not data:
            raise ConnectionResetError("the runtime closed the connection")
        for message in self._decoder.feed(data):
            if message.connection == RUNTIME and message.kind == RESPONSE:
                if error := messages.response_error(message.payload):
                    raise ConnectionRefusedError(f"the runtime rejects the plugin: {shown(error)}")
            elif message.connection == PLUGIN and message.kind == REQUEST:
                answer = self._answer(message.payload)
                if self._unsupported:
                    raise ConnectionRefusedError(self._unsupported)
                self._connection.sendall(encode(Message(PLUGIN, message.call, RESPONSE, answer)))

    def close(self) -> None:
        """Close the connection. New containers do not get the gate from now on."""
        self._connection.close()

    def _answer(self, payload: bytes) -> bytes:
        """Return the response to a call: an empty one if the call is unknown or fails."""
        answer = b""
        with self._guard.item("request"):
            method, request = messages.parse_request(payload)
            if method in self._methods:
                try:
                    answer = self._methods[method](request)
                except ContainerRejectedError as error:
                    _log.warning("%s", error)
                    return messages.error_response(str(error))
        return messages.response(answer)

    def _configure(self, payload: bytes) -> bytes:
        configuration = messages.parse_configure(payload)
        self.runtime = shown(f"{configuration.runtime} {configuration.version}")
        if configuration.runtime != RUNTIME_NAME or not configuration.nri_version:
            self._unsupported = (
                f"{self.runtime} does not pass the seccomp policies of containers to its plugins; "
                "containerd 2.3 or newer does"
            )
            return b""
        _log.info(
            "connected to %s, which waits %.1f s for an answer",
            self.runtime,
            configuration.request_seconds,
        )
        return messages.configured(_EVENTS)

    def _synchronize(self, payload: bytes) -> bytes:
        """Keep the containers for later turns.

        The runtime waits 2 s for the answers to all parts, and creates no container meanwhile.
        """
        part = messages.parse_synchronize(payload)
        self._pods.update((pod.id, pod) for pod in part.pods)
        began = time.monotonic()
        for container in part.containers:
            spent = self._spent + time.monotonic() - began
            if len(container) > _MOST_BYTES or spent > _MOST_SECONDS:
                self._omitted += 1
                continue
            with self._guard.item("request"):
                self._parts.append(messages.compact(container))
        self._spent += time.monotonic() - began
        if not part.more:
            self._found, self._parts = self._parts, []
            self._unseen = set(self._lowered)
        return messages.synchronized(more=part.more)

    def _report_found(self) -> None:
        """Count some of the found containers with and without the gate."""
        end = time.monotonic() + _REPORT_SECONDS
        while self._found and time.monotonic() < end:
            with self._guard.item("request"):
                self._report(messages.parse_container(self._found.pop()))
        if not self._found:
            _log.info("%d containers run, %d of them with the gate", self._running, self._gated)
            if self._omitted:
                _log.warning("%d more containers have too large requests", self._omitted)
            for identity in self._unseen & self._lowered.keys():
                del self._lowered[identity]
            self._pods = {}

    def _report(self, container: Container) -> None:
        if container.state not in _WITH_PROCESSES:
            return
        self._running += 1
        self._unseen.discard(container.id)
        pod = self._pods.get(container.sandbox)
        if pod is not None and container.id not in self._lowered:
            limits = memlock.found(pod, container, self._rules.inherited)
            if limits is not None:
                self._remember(container, limits)
        if _is_gated(container):
            self._gated += 1
        elif pod is not None:
            decision = self._rules.decide(pod, container, self.node)
            if decision.wanted:
                self._leave_ungated(pod, container, decision.reason or BEFORE)

    def _create(self, payload: bytes) -> bytes:
        if self._adjusted is not None:
            _log.warning(
                "%s was rejected: another NRI plugin failed, or sets its seccomp policy or "
                "RLIMIT_MEMLOCK too",
                _named(*self._adjusted),
            )
        self._adjusted = None
        pod, container = messages.parse_create(payload)
        decision = self._rules.decide(pod, container, self.node, gate_runs=self._gate_is_there())
        if decision.policy is not None:
            _log.debug("%s starts with the gate", _named(pod, container))
        elif decision.wanted:
            self._start_ungated(pod, container, decision.reason)
        else:
            _log.debug("%s keeps its policy: %s", _named(pod, container), decision.reason)
        limits = self._lower(pod, container, gated=_is_gated(container) or bool(decision.policy))
        if decision.policy is None and limits is None:
            return b""
        self._adjusted, self._gates = (pod, container), decision.policy is not None
        noted = {memlock.ANNOTATION: memlock.annotation(self._rules.inherited)} if limits else {}
        return messages.adjust(decision.policy, limits, noted)

    def _gate_is_there(self) -> bool:
        """Return whether a gate runs. A gate whose lock cannot be read counts as ended."""
        try:
            return self._gate_runs()
        except OSError as error:
            _log.warning("cannot see whether a gate runs: %s", error)
            return False

    def _forget(self, payload: bytes) -> bytes:
        """Forget a removed container."""
        identity = messages.parse_removed(payload)
        self._lowered.pop(identity, None)
        self.ungated.pop(identity, None)
        return b""

    def _lower(self, pod: Pod, container: Container, *, gated: bool) -> Limits | None:
        """Return the lowered RLIMIT_MEMLOCK of a new container, None if its limits stay.

        The inherited limits are on disk before the container exists (H3). If the write fails, the
        limits stay.
        """
        limits = self._rules.memlock(pod, container, self.node, gated=gated)
        if limits is None:
            return None
        self._remember(container, LoweredLimits(pod.uid, self._rules.inherited, limits))
        try:
            self._publish()
        except OSError as error:
            del self._lowered[container.id]
            _log.warning("%s keeps its RLIMIT_MEMLOCK: %s", _named(pod, container), error)
            return None
        return limits

    def _remember(self, container: Container, limits: LoweredLimits) -> None:
        self._lowered[container.id] = limits
        while len(self._lowered) > MOST_LOWERED:
            self._lowered.popitem(last=False)

    def _validate(self, payload: bytes) -> bytes:
        """Notice whether another plugin replaced the gated policy."""
        adjusted, self._adjusted = self._adjusted, None
        if adjusted is None or not self._gates:
            return b""
        if messages.parse_adjusted_listener(payload) != LISTENER_PATH:
            self._start_ungated(*adjusted, "another plugin set its seccomp policy")
        return b""

    def _start_ungated(self, pod: Pod, container: Container, reason: str) -> None:
        """Let a container start ungated. Raises ContainerRejectedError if the node forbids this."""
        if not self._rules.may_start_ungated(pod, container):
            raise ContainerRejectedError(
                f"{_named(pod, container)} is rejected, because this node requires the gate: "
                f"{_NO_GATE_NOW if reason == NO_GATE else reason}"
            )
        self._leave_ungated(pod, container, reason)

    def _leave_ungated(self, pod: Pod, container: Container, reason: str) -> None:
        _log.warning("%s runs ungated: %s", _named(pod, container), reason)
        self.ungated[container.id] = reason
        while len(self.ungated) > MOST_UNGATED:
            self.ungated.popitem(last=False)


def _is_gated(container: Container) -> bool:
    """Return whether the container's own policy has the gate."""
    return container.policy is not None and container.policy.listener_path == LISTENER_PATH


def _named(pod: Pod, container: Container) -> str:
    return shown(f"container {container.name} of pod {pod.namespace}/{pod.name}")
