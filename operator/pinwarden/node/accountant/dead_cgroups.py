"""To whom the kernel charges an object's pages: what is left on cgroups that are gone is shown as that (M9).

Each resident page is found by its frame number, and /proc/kpagecgroup tells the cgroup of each frame by the inode number of its folder;
where that cgroup is gone, of the closest one above it that is there (page_cgroup_ino). No process can be in a cgroup of v2 that gives the
memory controller on to others below it, so what is charged to such a one is left from one that is gone.

A frame number needs the page mapped: the file is mapped here, and of it only the pages that are resident (mincore) are touched, so nothing
is read or allocated. It takes about a second for 4 GiB, so it is asked for rarely (`DeadCgroups`), and a child does it: a file that is cut
short meanwhile ends who touches it (SIGBUS). On v1 such a cgroup may have processes, and nothing is told.
"""

import ctypes
import mmap
import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from pinwarden.node.linux.cgroupfs import Layout, detect_layout
from pinwarden.node.linux.libc import last_error
from pinwarden.node.linux.namespaces import run_in_namespaces

FRESH_SECONDS = 30.0
PAGE: Final = mmap.PAGESIZE
_TIMES_ITS_COST = 100
_CHUNK = 64 << 20
_ENTRY = 8
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def by_cgroup(descriptor: int) -> Counter[int]:
    """Bytes of the file's resident pages by the inode number of the cgroup that pays; 0 for none.

    Needs CAP_SYS_ADMIN and root. Raises OSError.
    """
    found: Counter[int] = Counter()
    size = os.fstat(descriptor).st_size
    with _opened("/proc/self/pagemap") as pagemap, _opened("/proc/kpagecgroup") as cgroups:
        for offset in range(0, size, _CHUNK):
            length = min(_CHUNK, size - offset)
            with mmap.mmap(
                descriptor, length, mmap.MAP_PRIVATE, offset=offset
            ) as area:  # from_buffer wants it writable
                for frame, count in _runs(_frames(area, length, pagemap)):
                    payers = array("Q", os.pread(cgroups, count * _ENTRY, frame * _ENTRY))
                    found.update(payers)
    return Counter({payer: pages * PAGE for payer, pages in found.items()})


class DeadCgroups:
    """Asks for each group at most every `FRESH_SECONDS`, and no more than a hundredth of the time."""

    def __init__(self, cgroup_root: Path) -> None:
        self._root = cgroup_root
        self._v2 = detect_layout(cgroup_root) is Layout.V2
        self._known: dict[str, tuple[int | None, float]] = {}

    def keep(self, uids: Collection[str]) -> None:
        """Forgets all other groups."""
        self._known = {uid: known for uid, known in self._known.items() if uid in uids}

    def dead(self, uid: str, files: Callable[[], Iterator[int]], now: float) -> int | None:
        """Bytes of a group's files that cgroups pay for that are gone, as last asked; None on v1. `now` is monotonic. Raises OSError."""
        if not self._v2:
            return None
        amount, due = self._known.get(uid, (None, now))
        if now < due:
            return amount
        began = time.monotonic()
        amount = None
        try:
            charges: Counter[int] = Counter()
            for descriptor in files():
                charges.update(run_in_namespaces([], partial(by_cgroup, descriptor)))
            amount = dead(charges, self._root)
        finally:
            cost = time.monotonic() - began
            self._known[uid] = amount, now + max(FRESH_SECONDS, cost * _TIMES_ITS_COST)
        return amount


def _frames(area: mmap.mmap, length: int, pagemap: int) -> list[int]:
    """Frame numbers of the pages that are resident, in order."""
    first = ctypes.c_char.from_buffer(area)
    try:
        start = ctypes.addressof(first)
        pages = -(-length // PAGE)
        resident = ctypes.create_string_buffer(pages)
        if _libc.mincore(start, length, resident):
            raise last_error()
        for page in [page for page, byte in enumerate(resident.raw[:pages]) if byte & 1]:
            area[page * PAGE]
        entries = array("Q", os.pread(pagemap, pages * _ENTRY, start // PAGE * _ENTRY))
    finally:
        del first
    return sorted(entry & _FRAME for entry in entries if entry & _PRESENT)


def _runs(frames: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbours together: the first frame and how many."""
    start = 0
    for position in range(1, len(frames) + 1):
        if position == len(frames) or frames[position] != frames[position - 1] + 1:
            yield frames[start], position - start
            start = position


def dead(charges: Mapping[int, int], hierarchy: Path) -> int:
    """Bytes of `by_cgroup` that are charged to cgroups that are gone from this hierarchy of v2."""
    alive = set()
    for folder, _, _ in os.walk(hierarchy):
        with suppress(FileNotFoundError):
            control = Path(folder, "cgroup.subtree_control").read_text()
            if "memory" not in control.split() or folder == os.fspath(hierarchy):
                alive.add(os.stat(folder).st_ino)
    return sum(amount for payer, amount in charges.items() if payer and payer not in alive)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
