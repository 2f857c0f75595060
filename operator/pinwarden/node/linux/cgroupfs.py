"""The files of cgroups, v1 and v2 (Documentation/admin-guide/cgroup-v2.rst)."""

import errno
import os
import time
from contextlib import suppress
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

PROCS: Final = "cgroup.procs"
_V1_CHOICE: Final = ("memory", "pids", "systemd")
_MEMORY_CHARGE: Final = ("memory.current", "memory.usage_in_bytes")  # v2, v1
_ANONYMOUS: Final = ("anon ", "total_rss ")  # v2, v1
_CHUNK: Final = 4096
_TICK_NANOSECONDS: Final = 900_000  # HZ is 1000 at most
_STEPS: Final = 3  # an interrupt may lengthen one
_VANISHED: Final = (errno.ENOENT, errno.ENODEV)


class Layout(StrEnum):
    """How a node mounts its cgroups."""

    V2 = "v2"
    V1 = "v1"
    HYBRID = "hybrid"


class MemoryUsage(NamedTuple):
    """Bytes charged to a cgroup, and the anonymous memory among them."""

    current: int
    anonymous: int


def detect_layout(root: Path) -> Layout:
    """Return how cgroups are mounted at `root`, which is /sys/fs/cgroup on a node.

    Raises ValueError if `root` has no cgroup hierarchy.
    """
    if _is_v2(root):
        return Layout.V2
    v1 = any((child / PROCS).exists() for child in subdirectories(root) if not _is_v2(child))
    if v1 and _is_v2(root / "unified"):
        return Layout.HYBRID
    if v1:
        return Layout.V1
    raise ValueError(f"{root}: no cgroup hierarchy is mounted there")


def process_hierarchy(root: Path) -> Path:
    """Return the hierarchy in which runtimes place processes: a v1 one on v1 and hybrid nodes.

    Raises ValueError if `root` has none.
    """
    if detect_layout(root) is Layout.V2:
        return root
    for name in _V1_CHOICE:
        if (root / name / PROCS).exists():
            return root / name
    raise ValueError(f"{root}: none of the hierarchies {', '.join(_V1_CHOICE)} is mounted there")


def memory_hierarchy(root: Path) -> Path:
    """Return the hierarchy of the memory controller: the only one on v2, its own on v1."""
    legacy = root / "memory"
    return legacy if (legacy / PROCS).exists() else root


def subdirectories(cgroup: Path) -> list[Path]:
    """Return the child cgroups, sorted; an empty list if the cgroup is gone."""
    try:
        with os.scandir(cgroup) as entries:
            return sorted(
                Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)
            )
    except OSError as error:
        if error.errno in _VANISHED:
            return []
        raise


def member_pids(cgroup: Path | str) -> frozenset[int]:
    """Return the processes of this cgroup alone, as ids of the reader's PID namespace.

    The set is empty for a removed cgroup, and for a threaded cgroup (EOPNOTSUPP). The domain
    above a threaded cgroup lists its processes. A process without an id in the reader's PID
    namespace, shown as 0, is left out.
    """
    try:
        text = _read(f"{cgroup}/{PROCS}")
    except OSError as error:
        if error.errno in (*_VANISHED, errno.EOPNOTSUPP):
            return frozenset()
        raise
    return frozenset(int(line) for line in text.split()) - {0}


def cpu_time(cgroup: Path | str) -> bytes | None:
    """Return the processor time of a cgroup and its descendants, as bytes to compare.

    The value changes once anything runs there. The source is `usage_usec` of `cpu.stat`, which
    every v2 cgroup has, also without the cpu controller (cgroup_base_stat_cputime_show). Return
    None for a v1 or unreadable cgroup, and if the kernel counts processor time in ticks.
    """
    if _counts_ticks():
        return None
    try:
        usage, _, _ = _read(f"{cgroup}/cpu.stat").partition(b"\n")
    except OSError:
        return None
    return usage if usage.startswith(b"usage_usec") else None


def memory_charge(cgroup: Path) -> int | None:
    """Return the bytes charged to a cgroup; None if it is gone or has no memory controller."""
    for name in _MEMORY_CHARGE:
        with suppress(OSError):
            return int((cgroup / name).read_text())
    return None


def memory_usage(cgroup: Path) -> MemoryUsage | None:
    """Return the memory of a cgroup; None if it is gone or has no memory controller."""
    current = memory_charge(cgroup)
    if current is None:
        return None
    try:
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:
        return None
    anonymous = [int(line.split()[1]) for line in lines if line.startswith(_ANONYMOUS)]
    return MemoryUsage(current, anonymous[0]) if anonymous else None


@cache
def _counts_ticks() -> bool:
    """Return whether this kernel counts processor time in timer ticks, so less may not show.

    Such a kernel has no scheduler clock finer than jiffies (sched_clock); user-mode Linux is one.
    There the measurement takes a few ticks.
    """
    return min(_step() for _ in range(_STEPS)) >= _TICK_NANOSECONDS


def _step() -> int:
    """Return by how many nanoseconds this thread's processor time grows when it grows."""
    began = time.thread_time_ns()
    while (grown := time.thread_time_ns() - began) == 0:
        pass
    return grown


def _read(path: str) -> bytes:
    """Return a file's content in few system calls, because callers read often. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = [os.read(descriptor, _CHUNK)]
        while chunks[-1]:
            chunks.append(os.read(descriptor, _CHUNK))
    finally:
        os.close(descriptor)
    return b"".join(chunks)


def _is_v2(path: Path) -> bool:
    return (path / "cgroup.controllers").exists()
