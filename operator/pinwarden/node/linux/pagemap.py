"""The pages of an object in the page tables of a process, from /proc/PID/pagemap.

From Linux 6.7 the `PAGEMAP_SCAN` ioctl (include/uapi/linux/fs.h) walks a range and returns the
matching stretches of pages. On an older kernel the 64-bit entry of each page is read
(Documentation/admin-guide/mm/pagemap.rst). A swapped out or untouched page is in no
page table. After a write to a `MAP_PRIVATE` mapping the process has an anonymous copy, which is not
the object's page; both interfaces show this. A page under migration is a swap entry for a moment.
The kernel calls this entry a file's page, so the page counts.

In a `MAP_SHARED` mapping no page can be anonymous, so the scan does not need each page's
`struct page`. There the scan asks for pages not present, because a page without a match
costs a quarter of a match. An unmapped range does not match either. So the caller must
ensure a mapping during the whole scan. Neither interface shows mappings without `struct page`
(`VM_PFNMAP`), such as those of dma-bufs.
"""

import ctypes
import errno
import mmap
import os
import re
import sys
from array import array
from collections.abc import Iterator
from fcntl import ioctl
from typing import Final

from pinwarden.node.linux.intervals import Intervals, union

PAGE: Final = mmap.PAGESIZE
_PAGEMAP_SCAN: Final = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_FILE, _PRESENT, _SWAPPED = 1 << 2, 1 << 3, 1 << 4  # PAGE_IS_*
_COLUMNS = 3
_vector = array("Q", bytes(4096 * _COLUMNS * 8))  # struct page_region: start, end, categories
_ENTRY = 8
_ENTRIES = 1 << 16
_TOP_BYTE = 7 if sys.byteorder == "little" else 0
_FILE_IN_TOP_BYTE = 1 << (61 - 56)
_OF_FILE = bytes(bool(top & _FILE_IN_TOP_BYTE) for top in range(256))
_RUN = re.compile(b"\x01+")
_MISSING = (errno.ENOTTY, errno.ENOSYS)


class _ScanArg(ctypes.Structure):
    """`struct pm_scan_arg`."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "size",
            "flags",
            "start",
            "end",
            "walk_end",
            "vec",
            "vec_len",
            "max_pages",
            "category_inverted",
            "category_mask",
            "category_anyof_mask",
            "return_mask",
        )
    )


class PageMap:
    """The page tables of one process; close the object after use.

    The object stays bound to the address space at opening. Opening raises ProcessLookupError if
    the process is gone, and PermissionError if the reader may not ptrace the process.
    """

    scans = True
    """Whether the kernel has `PAGEMAP_SCAN`. The first call finds out."""

    def __init__(self, folder: str) -> None:
        """`folder` is the one of the process, or of a thread, in /proc."""
        try:
            self._fd = os.open(f"{folder}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(error.errno, f"{folder} is gone") from error

    def close(self) -> None:
        """Close the descriptor; may be called again."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def resident(self, start: int, end: int, *, shared: bool) -> Intervals:
        """Return the addresses in [start, end) with a page of the mapped object in the page tables.

        Both bounds are multiples of the page size. `shared`: the whole range is mapped
        `MAP_SHARED`, before and after the call.
        """
        if PageMap.scans:
            try:
                return self._scanned(start, end, shared)
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                PageMap.scans = False
        return Intervals.of(self._read(start, end))

    def _scanned(self, start: int, end: int, shared: bool) -> Intervals:
        """Scan a range. Pages of a shared mapping under migration look swapped out at first."""
        if not shared:
            return self._file_pages(start, end)
        starts, ends, kinds = self._scan(start, end, _PRESENT, _PRESENT, _SWAPPED)
        stretches = zip(starts, ends, kinds, strict=True)
        swapped = [stretch for stretch in stretches if stretch[2]] if any(kinds) else []
        gaps = Intervals.joined(starts, ends).gaps(start, end)
        if gaps == [(start, end)]:  # all pages are present, or the scan skips the whole range
            return self._file_pages(start, start + PAGE) and Intervals.of(gaps)
        present = Intervals.of(gaps)
        return (
            union([present, self._file_pages(swapped[0][0], swapped[-1][1])])
            if swapped
            else present
        )

    def _file_pages(self, start: int, end: int) -> Intervals:
        starts, ends, _ = self._scan(start, end, _FILE, 0, _FILE)
        return Intervals.joined(starts, ends)

    def _scan(
        self, start: int, end: int, wanted: int, inverted: int, returned: int
    ) -> tuple[list[int], list[int], list[int]]:
        """Return stretches of pages as starts, ends, and their categories among `returned`.

        Each page has all `wanted` categories, and lacks the `inverted` ones.
        """
        columns: tuple[list[int], list[int], list[int]] = ([], [], [])
        while start < end:
            arg = _ScanArg(
                size=ctypes.sizeof(_ScanArg),
                start=start,
                end=end,
                vec=_vector.buffer_info()[0],
                vec_len=len(_vector) // _COLUMNS,
                category_mask=wanted,
                category_inverted=inverted,
                return_mask=returned,
            )
            count = ioctl(self._fd, _PAGEMAP_SCAN, arg)
            for column, values in enumerate(columns):
                values += _vector[column : count * _COLUMNS : _COLUMNS]
            if arg.walk_end <= start:  # the address space is gone
                break
            start = arg.walk_end
        return columns

    def _read(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        while start < end:
            wanted = min((end - start) // PAGE, _ENTRIES)
            entries = os.pread(self._fd, wanted * _ENTRY, start // PAGE * _ENTRY)
            for run in _RUN.finditer(entries[_TOP_BYTE::_ENTRY].translate(_OF_FILE)):
                yield start + run.start() * PAGE, start + run.end() * PAGE
            if not entries:  # the address space is gone
                return
            start += len(entries) // _ENTRY * PAGE
