"""Objects that pinwarden makes (`management: Create`), and takes away when their last user has gone (M9, M10).

A tmpfs or hugetlbfs is mounted on the node below `PREFIX`, one for each group:

    /run/pinwarden-shared/<namespace>/<name>/shared/memory

Pods mount the folder `shared`, which is inside of the file system: before it is mounted there is no such folder, so a pod waits for it and
never gets an empty folder of the node instead. The file `memory` is as large as the capacity, and so is the file system.

The kernel charges a page to the cgroup of who faults it in. So the file's pages are taken by a child in the group's own cgroup,
`pinwarden/<namespace>_<name>`, and a writer pays for nothing (M1, M9). A hole that a pod punches is filled again at the next round;
until then the pod that touches it first pays. That memory lies outside of all pods: no more than `--shared-memory` is made, which an
administrator sets aside on the node (`systemReserved` of the kubelet), so that the scheduler sees it.

All of it is done anew each round and changes nothing where it is done already: a crash in between loses nothing. A group that vanishes
from the configuration without having drained leaves its object.
"""

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pinwarden.agent.shared import segments
from pinwarden.agent.shared.host import NEWCGROUP, NEWIPC, NEWNS, enter, inside
from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.api.sharedmemorygroup import Owner

PREFIX = "/run/pinwarden-shared"
FOLDER, FILE = "shared", "memory"
_PARENT = "pinwarden"
_NOSUID, _NODEV, _NOEXEC, _REMOUNT = 2, 4, 8, 32
_BLOCK = 512
_EXECUTE = 0o111
_WORDS: Final = {
    errno.ENOSPC: "there is no room for it",
    errno.ENOMEM: "the node has no memory for it",
    errno.EPERM: "the accountant lacks CAP_SYS_ADMIN, or a security module forbids it",
}
_libc = ctypes.CDLL(None, use_errno=True)


class NotMadeError(Exception):
    """An object cannot be made: a reason in one word, and why, for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def place(group: NodeGroup) -> str:
    """Where the group's file system is mounted on the node."""
    return f"{PREFIX}/{group.name}"


@dataclass(frozen=True, slots=True)
class _Order:
    """What the child makes: `size` in bytes."""

    path: str
    kind: str
    size: int
    owner: Owner
    prefault: bool


class Maker:
    """Makes objects on the node whose first process is `first`, within a budget in bytes.

    Needs CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE.
    """

    def __init__(self, proc_root: Path, cgroup_root: Path, budget: int, first: int = 1) -> None:
        self._first = proc_root / str(first)
        self._memory = _memory_hierarchy(cgroup_root)
        self._budget = budget
        self._taken: dict[str, int] = {}

    def begin(self) -> None:
        """A round begins: the budget is given out anew, in the order of `ensure`."""
        self._taken.clear()

    def ensure(self, group: NodeGroup) -> None:
        """Makes what is missing of the group's object. Raises NotMadeError."""
        size = group.capacity or 0
        left = self._budget - sum(self._taken.values())
        if size > left:
            raise NotMadeError(
                "NoRoom",
                f"{size} bytes are wanted, and of the {self._budget} bytes that this node sets aside (--shared-memory) {left} are left",
            )
        self._taken[group.uid] = size
        owner = group.owner or Owner()
        try:
            cgroup = self._cgroup(group)
            if key := group.backing.sysv_shm:
                self._in_cgroup(cgroup, NEWIPC, "ipc", lambda: _segment(key.key, size, owner, group.prefault))
            else:
                kind = "tmpfs" if group.backing.tmpfs else "hugetlbfs"
                order = _Order(place(group), kind, size, owner, group.prefault)
                self._in_cgroup(cgroup, NEWNS, "mnt", lambda: _file_system(order))
        except OSError as error:
            why = _WORDS.get(error.errno or 0, error.strerror or str(error))
            raise NotMadeError(
                "NotMade", f"{error.filename or 'it'}: {why}" if error.filename else why
            ) from error

    def release(self, group: NodeGroup) -> None:
        """Takes the group's object away, which nobody uses. Raises OSError: EBUSY where somebody does."""
        if key := group.backing.sysv_shm:
            inside([(self._first / "ns/ipc", NEWIPC)], lambda: _remove_segment(key.key, group.capacity or 0))
        else:
            inside([(self._first / "ns/mnt", NEWNS)], lambda: _unmount(place(group)))
        with suppress(FileNotFoundError):
            self._directory(group).rmdir()

    def charged(self, group: NodeGroup) -> int | None:
        """Bytes that the kernel charges to the group's own cgroup; None where it has none."""
        for name in ("memory.current", "memory.usage_in_bytes"):
            with suppress(OSError):
                return int((self._directory(group) / name).read_text())
        return None

    def _directory(self, group: NodeGroup) -> Path:
        return self._memory / _PARENT / group.name.replace("/", "_")

    def _cgroup(self, group: NodeGroup) -> Path:
        """The group's own cgroup, with the memory controller. Raises OSError."""
        path = self._directory(group)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            for above in (self._memory, path.parent):
                control = above / "cgroup.subtree_control"
                if control.exists() and "memory" not in control.read_text().split():
                    control.write_text("+memory")
            path.mkdir(exist_ok=True)
        return path

    def _in_cgroup(self, cgroup: Path, flag: int, kind: str, work: Callable[[], None]) -> None:
        def join() -> None:
            # from its own cgroup namespace a process cannot be moved out of it (CGRP_ROOT_NS_DELEGATE)
            enter(self._first / "ns/cgroup", NEWCGROUP)
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))

        inside([(self._first / "ns" / kind, flag)], work, before=join)


def _memory_hierarchy(root: Path) -> Path:
    """Where the memory controller is: the one hierarchy of v2, or that of v1."""
    legacy = root / "memory"
    return legacy if (legacy / "cgroup.procs").exists() else root


# -- in the child: everything was imported before ------------------------------------------------------------------


def _file_system(order: _Order) -> None:
    above = os.path.dirname(order.path)
    os.makedirs(order.path, mode=0o711, exist_ok=True)
    if os.stat(order.path).st_dev == os.stat(above).st_dev:
        _mount(order)
    space = os.statvfs(order.path)
    if order.size % space.f_bsize:
        raise OSError(
            errno.EINVAL, f"capacity: not a whole number of pages of {space.f_bsize} bytes", order.path
        )
    if space.f_blocks * space.f_bsize != order.size:
        _mount(order, _REMOUNT)
    with _opened(order.path, os.O_DIRECTORY) as mounted:
        with suppress(FileExistsError):
            os.mkdir(FOLDER, 0o700, dir_fd=mounted)
        with _opened(FOLDER, os.O_DIRECTORY, mounted) as folder:
            owner = order.owner
            if order.prefault:
                _own(folder, 0, 0, 0o755)  # else a pod could put another file in the place of this one
                _fill(folder, order)
            else:
                _own(folder, owner.user, owner.group, owner.mode | (owner.mode & 0o444) >> 2)


def _mount(order: _Order, more: int = 0) -> None:
    """Mounts, or with MS_REMOUNT gives a tmpfs another size, which the kernel refuses below what it holds."""
    options = f"size={order.size}{'' if more else ',mode=0711'}".encode()
    flags = ctypes.c_ulong(_NOSUID | _NODEV | _NOEXEC | more)
    if _libc.mount(b"pinwarden", os.fsencode(order.path), order.kind.encode(), flags, options):
        number = ctypes.get_errno()
        why = "it holds more than this capacity" if more else os.strerror(number)
        raise OSError(number, why, order.path)


def _fill(folder: int, order: _Order) -> None:
    """The file with all its pages: what is there already stays as it is."""
    with _opened(FILE, os.O_RDWR | os.O_CREAT, folder) as file:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", f"{order.path}/{FOLDER}/{FILE}")
        _own(file, order.owner.user, order.owner.group, order.owner.mode & ~_EXECUTE)
        if about.st_size < order.size or about.st_blocks * _BLOCK < order.size:
            os.posix_fallocate(file, 0, order.size)


def _own(descriptor: int, user: int, group: int, mode: int) -> None:
    about = os.fstat(descriptor)
    if (about.st_uid, about.st_gid) != (user, group):
        os.fchown(descriptor, user, group)
    if stat.S_IMODE(about.st_mode) != mode:
        os.fchmod(descriptor, mode)


def _unmount(path: str) -> None:
    """Also takes the files away, because another mount namespace may have a copy of the mount. Raises OSError."""
    try:
        mounted = os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return
    if mounted:
        shutil.rmtree(f"{path}/{FOLDER}", ignore_errors=False)
        if _libc.umount2(os.fsencode(path), 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    os.rmdir(path)
    with suppress(OSError):  # the namespace's other groups
        os.rmdir(os.path.dirname(path))


def _segment(key: int, size: int, owner: Owner, prefault: bool) -> None:
    found = next((each for each in segments.table() if each.key == key), None)
    if found is None:
        made = segments.make(key, size, segments.IPC_CREAT | segments.IPC_EXCL | 0o600)
        held = 0
    elif (found.size, found.creator) == (size, 0):
        made, held = found.id, found.held
    else:
        raise OSError(errno.EEXIST, f"a segment of {found.size} bytes has the key {key:#x} already")
    segments.own(made, owner.user, owner.group, owner.mode & ~_EXECUTE)
    if prefault and held < size:
        segments.fill(made, size)


def _remove_segment(key: int, size: int) -> None:
    for each in segments.table():
        if (each.key, each.size, each.creator) == (key, size, 0):
            if each.attached:
                raise OSError(errno.EBUSY, f"{each.attached} processes have it attached")
            segments.remove(each.id)


@contextmanager
def _opened(path: str, flags: int, at: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
