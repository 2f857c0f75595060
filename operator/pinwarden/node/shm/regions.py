"""The mappings of wanted objects in a process, from /proc/PID/maps.

Most lines are of libraries and private memory. So a line is split at its first blanks, its device
is looked up, and only a line of a wanted device is parsed. PROCMAP_QUERY (Linux 6.11) saves the
kernel the paths, but takes a call from Python for each mapping. The kernel writes one page of text
at a time, so two parts of a long list are of different moments. No lasting mapping is missing.
"""

import os
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from pinwarden.node.linux.libc import opened
from pinwarden.node.linux.namespaces import ipc_namespace
from pinwarden.node.linux.procfs import GONE
from pinwarden.node.shm.objects import ObjectId, ObjectSet

_CHUNK: Final = 1 << 16
_SYSTEM_V: Final = b"/SYSV"


class Region(NamedTuple):
    """A mapping of the addresses [start, end), with the object's byte `offset` at `start`.

    `shared`: writes go to the object (`MAP_SHARED`).
    """

    start: int
    end: int
    offset: int
    object: ObjectId
    shared: bool


class ProcessMaps:
    """The mappings of a process, for one reading.

    A kernel thread, a zombie and a gone process have none. Every read raises
    PermissionError if the reader may not ptrace the process.
    """

    def __init__(self, proc_root: Path | str, pid: int) -> None:
        self.folder = f"{proc_root}/{pid}"
        """The folder in /proc; the one of another thread if the first thread has ended."""
        self._space: int | None = None

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the list, which can take hundreds of MiB altogether.

        An ended thread has no address space (exit_mm), although other threads may run. So
        the list of another thread is read if the first list is empty: a process cannot hide its
        mappings by ending its first thread.
        """
        empty = True
        for line in _lines(f"{self.folder}/maps"):
            empty = False
            yield line
        if not empty:
            return
        try:
            threads = os.listdir(f"{self.folder}/task")
        except GONE:
            return
        for thread in threads:
            for line in _lines(f"{self.folder}/task/{thread}/maps"):
                if empty:
                    self.folder += f"/task/{thread}"
                empty = False
                yield line
            if not empty:
                return

    @property
    def space(self) -> int:
        """The inode number of the process's IPC namespace; 0 if the process is gone."""
        if self._space is None:
            self._space = ipc_namespace(self.folder) or 0
        return self._space


class RegionFilter:
    """Selects the mappings of wanted objects."""

    def __init__(self, wanted: Collection[ObjectSet]) -> None:
        self._devices = frozenset[int]().union(*(objects.devices for objects in wanted))
        self._objects = frozenset[ObjectId]().union(*(objects.objects for objects in wanted))
        self._segments = {identity.device for identity in self._objects if identity.space}
        self._segments.add(_unnamed_device())
        every = self._devices | {identity.device for identity in self._objects}
        self._by_text = {printed_device(device): device for device in every}

    def regions(self, process: ProcessMaps) -> list[Region]:
        """Return the mappings of wanted objects in a process. Raises PermissionError."""
        return list(self._find(process)) if self._by_text else []

    def _find(self, process: ProcessMaps) -> Iterator[Region]:
        """Parse lines `start-end perms offset major:minor inode path` (show_map_vma).

        All numbers except the inode are hexadecimal.
        """
        by_text = self._by_text
        for line in process.lines():
            fields = line.split(b" ", 5)
            if len(fields) < 5 or (device := by_text.get(fields[3])) is None:
                continue
            start, _, end = fields[0].partition(b"-")
            space = 0
            if (
                device in self._segments
                and len(fields) > 5
                and fields[5].lstrip().startswith(_SYSTEM_V)
            ):
                space = process.space
            identity = ObjectId(device, int(fields[4]), space)
            if device in self._devices or identity in self._objects:
                shared = fields[1][3:4] == b"s"
                yield Region(int(start, 16), int(end, 16), int(fields[2], 16), identity, shared)


@cache
def _unnamed_device() -> int:
    """Return the device of memfds and System V segments (`shm_mnt` of mm/shmem.c).

    A number alone does not distinguish a memfd from a segment.
    """
    descriptor = os.memfd_create("pinwarden")
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def printed_device(device: int) -> bytes:
    """Return a device as /proc/PID/maps prints it."""
    return b"%02x:%02x" % (os.major(device), os.minor(device))


def _lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a file; fewer if the process ends meanwhile."""
    rest = b""
    try:
        with opened(path) as descriptor:
            while chunk := os.read(descriptor, _CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
    except GONE:
        return
