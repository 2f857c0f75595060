"""Finds pods and containers in the cgroup tree, by the names of their directories.

The subject of a limit is a cgroup (P1). The gate, the accountant and the agent all use this module
to find the pod and the container of a process. The cgroup drivers of the kubelet and the runtime
name the cgroups of a pod and of its containers:

- cgroupfs: `kubepods[/burstable|/besteffort]/pod<uid>/<id>` (containerd, cri-dockerd) or
  `.../crio-<id>` (CRI-O),
- systemd: `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _ for
  ->.slice/<prefix>-<id>.scope`, where the runtime chooses the prefix: `cri-containerd`, `crio`,
  `docker`. A kubelet inside a container puts its own prefix before `kubepods`.

A runtime with another driver than the kubelet puts a container *beside* the pod's cgroup. The pod's
cgroup then stays empty:

- containerd with cgroupfs: `<slice of the pod>:cri-containerd:<id>`, in the service of the runtime
  (v1) or next to it (v2),
- dockerd with cgroupfs: `<slice of the pod>/<id>` at the root.

A pod's uid is a UUID, or for a static pod the 32 hexadecimal digits of its config hash. The id of a
container has 64 hexadecimal digits. Whole names are matched, so two uids with a common prefix stay
distinct. `crio-conmon-<id>` contains CRI-O's monitor, which belongs to the pod and not to a
container. A sandbox ("pause") has an id like a container, and counts as a container here: only the
container list of the API distinguishes them. All other directories of a pod are strays. Their
processes belong to the pod, in a container without a known name.

A cgroup below a container belongs to the container, and a cgroup below a pod belongs to the pod,
whatever its name. So a kubelet inside a pod creates no pods of this node. Directories come and go
during a walk. A vanished directory has no members.
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
    """A container (or sandbox): its id, its directory, and the members: all directories in it."""

    id: str
    path: Path
    members: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class PodCgroup:
    """A pod: its uid, and in `members` all directories whose processes count as the pod's.

    `paths` is one directory, or several: from an earlier cgroup driver or QoS class, or of
    containers beside the pod's. `strays` are the members outside all containers and monitors.
    `truncated`: the pod nested cgroups deeper than a path can name, so that sums over the pod are
    lower bounds (H2).
    """

    uid: str
    paths: tuple[Path, ...]
    containers: tuple[ContainerCgroup, ...]
    members: tuple[Path, ...]
    truncated: bool
    strays: tuple[Path, ...] = ()


def pod_uid(path: Path) -> str | None:
    """Return the uid of the pod with this directory, or with a container there beside the pod's.

    The uid has hyphens. Return None for any other directory. A cgroupfs name is short (`pod<uid>`),
    so the parent must be `kubepods`, or a QoS class in `kubepods`.
    """
    if match := _SYSTEMD_POD.fullmatch(path.name) or _BESIDE.fullmatch(path.name):
        return match[1].replace("_", "-")
    match = _CGROUPFS_POD.fullmatch(path.name)
    parent = path.parent.parent if path.parent.name in _QOS else path.parent
    return match[1] if match and parent.name == "kubepods" else None


def container_id(name: str) -> str | None:
    """Return the id of the container whose directory, directly below the pod's, has this name.

    Return None if no container has such a name.
    """
    match = _CONTAINER.fullmatch(name)
    return (match[1] or match[2]) if match else None


def explore(uid: str, paths: Sequence[Path]) -> PodCgroup:
    """Return the pod with these directories and all directories below them."""
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
    """Return `path` and all directories below, parents first.

    Return also whether some are too deep for a path to name.
    """
    directories: list[Path] = []
    truncated = False
    pending = [path]
    while pending:
        directory = pending.pop()
        if len(os.fsencode(directory / PROCS)) >= _PATH_MAX:
            truncated = True
            continue
        directories.append(directory)
        pending += reversed(subdirectories(directory))
    return tuple(directories), truncated
