"""Pods and containers as the kernel shows them: cgroup directories, recognised by their names.

The subject of a limit is a cgroup (P1), so everything starts here. Gate, accountant and agent all
ask this module which pod and which container a process is of. The drivers of kubelet and runtime
name a pod's cgroup and its containers below it:

- cgroupfs: `kubepods[/burstable|/besteffort]/pod<uid>/<id>` (containerd, cri-dockerd) or
  `.../crio-<id>` (CRI-O),
- systemd: `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _ for
  ->.slice/<prefix>-<id>.scope`, where the runtime chooses the prefix: `cri-containerd`, `crio`,
  `docker`. A kubelet inside a container puts its own prefix before `kubepods`.

A runtime with another driver than the kubelet puts a container *beside* the pod's cgroup, which
stays empty:

- containerd with cgroupfs: `<slice of the pod>:cri-containerd:<id>`, in the service of the runtime
  (v1) or next to it (v2),
- dockerd with cgroupfs: `<slice of the pod>/<id>` at the root.

A pod's uid is a UUID, or for a static pod the 32 hexadecimal digits of its config hash; an id is 64
hexadecimal digits. Names are matched whole, so that a uid that begins like another one is never
taken for it. `crio-conmon-<id>` holds CRI-O's monitor, which is in the pod and not in a container.
A sandbox ("pause") has an id like a container and is listed as one: only the API's list of
containers tells them apart. All other directories of a pod are strays: their processes are the
pod's, of a container that nobody can name.

A cgroup below a container belongs to that container, and a cgroup below a pod to that pod, whatever
its name: a kubelet that runs inside a pod makes no pods of this node. Directories come and go
during a walk; one that has vanished has no members.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pinwarden.node.linux.cgroupfs import PROCS, subdirectories

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
_PATH_MAX = 4096  # linux/limits.h: bytes of a path with the zero byte that ends it


@dataclass(frozen=True, slots=True)
class ContainerCgroup:
    """A container (or sandbox): its id, its own directory, and that directory with all below it."""

    id: str
    path: Path
    members: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class PodCgroup:
    """A pod: its uid as the kubelet names its cgroup, and every directory whose processes count as
    the pod's.

    `paths` is one directory, or several: those of an earlier cgroup driver or QoS class, and those
    of containers beside the pod's. `strays` are the members that belong to no container and no
    monitor. `truncated` says that a pod with a cgroup tree of its own nested it deeper than a path
    can name: sums over it are lower bounds (H2).
    """

    uid: str
    paths: tuple[Path, ...]
    containers: tuple[ContainerCgroup, ...]
    members: tuple[Path, ...]
    truncated: bool
    strays: tuple[Path, ...] = ()


def pod_uid(path: Path) -> str | None:
    """The uid of the pod that this very directory, or a container's beside it, stands for, with
    hyphens; None when it is no pod's.

    A cgroupfs name is short (`pod<uid>`), so its parents must be the kubelet's: `kubepods`, or a
    QoS class in it.
    """
    if match := _SYSTEMD_POD.fullmatch(path.name) or _BESIDE.fullmatch(path.name):
        return match[1].replace("_", "-")
    match = _CGROUPFS_POD.fullmatch(path.name)
    parent = path.parent.parent if path.parent.name in _QOS else path.parent
    return match[1] if match and parent.name == "kubepods" else None


def container_id(name: str) -> str | None:
    """The id of the container whose directory, directly below its pod's, has this name; None when
    it is no container's.
    """
    match = _CONTAINER.fullmatch(name)
    return (match[1] or match[2]) if match else None


def explore(uid: str, paths: Sequence[Path]) -> PodCgroup:
    """The pod with these directories, and all below them.

    A directory that does not exist has nothing below it.
    """
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
        for child in subdirectories(path):
            add(child, container_id(child.name))
    return PodCgroup(uid, tuple(paths), tuple(containers), tuple(members), truncated, tuple(strays))


def _tree(path: Path) -> tuple[tuple[Path, ...], bool]:
    """The directory with all below it, parents first, and whether some lie too deep for a path to
    name.
    """
    found: list[Path] = []
    truncated = False
    pending = [path]
    while pending:
        directory = pending.pop()
        if len(os.fsencode(directory / PROCS)) >= _PATH_MAX:
            truncated = True
            continue
        found.append(directory)
        pending += reversed(subdirectories(directory))
    return tuple(found), truncated
