"""The agent as a process: creates its parts, runs them, and ends them.

The order of the start matters:

1. The rlimit gate is probed by a fork, so before any thread starts.
2. One agent at a time works on a node. Another agent stands by, healthy and ready, until the lock
   is free. So an upgrade starts the new agent before the old agent ends.
3. The last configuration is read from disk before the first request to the API server, so that
   limits apply without an API server (H3).

The end of the agent restores no limit: only `release` restores, or `mode: Release` in the
configuration.
"""

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pinwarden.common.guard import Guard
from pinwarden.node.agent.api_client import NodePinConfigClient
from pinwarden.node.agent.config_files import ConfigFileWatcher, read_files
from pinwarden.node.agent.config_watcher import KINDS as WATCHER_KINDS
from pinwarden.node.agent.config_watcher import ConfigWatcher
from pinwarden.node.agent.http_server import Pulse, WebServer
from pinwarden.node.agent.kubeconfig import from_kubeconfig, in_cluster
from pinwarden.node.agent.loop import KINDS as LOOP_KINDS
from pinwarden.node.agent.loop import Loop
from pinwarden.node.agent.metrics import Metrics
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.reconciler import KINDS as RECONCILER_KINDS
from pinwarden.node.agent.reconciler import Reconciler
from pinwarden.node.agent.retainer import Retainer
from pinwarden.node.agent.status_socket import KINDS as SOCKET_KINDS
from pinwarden.node.agent.status_socket import StatusSocket
from pinwarden.node.agent.status_writer import StatusWriter
from pinwarden.node.agent.threads import ConfigInbox, SnapshotBoard, Wakeup, Workers
from pinwarden.node.linux.cgroupfs import process_hierarchy
from pinwarden.node.linux.prlimit import GateAbility, probe
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.state.accountant_status import NAME as ACCOUNTANT_FILE
from pinwarden.node.state.config import ConfigFile, Configuration, ConfigurationError
from pinwarden.node.state.config_path import config_path
from pinwarden.node.state.gate_status import NAME as GATE_FILE
from pinwarden.node.state.nri_status import NAME as NRI_FILE
from pinwarden.node.state.statefile import file_lock

Gates = Literal["auto", "rlimit", "none"]
LOCK = "agent.lock"
KINDS = tuple(
    dict.fromkeys((*RECONCILER_KINDS, *LOOP_KINDS, *SOCKET_KINDS, *WATCHER_KINDS, "file"))
)
"""Kinds of items guarded by the agent."""
_LOCK_PATIENCE_SECONDS = 2.0
_log = logging.getLogger(__name__)


class StartError(Exception):
    """The agent cannot start with these settings."""


@dataclass(frozen=True)
class Settings:
    """The settings from the command line.

    With `kubeconfig` None the agent uses the service account of its pod. With `config`, a file or
    directory, there is no API server. `metrics_port` 0 selects a free port, and None serves
    nothing. `per_pod_metrics` adds series of each governed pod.
    """

    node: str
    kubeconfig: Path | None
    config: Path | None
    cgroup_root: Path
    proc_root: Path
    gates: Gates
    state_dir: Path
    run_dir: Path
    socket: Path
    metrics_address: str
    metrics_port: int | None
    per_pod_metrics: bool


def run(settings: Settings) -> bool:
    """Run until SIGTERM or SIGINT.

    Return True then, and False after a failure. Raises StartError.
    """
    with ExitStack() as resources:
        try:
            loop = _Agent(settings, _ability(settings.gates)).start(resources)
        except (OSError, ValueError) as error:  # also KubeconfigError, and no cgroup hierarchy
            raise StartError(str(error)) from error
        _log.info("agent of node %s runs, process %d", settings.node, os.getpid())
        ended_well = loop.run()
        _log.info("the agent ends; limits stay in force")
        return ended_well


def release(settings: Settings) -> None:
    """Restore every process. Raises StartError, also if this process may not restore."""
    with ExitStack() as resources:
        try:
            ability = _ability(settings.gates)
            settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            resources.enter_context(file_lock(settings.state_dir / LOCK, _LOCK_PATIENCE_SECONDS))
            reconciler = _reconciler(settings, ability, resources)
            if not ability.available:
                raise StartError(f"cannot restore any process: {ability.reason}")
            reconciler.release()
        except (OSError, ValueError) as error:
            raise StartError(str(error)) from error


def _reconciler(
    settings: Settings, ability: GateAbility, resources: ExitStack, guard: Guard | None = None
) -> Reconciler:
    """Return the reconciler of this node. The caller owns the lock. Raises ValueError, OSError."""
    boot_id = (settings.proc_root / "sys/kernel/random/boot_id").read_text().strip()
    reconciler = Reconciler(
        cgroup_root=settings.cgroup_root,
        proc_root=settings.proc_root,
        store=RlimitRecordStore(settings.state_dir / "saved.json", boot_id),
        ability=ability,
        gate=settings.run_dir / GATE_FILE if settings.gates == "auto" else None,
        nri=settings.run_dir / NRI_FILE,
        accountant=settings.run_dir / ACCOUNTANT_FILE,
        guard=guard,
    )
    resources.callback(reconciler.close)
    return reconciler


def _ability(gates: Gates) -> GateAbility:
    if gates == "none":
        return GateAbility(False, "the rlimit gate is turned off (--gates none)")
    ability = probe()
    if gates == "rlimit" and not ability.available:
        raise StartError(f"--gates rlimit: {ability.reason}")
    if not ability.available:
        _log.warning(
            "the rlimit gate is not available, limits are only observed: %s", ability.reason
        )
    return ability


class _Agent:
    """The reconciler and the parts around it."""

    def __init__(self, settings: Settings, ability: GateAbility) -> None:
        self._settings = settings
        self._ability = ability
        self._wakeup = Wakeup()
        self._workers = Workers(self._wakeup)
        self._inbox = ConfigInbox(self._wakeup)
        self._board = SnapshotBoard()
        self._pulse = Pulse()
        state_files = {"accountant": settings.run_dir / ACCOUNTANT_FILE}
        if settings.gates == "auto":
            state_files["gate"] = settings.run_dir / GATE_FILE
        self._metrics = Metrics(self._board, state_files, pods=settings.per_pod_metrics)
        self._kept: Configuration | None = None
        self._config_file = ConfigFile(
            config_path(settings.state_dir, local=settings.config is not None)
        )
        self._guard = Guard(KINDS)

    def start(self, resources: ExitStack) -> Loop:
        """Wait while another agent works on the node, then start all parts.

        Return the main loop, which SIGTERM and SIGINT end. Raises ValueError and OSError.
        """
        self._serve_web()
        self._settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock(resources)
        loop = Loop(
            _reconciler(self._settings, self._ability, resources, self._guard),
            self._inbox,
            self._wakeup,
            self._board,
            ticked=self._ticked,
            failed=lambda: self._workers.failed,
            guard=self._guard,
        )
        self._serve_status()
        self._load_configuration()
        self._start_following()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.stop())
        return loop

    def _take_lock(self, resources: ExitStack) -> None:
        resources.enter_context(
            file_lock(
                self._settings.state_dir / LOCK,
                waiting="another agent works on this node; this one stands by",
                on_wait=self._pulse.beat,
            )
        )

    def _ticked(self, seconds: float) -> None:
        self._pulse.beat()
        self._metrics.ticked(seconds)

    def _load_configuration(self) -> None:
        """Start with readable local files, or else with the last configuration on disk."""
        if self._settings.config is not None:
            with suppress(ConfigurationError):  # `ConfigFileWatcher` logs the error
                self._inbox.put(read_files(self._settings.config))
                return
        with self._guard.item("file", "the last configuration"):
            self._kept = self._config_file.load()
        if self._kept:
            _log.info(
                "the last configuration was read from disk: generation %s", self._kept.generation
            )
            self._inbox.put(self._kept)

    def _serve_status(self) -> None:
        settings = self._settings
        try:
            status = StatusSocket(settings.socket, settings.node, self._board, self._guard)
        except OSError as error:
            raise StartError(f"--socket {settings.socket}: {error.strerror or error}") from error
        self._workers.start("status", status.run)

    def _serve_web(self) -> None:
        settings = self._settings
        if settings.metrics_port is None:
            return
        try:
            web = WebServer(
                settings.metrics_address, settings.metrics_port, self._pulse, self._metrics.render
            )
        except OSError as error:
            raise StartError(
                f"--metrics-port {settings.metrics_port}: {error.strerror or error}"
            ) from error
        _log.info("metrics are at %s/metrics", web.url)
        self._workers.start("web", web.serve_forever)

    def _start_following(self) -> None:
        settings, metrics = self._settings, self._metrics
        if settings.config is not None:
            local = ConfigFileWatcher(
                settings.config, self._config_file, post=self._inbox.put, failed=metrics.failed
            )
            self._workers.start("local", local.run)
            return
        server = from_kubeconfig(settings.kubeconfig) if settings.kubeconfig else in_cluster()
        client = NodePinConfigClient(server, settings.node)
        status_writer = StatusWriter(
            client,
            self._board,
            failed=lambda: metrics.failed("status"),
            succeeded=metrics.status_written,
        )
        watcher = ConfigWatcher(
            client,
            self._config_file,
            post=self._inbox.put,
            announce=status_writer.announce,
            failed=metrics.failed,
            retain=Retainer(self._kept, self._existing_pods).retain,
            guard=self._guard,
        )
        self._workers.start("reporter", status_writer.run)
        self._workers.start("watcher", watcher.run)

    def _existing_pods(self) -> Mapping[str, Sequence[Path]]:
        """Return the cgroup directories of each pod. Raises OSError."""
        return PodFinder(process_hierarchy(self._settings.cgroup_root)).find(time.monotonic())
