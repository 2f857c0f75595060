"""The process of the NRI plugin: one plugin per node, connected while the holder listens.

If two plugins set the same field, each creation of a container fails. Two copies of this plugin
would do so. So a second process waits for a lock, and connects only after the first one has ended.

The runtime sends each gated container's listener to the holder, and cannot start the container
without it. So the plugin disconnects while no holder listens.
"""

import logging
import os
import signal
import socket
import time
from collections import OrderedDict
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from pinwarden.common.backoff import Backoff
from pinwarden.common.guard import Guard
from pinwarden.node.holder import protocol as holder
from pinwarden.node.nri import governed
from pinwarden.node.nri.adjustment import Rules
from pinwarden.node.nri.governed import NodePods
from pinwarden.node.nri.plugin import KINDS, Plugin
from pinwarden.node.nri.protocol import ProtocolError
from pinwarden.node.nri.wire import WireError
from pinwarden.node.state import nri_status
from pinwarden.node.state.config_path import CONFIG_VERSION
from pinwarden.node.state.gate_lock import gate_runs
from pinwarden.node.state.nri_status import LoweredLimits, NriStatus
from pinwarden.node.state.shutdown import ShutdownError, shutdown_on_signals
from pinwarden.node.state.statefile import PolledFile, StateFile, file_lock

POLL_SECONDS: Final = 0.1
HOLDER_SECONDS: Final = 1.0
STALL_SECONDS: Final = 20
_CONNECT_SECONDS: Final = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NriSettings:
    """The paths of the process, and the rules for containers.

    `socket` is the runtime's socket, `configuration` the agent's file, `run_dir` the holder's.
    """

    socket: Path
    configuration: Path
    run_dir: Path
    rules: Rules


def run(settings: NriSettings) -> None:
    """Run until SIGTERM or SIGINT. Raises OSError."""
    with (
        shutdown_on_signals(),
        suppress(ShutdownError),
        file_lock(
            settings.run_dir / "nri.lock", waiting="another plugin is connected; this one stands by"
        ),
        closing(_NriProcess(settings)) as process,
    ):
        while True:
            signal.alarm(STALL_SECONDS)
            process.turn()


class _NriProcess:
    """The plugin, connected or not, and the newest configuration."""

    def __init__(self, settings: NriSettings) -> None:
        self._settings = settings
        self._guard = Guard(("configuration", "status", *KINDS))
        self._file = PolledFile(settings.configuration)
        self._config = StateFile(settings.configuration, CONFIG_VERSION)
        self._node = NodePods()
        self._plugin: Plugin | None = None
        self._backoff = Backoff()
        self._next_connect = self._next_check = self._next_renewal = float("-inf")
        self._failure = self._holder = ""
        self._published: NriStatus | None = None
        self._status_path = settings.run_dir / nri_status.NAME
        self._lowered = _load_lowered(self._status_path)

    def turn(self) -> None:
        """Read a changed configuration, connect or disconnect, answer once, and publish."""
        self._configure()
        self._serve()
        with self._guard.item("status"):
            self._publish()

    def _serve(self) -> None:
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + HOLDER_SECONDS
            self._holder = self._holder_failure()
        if self._holder:
            self._stay_away(self._holder)
            return
        if self._plugin is None:
            self._connect(now)
            return
        try:
            self._plugin.turn(POLL_SECONDS)
            if self._plugin.runtime:
                self._failure = ""
                self._backoff.succeeded()
        except (OSError, ProtocolError, WireError) as error:
            self._fail(f"disconnected from {self._settings.socket}: {error}")

    def close(self) -> None:
        """Disconnect, and publish that nothing is gated from now on."""
        self._disconnect()
        self._failure = self._failure or "the NRI plugin has ended"
        with self._guard.item("status"):
            self._publish()

    def _disconnect(self) -> None:
        if self._plugin is not None:
            self._plugin.close()
            self._plugin = None

    def _configure(self) -> None:
        with self._guard.item("configuration"):
            node = self._file.read_if_changed(lambda _: governed.parse(self._config.read()))
            if node is not None:
                self._node = node
        if self._plugin is not None:
            self._plugin.node = self._node

    def _publish(self) -> None:
        status = NriStatus(failure=self._failure, lowered=dict(self._lowered))
        if self._plugin is not None and self._plugin.runtime:
            status = replace(
                status, runtime=self._plugin.runtime, failure="", ungated=dict(self._plugin.ungated)
            )
        now = time.monotonic()
        if status != self._published or now >= self._next_renewal:
            nri_status.save(self._status_path, status)
            self._published = status
            self._next_renewal = now + nri_status.RENEWAL_SECONDS

    def _holder_failure(self) -> str:
        path = self._settings.run_dir / holder.GATES_SOCKET
        try:
            holder.connect(path, HOLDER_SECONDS).close()
        except OSError as error:
            return f"no holder answers at {path}: {error.strerror or error}"
        return ""

    def _connect(self, now: float) -> None:
        if now < self._next_connect:
            time.sleep(POLL_SECONDS)
            return
        run_dir = self._settings.run_dir
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_CONNECT_SECONDS)
        try:
            connection.connect(str(self._settings.socket))
            self._plugin = Plugin(
                connection,
                self._settings.rules,
                self._guard,
                partial(gate_runs, run_dir),
                self._lowered,
                self._publish,
            )
        except OSError as error:
            connection.close()
            self._fail(f"cannot connect to {self._settings.socket}: {error.strerror or error}")
            return
        self._plugin.node = self._node
        _log.info("registered at %s, process %d", self._settings.socket, os.getpid())

    def _fail(self, failure: str) -> None:
        """Disconnect, and try again later."""
        self._next_connect = time.monotonic() + self._backoff.failed()
        self._stay_away(failure)

    def _stay_away(self, failure: str) -> None:
        """Disconnect. A lasting failure is logged once."""
        self._disconnect()
        if failure != self._failure:
            _log.warning("%s; new containers do not get the gate meanwhile", failure)
            self._failure = failure
        time.sleep(POLL_SECONDS)


def _load_lowered(path: Path) -> OrderedDict[str, LoweredLimits]:
    """Return the lowered limits in the file of an earlier plugin, empty without a usable file."""
    try:
        return OrderedDict(nri_status.load(path).lowered)
    except (OSError, ValueError):
        return OrderedDict()
