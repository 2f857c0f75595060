"""This machine as a node: cgroups of pods with idle processes, and the agent as a process.

The cgroups lie below a directory of this run in the cgroup v2 hierarchy. Their names are those of
the kubelet with the cgroupfs driver. The processes are forks of one small Python process. They wait
for a signal, have no capabilities, and cannot gain any. They keep this program's uid, because
without `CAP_SYS_RESOURCE` the kernel forbids changing limits of other users. All of them end with
their block, or with this program.

Without `CAP_SYS_RESOURCE` the agent would only observe, and the cost of enforcement would be
missing. In this case the agent starts with a replaced answer of its probe: lowering limits still
works, and the benchmarks only lower limits. `Machine.gate` reports the case.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.process import Child
from pinwarden.node.linux.prlimit import probe

ROOT = Path(__file__).parents[1]
PAUSE_SECONDS = 0.02
DEADLINE_SECONDS = 300.0
LOWERING_ONLY = """
import sys
from pinwarden.node.agent import daemon
from pinwarden.node.linux.prlimit import GateAbility
from pinwarden.cli.main import main
daemon.probe = lambda: GateAbility(True)
sys.exit(main(sys.argv[1:]))
"""
IDLE = """
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None)
pids = []
for line in sys.stdin:
    if line == "\\n":
        break
    directory, count = line.rsplit(" ", 1)
    for _ in range(int(count)):
        pid = os.fork()
        if pid == 0:
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            with open(directory + "/cgroup.procs", "w") as procs:
                procs.write("0")
            libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            if libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)):
                os._exit(1)
            signal.pause()
            os._exit(0)
        pids.append(pid)
print(*pids, flush=True)
sys.stdin.read()
for pid in pids:
    os.kill(pid, signal.SIGKILL)
for pid in pids:
    os.waitpid(pid, 0)
"""


@dataclass(frozen=True)
class Pod:
    """A pod's directories: its own, and its one container's in it."""

    uid: str
    path: Path

    @property
    def container(self) -> Path:
        """The directory with the processes."""
        return self.path / ("1a" * 32)

    def pids(self) -> list[int]:
        """Its processes."""
        return [int(line) for line in (self.container / "cgroup.procs").read_text().split()]


@contextmanager
def hierarchy() -> Iterator[Path]:
    """Yield an empty cgroup as the root of a node. Raises OSError if it cannot be made."""
    v2 = (
        path
        for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
        if (path / "cgroup.controllers").exists()
    )
    root = next(v2, Path("/sys/fs/cgroup")) / f"pinwarden-bench-{uuid.uuid4().hex[:8]}"
    root.mkdir()
    try:
        yield root
    finally:
        _remove(root)


def _remove(root: Path) -> None:
    """Bottom up; a process that was just killed may take a moment to leave."""
    for path, _, _ in os.walk(root, topdown=False):
        until(f"{path} is empty", partial(_removed, path))


def _removed(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True


@contextmanager
def pods(root: Path, uids: Sequence[str], processes: int) -> Iterator[list[Pod]]:
    """A burstable pod for each uid below `root`, with that many idle processes."""
    made = [Pod(uid, root / "kubepods" / "burstable" / f"pod{uid}") for uid in uids]
    for pod in made:
        pod.container.mkdir(parents=True)
    command = [sys.executable, "-I", "-S", "-c", IDLE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        try:
            for pod in made:
                parent.stdin.write(f"{pod.container} {processes}\n")
            parent.stdin.write("\n")
            parent.stdin.flush()
            started = parent.stdout.readline().split()
            if len(started) != processes * len(made):
                raise RuntimeError("the idle processes could not be started")
            until(
                "all are in their cgroups",
                lambda: sum(len(pod.pids()) for pod in made) == len(started),
            )
            yield made
        finally:
            parent.stdin.close()
            if parent.wait() != 0:
                sys.stderr.write("the parent of the idle processes failed\n")


@dataclass(frozen=True)
class Machine:
    """What the agent is started on; `gate` says whether the machine has one, for people."""

    cgroup_root: Path
    folder: Path
    lowering_only: bool

    @property
    def gate(self) -> str:
        """Return the name of the gate for a heading."""
        if self.lowering_only:
            return "rlimit, lowering only (no CAP_SYS_RESOURCE; the agent's probe is replaced)"
        return "rlimit"

    @property
    def socket(self) -> Path:
        """Where the agent answers."""
        return self.folder / "agent.sock"

    @property
    def log(self) -> Path:
        """Where the agent writes."""
        return self.folder / "agent.log"

    @contextmanager
    def agent(self, *options: str) -> Iterator[Child]:
        """Run the agent with these options besides its folders, until the end of the block."""
        start = ["-c", LOWERING_ONLY] if self.lowering_only else ["-m", "pinwarden"]
        places = (
            f"--cgroup-root={self.cgroup_root}",
            f"--state-dir={self.folder / 'state'}",
            f"--socket={self.socket}",
        )
        child = Child("agent", [sys.executable, *start, "agent", *places, *options], self.log)
        child.start()
        try:
            yield child
        except BaseException:
            sys.stderr.write(self.log.read_text()[-2000:])
            raise
        finally:
            child.stop()


@contextmanager
def machine() -> Iterator[Machine]:
    """A hierarchy and a folder of this run."""
    os.environ["PYTHONPATH"] = str(ROOT / "operator")
    folder = Path(tempfile.mkdtemp(prefix="pinwarden-bench-"))
    try:
        with hierarchy() as root:
            yield Machine(root, folder, lowering_only=not probe().available)
    finally:
        shutil.rmtree(folder)


def until(what: str, holds: Callable[[], bool]) -> None:
    """Wait; raises TimeoutError when it does not come."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {DEADLINE_SECONDS:.0f} s: {what}")
        time.sleep(PAUSE_SECONDS)


def stop_on_signals() -> None:
    """SIGTERM ends this program as Ctrl-C does, so that what it started goes with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
