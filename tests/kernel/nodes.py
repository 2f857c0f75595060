"""Cgroups of pods named as by the kubelet, real processes in them, and a reconciler over both."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.patience import Patience
from pinwarden.api.nodepinconfig import NodePinConfigSpec, OvershootReport, PodReport
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.reconciler import Reconciler
from pinwarden.node.agent.retainer import Retainer
from pinwarden.node.linux.cgroupfs import member_pids
from pinwarden.node.linux.prlimit import Limits, prlimit_memlock, probe
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.state.config import ConfigFile, Configuration

CGROUP = Path("/sys/fs/cgroup")
KUBEPODS = CGROUP / "kubepods"
PROGRAM = Path(__file__).with_name("worker.py")
MIB = 2**20
GIVEN = Limits(32 * MIB, 64 * MIB)
NOBODY = 65534
DEADLINE_SECONDS = 60.0
ONE, TWO, SANDBOX = "1a" * 32, "2b" * 32, "3c" * 32


class Worker:
    """A process in a cgroup that locks memory on request."""

    def __init__(self, cgroup: Path, *arguments: str, user: int = NOBODY, file: str = "-") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(PROGRAM), str(user), file, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        prlimit_memlock(self.pid, GIVEN)
        assert self._read() == "ready"
        self.move(cgroup)

    def move(self, cgroup: Path) -> None:
        """To another cgroup."""
        (cgroup / "cgroup.procs").write_text(str(self.pid))

    def lock(self, most: int) -> tuple[int, int]:
        """Lock pages up to `most` bytes or a denial; return the locked bytes and errno."""
        self.begin(most)
        return self.result()

    def begin(self, most: int) -> None:
        """Like `lock`, without waiting for the end."""
        self._send_line(f"lock {most}")

    def result(self) -> tuple[int, int]:
        locked, error = self._read().split()
        return int(locked), int(error)

    def send(self, command: str, amount: int = 0) -> tuple[int, int]:
        """Do what worker.py has under this name: bytes and errno."""
        self._send_line(f"{command} {amount}")
        return self.result()

    def fork(self, generations: int) -> None:
        """Begin a line of processes; the last process answers a `result` and stays."""
        self._send_line(f"fork {generations}")

    @property
    def locked(self) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.split("VmLck:")[1].split()[0]) * 1024

    @property
    def limits(self) -> Limits:
        return prlimit_memlock(self.pid)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _send_line(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Node:
    """Cgroups of pods, their workers, and a reconciler that runs during waits."""

    def __init__(self, state: Path, cgroup_root: Path = CGROUP) -> None:
        self._state = state
        self._cgroup_root = cgroup_root
        self.memory = ConfigFile(state / "last.json")
        self._directories: list[Path] = []
        self._workers: list[Worker] = []
        self._generation = 0
        (KUBEPODS / "burstable").mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """Start a new reconciler with the same state folder."""
        self.reconciler = Reconciler(
            cgroup_root=self._cgroup_root,
            proc_root=Path("/proc"),
            store=RlimitRecordStore(self._state / "saved.json", "boot"),
            ability=probe(),
        )
        self._retainer = Retainer(self.memory.load(), lambda: PodFinder(CGROUP).find(0.0))

    def pod(self, *containers: str, uid: str = "") -> str:
        uid = uid or str(uuid.uuid4())
        for container in containers or (ONE,):
            self.directory(uid, container).mkdir(parents=True)
            self._directories += [
                self.directory(uid, container),
                self.directory(uid, container).parent,
            ]
        return uid

    def directory(self, uid: str, container: str = ONE) -> Path:
        return KUBEPODS / "burstable" / f"pod{uid}" / container

    def hire(
        self, uid: str, *arguments: str, container: str = ONE, user: int = NOBODY, file: str = "-"
    ) -> Worker:
        self._workers.append(
            Worker(self.directory(uid, container), *arguments, user=user, file=file)
        )
        return self._workers[-1]

    def configure(
        self, limits: list[dict[str, Any]], pods: list[dict[str, Any]], **more: Any
    ) -> None:
        self._generation += 1
        limits = [{"name": "l", "uid": "uid-l", "scope": "Pod", **one} for one in limits]
        spec = NodePinConfigSpec.model_validate({"limits": limits, "pods": pods, **more})
        self.reconciler.configure(spec, [], self._generation)
        self.until(lambda: self.reconciler.report().observed_generation == self._generation)

    def take(self, limits: list[dict[str, Any]], pods: list[dict[str, Any]]) -> None:
        """Handle a spec as the agent does: retain, write to disk, and bring into force."""
        self._generation += 1
        limits = [{"name": "l", "uid": "uid-l", "scope": "Pod", **one} for one in limits]
        new = Configuration.parse({"limits": limits, "pods": pods}, "uid", self._generation)
        found = self._retainer.retain(new)
        self.memory.save(found)
        self.reconciler.configure(found.spec, found.unsupported, found.generation, found.gone)
        self.until(lambda: self.reconciler.report().observed_generation == self._generation)

    def set_limit(self, uid: str, limit: int, **more: Any) -> None:
        self.configure([{"limit": limit, **more}], [{"uid": uid, "limits": ["l"]}])

    def until(self, holds: Callable[[], bool]) -> None:
        """Ticks until it holds."""
        patience = Patience(DEADLINE_SECONDS)
        while not holds():
            assert not patience.ended, self.reconciler.report()
            time.sleep(min(self.reconciler.tick(), 0.05))

    def settle(self) -> None:
        """Ticks for at least two looks at every pod."""
        end = time.monotonic() + 1.5
        self.until(lambda: time.monotonic() > end)

    def report(self, uid: str) -> PodReport:
        return next(pod for pod in self.reconciler.report().pods if pod.uid == uid)

    def overshoot(self) -> OvershootReport:
        (found,) = self.reconciler.report().overshoots
        return found

    def close(self) -> None:
        self.reconciler.close()
        for worker in self._workers:
            worker.end()
        for directory in sorted(set(self._directories), reverse=True):
            remove(directory)


def remove(directory: Path) -> None:
    """Kill what is in a cgroup, and remove it."""
    patience = Patience(DEADLINE_SECONDS)
    while directory.exists():
        assert not patience.ended, f"{directory} is still in use"
        for pid in member_pids(directory):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            directory.rmdir()
        except OSError:
            time.sleep(0.05)
