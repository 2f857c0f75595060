"""Which object a call is for, and which ranges of a pod's objects its processes have mapped, as /proc tells.

A descriptor can be another file's by the time the kernel maps it, when another thread replaces it meanwhile (dup2): what is found here is
true for programs that do not mean to deceive.

/proc/PID/fd is its process's user's alone, so a gate without CAP_DAC_READ_SEARCH asks in two other ways: fdinfo names the mount, and for
files of no mount that the process sees, such as a memfd, it takes a copy of the descriptor for a moment (pidfd_getfd(2)).

What is read here may wait for locks of the caller's, and for a server that a file is on: it is read aside. A file's own file system is not
asked for what it may have to ask elsewhere (AT_STATX_DONT_SYNC): a FUSE server is a program of the pod.
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
from pinwarden.node.linux.namespaces import ipc_namespace
from pinwarden.node.linux.openat2 import HUGETLBFS
from pinwarden.node.shm.objects import ObjectId, object_at
from pinwarden.node.shm.regions import ProcessMaps, RegionFilter

PAGE = mmap.PAGESIZE
_ROUNDS = 4
_PROCMAP_QUERY, _QUERY_SHARED = 0xC0689F11, 0x08
_QUERY: Final = struct.Struct("=QQQ80x")  # struct procmap_query: size, query_flags, query_addr
_PIDFD_GETFD = 438
_NONE = (FileNotFoundError, ProcessLookupError)


class MapTarget(NamedTuple):
    """What a call is for: `range` is None for an object of no group, and for none at all."""

    range: ObjectRange | None


NOTHING = MapTarget(None)


def target(proc_root: Path, tid: int, request: MapRequest, rules: BorrowRules) -> MapTarget:
    """What a thread's call is for. Raises OSError where that cannot be told."""
    try:
        match request.by:
            case NamedBy.DESCRIPTOR:
                return _of_descriptor(proc_root, tid, request, rules)
            case NamedBy.SEGMENT:
                return _of_segment(proc_root / str(tid), request.name, rules)
            case NamedBy.ADDRESS:
                return _at_address(proc_root, tid, request, rules)
    except _NONE:
        return NOTHING


def mapped(proc_root: Path, folders: Iterable[Path], wanted: RegionFilter) -> list[ObjectRange]:
    """What the processes in these cgroup folders have mapped of the wanted objects.

    They are listed again afterwards, and those that are new are read too: a child has what its parent may have given up meanwhile.
    Raises OSError.
    """
    folders = tuple(folders)
    found: list[ObjectRange] = []
    seen: set[int] = set()
    for _ in range(_ROUNDS):
        new = frozenset[int]().union(*map(member_pids, folders)) - seen
        if not new:
            break
        for pid in new:
            found += (
                ObjectRange(one.object, one.offset, one.offset + one.end - one.start)
                for one in wanted.regions(ProcessMaps(proc_root, pid))
            )
        seen |= new
    return found


def _of_descriptor(proc_root: Path, tid: int, request: MapRequest, rules: BorrowRules) -> MapTarget:
    process = proc_root / str(tid)
    one = identify(process, request.name)
    if one is None or not rules.groups_of(one):
        return NOTHING
    unit = _huge_page(process / "fd" / str(request.name)) or PAGE
    return MapTarget(ObjectRange(one, request.offset, request.offset + -(-request.size // unit) * unit))


def identify(process: Path, number: int) -> ObjectId | None:
    """The file that a descriptor of a process stands for; None when there is no such descriptor. Raises OSError."""
    with suppress(PermissionError):
        return object_at(process / "fd" / str(number))
    with suppress(PermissionError):
        if (found := by_mount(process, number)) is not None:
            return found
    return by_copy(process, number)


def by_mount(process: Path, number: int) -> ObjectId | None:
    """The same by the file's inode and mount, which no file system is asked for; None for a mount that the process does not see.

    fdinfo tells the inode since Linux 5.14. Raises OSError.
    """
    told = dict(re.findall(r"^(mnt_id|ino):\s*(\d+)", (process / "fdinfo" / str(number)).read_text(), re.M))
    if "ino" not in told:
        return None
    pattern = rf"^{told['mnt_id']} \d+ (\d+):(\d+) "
    found = re.search(pattern, (process / "mountinfo").read_text(errors="surrogateescape"), re.M)
    return ObjectId(os.makedev(int(found[1]), int(found[2])), int(told["ino"])) if found else None


def by_copy(process: Path, number: int) -> ObjectId | None:
    """The same by a copy of the descriptor. Raises OSError."""
    found = re.search(r"^Tgid:\s*(\d+)", (process / "status").read_text(), re.M)
    if found is None:
        return None
    handle = os.pidfd_open(int(found[1]))
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
    """Whether a mapping at an address may be a shared one: PROCMAP_QUERY tells since Linux 6.11, without a list of all mappings.

    The C library grows its own memory by mremap, which is the same question each time.
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
    """Bytes of a page of a file in hugetlbfs (statfs(2), f_bsize); 0 for any other, and where that cannot be told."""
    buffer = (ctypes.c_long * 32)()
    if libc.statfs(os.fsencode(path), buffer) or buffer[0] != HUGETLBFS:
        return 0
    return buffer[1]


def _of_segment(process: Path, identity: int, rules: BorrowRules) -> MapTarget:
    space = ipc_namespace(process)
    one = rules.segment(identity, space) if space else None
    if one is None:
        return NOTHING
    return MapTarget(ObjectRange(one, 0, -(-rules.size(one) // PAGE) * PAGE))


def _at_address(proc_root: Path, tid: int, request: MapRequest, rules: BorrowRules) -> MapTarget:
    if not _may_be_shared(proc_root / str(tid) / "maps", request.name):
        return NOTHING
    for region in rules.region_filter.regions(ProcessMaps(proc_root, tid)):
        if region.shared and region.start <= request.name < region.end:
            offset = request.offset + (region.offset + request.name - region.start if request.relative else 0)
            return MapTarget(ObjectRange(region.object, offset, offset + request.size))
    return NOTHING
