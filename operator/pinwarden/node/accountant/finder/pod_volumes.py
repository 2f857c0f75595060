"""The volume at a pod's /dev/shm while no process of its containers runs.

A volume of medium Memory at /dev/shm outlives its container, and is full while the container
restarts again and again. Then no process shows the volume, but the kubelet keeps the mount on the
node. The pod's volume was recognised earlier by its device. If the pod never had a process of its
own, and has only one such volume, it is this one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pinwarden.node.linux.mountinfo import Mount, read_mountinfo
from pinwarden.node.linux.procfs import GONE

_VOLUME: Final = re.compile(r"/pods/([^/]+)/volumes/kubernetes\.io~empty-dir/[^/]+")
_SANDBOX: Final = "pause"
_RUNTIMES: Final = ("runc", "crun")


class PodVolumes:
    """Finds the tmpfs of each pod's /dev/shm. `first` is the node's first process in /proc."""

    def __init__(self, proc_root: Path, first: Path) -> None:
        self._proc_root = proc_root
        self._first = first
        self._shown: dict[str, set[int]] = {}
        self._volumes: dict[str, list[Mount]] | None = None

    def begin(self, uids: Iterable[str]) -> None:
        """Begin a round with these pods: forget all others, and read the node's mounts again."""
        self._volumes = None
        self._shown = {uid: self._shown[uid] for uid in uids if uid in self._shown}

    def left(self, uid: str, pids: Iterable[int], shown: Mapping[int, int]) -> list[str]:
        """Return the mount points of the pod's /dev/shm, if no process shows them.

        `shown` has the devices at /dev/shm now of some of the pod's processes `pids`.
        """
        own = {device for pid, device in shown.items() if not self._is_runtimes(pid)}
        if own:
            self._shown.setdefault(uid, set()).update(own)
        known = self._shown.get(uid)
        if known is None:
            candidates = self._of_pod(uid) if all(map(self._is_runtimes, pids)) else ()
            return [candidates[0].point] if len(candidates) == 1 else []
        if known <= own:
            return []
        there = {mount.device: mount.point for mount in self._of_pod(uid)}
        known &= there.keys() | own
        return [there[device] for device in sorted(known - own)]

    def _of_pod(self, uid: str) -> Sequence[Mount]:
        if self._volumes is None:
            self._volumes = {}
            for mount in read_mountinfo(self._first):
                volume = _VOLUME.search(mount.point)
                is_tmpfs = mount.type == "tmpfs" and mount.root == "/"
                if is_tmpfs and volume and volume.end() == len(mount.point):
                    self._volumes.setdefault(volume[1], []).append(mount)
        return self._volumes.get(uid, ())

    def _is_runtimes(self, pid: int) -> bool:
        """Return whether this is the sandbox's process, or one before its container's exec.

        A pod with such a name for its own process only loses its own figures.
        """
        with suppress(*GONE):
            name = (self._proc_root / str(pid) / "comm").read_text(errors="replace").strip()
            return name == _SANDBOX or name.startswith(_RUNTIMES)
        return True
