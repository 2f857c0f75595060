"""A guest with a real kernel, in which one command runs as root with every capability.

The guest sees the host's whole file system at the same paths, read-only with a layer of memory
above it, so the checkout, its Python environment and the machine's tools are there and nothing that
the command does stays. There is no network.
"""

import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster import bpf
from cluster.cache import progress
from cluster.errors import ClusterError
from cluster.machine import Cgroups, Job, Kind
from cluster.machines import MACHINES
from cluster.process import Child
from cluster.qemu import PROCESSORS
from cluster.scratch import scratch

ATTEMPTS = 3
POLL_SECONDS = 0.05
PASSED_ON = ("PATH", "HOME", "PYTHONPATH", "LANG", "CI")


def _job(argv: Sequence[str], environment: Mapping[str, str], directory: Path) -> str:
    settings = shlex.join(f"{name}={value}" for name, value in environment.items())
    return f"cd {shlex.quote(str(directory))} && exec env -i {settings} {shlex.join(argv)}\n"


def _copy_new(source: Path, offset: int) -> int:
    """Write what a file has grown by to standard output; return its new size in bytes."""
    with source.open("rb") as output:
        output.seek(offset)
        data = output.read()
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()
    return offset + len(data)


def _boot(arguments: list[str], folder: Path, deadline: float) -> int | None:
    """Boot once and return the command's exit status, or None when the guest died before it had
    one.
    """
    for name in ("console", "output", "status"):
        (folder / name).write_bytes(b"")
    machine = Child("guest", arguments, folder / "console")
    machine.start()
    shown = 0
    try:
        while machine.running:
            shown = _copy_new(folder / "output", shown)
            if time.monotonic() > deadline:
                raise ClusterError("the command in the guest did not end in time")
            time.sleep(POLL_SECONDS)
    finally:
        machine.stop()
        _copy_new(folder / "output", shown)
    status = re.fullmatch(r"status (\d+)\s*", (folder / "status").read_text())
    return int(status.group(1)) if status else None


def run(
    argv: Sequence[str],
    *,
    kind: Kind = Kind.QEMU,
    cgroups: Cgroups = Cgroups.V2,
    directory: Path | None = None,
    timeout: float = 600,
    processors: int = PROCESSORS,
) -> int:
    """Run a command in a new guest, pass its output on as it comes, and return its exit status.

    ``timeout`` is in seconds and holds for all of it but the building of what is not in the cache
    yet. A guest that dies without the command's end is booted again, at most twice, and each time
    it is said. With one of ``processors`` no two processes are in the kernel at the same moment;
    user-mode Linux has one always.

    Raises ClusterError when the command does not end in time, when guests keep dying, or a piece
    cannot be built.
    """
    if os.geteuid() != 0:
        raise ClusterError(
            "a guest sees the host's files with the rights of its user: run it as root"
        )
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment["LD_LIBRARY_PATH"] = str(bpf.libbpf())
    with scratch("guest") as folder:
        (folder / "job").write_text(_job(argv, environment, directory or Path.cwd()))
        arguments = MACHINES[kind].guest(Job(folder, cgroups, processors))
        deadline = time.monotonic() + timeout
        for attempt in range(1, ATTEMPTS + 1):
            status = _boot(arguments, folder, deadline)
            if status is not None:
                return status
            progress(f"the guest died (attempt {attempt} of {ATTEMPTS})")
        end = (folder / "console").read_text(errors="replace")[-4000:]
        raise ClusterError(f"the guest died {ATTEMPTS} times; the end of its console:\n{end}")
