"""This machine as a node: a real holder and gate, and cgroups of pods with real processes.

A pod's process first does the work of a container runtime. It enters the cgroup, loads pinwarden's
profile, sends the listener's descriptor with the OCI state to the profile's socket, becomes the
user, and calls `execve(2)`.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from gate_node.forks import Forked, ForkServer
from pinwarden.node.linux.cgroupfs import member_pids, process_hierarchy
from pinwarden.node.seccomp.profiles import METADATA
from pinwarden.node.shm.objects import ObjectSet
from pinwarden.node.state import accountant_status as shared
from pinwarden.node.state.config import ConfigFile, Configuration
from pinwarden.node.state.gate_status import GateStatus, empty, load

CGROUP = Path("/sys/fs/cgroup")
ROOT = Path(__file__).parents[2]
MIB = 2**20
NOBODY = 65534
DEADLINE_SECONDS = 60.0
Process = Forked | subprocess.Popen[str]


@cache
def starter() -> ForkServer:
    """The fork server of this process."""
    return ForkServer("gate_node.starter", [ROOT / "operator", ROOT / "tools"])


class Home(Protocol):
    """The folder of the pods' cgroups, and the folder of the holder's sockets."""

    pods: Path
    run_dir: Path


class Pod:
    """A pod with one container. `run` starts a process in the container."""

    def __init__(self, node: Home, uid: str = "") -> None:
        self._node = node
        self.uid = uid or str(uuid.uuid4())
        self.sandbox, self.container = (os.urandom(32).hex() for _ in range(2))
        self.directory = node.pods / f"pod{self.uid}"
        for identity in (self.sandbox, self.container):
            (self.directory / identity).mkdir(parents=True)
        self.processes: list[Process] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        user: int = NOBODY,
        profile: str = "unconfined",
        name: str = "main",
    ) -> Forked:
        """Start a process with pipes as a container runtime does.

        The user 0 keeps every capability. The path of a Python program ends with .py.
        """
        settings = {
            "procs": str(self.directory / self.container / "cgroup.procs"),
            "profile": profile,
            "socket": str(self._node.run_dir / "seccomp.sock"),
            "user": user,
            "argv": list(argv),
            "state": {
                "ociVersion": "1.2.0",
                "fds": ["seccompFd"],
                "metadata": METADATA,
                "state": {
                    "ociVersion": "1.2.0",
                    "id": self.container,
                    "status": "creating",
                    "bundle": "/",
                    "annotations": {
                        "io.kubernetes.cri.container-name": name,
                        "io.kubernetes.cri.sandbox-id": self.sandbox,
                        "io.kubernetes.cri.sandbox-uid": self.uid,
                    },
                },
            },
        }
        process = starter().start("container", settings)
        self.processes.append(process)
        return process

    @property
    def pids(self) -> frozenset[int]:
        """The processes of the container."""
        return member_pids(self.directory / self.container)

    @property
    def locked(self) -> int:
        """The VmLck of all processes in bytes, once two reads in a row return the same."""
        last = -1
        while True:
            now = sum(locked(pid) for pid in self.pids)
            if now == last:
                return now
            last = now

    def end(self) -> None:
        """Kill all processes and remove the directories."""
        for pid in self.pids:
            kill(pid)
        for process in self.processes:
            _end(process)
        end = time.monotonic() + DEADLINE_SECONDS
        while self.directory.exists() and time.monotonic() < end:
            for directory in (
                self.directory / self.sandbox,
                self.directory / self.container,
                self.directory,
            ):
                try:
                    directory.rmdir()
                except OSError:
                    for pid in self.pids:
                        kill(pid)
                    time.sleep(0.01)


class Node:
    """A holder, a gate, and the configuration file of an agent. Call `close` at the end."""

    def __init__(self, folder: Path, *, executed: bool = False) -> None:
        """Start both processes by fork, or `executed` with their own interpreters."""
        self._executed = executed
        self._log = folder / "gate.log"
        self.state_dir, self.run_dir = (
            folder / "state",
            Path(f"/run/pinwarden-test-{uuid.uuid4().hex[:8]}"),
        )
        self.state_dir.mkdir()
        self.run_dir.mkdir(mode=0o700)
        self.pods = process_hierarchy(CGROUP) / "kubepods" / "burstable"
        self.pods.mkdir(parents=True, exist_ok=True)
        self._memory = ConfigFile(self.state_dir / "nodepinconfig.json")
        self._generation = 0
        self._made: list[Pod] = []
        self._processes: list[Process] = []
        self.holder = self.start("holder")
        self.until(lambda: (self.run_dir / "holder.sock").exists())
        self.gate = self.start("gate", "--state-dir", str(self.state_dir))

    def start(self, *arguments: str, capabilities: str = "") -> Process:
        """Start a subcommand of pinwarden, executed if it gets only some `capabilities`."""
        command = [*arguments, "--run-dir", str(self.run_dir)]
        bounded = ["setpriv", f"--bounding-set=-all,{capabilities}"] if capabilities else []
        process: Process
        with self._log.open("a") as log:
            if self._executed or bounded:
                process = subprocess.Popen(
                    [*bounded, sys.executable, "-m", "pinwarden", *command],
                    env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
                    stderr=log,
                    text=True,
                )
            else:
                process = starter().start("pinwarden", command, stderr=log.fileno())
        self._processes.append(process)
        return process

    def kill_gate(self, *, capabilities: str = "") -> None:
        """Kill the gate, as a crash does, and start a new gate."""
        self.gate.kill()
        self.gate.wait()
        self.gate = self.start(
            "gate", "--state-dir", str(self.state_dir), capabilities=capabilities
        )

    def pod(self, uid: str = "") -> Pod:
        """Return a new pod without limits, with the given UID or a random UID."""
        self._made.append(Pod(self, uid))
        return self._made[-1]

    def set_limits(
        self,
        limits: Mapping[str, int],
        *,
        free: Sequence[Pod] = (),
        minimum_level: str = "Converge",
    ) -> None:
        """Apply a limit in bytes to each of these pods, by UID."""
        names = {uid: f"test/{uid[:8]}" for uid in limits}
        self.configure(
            limits=[
                {
                    "name": names[uid],
                    "uid": f"uid-{uid[:8]}",
                    "scope": "Pod",
                    "limit": limit,
                    "minimumLevel": minimum_level,
                }
                for uid, limit in limits.items()
            ],
            pods=[
                *({"uid": uid, "limits": [name]} for uid, name in names.items()),
                *({"uid": pod.uid} for pod in free),
            ],
        )

    def configure(self, **spec: Any) -> None:
        """Write a NodePinConfig's spec as the agent does, and wait until the gate applies it.

        Raises AssertionError after a minute.
        """
        self._generation += 1
        self._memory.save(Configuration.parse(spec, "npc", self._generation))
        in_force = f"configuration in force: generation {self._generation},"
        self.until(lambda: in_force in self._log.read_text())

    def share(self, extents: Mapping[str, ObjectSet]) -> None:
        """Write the objects of each group as the accountant does. `configure` applies them."""
        shared.save(self.run_dir / shared.NAME, shared.AccountantStatus(objects=extents))

    @property
    def status(self) -> GateStatus:
        """The status file of the gate."""
        return load(self.run_dir / "gate.json") or empty()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true. Raises AssertionError after a minute."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "the condition stays false"
            time.sleep(0.01)

    def close(self) -> None:
        """End all processes and remove the folders."""
        for pod in self._made:
            pod.end()
        self.gate.terminate()
        self.gate.wait(10)
        for process in self._processes:
            _end(process)
        sys.stderr.write(self._log.read_text())
        for path in self.run_dir.iterdir():
            path.unlink()
        self.run_dir.rmdir()


def _end(process: Process) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):
            if stream is not None:
                stream.close()


def locked(pid: int) -> int:
    """Return the VmLck of a process in bytes, 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, found, rest = text.partition("VmLck:")
    return int(rest.split()[0]) * 1024 if found else 0


def kill(pid: int) -> None:
    """Send SIGKILL to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
