"""Opening what a path names on the node, and nothing that somebody put in the way (openat2(2), Linux 5.6).

The folder that an administrator allowed is looked up as the node itself would, links included. Below it no symbolic link is followed, and
nothing leads out of it: what a tenant can write there cannot name anything else. Descriptors are opened with O_PATH, which touches neither
a device nor a FIFO; `contents` opens a regular file or a folder anew, by the descriptor.
"""

import ctypes
import errno
import fnmatch
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Final

from pinwarden.node.linux.libc import last_error

_OPENAT2: Final = 437
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT = 0x02, 0x04, 0x08, 0x10
_FLAGS = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
MOST_NAMES = 1 << 16
TMPFS: Final = 0x01021994
HUGETLBFS: Final = 0x958458F6
_WILDCARDS = "*?"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@contextmanager
def root_of(path: str) -> Iterator[int]:
    """A descriptor of a root folder, such as /proc/1/root. Raises OSError."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def folder(root: int, path: str, *, links: bool) -> Iterator[int]:
    """A folder below a root, in which absolute links stay; with `links` false there must be none. Raises OSError."""
    resolve = _IN_ROOT | _NO_MAGICLINKS | (0 if links else _NO_SYMLINKS)
    descriptor = _open(root, path.strip("/") or ".", os.O_DIRECTORY, resolve, links=links)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def below(at: int, path: str) -> Iterator[int]:
    """What the relative path names below the folder `at`, which the empty path names itself.

    Raises OSError: ELOOP where a symbolic link is in the way, EXDEV where it would lead out.
    """
    descriptor = _open(at, path or ".", 0, _BENEATH | _NO_MAGICLINKS | _NO_SYMLINKS, links=False)
    try:
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ELOOP, "is a symbolic link")
        yield descriptor
    finally:
        os.close(descriptor)


def matching(at: int, pattern: str, most: int) -> tuple[list[str], bool]:
    """Names in the folder `at` that a shell pattern matches, at most so many in order, and whether there may be more. Raises OSError.

    A hidden name is matched by a pattern that begins with a dot. No more than `MOST_NAMES` are looked at.
    """
    if not any(each in pattern for each in _WILDCARDS):
        return [pattern], False
    found: list[str] = []
    with contents(at) as opened, os.scandir(opened) as entries:
        for entry in islice(entries, MOST_NAMES):
            if matches(entry.name, pattern):
                found.append(entry.name)
            if len(found) > most:
                break
        more = len(found) > most or next(entries, None) is not None
    return sorted(found)[:most], more


def matches(name: str, pattern: str) -> bool:
    """Whether a shell pattern matches a name."""
    return fnmatch.fnmatchcase(name, literal(pattern)) and name.startswith(".") <= pattern.startswith(".")


def literal(pattern: str) -> str:
    """The pattern for fnmatch with * and ? alone as wildcards: brackets stand for themselves."""
    return pattern.replace("[", "[[]")


@contextmanager
def contents(descriptor: int) -> Iterator[int]:
    """The same file or folder, opened for reading. Raises OSError, also for one that is neither."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "is neither a regular file nor a folder")
    opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


def regular(folder: int, name: str) -> Iterator[int]:
    """The file, opened for reading, if it is a regular one that is there still."""
    with suppress(OSError), below(folder, name) as descriptor:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            with contents(descriptor) as opened:
                yield opened


def files_below(top: int) -> Iterator[int]:
    """Each regular file in a folder and below it, opened for reading; of entries of any kind no more than `MOST_NAMES`."""
    pending, left = ["."], MOST_NAMES
    while pending and left > 0:
        path = pending.pop()
        try:
            with below(top, path) as folder:
                with contents(folder) as opened, os.scandir(opened) as entries:
                    names = [entry.name for entry in islice(entries, left)]
                left -= len(names)
                for name in names:
                    with suppress(OSError), below(folder, name) as found:
                        if stat.S_ISDIR(os.fstat(found).st_mode):
                            pending.append(f"{path}/{name}")
                    yield from regular(folder, name)
        except OSError:  # it went, or its path is too long to open
            continue


def kind(descriptor: int) -> int:
    """The magic number of the file system that it is in (statfs(2), f_type). Raises OSError."""
    buffer = (ctypes.c_long * 32)()
    if _libc.fstatfs(descriptor, buffer):
        raise last_error()
    return buffer[0]


def _open(at: int, path: str, flags: int, resolve: int, *, links: bool) -> int:
    how = _How(_FLAGS & ~(os.O_NOFOLLOW if links else 0) | flags, 0, resolve)
    result: int = _libc.syscall(
        _OPENAT2, at, ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how), ctypes.sizeof(how)
    )
    if result < 0:
        raise last_error(path)
    return result
