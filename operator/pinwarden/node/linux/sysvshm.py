"""System V shared memory of an IPC namespace (shmget(2), shmctl(2)), and its mappings' device.

/proc/sysvipc/shm shows the IPC namespace of its reader, because
proc_ipc_open takes `current->nsproxy`. So a child reads the file inside the namespace.
"""

import ctypes
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from pinwarden.node.linux.libc import MAP_FAILED, last_error, libc
from pinwarden.node.linux.namespaces import NEWIPC, ipc_namespace, run_in_namespaces

IPC_PRIVATE, IPC_CREAT, IPC_EXCL = 0, 0o1000, 0o2000
IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
SHM_LOCK, SHM_UNLOCK = 11, 12
SHM_LOCKED: Final = 0o2000
"""The bit of a segment's mode while its pages are locked."""
_PERMISSIONS: Final = 0o777
_TABLE: Final = "/proc/sysvipc/shm"


class Segment(NamedTuple):
    """One line of the table, in bytes: `used` is resident and swapped out memory together.

    `changed` is when the segment was created or got an owner.
    """

    id: int
    key: int
    size: int
    used: int
    attached: int
    creator: int
    changed: int


def segments_of(process: Path) -> list[Segment]:
    """Return the segments of a process's IPC namespace. Raises OSError, also if it is gone."""
    if ipc_namespace(process) == ipc_namespace("/proc/self"):
        return own_segments()
    return run_in_namespaces([(process / "ns/ipc", NEWIPC)], own_segments)


def own_segments() -> list[Segment]:
    """Return the segments of this process's IPC namespace. Raises OSError."""
    with open(_TABLE, encoding="ascii") as file:
        names = file.readline().split()
        rows = [dict(zip(names, line.split(), strict=True)) for line in file]
    return [
        Segment(
            id=int(row["shmid"]),
            key=int(row["key"]) % 2**32,
            size=int(row["size"]),
            used=int(row["rss"]) + int(row["swap"]),
            attached=int(row["nattch"]),
            creator=int(row["cuid"]),
            changed=int(row["ctime"]),
        )
        for row in rows
    ]


@cache
def device() -> int:
    """Return the device of all mapped segments of ordinary pages. Raises OSError.

    ipc/shm.c keeps these segments in one file system. Segments with SHM_HUGETLB have another
    device and are not accounted.
    """
    segment = create(IPC_PRIVATE, mmap.PAGESIZE, IPC_CREAT | 0o600)
    try:
        with _attached(segment) as address:
            line = rf"^{address:x}-\S+ \S+ \S+ ([0-9a-f]+):([0-9a-f]+) "
            mapping = re.search(line, Path("/proc/self/maps").read_text(), re.MULTILINE)
    finally:
        remove(segment)
    if mapping is None:
        raise OSError("a mapped segment does not show in /proc/self/maps")
    return os.makedev(int(mapping[1], 16), int(mapping[2], 16))


def create(key: int, size: int, flags: int) -> int:
    """Create a segment with shmget(2) and return its id. Raises OSError."""
    signed = key - 2**32 if key >= 2**31 else key
    segment: int = libc.shmget(signed, size, flags)
    _raise_if(segment < 0)
    return segment


def remove(segment: int) -> None:
    """Mark a segment for removal at its last detach (IPC_RMID). Raises OSError."""
    _raise_if(libc.shmctl(segment, IPC_RMID, None) < 0)


def attach(segment: int) -> int:
    """Map a segment with shmat(2) and return its address. Raises OSError."""
    address: int = libc.shmat(segment, None, 0)
    _raise_if(address == MAP_FAILED)
    return address


def detach(address: int) -> None:
    """Unmap a segment with shmdt(2). Raises OSError."""
    _raise_if(libc.shmdt(address) < 0)


def set_locked(segment: int, *, locked: bool) -> None:
    """Lock a segment's pages (SHM_LOCK) or unlock them (SHM_UNLOCK). Raises OSError."""
    _raise_if(libc.shmctl(segment, SHM_LOCK if locked else SHM_UNLOCK, None) < 0)


def is_locked(segment: int) -> bool:
    """Return whether a segment's pages are locked (IPC_STAT). Raises OSError."""
    data = _Permissions()
    _raise_if(libc.shmctl(segment, IPC_STAT, ctypes.byref(data)) < 0)
    return bool(data.mode & SHM_LOCKED)


class _Permissions(ctypes.Structure):
    """The beginning of `struct shmid_ds`, with room for the rest."""

    _fields_ = (
        ("key", ctypes.c_int),
        ("uid", ctypes.c_uint),
        ("gid", ctypes.c_uint),
        ("cuid", ctypes.c_uint),
        ("cgid", ctypes.c_uint),
        ("mode", ctypes.c_ushort),
        ("rest", ctypes.c_char * 128),
    )


def set_owner(segment: int, user: int, group: int, mode: int) -> None:
    """Set a segment's owner and permissions (IPC_SET). Raises OSError."""
    data = _Permissions()
    _raise_if(libc.shmctl(segment, IPC_STAT, ctypes.byref(data)) < 0)
    if (data.uid, data.gid, data.mode & _PERMISSIONS) == (user, group, mode):
        return
    data.uid, data.gid, data.mode = user, group, mode
    _raise_if(libc.shmctl(segment, IPC_SET, ctypes.byref(data)) < 0)


def populate(segment: int, size: int) -> None:
    """Fault in all pages, so the kernel charges them to this process's cgroup. Raises OSError."""
    with _attached(segment) as address:
        area = (ctypes.c_char * size).from_address(address)
        for offset in range(0, size, mmap.PAGESIZE):
            area[offset]  # a read allocates the page too (shmem_fault), and changes no byte


@contextmanager
def _attached(segment: int) -> Iterator[int]:
    address = attach(segment)
    try:
        yield address
    finally:
        libc.shmdt(address)


def _raise_if(failed: bool) -> None:
    if failed:
        raise last_error()
