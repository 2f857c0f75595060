"""POSIX shared memory by its name: in /dev/shm of the node, or of each member pod."""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.api.sharedmemorygroup import IpcNamespace
from pinwarden.node.accountant.finder import processes
from pinwarden.node.accountant.finder.paths import add_matching, not_found
from pinwarden.node.accountant.finder.pod_volumes import PodVolumes
from pinwarden.node.accountant.finder.processes import BLOCK, by_pod, one_per_namespace
from pinwarden.node.accountant.finder.result import GroupObjects, Pids
from pinwarden.node.accountant.finder.unlinked import SHM, UnlinkedFinder
from pinwarden.node.accountant.round_time import RoundTime
from pinwarden.node.linux import openat2

ROUND_SECONDS: Final = 30.0
_UNSEEN: Final = "a /dev/shm has bytes without a name that no member's process shows"
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ESRCH)


class PosixShm:
    """Finds the objects of a name, also unlinked ones. `first` is the node's first process."""

    def __init__(self, proc_root: Path, first: Path) -> None:
        self._proc_root = proc_root
        self._first = first
        self._volumes = PodVolumes(proc_root, first)
        self._unlinked = UnlinkedFinder(proc_root)
        self._time = RoundTime(ROUND_SECONDS)
        self._on_node: Sequence[int] = ()

    def begin(self, groups: Iterable[NodeGroup], pids: Pids) -> None:
        """Begin a round with these groups and the processes of all their pods."""
        self._volumes.begin(pids)
        self._unlinked.begin()
        shm = {group.uid: group for group in groups if group.backing.posix_shm}
        self._time.begin(list(shm))
        pods = sorted(
            frozenset[str]().union(*(group.pods() for group in shm.values() if is_on_node(group)))
        )
        self._on_node = list(by_pod({uid: pids[uid] for uid in pods if uid in pids}))

    def find(
        self, objects: GroupObjects, uid: str, name: str, namespace: IpcNamespace, pids: Pids
    ) -> None:
        """Add the objects of the group `uid`. Raises ObjectsNotFoundError and OSError."""
        self._time.enter(uid)
        if namespace is IpcNamespace.HOST:
            try:
                self._add(objects, self._first, SHM, name, list(by_pod(pids)), self._on_node)
            except OSError as error:
                raise not_found(f"{SHM}/{name}", error) from error
            return
        node = self._node_device()
        for pod, members in pids.items():
            shown: dict[int, int] = {}
            for pid in one_per_namespace(self._proc_root, "mnt", {pod: members}):
                with _missed(objects):
                    process = self._proc_root / str(pid)
                    device = self._add(objects, process, SHM, name, members, skipped=node)
                    shown |= {pid: device} if device else {}
            for point in self._volumes.left(pod, members, shown):
                with _missed(objects):
                    self._add(objects, self._first, point, name, members)

    def _add(
        self,
        objects: GroupObjects,
        process: Path,
        path: str,
        name: str,
        pids: Sequence[int],
        others: Sequence[int] = (),
        skipped: int | None = None,
    ) -> int | None:
        """Add the objects of a /dev/shm, at a path as a process sees it, and return the device.

        Return None for the `skipped` device and for another file system than tmpfs. The group has
        the unlinked objects of its processes `pids`, and none without any `pids`. Objects
        shown only by the processes `others` belong to other groups. Raises OSError.
        """
        with openat2.opened_folder(f"{process}/root", path, links=False) as folder:
            if openat2.filesystem_magic(folder) != openat2.TMPFS:
                return None
            device = os.fstat(folder).st_dev
            if device == skipped:
                return None
            add_matching(objects, folder, name, f"{SHM}/{name}", _blocks)
            if not pids:
                return device
            with self._time.spend(processes.SECONDS) as seconds:
                unlinked = self._unlinked.find(folder, pids, others, seconds)
            for item in unlinked.objects:
                if item.name and openat2.matches(item.name, name):
                    objects.add(item.object, item.used)
            if not unlinked.complete:
                objects.miss(processes.LATE if unlinked.late else _UNSEEN)
            return device

    def _node_device(self) -> int | None:
        try:
            return os.stat(f"{self._first}/root{SHM}").st_dev
        except FileNotFoundError:
            return None


def is_on_node(group: NodeGroup) -> bool:
    """Return whether a group has its objects in the node's /dev/shm."""
    shm = group.backing.posix_shm
    return shm is not None and shm.ipc_namespace is IpcNamespace.HOST


@contextmanager
def _missed(objects: GroupObjects) -> Iterator[None]:
    """Note a /dev/shm that cannot be read. It is absent if the process or the pod has ended."""
    try:
        yield
    except OSError as error:
        if error.errno not in _ABSENT:
            objects.miss(f"a /dev/shm cannot be read: {error.strerror or error}")


def _blocks(_: int, about: os.stat_result) -> int:
    return about.st_blocks * BLOCK
