"""The C library through ctypes: one handle for all modules, with prototypes."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MAP_FAILED: Final = ctypes.c_void_p(-1).value
"""The result of mmap(2) and shmat(2) on failure."""

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
libc.shmdt.argtypes = (ctypes.c_void_p,)
libc.shmget.argtypes = (ctypes.c_int, ctypes.c_size_t, ctypes.c_int)


def last_error(path: str | None = None) -> OSError:
    """Return the exception for the current errno of this thread."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


@contextmanager
def opened(
    path: str, flags: int = os.O_RDONLY, at: int | None = None, mode: int = 0o600
) -> Iterator[int]:
    """Yield a descriptor of a file, closed at the end. Raises OSError."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
