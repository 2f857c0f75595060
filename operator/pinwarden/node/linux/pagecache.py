"""How much of an open file is in memory: cachestat(2), from Linux 6.5, or mincore(2) over a mapping of it.

Both take time with the size of the file, neither reads or allocates anything.
"""

import ctypes
import mmap
import os
from typing import Final

from pinwarden.node.linux.libc import last_error

_CACHESTAT: Final = 451
_CHUNK = 1 << 30
_UNAVAILABLE = -1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_FAILED: Final = ctypes.c_void_p(-1).value


class _Range(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    _fields_ = (
        ("cache", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("writeback", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


def cached(descriptor: int) -> int:
    """Bytes of the file's pages in the page cache. Raises OSError."""
    pages = _cachestat(descriptor)
    if pages == _UNAVAILABLE:
        pages = _mincore(descriptor)
    return pages * mmap.PAGESIZE


def _cachestat(descriptor: int) -> int:
    found = _Stat()
    whole = _Range(0, 0)
    if _libc.syscall(_CACHESTAT, descriptor, ctypes.byref(whole), ctypes.byref(found), 0):
        return _UNAVAILABLE
    return int(found.cache)


def _mincore(descriptor: int) -> int:
    size, pages = os.fstat(descriptor).st_size, 0
    for offset in range(0, size, _CHUNK):
        length = min(_CHUNK, size - offset)
        address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
        if address == _FAILED:
            raise last_error()
        try:
            vector = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
            if _libc.mincore(address, length, vector):
                raise last_error()
        finally:
            _libc.munmap(address, length)
        pages += sum(byte & 1 for byte in vector.raw[: -(-length // mmap.PAGESIZE)])
    return pages
