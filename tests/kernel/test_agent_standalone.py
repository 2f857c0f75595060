"""The agent's process on a real kernel, without Kubernetes: from a local file to a denied mlock.

Runs inside the guest (`make test-kernel`). The agent has CAP_SYS_RESOURCE alone, as in the chart.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinwarden.cli.status import ask

from ..waiting import eventually, exit_status

ROOT = Path(__file__).parents[2]
CGROUPS = Path("/sys/fs/cgroup")
MIB = 2**20
BEFORE = (32 * MIB, 64 * MIB)
NOBODY = 65534
ONE_CAPABILITY = ("setpriv", "--bounding-set=-all,+sys_resource", "--no-new-privs")
WORKER = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 64 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
os.setuid(int(sys.argv[1]))
locked = 0
for line in sys.stdin:
    error = 0
    while not error:
        if libc.mlock(ctypes.c_void_p(start + locked), ctypes.c_size_t(mmap.PAGESIZE)):
            error = ctypes.get_errno()
        else:
            locked += mmap.PAGESIZE
    print(locked, error, flush=True)
"""


class Worker:
    """A process in a cgroup that locks memory until it is refused."""

    def __init__(self, cgroup: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", WORKER, str(NOBODY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        resource.prlimit(self.process.pid, resource.RLIMIT_MEMLOCK, BEFORE)
        (cgroup / "cgroup.procs").write_text(str(self.process.pid))

    def lock(self) -> tuple[int, int]:
        """Bytes locked in all and the errno that ended it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        locked, error = self.process.stdout.readline().split()
        return int(locked), int(error)

    def limits(self) -> tuple[int, int]:
        return resource.prlimit(self.process.pid, resource.RLIMIT_MEMLOCK)


@pytest.fixture
def worker() -> Iterator[Worker]:
    parent = CGROUPS / "pinwarden-test.slice"
    cgroup = parent / "vm-1.scope"
    cgroup.mkdir(parents=True)
    running = Worker(cgroup)
    yield running
    running.process.kill()
    running.process.wait()
    for directory in (cgroup, parent):
        directory.rmdir()


class Host:
    """The agent's files, and what runs it."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "limits.yaml"
        self.socket = folder / "agent.sock"
        self.state = folder / "state"

    def limit(self, amount: str) -> None:
        """Replaces the file in one step."""
        beside = self.config.with_suffix(".new")
        beside.write_text(
            f"limits: [{{name: vms, limit: {amount}, "
            "cgroupPattern: pinwarden-test.slice/*.scope}]\n"
        )
        beside.replace(self.config)

    def run(self, *options: str) -> subprocess.Popen[bytes]:
        files = [f"--config={self.config}", f"--socket={self.socket}", f"--state-dir={self.state}"]
        agent = [sys.executable, "-m", "pinwarden", "agent", "--gates=rlimit", "--metrics-port=-1"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "operator")}
        return subprocess.Popen([*ONE_CAPABILITY, *agent, *files, *options], env=environment)


@pytest.mark.rule("P5", "P12", "H3", level="Converge")
def test_file_limits_a_directory_until_release(worker: Worker, tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.limit("1Mi")
    agent = host.run()
    try:
        eventually(worker.limits, lambda last: last[0] == MIB)
        assert worker.lock() == (MIB, errno.ENOMEM)

        started = time.monotonic()
        host.limit("2Mi")
        eventually(worker.limits, lambda last: last[0] == 2 * MIB)
        print(
            f"from a changed file to a changed rlimit: {(time.monotonic() - started) * 1000:.0f} ms"
        )
        assert worker.lock() == (2 * MIB, errno.ENOMEM)

        answer = eventually(
            lambda: ask(host.socket),
            lambda last: any(subject["vmLck"] == 2 * MIB for subject in last["report"]["pods"]),
        )
        assert answer["limitsOf"] == {"pinwarden-test.slice/vm-1.scope": ["vms"]}

        host.config.write_text("limits: [{name: vms, limit: lots}]\n")
        eventually(
            lambda: ask(host.socket), lambda last: "limits[0].limit" in last.get("problem", "")
        )
        assert worker.limits()[0] == 2 * MIB

        agent.send_signal(signal.SIGTERM)
        assert exit_status(agent) == 0
        assert worker.limits()[0] == 2 * MIB
    finally:
        agent.kill()
        agent.wait()
    with host.run("--release") as release:
        assert exit_status(release) == 0
    assert worker.limits() == BEFORE
