"""Opening a path of the node without following a tenant's links (openat2(2), Linux 5.6).

An allowed folder is looked up as the node itself does, links included.
Below this folder no symbolic link is followed, and no path leads out. So a tenant cannot name
anything else by links. Descriptors are opened with `O_PATH`, which touches neither
a device nor a FIFO. `reopened` then opens a regular file or a folder for reading.
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

from pinwarden.node.linux.libc import last_error, libc, opened

_OPENAT2: Final = 437
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT = 0x02, 0x04, 0x08, 0x10
_FLAGS: Final = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
MOST_NAMES: Final = 1 << 16
TMPFS: Final = 0x01021994
HUGETLBFS: Final = 0x958458F6
_WILDCARDS: Final = "*?"


class _OpenHow(ctypes.Structure):
    """`struct open_how`."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@contextmanager
def opened_folder(root: str, path: str, *, links: bool) -> Iterator[int]:
    """Yield a folder below a root such as /proc/1/root, in which absolute links stay.

    Without `links` a symbolic link in the path is an error. Raises OSError.
    """
    resolve = _IN_ROOT | _NO_MAGICLINKS | (0 if links else _NO_SYMLINKS)
    with opened(root, os.O_PATH | os.O_DIRECTORY) as top:
        descriptor = _open(top, path.strip("/") or ".", os.O_DIRECTORY, resolve, links=links)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_below(at: int, path: str) -> Iterator[int]:
    """Yield the file or folder at a relative path below the folder `at`, or `at` for "".

    Raises OSError: ELOOP if a symbolic link is in the way, EXDEV if the path leads out.
    """
    descriptor = _open(at, path or ".", 0, _BENEATH | _NO_MAGICLINKS | _NO_SYMLINKS, links=False)
    try:
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ELOOP, "is a symbolic link")
        yield descriptor
    finally:
        os.close(descriptor)


def matching_names(at: int, pattern: str, most: int) -> tuple[list[str], bool]:
    """Return the first `most` names in the folder with a match, and whether there may be more.

    A pattern matches a hidden name only if the pattern begins with a dot. At most `MOST_NAMES`
    entries are read. Raises OSError.
    """
    if not any(wildcard in pattern for wildcard in _WILDCARDS):
        return [pattern], False
    names: list[str] = []
    with reopened(at) as folder, os.scandir(folder) as entries:
        for entry in islice(entries, MOST_NAMES):
            if matches(entry.name, pattern):
                names.append(entry.name)
            if len(names) > most:
                break
        more = len(names) > most or next(entries, None) is not None
    return sorted(names)[:most], more


def matches(name: str, pattern: str) -> bool:
    """Return whether a shell pattern matches a name."""
    hidden_fits = name.startswith(".") <= pattern.startswith(".")
    return hidden_fits and fnmatch.fnmatchcase(name, fnmatch_pattern(pattern))


def fnmatch_pattern(pattern: str) -> str:
    """Return the pattern for fnmatch, in which only * and ? are wildcards."""
    return pattern.replace("[", "[[]")


@contextmanager
def reopened(descriptor: int) -> Iterator[int]:
    """Yield the same regular file or folder, opened for reading. Raises OSError."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "is neither a regular file nor a folder")
    with opened(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK) as readable:
        yield readable


def open_regular(folder: int, name: str) -> Iterator[int]:
    """Yield the file, opened for reading, if it is still there and regular."""
    with suppress(OSError), opened_below(folder, name) as descriptor:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            with reopened(descriptor) as readable:
                yield readable


def walk_files(top: int) -> Iterator[int]:
    """Yield each regular file in a folder and below it, opened for reading.

    At most `MOST_NAMES` entries of any kind are read.
    """
    pending, left = ["."], MOST_NAMES
    while pending and left > 0:
        path = pending.pop()
        try:
            with opened_below(top, path) as folder:
                with reopened(folder) as readable, os.scandir(readable) as entries:
                    names = [entry.name for entry in islice(entries, left)]
                left -= len(names)
                for name in names:
                    with suppress(OSError), opened_below(folder, name) as entry_fd:
                        if stat.S_ISDIR(os.fstat(entry_fd).st_mode):
                            pending.append(f"{path}/{name}")
                    yield from open_regular(folder, name)
        except OSError:  # the folder is gone, or its path is too long to open
            continue


def filesystem_magic(descriptor: int) -> int:
    """Return the `f_type` of a descriptor's file system (statfs(2)). Raises OSError."""
    buffer = (ctypes.c_long * 32)()
    if libc.fstatfs(descriptor, buffer):
        raise last_error()
    return buffer[0]


def _open(at: int, path: str, flags: int, resolve: int, *, links: bool) -> int:
    how = _OpenHow(_FLAGS & ~(os.O_NOFOLLOW if links else 0) | flags, 0, resolve)
    result: int = libc.syscall(
        _OPENAT2, at, ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how), ctypes.sizeof(how)
    )
    if result < 0:
        raise last_error(path)
    return result
