"""Which pods and directories are there, found cheaply and often.

Pods lie in few directories: `kubepods`, its QoS classes, and those where a runtime with another driver than the kubelet's puts containers.
Only these are listed each time; a walk over the whole hierarchy, which finds new such directories, is made now and then. Pod directories
themselves are not entered: that is done for governed ones alone.
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
    """Lists the pods below a hierarchy's root."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._parents: dict[str, None] = {}
        self._known: dict[str, tuple[str, Path] | None] = {}
        self._walk_due = float("-inf")

    def find(self, now: float, *, everywhere: bool = False) -> Mapping[str, tuple[Path, ...]]:
        """The directories of each pod by its uid; `now` in seconds of a monotonic clock. Raises OSError but for what vanished.

        With `everywhere` the walk is made at once. What lies deeper than a path can name is passed over: a user's own tree may be as deep
        as he likes, and the kubelet's pods are not.
        """
        if everywhere or now >= self._walk_due:
            self._walk()
            self._walk_due = now + BETWEEN_WALKS_SECONDS
        found: dict[str, list[Path]] = {}
        seen: dict[str, tuple[str, Path] | None] = {}
        pending = list(self._parents)
        while pending:
            for name in _subdirectories(pending.pop()):
                pod = seen[name] = self._known[name] if name in self._known else _pod(name)
                if pod is not None:
                    found.setdefault(pod[0], []).append(pod[1])
                elif name not in self._parents and _is_parent(name):
                    self._parents[name] = None
                    pending.append(name)
        self._known = seen
        return {uid: tuple(sorted(paths)) for uid, paths in sorted(found.items())}

    def _walk(self) -> None:
        """Finds the directories that hold pods: by their name, also while they are empty, or by a pod in them."""
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
