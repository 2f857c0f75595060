"""Objects that pinwarden makes (`management: Create`), and takes away when their last user has gone (M9, M10).

A tmpfs or hugetlbfs is mounted on the node below `PREFIX`, one for each group:

    /run/pinwarden-shared/<namespace>/<name>/shared/memory

Pods mount the folder `shared`, which is inside of the file system: before it is mounted there is no such folder, so a pod waits for it and
never gets an empty folder of the node instead. The file `memory` is as large as the capacity, and so is the file system.

The kernel charges a page to the cgroup of who faults it in. So the file's pages are taken by a child in the group's own cgroup,
`pinwarden/<namespace>_<name>`, and a writer pays for nothing (M1, M9). A hole that a pod punches is filled again at the next round;
until then the pod that touches it first pays. That memory lies outside of all pods: no more than `--shared-memory` is made, which an
administrator sets aside on the node (`systemReserved` of the kubelet), so that the scheduler sees it. What is there already counts, also
what a group left that is gone. Pages of hugetlbfs come from the node's pool of huge pages, and do not.

All of it is done anew each round and changes nothing where it is done already: a crash in between loses nothing. A group that vanishes
from the configuration without having drained leaves its object. A System V segment is known again by what was written down before it was
made: another one with the key is somebody else's.
"""

import ctypes
import errno
import json
import mmap
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from pydantic import TypeAdapter

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.api.sharedmemorygroup import Owner
from pinwarden.common.text import exact, short
from pinwarden.node.linux import openat2, sysvshm
from pinwarden.node.linux.libc import last_error, libc
from pinwarden.node.linux.mountinfo import read_mountinfo
from pinwarden.node.linux.namespaces import NEWCGROUP, NEWIPC, NEWNS, enter_namespace, run_in_namespaces
from pinwarden.node.state.statefile import UNUSABLE, read_whole, set_aside, write_atomically

PREFIX = "/run/pinwarden-shared"
FOLDER, FILE = "shared", "memory"
_PARENT = "pinwarden"
_NOSUID, _NODEV, _NOEXEC, _REMOUNT = 2, 4, 8, 32
_BLOCK = 512
_EXECUTE = 0o111
_MAGIC: Final = {"tmpfs": openat2.TMPFS, "hugetlbfs": openat2.HUGETLBFS}
_WORDS: Final = {
    errno.ENOSPC: "there is no room for it",
    errno.ENOMEM: "the node has no memory for it",
    errno.EPERM: "the accountant lacks CAP_SYS_ADMIN, or a security module forbids it",
}
_Result = TypeVar("_Result")


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


class Provisioner:
    """Makes objects on the node whose first process is `first`, within a budget in bytes.

    Needs CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE.
    """

    def __init__(
        self, proc_root: Path, cgroup_root: Path, budget: int, made_segments: Path, first: int = 1
    ) -> None:
        """`made_segments` is a file in a tmpfs, which lives as long as segments do."""
        self._first = proc_root / str(first)
        self._memory = _memory_hierarchy(cgroup_root)
        self._budget = budget
        self._segments = _Segments(made_segments)
        self._taken: dict[str, int] = {}

    def begin(self) -> None:
        """A round begins: what is there takes of the budget, whoever asked for it. Raises OSError."""
        self._taken = {}
        for directory in (self._memory / _PARENT).glob("*/"):
            self._taken[directory.name] = _charged(directory) or 0
        for mount in read_mountinfo(self._first):
            if mount.type == "tmpfs" and mount.point.startswith(f"{PREFIX}/"):
                space = os.statvfs(f"{self._first}/root{mount.point}")
                name = mount.point.removeprefix(f"{PREFIX}/").replace("/", "_")
                self._taken[name] = max(self._taken.get(name, 0), space.f_blocks * space.f_frsize)

    def ensure(self, group: NodeGroup) -> None:
        """Makes what is missing of the group's object. Raises NotMadeError."""
        size = group.capacity or 0
        page = _huge_page() if group.backing.hugetlbfs else mmap.PAGESIZE
        if size % page or not size:
            raise NotMadeError(
                "Invalid", f"capacity: {exact(size)} is not a whole number of pages of {short(page)}"
            )
        if not group.backing.hugetlbfs:
            self._take(_name(group), size)
        owner = group.owner or Owner()
        try:
            cgroup = self._cgroup(group)
            if key := group.backing.sysv_shm:
                making = self._segments.begin(group.uid)
                work = partial(_segment, key.keys[0], size, owner, group.prefault, making)
                self._segments.made(group.uid, self._in_cgroup(cgroup, NEWIPC, "ipc", work))
            else:
                order = _Order(place(group), _kind(group), size, owner, group.prefault)
                self._in_cgroup(cgroup, NEWNS, "mnt", lambda: _file_system(order))
        except OSError as error:
            why = _WORDS.get(error.errno or 0, error.strerror or str(error))
            raise NotMadeError(
                "NotMade", f"{error.filename or 'it'}: {why}" if error.filename else why
            ) from error

    def release(self, group: NodeGroup, *, known: bool) -> None:
        """Takes the group's object away, which nobody uses; of one that is not `known` only what is half made.

        Raises OSError: EBUSY where somebody uses it, or where that is not known.
        """
        if key := group.backing.sysv_shm:
            making = self._segments.known(group.uid)
            if making is not None:
                order = partial(_remove_segment, key.keys[0], group.capacity or 0, making)
                run_in_namespaces([(self._first / "ns/ipc", NEWIPC)], order)
                self._segments.forget(group.uid)
        else:
            unmount = partial(_unmount, place(group), _kind(group), known)
            if not run_in_namespaces([(self._first / "ns/mnt", NEWNS)], unmount):
                return
        with suppress(FileNotFoundError):
            self._directory(group).rmdir()
        with suppress(OSError):  # other groups have theirs in it
            self._directory(group).parent.rmdir()

    def _take(self, name: str, size: int) -> None:
        """Takes of the budget. Raises NotMadeError; what is there already is not refused again."""
        have = self._taken.get(name, 0)
        left = self._budget - sum(self._taken.values()) + have
        if size > max(left, have):
            raise NotMadeError(
                "NoRoom",
                f"{short(size)} is wanted, and {short(left)} is left of the {short(self._budget)} "
                "that this node sets aside (--shared-memory)",
            )
        self._taken[name] = size

    def charged(self, group: NodeGroup) -> int | None:
        """Bytes that the kernel charges to the group's own cgroup; None where it has none."""
        return _charged(self._directory(group))

    def _directory(self, group: NodeGroup) -> Path:
        return self._memory / _PARENT / _name(group)

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

    def _in_cgroup(self, cgroup: Path, flag: int, kind: str, work: Callable[[], _Result]) -> _Result:
        def join() -> None:
            # from its own cgroup namespace a process cannot be moved out of it (CGRP_ROOT_NS_DELEGATE)
            enter_namespace(self._first / "ns/cgroup", NEWCGROUP)
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))

        return run_in_namespaces([(self._first / "ns" / kind, flag)], work, before=join)


class _Making(NamedTuple):
    """A segment of pinwarden's: when its making was begun, in seconds of the clock that the kernel stamps it with, and its id since."""

    begun: int
    id: int | None = None

    def is_of(self, found: sysvshm.Segment, size: int) -> bool:
        """Whether it is this one; without an id, after a crash, it is one that root made of this size since."""
        if self.id is not None:
            return found.id == self.id
        return (found.size, found.creator) == (size, 0) and found.changed >= self.begun


_KNOWN = TypeAdapter(dict[str, tuple[int, int | None]])


class _Segments:
    """What is being made and was made, by group."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, uid: str) -> _Making | None:
        """None where none was begun. Raises OSError."""
        return self._load().get(uid)

    def begin(self, uid: str) -> _Making:
        """Written down before the first segment is made. Raises OSError."""
        known = self._load()
        if uid not in known:
            known[uid] = _Making(int(time.time()))
            self._save(known)
        return known[uid]

    def made(self, uid: str, segment: int) -> None:
        """It has this id. Raises OSError."""
        known = self._load()
        if known[uid].id != segment:
            known[uid] = known[uid]._replace(id=segment)
            self._save(known)

    def forget(self, uid: str) -> None:
        """It is gone. Raises OSError."""
        known = self._load()
        if known.pop(uid, None) is not None:
            self._save(known)

    def _load(self) -> dict[str, _Making]:
        try:
            known = _KNOWN.validate_python(json.loads(read_whole(self._path)))
        except FileNotFoundError:
            return {}
        except UNUSABLE as error:
            set_aside(self._path, str(error))
            return {}
        return {uid: _Making(*each) for uid, each in known.items()}

    def _save(self, known: Mapping[str, _Making]) -> None:
        write_atomically(self._path, json.dumps(known).encode())


def _name(group: NodeGroup) -> str:
    """Of its cgroup: names of Kubernetes have no underscore."""
    return group.name.replace("/", "_")


def _kind(group: NodeGroup) -> str:
    return "tmpfs" if group.backing.tmpfs else "hugetlbfs"


def _charged(directory: Path) -> int | None:
    for name in ("memory.current", "memory.usage_in_bytes"):
        with suppress(OSError):
            return int((directory / name).read_text())
    return None


def _huge_page() -> int:
    """Bytes of a huge page of the default size."""
    found = re.search(r"^Hugepagesize:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else mmap.PAGESIZE


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
    with _opened(order.path, os.O_DIRECTORY) as mounted:
        if openat2.filesystem_magic(mounted) != _MAGIC[order.kind]:
            raise OSError(errno.EBUSY, "another group left something mounted there", order.path)
        space = os.fstatvfs(mounted)
        if space.f_blocks * space.f_bsize != order.size:
            _mount(order, _REMOUNT)
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
    if libc.mount(b"pinwarden", os.fsencode(order.path), order.kind.encode(), flags, options):
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


def _unmount(path: str, kind: str, known: bool) -> bool:
    """Also takes the files away, because another mount namespace may have a copy of the mount. Raises OSError.

    What is mounted there is the group's only where it is of its kind, and is taken away only where it is `known`, with its users; False
    where it is another's.
    """
    if not _take_down(path, kind, known):
        return False
    with suppress(OSError):  # the namespace's other groups
        os.rmdir(os.path.dirname(path))
    return True


def _take_down(path: str, kind: str, known: bool) -> bool:
    try:
        mounted = os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return True
    if mounted:
        with _opened(path, os.O_DIRECTORY) as top:
            if openat2.filesystem_magic(top) != _MAGIC[kind]:
                return False
        if not known:
            raise OSError(errno.EBUSY, "who uses what is mounted there is not known yet", path)
        with suppress(FileNotFoundError), _opened(f"{path}/{FOLDER}", os.O_DIRECTORY) as folder:
            _empty(folder)
        if libc.umount2(os.fsencode(path), 0):
            raise last_error(path)
    os.rmdir(path)
    return True


def _empty(folder: int) -> None:
    """Takes all out of a folder that nobody uses: what lies deeper is moved up first, so that no depth is too deep. Raises OSError."""
    number = 0
    while names := os.listdir(folder):
        for name in names:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                os.unlink(name, dir_fd=folder)
                continue
            with _opened(name, os.O_DIRECTORY, folder) as inner:
                for each in os.listdir(inner):
                    number += 1
                    os.rename(each, f".{os.getpid()}.{number}", src_dir_fd=inner, dst_dir_fd=folder)
            os.rmdir(name, dir_fd=folder)


def _segment(key: int, size: int, owner: Owner, prefault: bool, making: _Making) -> int:
    """The id of the segment."""
    found = next((each for each in sysvshm.own_segments() if each.key == key), None)
    if found is None:
        made = sysvshm.create(key, size, sysvshm.IPC_CREAT | sysvshm.IPC_EXCL | 0o600)
        held = 0
    elif making.is_of(found, size):
        if found.size != size:
            raise OSError(
                errno.EINVAL, f"it has {found.size} bytes, and a segment keeps the size it was made with"
            )
        made, held = found.id, found.held
    else:
        raise OSError(errno.EEXIST, f"a segment of {found.size} bytes has the key {key:#x} already")
    sysvshm.set_owner(made, owner.user, owner.group, owner.mode & ~_EXECUTE)
    if prefault and held < size:
        sysvshm.populate(made, size)
    return made


def _remove_segment(key: int, size: int, making: _Making) -> None:
    for each in sysvshm.own_segments():
        if each.key == key and making.is_of(each, size):
            if each.attached:
                raise OSError(errno.EBUSY, f"{each.attached} processes have it attached")
            sysvshm.remove(each.id)


@contextmanager
def _opened(path: str, flags: int, at: int | None = None) -> Iterator[int]:
    # O_NONBLOCK: a lease that somebody has on a file (F_SETLEASE) is not waited for
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
