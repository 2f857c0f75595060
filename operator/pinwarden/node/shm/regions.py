"""What a process has mapped of wanted objects, from /proc/PID/maps.

Most lines are of libraries and private memory and nobody asks for them: a line is cut at its first blanks, its device is looked up, and
only a wanted one is taken apart. (PROCMAP_QUERY, Linux 6.11, saves the kernel the paths, but takes a call from Python for each mapping.)
The kernel writes a page of text at a time, so two parts of a long list are of different moments; no mapping that stays is left out.
"""

import os
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pinwarden.node.shm.objects import ObjectId, ObjectSet

_CHUNK = 1 << 16
_SYSTEM_V = b"/SYSV"
_NUMBER = re.compile(r"\[(\d+)\]")


class Region(NamedTuple):
    """A mapping: addresses [start, end), the byte of the object at `start`, and whether writes go to the object (MAP_SHARED)."""

    start: int
    end: int
    offset: int
    object: ObjectId
    shared: bool


class ProcessMaps:
    """A process as it is read once. One that has gone, is a zombie or a kernel thread has nothing mapped.

    Raises PermissionError, from all that reads, where the reader may not ptrace it.
    """

    def __init__(self, proc_root: Path | str, pid: int) -> None:
        self.folder = f"{proc_root}/{pid}"
        """Where its files are: of another thread than the first, should that one have ended."""
        self._space: int | None = None

    def lines(self) -> Iterator[bytes]:
        """The lines of its mappings, none when there are none. All of them can be hundreds of MiB, so they are never held together.

        A thread that has ended has no address space (exit_mm) while others of its process run on: they are asked then, so that a process
        cannot hide what it has by ending its first thread.
        """
        empty = True
        for line in _lines(f"{self.folder}/maps"):
            empty = False
            yield line
        if not empty:
            return
        try:
            threads = os.listdir(f"{self.folder}/task")
        except (FileNotFoundError, ProcessLookupError):
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
        """The inode number of its IPC namespace; 0 when it has gone."""
        if self._space is None:
            try:
                found = _NUMBER.search(os.readlink(f"{self.folder}/ns/ipc"))
            except (FileNotFoundError, ProcessLookupError):
                found = None
            self._space = int(found[1]) if found else 0
        return self._space


class RegionFilter:
    """Picks the mappings of some extents' objects."""

    def __init__(self, extents: Collection[ObjectSet]) -> None:
        whole = frozenset[int]().union(*(extent.devices for extent in extents))
        single = frozenset[ObjectId]().union(*(extent.objects for extent in extents))
        self._whole = whole
        self._single = single
        self._segments = {one.device for one in single if one.space} | {_unnamed_device()}
        self._devices = {printed_device(device): device for device in whole | {one.device for one in single}}

    def regions(self, process: ProcessMaps) -> list[Region]:
        """What a process has mapped of them. Raises PermissionError."""
        return list(self._find(process)) if self._devices else []

    def _find(self, process: ProcessMaps) -> Iterator[Region]:
        """A line is `start-end perms offset major:minor inode path`, numbers but the inode in hexadecimal (show_map_vma)."""
        devices = self._devices
        for line in process.lines():
            fields = line.split(b" ", 5)
            if len(fields) < 5 or (device := devices.get(fields[3])) is None:
                continue
            start, _, end = fields[0].partition(b"-")
            space = 0
            if device in self._segments and len(fields) > 5 and fields[5].lstrip().startswith(_SYSTEM_V):
                space = process.space
            one = ObjectId(device, int(fields[4]), space)
            if device in self._whole or one in self._single:
                yield Region(int(start, 16), int(end, 16), int(fields[2], 16), one, fields[1][3:4] == b"s")


@cache
def _unnamed_device() -> int:
    """The device of memfds, which System V segments have too (shm_mnt of mm/shmem.c): a number alone does not tell one from the other."""
    descriptor = os.memfd_create("pinwarden")
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def printed_device(device: int) -> bytes:
    """Return a device as /proc/PID/maps prints it."""
    return b"%02x:%02x" % (os.major(device), os.minor(device))


def _lines(path: str) -> Iterator[bytes]:
    """The file's lines; none when its process has gone. A list that ends early because of that is left as it is."""
    rest = b""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while part := os.read(descriptor, _CHUNK):
                *lines, rest = (rest + part).split(b"\n")
                yield from lines
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        return
