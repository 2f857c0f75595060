"""Reads in `/proc` the object of a mapping, and the mapped ranges of a pod's processes.

Another thread can replace a descriptor before the kernel maps it (`dup2(2)`). So the result is
right only for honest programs.

Only the user of a process may read `/proc/PID/fd`. A gate without CAP_DAC_READ_SEARCH has two other
ways. `fdinfo` names the mount. If the process sees no mount of the file, as for a memfd, the gate
copies the descriptor for a moment (`pidfd_getfd(2)`).

These reads may wait for locks of the caller and for the server of a file system, so they run in
threads. They do not make a file system ask its server (AT_STATX_DONT_SYNC), because a FUSE server
can be a program of the pod.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pinwarden.node.gate.borrow_rules import BorrowRules, ObjectRange
from pinwarden.node.gate.map_requests import MapRequest, NamedBy
from pinwarden.node.linux.cgroupfs import member_pids
from pinwarden.node.linux.libc import libc
from pinwarden.node.linux.mountinfo import read_mountinfo
from pinwarden.node.linux.namespaces import ipc_namespace
from pinwarden.node.linux.openat2 import HUGETLBFS
from pinwarden.node.linux.procfs import GONE
from pinwarden.node.shm.objects import ObjectId, object_at
from pinwarden.node.shm.regions import ProcessMaps, RegionFilter

PAGE = mmap.PAGESIZE
_ROUNDS = 4
_PROCMAP_QUERY, _QUERY_SHARED = 0xC0689F11, 0x08
_QUERY: Final = struct.Struct("=QQQ80x")  # struct procmap_query: size, query_flags, query_addr
_PIDFD_GETFD = 438


class MapTarget(NamedTuple):
    """The range of a mapping, or None if its object belongs to no group."""

    range: ObjectRange | None


NOTHING = MapTarget(None)


def target(proc_root: Path, tid: int, request: MapRequest, rules: BorrowRules) -> MapTarget:
    """Return the target of a thread's call. Raises OSError if it cannot be read."""
    try:
        match request.by:
            case NamedBy.DESCRIPTOR:
                return _of_descriptor(proc_root, tid, request, rules)
            case NamedBy.SEGMENT:
                return _of_segment(proc_root / str(tid), request.name, rules)
            case NamedBy.ADDRESS:
                return _at_address(proc_root, tid, request, rules)
    except GONE:
        return NOTHING


def mapped(
    proc_root: Path, cgroups: Iterable[Path], region_filter: RegionFilter
) -> list[ObjectRange]:
    """Return the mapped ranges of the filter's objects in the processes of these cgroups.

    New processes are read too: a child keeps mappings after its parent unmaps them. Raises OSError.
    """
    cgroups = tuple(cgroups)
    ranges: list[ObjectRange] = []
    seen: set[int] = set()
    for _ in range(_ROUNDS):
        new = frozenset[int]().union(*map(member_pids, cgroups)) - seen
        if not new:
            break
        for pid in new:
            ranges += (
                ObjectRange(region.object, region.offset, region.offset + region.end - region.start)
                for region in region_filter.regions(ProcessMaps(proc_root, pid))
            )
        seen |= new
    return ranges


def _of_descriptor(proc_root: Path, tid: int, request: MapRequest, rules: BorrowRules) -> MapTarget:
    process = proc_root / str(tid)
    object_id = identify(process, request.name)
    if object_id is None or not rules.groups_of(object_id):
        return NOTHING
    unit = _huge_page(process / "fd" / str(request.name)) or PAGE
    size = -(-request.size // unit) * unit
    return MapTarget(ObjectRange(object_id, request.offset, request.offset + size))


def identify(process: Path, number: int) -> ObjectId | None:
    """Return the file of a process's descriptor, or None without one. Raises OSError."""
    with suppress(PermissionError):
        return object_at(process / "fd" / str(number))
    with suppress(PermissionError):
        if (object_id := by_mount(process, number)) is not None:
            return object_id
    return by_copy(process, number)


def by_mount(process: Path, number: int) -> ObjectId | None:
    """Return the file by its inode and mount, or None if the process does not see the mount.

    No file system is asked. `fdinfo` shows the inode since Linux 5.14. Raises OSError.
    """
    text = (process / "fdinfo" / str(number)).read_text()
    fdinfo = {key: int(value) for key, value in re.findall(r"^(mnt_id|ino):\s*(\d+)", text, re.M)}
    if "ino" not in fdinfo:
        return None
    devices = {mount.id: mount.device for mount in read_mountinfo(process)}
    device = devices.get(fdinfo["mnt_id"])
    return None if device is None else ObjectId(device, fdinfo["ino"])


def by_copy(process: Path, number: int) -> ObjectId | None:
    """Return the file by a copy of the descriptor, or None without one. Raises OSError."""
    pid = re.search(r"^Tgid:\s*(\d+)", (process / "status").read_text(), re.M)
    if pid is None:
        return None
    handle = os.pidfd_open(int(pid[1]))
    try:
        copy = libc.syscall(_PIDFD_GETFD, handle, number, 0)
        if copy < 0:
            error = ctypes.get_errno()
            if error == errno.EBADF:
                return None
            raise OSError(error, os.strerror(error))
    finally:
        os.close(handle)
    try:
        about = os.fstat(copy)
    finally:
        os.close(copy)
    return ObjectId(about.st_dev, about.st_ino)


def _may_be_shared(request: Path, address: int) -> bool:
    """Return whether the mapping at an address may be shared.

    PROCMAP_QUERY answers this since Linux 6.11 without a list of all mappings. This matters
    because the C library grows its own memory by `mremap`.
    """
    query = bytearray(_QUERY.pack(_QUERY.size, _QUERY_SHARED, address))
    descriptor = os.open(request, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _PROCMAP_QUERY, query)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return True


def _huge_page(path: Path) -> int:
    """Return the page size of a file in hugetlbfs (f_bsize of `statfs(2)`), else 0."""
    buffer = (ctypes.c_long * 32)()
    if libc.statfs(os.fsencode(path), buffer) or buffer[0] != HUGETLBFS:
        return 0
    return buffer[1]


def _of_segment(process: Path, shmid: int, rules: BorrowRules) -> MapTarget:
    space = ipc_namespace(process)
    segment = rules.segment(shmid, space) if space else None
    if segment is None:
        return NOTHING
    return MapTarget(ObjectRange(segment, 0, -(-rules.size(segment) // PAGE) * PAGE))


def _at_address(proc_root: Path, tid: int, request: MapRequest, rules: BorrowRules) -> MapTarget:
    if not _may_be_shared(proc_root / str(tid) / "maps", request.name):
        return NOTHING
    for region in rules.region_filter.regions(ProcessMaps(proc_root, tid)):
        if region.shared and region.start <= request.name < region.end:
            offset = request.offset + (
                region.offset + request.name - region.start if request.relative else 0
            )
            return MapTarget(ObjectRange(region.object, offset, offset + request.size))
    return NOTHING
