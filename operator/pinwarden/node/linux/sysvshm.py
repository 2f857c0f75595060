"""System V shared memory of an IPC namespace, and the device under which its mappings show.

/proc/sysvipc/shm tells of the namespace of the process that reads it (proc_ipc_open takes `current->nsproxy`), so it is read inside of it.
"""

import ctypes
import mmap
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pinwarden.node.linux.libc import last_error
from pinwarden.node.linux.namespaces import NEWIPC, run_in_namespaces

IPC_PRIVATE, IPC_CREAT, IPC_EXCL = 0, 0o1000, 0o2000
IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
_PERMISSIONS = 0o777
_TABLE = "/proc/sysvipc/shm"
_NUMBER = re.compile(r"\[(\d+)\]")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_libc.shmdt.argtypes = (ctypes.c_void_p,)
_libc.shmget.argtypes = (ctypes.c_int, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


class Segment(NamedTuple):
    """A line of the table; sizes in bytes, `held` is resident and swapped out together, `changed` when it was made or given an owner."""

    id: int
    key: int
    size: int
    held: int
    attached: int
    creator: int
    changed: int


def namespace(process: Path) -> int | None:
    """The inode number of a process's IPC namespace; None when it is gone. Raises PermissionError."""
    try:
        found = _NUMBER.search(os.readlink(process / "ns/ipc"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(found[1]) if found else None


def segments(process: Path) -> list[Segment]:
    """All segments of a process's IPC namespace. Raises OSError, also when it is gone."""
    if namespace(process) == namespace(Path("/proc/self")):
        return table()
    return run_in_namespaces([(process / "ns/ipc", NEWIPC)], table)


def table() -> list[Segment]:
    """All segments of this process's own IPC namespace. Raises OSError."""
    with open(_TABLE, encoding="ascii") as file:
        names = file.readline().split()
        found = [dict(zip(names, line.split(), strict=True)) for line in file]
    return [
        Segment(
            id=int(each["shmid"]),
            key=int(each["key"]) % 2**32,
            size=int(each["size"]),
            held=int(each["rss"]) + int(each["swap"]),
            attached=int(each["nattch"]),
            creator=int(each["cuid"]),
            changed=int(each["ctime"]),
        )
        for each in found
    ]


@cache
def device() -> int:
    """The device that mappings of all segments of ordinary pages show (ipc/shm.c keeps them in one file system). Raises OSError.

    Those with SHM_HUGETLB show another one, and are not followed.
    """
    made = make(IPC_PRIVATE, mmap.PAGESIZE, IPC_CREAT | 0o600)
    try:
        address = _libc.shmat(made, None, 0)
        _raise_if(address == _FAILED)
        try:
            line = rf"^{address:x}-\S+ \S+ \S+ ([0-9a-f]+):([0-9a-f]+) "
            found = re.search(line, Path("/proc/self/maps").read_text(), re.MULTILINE)
        finally:
            _libc.shmdt(address)
    finally:
        remove(made)
    if found is None:
        raise OSError("a mapped segment does not show in /proc/self/maps")
    return os.makedev(int(found[1], 16), int(found[2], 16))


def make(key: int, size: int, flags: int) -> int:
    """shmget(2): the id. Raises OSError."""
    signed = key - 2**32 if key >= 2**31 else key
    made: int = _libc.shmget(signed, size, flags)
    _raise_if(made < 0)
    return made


def remove(segment: int) -> None:
    """Marks a segment for removal with its last detach (IPC_RMID). Raises OSError."""
    _raise_if(_libc.shmctl(segment, IPC_RMID, None) < 0)


class _Permissions(ctypes.Structure):
    _fields_ = (
        ("key", ctypes.c_int),
        ("uid", ctypes.c_uint),
        ("gid", ctypes.c_uint),
        ("cuid", ctypes.c_uint),
        ("cgid", ctypes.c_uint),
        ("mode", ctypes.c_ushort),
        ("rest", ctypes.c_char * 128),  # more than shmid_ds has after them
    )


def own(segment: int, user: int, group: int, mode: int) -> None:
    """Gives a segment an owner and permissions (IPC_SET). Raises OSError."""
    data = _Permissions()
    _raise_if(_libc.shmctl(segment, IPC_STAT, ctypes.byref(data)) < 0)
    if (data.uid, data.gid, data.mode & _PERMISSIONS) == (user, group, mode):
        return
    data.uid, data.gid, data.mode = user, group, mode
    _raise_if(_libc.shmctl(segment, IPC_SET, ctypes.byref(data)) < 0)


def fill(segment: int, size: int) -> None:
    """Faults all pages in, for whom this process is charged to. Raises OSError."""
    address = _libc.shmat(segment, None, 0)
    _raise_if(address == _FAILED)
    try:
        area = (ctypes.c_char * size).from_address(address)
        for offset in range(0, size, mmap.PAGESIZE):
            area[offset]  # a read takes a page too (shmem_fault), and changes nothing of it
    finally:
        _libc.shmdt(address)


def _raise_if(failed: bool) -> None:
    if failed:
        raise last_error()
