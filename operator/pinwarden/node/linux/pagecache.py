"""How much of a file is in the page cache: cachestat(2) from Linux 6.5, else mincore(2).

Both calls take time with the size of the file. Neither reads the file nor allocates a page.
"""

import ctypes
import mmap
import os
from typing import Final

from pinwarden.node.linux.libc import MAP_FAILED, last_error, libc

_CACHESTAT: Final = 451
_CHUNK: Final = 1 << 30
_LOWEST_BIT: Final = bytes(byte & 1 for byte in range(256))


class _Range(ctypes.Structure):
    """`struct cachestat_range`; a length of 0 means the whole file."""

    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    """`struct cachestat`."""

    _fields_ = (
        ("cache", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("writeback", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


def cached_bytes(descriptor: int) -> int:
    """Return the bytes of a file's pages in the page cache. Raises OSError."""
    statistics = _CacheStat()
    whole = _Range(0, 0)
    if libc.syscall(_CACHESTAT, descriptor, ctypes.byref(whole), ctypes.byref(statistics), 0):
        return _resident_pages(descriptor) * mmap.PAGESIZE
    return int(statistics.cache) * mmap.PAGESIZE


def residency(address: int, length: int) -> bytes:
    """Return mincore(2) of a mapping: a byte for each page, 1 if the page is resident.

    Raises OSError.
    """
    pages = -(-length // mmap.PAGESIZE)
    vector = ctypes.create_string_buffer(pages)
    if libc.mincore(address, length, vector):
        raise last_error()
    return vector.raw[:pages].translate(_LOWEST_BIT)


def _resident_pages(descriptor: int) -> int:
    size, pages = os.fstat(descriptor).st_size, 0
    for offset in range(0, size, _CHUNK):
        length = min(_CHUNK, size - offset)
        address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
        if address == MAP_FAILED:
            raise last_error()
        try:
            pages += sum(residency(address, length))
        finally:
            libc.munmap(address, length)
    return pages
