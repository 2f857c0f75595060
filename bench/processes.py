"""The measured processes: the operator on a control plane, and the use of a process.

The operator is a process of its own, as installed, with the rights of an administrator.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from cluster.build import binary
from cluster.controlplane import ControlPlane
from cluster.process import Child

ROOT = Path(__file__).parents[1]
MIB = 2**20
DEADLINE_SECONDS = 900.0


class BenchError(Exception):
    """Something that was waited for did not happen."""


def process_memory(pid: int, field: str = "VmRSS") -> int:
    """A field of /proc/PID/status in bytes: VmRSS now, VmHWM the most so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kib) * 1024


def process_cpu(pid: int) -> float:
    """Processor seconds that a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def own_child(program: str) -> int:
    """The pid of a child of this process by its program's name."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = entry.read_text().rpartition(")")
        if name.endswith(f"({program}"[:16]) and int(rest.split()[1]) == os.getpid():
            return int(entry.parent.name)
    raise BenchError(f"no {program} was started here")


@dataclass
class Operator:
    """The operator's process."""

    child: Child
    port: int
    started: float

    @property
    def pid(self) -> int:
        """Its process id; raises ClusterError when it ended."""
        return self.child.pid

    async def ready(self) -> float:
        """Wait for /readyz; the seconds from the start of the process."""
        async with aiohttp.ClientSession() as session:

            async def answers() -> bool:
                try:
                    async with session.get(f"http://127.0.0.1:{self.port}/readyz") as response:
                        return bool(response.status == 200)
                except aiohttp.ClientError:
                    _ = self.pid
                    return False

            await until("the operator is ready", answers)
        return time.monotonic() - self.started


@contextmanager
def operator(control_plane: ControlPlane, log: Path) -> Iterator[Operator]:
    """Run the operator for the length of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["-m", "pinwarden", "operator", "--kubeconfig", str(control_plane.kubeconfig)]
    child = Child("operator", [sys.executable, *arguments, "--metrics-port", str(port)], log)
    started = time.monotonic()
    child.start()
    try:
        yield Operator(child, port, started)
    finally:
        child.stop()


async def until(what: str, holds: Callable[[], Awaitable[bool]]) -> float:
    """Wait until `holds`; the seconds that it took.

    Raises:
        BenchError: not within `DEADLINE_SECONDS`.
    """
    started = time.monotonic()
    while not await holds():
        if time.monotonic() - started > DEADLINE_SECONDS:
            raise BenchError(f"not after {DEADLINE_SECONDS:.0f} s: {what}")
        await asyncio.sleep(0.2)
    return time.monotonic() - started


def apply_crds(control_plane: ControlPlane) -> None:
    """The generated CRDs, established."""
    kubectl = [str(binary("kubectl")), "--kubeconfig", str(control_plane.kubeconfig)]
    crds = str(ROOT / "crds")
    for arguments in (
        ["apply", "--server-side", "-f", crds],
        ["wait", "--for=condition=Established", "-f", crds],
    ):
        subprocess.run([*kubectl, *arguments], check=True, stdout=subprocess.DEVNULL)
