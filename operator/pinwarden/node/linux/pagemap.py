"""Which pages of an object a process has in its page tables, from /proc/PID/pagemap.

From Linux 6.7 the PAGEMAP_SCAN ioctl (include/uapi/linux/fs.h) walks a range and answers with stretches of pages that fit; before that each
page's 64-bit entry is read (Documentation/admin-guide/mm/pagemap.rst). A page that was swapped out, or never touched, is in no page table.
A copy that a process made by writing to a MAP_PRIVATE mapping is anonymous and not the object's page; both interfaces tell.

A page that is being migrated is in the page table as a swap entry that the kernel calls a file's page, for a moment; it counts.

In a MAP_SHARED mapping no page can be anonymous, so there the scan need not look at each page's `struct page`, and it asks for what is not
present: a page that does not fit costs it a quarter of one that does. What is not mapped at all does not fit either, so the caller has
to see to it that the range was mapped all the while. Neither interface tells of mappings without
`struct page` (VM_PFNMAP), as those of dma-bufs are.
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
    """The page tables of one process; close it, or use it as a context manager. It stays bound to the address space it was opened for.

    Raises, on opening, ProcessLookupError when the process has gone, and PermissionError where the reader may not ptrace it.
    """

    scans = True
    """Whether the kernel has PAGEMAP_SCAN, as far as this process knows: found out by the first call."""

    def __init__(self, folder: str) -> None:
        """`folder` is that of the process, or of a thread of it."""
        try:
            self._fd = os.open(f"{folder}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(error.errno, f"{folder} is gone") from error

    def close(self) -> None:
        """Gives the descriptor back; may be called again."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> "PageMap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resident(self, start: int, end: int, *, shared: bool) -> Intervals:
        """Addresses in [start, end), multiples of the page's size, at which a page of the mapped object is in the page tables.

        `shared` says that all of it is mapped MAP_SHARED, before and after.
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
        """In a shared mapping what looks swapped out may be on the move, and is asked for again."""
        if not shared:
            return self._file_pages(start, end)
        starts, ends, kinds = self._scan(start, end, _PRESENT, _PRESENT, _SWAPPED)
        swapped = [each for each in zip(starts, ends, kinds, strict=True) if each[2]] if any(kinds) else []
        found = Intervals.joined(starts, ends).gaps(start, end)
        if found == [(start, end)]:  # either all, or nothing that the scan looks at
            return self._file_pages(start, start + PAGE) and Intervals.of(found)
        present = Intervals.of(found)
        return union([present, self._file_pages(swapped[0][0], swapped[-1][1])]) if swapped else present

    def _file_pages(self, start: int, end: int) -> Intervals:
        starts, ends, _ = self._scan(start, end, _FILE, 0, _FILE)
        return Intervals.joined(starts, ends)

    def _scan(
        self, start: int, end: int, wanted: int, inverted: int, told: int
    ) -> tuple[list[int], list[int], list[int]]:
        """Stretches of pages with all `wanted` categories, or without those `inverted`: starts, ends, and what of `told` they have."""
        found: tuple[list[int], list[int], list[int]] = ([], [], [])
        while start < end:
            arg = _ScanArg(
                size=ctypes.sizeof(_ScanArg),
                start=start,
                end=end,
                vec=_vector.buffer_info()[0],
                vec_len=len(_vector) // _COLUMNS,
                category_mask=wanted,
                category_inverted=inverted,
                return_mask=told,
            )
            count = ioctl(self._fd, _PAGEMAP_SCAN, arg)
            for column, values in enumerate(found):
                values += _vector[column : count * _COLUMNS : _COLUMNS]
            if arg.walk_end <= start:  # the address space has gone
                break
            start = arg.walk_end
        return found

    def _read(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        while start < end:
            wanted = min((end - start) // PAGE, _ENTRIES)
            entries = os.pread(self._fd, wanted * _ENTRY, start // PAGE * _ENTRY)
            for run in _RUN.finditer(entries[_TOP_BYTE::_ENTRY].translate(_OF_FILE)):
                yield start + run.start() * PAGE, start + run.end() * PAGE
            if not entries:  # the address space has gone
                return
            start += len(entries) // _ENTRY * PAGE
