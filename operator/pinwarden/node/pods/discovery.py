"""Finds the pods of this node, cheaply and often.

Pods are in few directories: `kubepods`, its QoS classes, and the directories where a runtime with
another cgroup driver puts containers. Only these are listed each time. From time to time a walk
over the whole hierarchy finds new ones. The directories of a pod are not entered here: `subject`
reads them, for governed pods only.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pinwarden.node.pods.cgroups import pod_uid

BETWEEN_WALKS_SECONDS = 10.0
_PARENT = re.compile(r"kubepods|(?:.+-)?kubepods(?:-burstable|-besteffort)?\.slice")
_QOS = ("burstable", "besteffort")


class PodFinder:
    """Lists the pods below the root of a hierarchy."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._parents: dict[str, None] = {}
        self._known: dict[str, tuple[str, Path] | None] = {}
        self._walk_due = float("-inf")

    def find(self, now: float, *, everywhere: bool = False) -> Mapping[str, tuple[Path, ...]]:
        """Return the directories of each pod by uid.

        With `everywhere` the walk is done at once. `now` is in seconds, monotonic. Directories too
        deep for a path are skipped: pods of the kubelet are never so deep.

        Raises OSError, except for a vanished directory.
        """
        if everywhere or now >= self._walk_due:
            self._walk()
            self._walk_due = now + BETWEEN_WALKS_SECONDS
        pods: dict[str, list[Path]] = {}
        seen: dict[str, tuple[str, Path] | None] = {}
        pending = list(self._parents)
        while pending:
            for name in _subdirectories(pending.pop()):
                pod = seen[name] = self._known[name] if name in self._known else _pod(name)
                if pod is not None:
                    pods.setdefault(pod[0], []).append(pod[1])
                elif name not in self._parents and _is_parent(name):
                    self._parents[name] = None
                    pending.append(name)
        self._known = seen
        return {uid: tuple(sorted(paths)) for uid, paths in sorted(pods.items())}

    def _walk(self) -> None:
        """Find the directories with pods: by their own names, or by a pod inside."""
        parents: dict[str, None] = {}
        pending = [self._root]
        while pending:
            directory = pending.pop()
            if _is_parent(directory):
                parents[directory] = None
            for path in _subdirectories(directory):
                if pod_uid(Path(path)):
                    parents[directory] = None
                else:
                    pending.append(path)
        self._parents = parents


def _pod(name: str) -> tuple[str, Path] | None:
    path = Path(name)
    uid = pod_uid(path)
    return (uid, path) if uid else None


def _is_parent(path: str) -> bool:
    above, name = os.path.split(path)
    return bool(_PARENT.fullmatch(name)) or (name in _QOS and os.path.basename(above) == "kubepods")


def _subdirectories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENAMETOOLONG):
            return []
        raise
