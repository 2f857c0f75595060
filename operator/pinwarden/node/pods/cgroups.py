"""Pods and containers as the kernel shows them: cgroup directories, recognised by their names.

The subject of a limit is a cgroup (P1), so everything starts here. Gate, accountant and agent all ask this module which pod and which
container a process is of. The drivers of kubelet and runtime name a pod's cgroup and its containers below it:

- cgroupfs: `kubepods[/burstable|/besteffort]/pod<uid>/<id>` (containerd, cri-dockerd) or `.../crio-<id>` (CRI-O),
- systemd: `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _ for ->.slice/<prefix>-<id>.scope`, where the runtime
  chooses the prefix: `cri-containerd`, `crio`, `docker`. A kubelet inside a container puts its own prefix before `kubepods`.

A runtime with another driver than the kubelet puts a container *beside* the pod's cgroup, which stays empty:

- containerd with cgroupfs: `<slice of the pod>:cri-containerd:<id>`, in the service of the runtime (v1) or next to it (v2),
- dockerd with cgroupfs: `<slice of the pod>/<id>` at the root.

A pod's uid is a UUID, or for a static pod the 32 hexadecimal digits of its config hash; an id is 64 hexadecimal digits. Names are
matched whole, so that a uid that begins like another one is never taken for it. `crio-conmon-<id>` holds CRI-O's monitor, which is in
the pod and not in a container. A sandbox ("pause") has an id like a container and is listed as one: only the API's list of containers
tells them apart. All other directories of a pod are strays: their processes are the pod's, of a container that nobody can name.

A cgroup below a container belongs to that container, and a cgroup below a pod to that pod, whatever its name: a kubelet that runs
inside a pod makes no pods of this node. Directories come and go during a walk; one that has vanished has no members.
"""

import errno
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

_HEX = "[0-9a-f]"
_UUID = rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
_UUID_IN_SLICE = rf"{_HEX}{{8}}_{_HEX}{{4}}_{_HEX}{{4}}_{_HEX}{{4}}_{_HEX}{{12}}"
_HASH = rf"{_HEX}{{32}}"
_CGROUPFS_POD = re.compile(rf"pod({_UUID}|{_HASH})")
_SYSTEMD_POD = re.compile(
    rf"(?:.+-)?kubepods(?:-burstable|-besteffort)?-pod({_UUID_IN_SLICE}|{_HASH})\.slice"
)
_ID = rf"({_HEX}{{64}})"
_NO_MONITOR = r"(?!(?:.*-)?conmon[-:])"
_CONTAINER = re.compile(rf"(?:crio-)?{_ID}|{_NO_MONITOR}.+-{_ID}\.scope")
_MONITOR = re.compile(rf"(?:.+-)?conmon-{_ID}(?:\.scope)?")
_BESIDE = re.compile(rf"{_SYSTEMD_POD.pattern}:{_NO_MONITOR}[^:]+:{_ID}")
_QOS = ("burstable", "besteffort")
_V1_CHOICE = ("memory", "pids", "systemd")
_PROCS = "cgroup.procs"
_CHUNK = 4096
_PATH_MAX = 4096  # linux/limits.h: bytes of a path with the zero byte that ends it
_TICK_NANOSECONDS = 900_000  # HZ is 1000 at most
_STEPS = 3  # an interrupt may lengthen one
_VANISHED = (errno.ENOENT, errno.ENODEV)


class Layout(StrEnum):
    """How a node mounts its cgroups."""

    V2 = "v2"
    V1 = "v1"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True)
class ContainerCgroup:
    """A container (or sandbox): its id, its own directory, and that directory with all below it."""

    id: str
    path: Path
    members: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class PodCgroup:
    """A pod: its uid as the kubelet names its cgroup, and every directory whose processes count as the pod's.

    `paths` is one directory, or several: those of an earlier cgroup driver or QoS class, and those of containers beside the pod's.
    `strays` are the members that belong to no container and no monitor.
    `truncated` says that a pod with a cgroup tree of its own nested it deeper than a path can name: sums over it are lower bounds (H2).
    """

    uid: str
    paths: tuple[Path, ...]
    containers: tuple[ContainerCgroup, ...]
    members: tuple[Path, ...]
    truncated: bool
    strays: tuple[Path, ...] = ()


def pod_uid(path: Path) -> str | None:
    """The uid of the pod that this very directory, or a container's beside it, stands for, with hyphens; None when it is no pod's.

    A cgroupfs name is short (`pod<uid>`), so its parents must be the kubelet's: `kubepods`, or a QoS class in it.
    """
    if match := _SYSTEMD_POD.fullmatch(path.name) or _BESIDE.fullmatch(path.name):
        return match[1].replace("_", "-")
    match = _CGROUPFS_POD.fullmatch(path.name)
    parent = path.parent.parent if path.parent.name in _QOS else path.parent
    return match[1] if match and parent.name == "kubepods" else None


def container_id(name: str) -> str | None:
    """The id of the container whose directory, directly below its pod's, has this name; None when it is no container's."""
    match = _CONTAINER.fullmatch(name)
    return (match[1] or match[2]) if match else None


def detect_layout(root: Path) -> Layout:
    """How cgroups are mounted at `root` (on a node, /sys/fs/cgroup). Raises ValueError when nothing there is a cgroup hierarchy."""
    if (root / "cgroup.controllers").exists():
        return Layout.V2
    v1 = any((child / _PROCS).exists() for child in _subdirectories(root) if not _is_v2(child))
    if v1 and _is_v2(root / "unified"):
        return Layout.HYBRID
    if v1:
        return Layout.V1
    raise ValueError(f"{root}: no cgroup hierarchy is mounted there")


def process_hierarchy(root: Path) -> Path:
    """The hierarchy that says which pod a process is in: on v1 and hybrid nodes a v1 one, because runtimes place processes there.

    Raises ValueError when `root` has none.
    """
    if detect_layout(root) is Layout.V2:
        return root
    for name in _V1_CHOICE:
        if (root / name / _PROCS).exists():
            return root / name
    raise ValueError(f"{root}: none of the hierarchies {', '.join(_V1_CHOICE)} is mounted there")


def explore(uid: str, paths: Sequence[Path]) -> PodCgroup:
    """The pod with these directories, and all below them. A directory that does not exist has nothing below it."""
    containers: list[ContainerCgroup] = []
    members: list[Path] = []
    strays: list[Path] = []
    truncated = False

    def add(path: Path, identity: str | None) -> None:
        nonlocal truncated
        below, too_deep = _tree(path)
        members.extend(below)
        truncated |= too_deep
        if identity:
            containers.append(ContainerCgroup(identity, path, below))
        elif not _MONITOR.fullmatch(path.name):
            strays.extend(below)

    for path in paths:
        if beside := _BESIDE.fullmatch(path.name):
            add(path, beside[2])
            continue
        members.append(path)
        strays.append(path)
        for child in _subdirectories(path):
            add(child, container_id(child.name))
    return PodCgroup(uid, tuple(paths), tuple(containers), tuple(members), truncated, tuple(strays))


def member_pids(cgroup: Path | str) -> frozenset[int]:
    """The processes in this one directory, as process ids of the reader's namespace.

    Empty for a directory that vanished, and for a threaded cgroup (the kernel answers EOPNOTSUPP): its processes are listed by its
    domain, which is a directory above it. A process that the reader's PID namespace cannot name (listed as 0) is left out.
    """
    try:
        text = _read(f"{cgroup}/{_PROCS}")
    except OSError as error:
        if error.errno in (*_VANISHED, errno.EOPNOTSUPP):
            return frozenset()
        raise
    return frozenset(int(line) for line in text.split()) - {0}


def cpu_time(cgroup: Path | str) -> bytes | None:
    """What the kernel says of the processor time that was used in this directory and below it: other bytes once anything ran there.

    It is `usage_usec` of cpu.stat, which every directory of cgroup v2 has, also without the cpu controller (cgroup_base_stat_cputime_show).
    None for a directory of v1, for one that cannot be read, and where the kernel counts processor time in ticks.
    """
    if _counts_ticks():
        return None
    try:
        usage, _, _ = _read(f"{cgroup}/cpu.stat").partition(b"\n")
    except OSError:
        return None
    return usage if usage.startswith(b"usage_usec") else None


@cache
def _counts_ticks() -> bool:
    """Return whether this kernel counts processor time in timer ticks: what runs for less than a tick may not show in it.

    That is so without a scheduler clock finer than jiffies (sched_clock), as in user-mode Linux. Takes a few ticks there.
    """
    return min(_step() for _ in range(_STEPS)) >= _TICK_NANOSECONDS


def _step() -> int:
    """Return by how many nanoseconds this thread's processor time grows when it grows."""
    began = time.thread_time_ns()
    while (grown := time.thread_time_ns() - began) == 0:
        pass
    return grown


def _read(path: str) -> bytes:
    """The file in as few calls as it takes: this is read often. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(descriptor, _CHUNK)]
        while parts[-1]:
            parts.append(os.read(descriptor, _CHUNK))
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _is_v2(path: Path) -> bool:
    return (path / "cgroup.controllers").exists()


def _tree(path: Path) -> tuple[tuple[Path, ...], bool]:
    """The directory with all below it, parents first, and whether some lie too deep for a path to name."""
    found: list[Path] = []
    truncated = False
    pending = [path]
    while pending:
        directory = pending.pop()
        if len(os.fsencode(directory / _PROCS)) >= _PATH_MAX:
            truncated = True
            continue
        found.append(directory)
        pending += reversed(_subdirectories(directory))
    return tuple(found), truncated


def _subdirectories(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        if error.errno in _VANISHED:
            return []
        raise
