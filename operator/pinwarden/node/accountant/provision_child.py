"""The provisioner's work in a child, inside the node's namespaces.

The child sees other files, so all imports are done before the fork.
"""

import ctypes
import errno
import os
import stat
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from pinwarden.api.sharedmemorygroup import Owner
from pinwarden.node.linux import openat2, sysvshm
from pinwarden.node.linux.libc import last_error, libc, opened

FOLDER, FILE = "shared", "memory"
_NOSUID, _NODEV, _NOEXEC, _REMOUNT = 2, 4, 8, 32
_BLOCK: Final = 512
_EXECUTE: Final = 0o111
_MAGIC: Final = {"tmpfs": openat2.TMPFS, "hugetlbfs": openat2.HUGETLBFS}


@dataclass(frozen=True, slots=True)
class FileSystemSpec:
    """The wanted file system of a group, with its `size` in bytes."""

    path: str
    kind: str
    size: int
    owner: Owner
    prefault: bool


class SegmentRecord(NamedTuple):
    """A segment of pinwarden: `begun` is the time before its creation, `id` is known afterwards.

    The time is in seconds of the clock with which the kernel stamps segments.
    """

    begun: int
    id: int | None = None

    def matches(self, segment: sysvshm.Segment, size: int) -> bool:
        """Return whether this is the recorded segment.

        Without an id, after a crash, a later segment of root with this size matches.
        """
        if self.id is not None:
            return segment.id == self.id
        return (segment.size, segment.creator) == (size, 0) and segment.changed >= self.begun


def ensure_file_system(spec: FileSystemSpec) -> None:
    """Mount the file system and create the missing parts. Raises OSError."""
    above = os.path.dirname(spec.path)
    os.makedirs(spec.path, mode=0o711, exist_ok=True)
    if os.stat(spec.path).st_dev == os.stat(above).st_dev:
        _mount(spec)
    with _opened(spec.path, os.O_DIRECTORY) as mounted:
        if openat2.filesystem_magic(mounted) != _MAGIC[spec.kind]:
            raise OSError(errno.EBUSY, "a file system of another group is mounted there", spec.path)
        space = os.fstatvfs(mounted)
        if space.f_blocks * space.f_bsize != spec.size:
            _mount(spec, _REMOUNT)
        with suppress(FileExistsError):
            os.mkdir(FOLDER, 0o700, dir_fd=mounted)
        with _opened(FOLDER, os.O_DIRECTORY, mounted) as folder:
            owner = spec.owner
            if spec.prefault:
                _set_owner(folder, 0, 0, 0o755)  # a pod must not replace the file
                _populate(folder, spec)
            else:
                _set_owner(folder, owner.user, owner.group, owner.mode | (owner.mode & 0o444) >> 2)


def remove_file_system(path: str, kind: str, known: bool) -> bool:
    """Delete the group's files and unmount its file system.

    The files are deleted because another mount namespace may have a copy of the mount. Return
    False if the mount is of another kind, and so of another group. Raises OSError: EBUSY if the
    users of the mount are not `known`.
    """
    if not _unmount(path, kind, known):
        return False
    with suppress(OSError):  # it has the mount points of other groups
        os.rmdir(os.path.dirname(path))
    return True


def ensure_segment(key: int, size: int, owner: Owner, prefault: bool, record: SegmentRecord) -> int:
    """Create the segment or complete an existing one, and return its id. Raises OSError."""
    existing = next((segment for segment in sysvshm.own_segments() if segment.key == key), None)
    if existing is None:
        identity = sysvshm.create(key, size, sysvshm.IPC_CREAT | sysvshm.IPC_EXCL | 0o600)
        used = 0
    elif record.matches(existing, size):
        if existing.size != size:
            raise OSError(
                errno.EINVAL,
                f"the segment has {existing.size} bytes, and its size cannot change",
            )
        identity, used = existing.id, existing.used
    else:
        raise OSError(
            errno.EEXIST, f"a segment of {existing.size} bytes has the key {key:#x} already"
        )
    sysvshm.set_owner(identity, owner.user, owner.group, owner.mode & ~_EXECUTE)
    if prefault and used < size:
        sysvshm.populate(identity, size)
    return identity


def remove_segment(key: int, size: int, record: SegmentRecord) -> None:
    """Remove the recorded segment. Raises OSError: EBUSY if a process has it attached."""
    for segment in sysvshm.own_segments():
        if segment.key == key and record.matches(segment, size):
            if segment.attached:
                raise OSError(
                    errno.EBUSY, f"{segment.attached} processes have the segment attached"
                )
            sysvshm.remove(segment.id)


def _mount(spec: FileSystemSpec, more: int = 0) -> None:
    """Mount a file system, or change a tmpfs's size with MS_REMOUNT.

    The kernel denies a size below the bytes in use.
    """
    options = f"size={spec.size}{'' if more else ',mode=0711'}".encode()
    flags = ctypes.c_ulong(_NOSUID | _NODEV | _NOEXEC | more)
    if libc.mount(b"pinwarden", os.fsencode(spec.path), spec.kind.encode(), flags, options):
        number = ctypes.get_errno()
        why = "more bytes are in use than this capacity" if more else os.strerror(number)
        raise OSError(number, why, spec.path)


def _populate(folder: int, spec: FileSystemSpec) -> None:
    """Create the file and allocate all its pages; existing pages stay."""
    with _opened(FILE, os.O_RDWR | os.O_CREAT, folder) as file:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", f"{spec.path}/{FOLDER}/{FILE}")
        _set_owner(file, spec.owner.user, spec.owner.group, spec.owner.mode & ~_EXECUTE)
        if about.st_size < spec.size or about.st_blocks * _BLOCK < spec.size:
            os.posix_fallocate(file, 0, spec.size)


def _set_owner(descriptor: int, user: int, group: int, mode: int) -> None:
    about = os.fstat(descriptor)
    if (about.st_uid, about.st_gid) != (user, group):
        os.fchown(descriptor, user, group)
    if stat.S_IMODE(about.st_mode) != mode:
        os.fchmod(descriptor, mode)


def _unmount(path: str, kind: str, known: bool) -> bool:
    try:
        mounted = os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return True
    if mounted:
        with _opened(path, os.O_DIRECTORY) as top:
            if openat2.filesystem_magic(top) != _MAGIC[kind]:
                return False
        if not known:
            raise OSError(
                errno.EBUSY, "the users of the mounted file system are not known yet", path
            )
        with suppress(FileNotFoundError), _opened(f"{path}/{FOLDER}", os.O_DIRECTORY) as folder:
            _empty(folder)
        if libc.umount2(os.fsencode(path), 0):
            raise last_error(path)
    os.rmdir(path)
    return True


def _empty(folder: int) -> None:
    """Delete everything in an unused folder. Raises OSError.

    Deeper entries are first moved up, so no tree is too deep.
    """
    number = 0
    while names := os.listdir(folder):
        for name in names:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                os.unlink(name, dir_fd=folder)
                continue
            with _opened(name, os.O_DIRECTORY, folder) as inner:
                for entry in os.listdir(inner):
                    number += 1
                    os.rename(
                        entry, f".{os.getpid()}.{number}", src_dir_fd=inner, dst_dir_fd=folder
                    )
            os.rmdir(name, dir_fd=folder)


def _opened(path: str, flags: int, at: int | None = None) -> AbstractContextManager[int]:
    """Open a file without waiting for a lease of another process (F_SETLEASE)."""
    return opened(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, at)
