"""The processes of a node under test: agent, gate, accountant and holder, and their check.

They run on a kernel of their own and need every capability and cgroup v2, so they run in a guest
(`python -m cluster guest`).
"""

import logging
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster.patience import Patience
from fuzzing import hostile
from fuzzing.tally import Tally
from gate_node.node import CGROUP, MIB, NOBODY, ROOT, Pod, Process
from pinwarden.cli.status import ask
from pinwarden.node.linux.prlimit import Limits, prlimit_memlock
from pinwarden.node.state import accountant_status, gate_status
from pinwarden.node.state.config import ConfigFile
from pinwarden.node.state.config_path import config_path

SPARE_SECONDS = 30.0
RUNTIME_LIMITS = Limits(8 * MIB, 64 * MIB)
SLICE = "fuzz.slice"
AMOUNTS = (MIB, 2 * MIB)
GROWTH_BYTES, GROWTH_DESCRIPTORS = 32 * MIB, 48
_log = logging.getLogger(__name__)
_PROGRAM = str(Path(hostile.__file__))


class FuzzError(Exception):
    """The run cannot continue."""


class Watched:
    """A process of pinwarden with its log; the process must not end."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "pinwarden", name, *arguments]
        self.start()

    def start(self) -> None:
        """Start the process as a container runtime does."""
        with self.log.open("ab") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
            self.process = subprocess.Popen(self._command, env=environment, stderr=log, stdout=log)
        self.first_size: tuple[int, int] | None = None

    def restart(self, before: Callable[[], None]) -> None:
        """End the process as the kubelet does, call `before`, and start the process again."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        before()
        self.start()

    @property
    def size(self) -> tuple[int, int]:
        """Return resident bytes and open descriptors."""
        process = psutil.Process(self.process.pid)
        return process.memory_info().rss, process.num_fds()

    def logged(self) -> str:
        """Return the log."""
        return self.log.read_text(errors="replace")


class CheckedNode:
    """The processes, two canary pods, and a hostile pod.

    `check` changes the limit of the canaries. The rlimit gate limits one canary, the seccomp gate
    the other.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.tally = Tally(seed)
        self._rng = random.Random(seed)
        self.run_dir = Path(f"/run/pinwarden-fuzz-{uuid.uuid4().hex[:8]}")
        self.run_dir.mkdir(mode=0o700)
        self.pods = CGROUP / "kubepods" / "burstable"
        self.slice = CGROUP / SLICE
        for path in (self.pods, self.slice):
            path.mkdir(parents=True, exist_ok=True)
        self._state, self._config = folder / "state", folder / "config"
        self._config.mkdir()
        self._socket = folder / "agent.sock"
        self.canary, self.gated, self.hostile = (Pod(self) for _ in range(3))
        self._amount = AMOUNTS[0]
        self._file: Path | None = None
        self._configure()
        folders = ["--run-dir", str(self.run_dir)]
        states = ["--state-dir", str(self._state), "--local"]
        holder = Watched(folder, "holder", *folders)
        self._until(lambda: (self.run_dir / "holder.sock").exists(), "the holder listens")
        gate = Watched(folder, "gate", *folders, *states)
        accountant = Watched(folder, "accountant", *folders, *states)
        agent = Watched(
            folder,
            "agent",
            *folders,
            *states[:2],
            f"--config={self._config}",
            f"--socket={self._socket}",
            "--metrics-address=127.0.0.1",
            "--metrics-port=0",
            "--per-pod-metrics",
        )
        self.processes = {watched.name: watched for watched in (holder, gate, accountant, agent)}
        self._workers: list[subprocess.Popen[bytes]] = []
        self._locker = self._program(self.gated, NOBODY)
        self._program_of_hostile = self._program(self.hostile, NOBODY)
        self._canary = self._idle(self.canary)
        self._until(lambda: bool(self._status.get("report")), "the agent reports")
        self.check()

    def check(self, after: str = "the start") -> None:
        """Change the canaries' limit and note each failed condition.

        Raises:
            FuzzError: a process has ended.
        """
        for name, watched in self.processes.items():
            if (code := watched.process.poll()) is not None:
                self.tally.found(f"{name} ended with {code} after {after}")
                raise FuzzError(f"{name} ended: {watched.logged()[-3000:]}\n{self.tally}")
        self._remove_file()
        self._amount = AMOUNTS[self._amount == AMOUNTS[0]]
        self._configure()
        late = self._idle(self.canary)
        wanted = Limits(self._amount, self._amount)
        for process in (self._canary, late):
            self._expect(
                partial(_has, process.pid, wanted), f"the canary is not limited after {after}"
            )
        self._expect(self._canary_reported, f"the canary's new limit is not reported after {after}")
        late.kill()
        late.wait()
        self._workers.remove(late)
        self._expect(self._gate_denies, f"the gate's canary is not limited after {after}")
        self._expect(self._files_whole, f"a file of the processes stays damaged after {after}")
        self._expect(self._accounted, f"the group is not accounted after {after}")
        self._measure(after)

    def _measure(self, after: str) -> None:
        for name, watched in self.processes.items():
            resident, descriptors = watched.size
            if watched.first_size is None or after == "the start":
                watched.first_size = (resident, descriptors)
            if resident > watched.first_size[0] + GROWTH_BYTES:
                self.tally.found(f"{name} has grown by more than {GROWTH_BYTES} bytes")
                watched.first_size = (resident, watched.first_size[1])
            if descriptors > watched.first_size[1] + GROWTH_DESCRIPTORS:
                self.tally.found(f"{name} has grown by more than {GROWTH_DESCRIPTORS} descriptors")
                watched.first_size = (watched.first_size[0], descriptors)

    def _canary_reported(self) -> bool:
        report = self._reported(self.canary.uid)
        return (
            report is not None
            and (report["level"], report["reason"]) == ("Converge", "RlimitGate")
            and "problem" not in self._status
            and self._limit_of("canary") == self._amount
            and any(limit["uid"] == "canary" for limit in self._status["report"]["appliedLimits"])
        )

    def _gate_denies(self) -> bool:
        self._ask(self._locker, "unlock")
        return (
            self._ask(self._locker, f"lock {4 * MIB}") == f"{self._amount} 12"
            and (self._reported(self.gated.uid) or {}).get("level") == "Deny"
        )

    def _files_whole(self) -> bool:
        gate = gate_status.load(self.run_dir / gate_status.NAME)
        whole = (
            gate is not None
            and {self.gated.container, self.hostile.container} <= gate.containers.keys()
        )
        saved = config_path(self._state, local=True)
        return whole and saved.exists() and ConfigFile(saved).load() is not None

    def _accounted(self) -> bool:
        status = accountant_status.load(self.run_dir / accountant_status.NAME)
        return status is not None and [group.uid for group in status.groups] == ["ring", "shm"]

    def _remove_file(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._file = None

    def close(self) -> None:
        """End all processes."""
        for watched in self.processes.values():
            watched.process.kill()
            watched.process.wait()
        for worker in self._workers:
            worker.kill()
            worker.wait()
        for pod in (self.canary, self.gated, self.hostile):
            pod.end()

    def _configure(self) -> None:
        """Write limits for the canaries, the hostile pod and the slice, and the groups."""
        limits = [
            {"name": name, "limit": self._amount if name != "hostile" else MIB, "scope": "Pod"}
            for name in ("canary", "gated", "hostile")
        ]
        pods = {"canary": self.canary, "gated": self.gated, "hostile": self.hostile}
        group = {
            "management": "Adopt",
            "accounting": "Borrow",
            "fairShare": "Borrow",
            "members": [{"pods": [self.hostile.uid]}],
        }
        spec = {
            "limits": [*limits, {"name": "slice", "limit": MIB, "cgroupPattern": f"{SLICE}/**"}],
            "pods": [{"uid": pod.uid, "limits": [name]} for name, pod in pods.items()],
            "groups": [
                {"name": "f/ring", "uid": "ring", "backing": {"memfd": {"name": "*"}}, **group},
                {
                    "name": "f/shm",
                    "uid": "shm",
                    "backing": {"posixShm": {"name": "*", "ipcNamespace": "Host"}},
                    **group,
                },
            ],
        }
        beside = self._config / ".canary"
        beside.write_text(yaml.safe_dump(spec))
        beside.replace(self._config / "canary.yaml")

    def _program(self, pod: Pod, user: int) -> Process:
        process = pod.run([_PROGRAM], user=user)
        prlimit_memlock(process.pid, RUNTIME_LIMITS)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise FuzzError("a pod's program does not start")
        return process

    @staticmethod
    def _ask(process: Process, order: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        print(order, file=process.stdin, flush=True)
        if not (answer := process.stdout.readline()):
            raise FuzzError(f"a pod's program ended at {order[:100]}")
        return answer.strip()

    def _idle(self, pod: Pod) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["setpriv", "--reuid=65534", "--clear-groups", "--no-new-privs", "sleep", "inf"]
        )
        prlimit_memlock(process.pid, RUNTIME_LIMITS)
        (pod.directory / pod.container / "cgroup.procs").write_text(str(process.pid))
        self._workers.append(process)
        return process

    @property
    def _status(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return ask(self._socket)
        return {}

    def _reported(self, uid: str) -> dict[str, Any] | None:
        pods = self._status.get("report", {}).get("pods", [])
        return next((pod for pod in pods if pod["uid"] == uid), None)

    def _limit_of(self, name: str) -> int | None:
        limits = self._status.get("configuration", {}).get("limits", [])
        return next((limit["limit"] for limit in limits if limit["name"] == name), None)

    def _expect(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait for a condition, and note `otherwise` if it stays false."""
        patience = Patience(SPARE_SECONDS)
        while not condition():
            if patience.ended or any(
                watched.process.poll() is not None for watched in self.processes.values()
            ):
                self.tally.found(otherwise)
                _log.error(
                    "status: %.1500s", {key: self._status.get(key) for key in ("problem", "report")}
                )
                return
            time.sleep(0.02)

    def _until(self, condition: Callable[[], bool], expected: str) -> None:
        patience = Patience(SPARE_SECONDS)
        while not condition():
            if patience.ended:
                raise FuzzError(f"still not true: {expected}")
            time.sleep(0.02)


def _has(pid: int, limits: Limits) -> bool:
    return prlimit_memlock(pid) == limits
