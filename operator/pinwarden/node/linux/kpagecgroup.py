"""The cgroups to which the kernel charges a file's pages, from /proc/kpagecgroup.

A page is known by its frame number, and kpagecgroup has the inode number of a cgroup for each
frame. If that cgroup is gone, the kernel shows its closest living ancestor (page_cgroup_ino).

A frame number needs a mapped page. So the file is mapped, and only its resident pages (mincore)
are touched. Nothing is read or allocated. 4 GiB take about a second.
"""

import ctypes
import mmap
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Final

from pinwarden.node.linux.libc import opened
from pinwarden.node.linux.pagecache import residency

_PAGE: Final = mmap.PAGESIZE
_CHUNK: Final = 64 << 20
_ENTRY: Final = 8
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1


def bytes_by_cgroup(descriptor: int) -> Counter[int]:
    """Return the bytes of a file's resident pages by the inode number of the charged cgroup.

    Pages without a charge have the number 0. Needs root and CAP_SYS_ADMIN. A file truncated
    meanwhile ends the caller (SIGBUS). Raises OSError.
    """
    pages: Counter[int] = Counter()
    size = os.fstat(descriptor).st_size
    with opened("/proc/self/pagemap") as pagemap, opened("/proc/kpagecgroup") as cgroups:
        for offset in range(0, size, _CHUNK):
            length = min(_CHUNK, size - offset)
            # a private mapping is writable, as from_buffer wants
            with mmap.mmap(descriptor, length, mmap.MAP_PRIVATE, offset=offset) as area:
                for frame, count in _runs(_frames(area, length, pagemap)):
                    pages.update(array("Q", os.pread(cgroups, count * _ENTRY, frame * _ENTRY)))
    return Counter({cgroup: count * _PAGE for cgroup, count in pages.items()})


def _frames(area: mmap.mmap, length: int, pagemap: int) -> list[int]:
    """Return the frame numbers of the resident pages, sorted."""
    first = ctypes.c_char.from_buffer(area)
    try:
        start = ctypes.addressof(first)
        resident = residency(start, length)
        for page, is_resident in enumerate(resident):
            if is_resident:
                area[page * _PAGE]
        entries = array("Q", os.pread(pagemap, len(resident) * _ENTRY, start // _PAGE * _ENTRY))
    finally:
        del first
    return sorted(entry & _FRAME for entry in entries if entry & _PRESENT)


def _runs(frames: list[int]) -> Iterator[tuple[int, int]]:
    """Yield neighbouring frames together: the first frame and their number."""
    start = 0
    for position in range(1, len(frames) + 1):
        if position == len(frames) or frames[position] != frames[position - 1] + 1:
            yield frames[start], position - start
            start = position
