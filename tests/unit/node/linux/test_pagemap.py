"""Page tables of this process, read in both ways."""

import ctypes
import errno
import mmap
import os
from array import array
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinwarden.node.linux import pagemap
from pinwarden.node.linux.intervals import EMPTY, Intervals
from pinwarden.node.linux.pagemap import PAGE, PageMap

PAGES = 40


@pytest.fixture(params=["as the kernel can", "by entries"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by entries":
        monkeypatch.setattr(PageMap, "scans", False)


class Area:
    """A memfd with all its pages, mapped."""

    def __init__(self, flags: int = mmap.MAP_SHARED, pages: int = PAGES) -> None:
        file = os.memfd_create("area")
        os.ftruncate(file, pages * PAGE)
        os.posix_fallocate(file, 0, pages * PAGE)
        self.memory = mmap.mmap(file, pages * PAGE, flags)
        os.close(file)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.end = self.start + pages * PAGE
        self.shared = flags == mmap.MAP_SHARED
        self.memory.madvise(mmap.MADV_RANDOM)  # no pages around the one that is touched

    def resident(self) -> list[int]:
        with closing(PageMap("/proc/self")) as tables:
            intervals = tables.resident(self.start, self.end, shared=self.shared)
        return [
            page
            for first, last in intervals
            for page in range((first - self.start) // PAGE, (last - self.start) // PAGE)
        ]


@pytest.mark.usefixtures("way")
def test_pages_are_resident_once_touched() -> None:
    area = Area()
    assert area.resident() == []
    for page in (3, 4, 39):
        area.memory[page * PAGE] = 1
    assert area.resident() == [3, 4, 39]
    area.memory.madvise(mmap.MADV_DONTNEED, 4 * PAGE, PAGE)
    assert area.resident() == [3, 39]
    for page in range(PAGES):
        area.memory[page * PAGE] = 1
    assert area.resident() == list(range(PAGES))


@pytest.mark.usefixtures("way")
def test_private_copy_of_a_page_is_not_resident() -> None:
    area = Area(mmap.MAP_PRIVATE)
    for page in range(PAGES):
        _ = area.memory[page * PAGE]
    area.memory[5 * PAGE] = 1
    assert area.resident() == [page for page in range(PAGES) if page != 5]


@pytest.mark.usefixtures("way")
def test_many_stretches_take_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap, "_vector", array("Q", bytes(3 * 3 * 8)))
    monkeypatch.setattr(pagemap, "_ENTRIES", 7)
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        area = Area(flags)
        touched = [*range(0, 20, 2), *range(20, 25), 39]
        for page in touched:
            _ = area.memory[page * PAGE]
        assert area.resident() == touched


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, PAGES - 1)), st.integers(0, PAGES), st.integers(0, PAGES))
def test_any_part_of_a_mapping_can_be_read(touched: set[int], first: int, last: int) -> None:
    area = Area()
    for page in touched:
        area.memory[page * PAGE] = 1
    expected = Intervals.of(
        (area.start + page * PAGE, area.start + (page + 1) * PAGE)
        for page in touched
        if first <= page < last
    )
    with closing(PageMap("/proc/self")) as tables:
        assert (
            tables.resident(area.start + first * PAGE, area.start + last * PAGE, shared=True)
            == expected
        )


@pytest.mark.usefixtures("way")
def test_unmapped_addresses_are_not_resident() -> None:
    area = Area()
    start, end = area.start, area.end
    area.memory.madvise(mmap.MADV_NORMAL)
    ctypes.CDLL(None).munmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start))
    with closing(PageMap("/proc/self")) as tables:
        assert tables.resident(start, end, shared=True) == EMPTY
    again = ctypes.CDLL(None).mmap  # so that the end of `area` unmaps only what is its own
    again.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
    assert (
        again(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 0, flags, -1, ctypes.c_long(0))
        == start
    )


def test_kernel_without_the_scan_is_detected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def missing(*_: object) -> int:
        calls.append(1)
        raise OSError(errno.ENOTTY, "")

    monkeypatch.setattr(PageMap, "scans", True)
    monkeypatch.setattr(pagemap, "ioctl", missing)
    area = Area()
    area.memory[PAGE] = 1
    assert area.resident() == area.resident() == [1]
    assert len(calls) == 1


def test_other_error_of_the_scan_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EFAULT, "")

    monkeypatch.setattr(PageMap, "scans", True)
    monkeypatch.setattr(pagemap, "ioctl", broken)
    with pytest.raises(OSError, match="14"):
        Area().resident()


def test_page_under_migration_counts_and_a_marker_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel would answer: both look swapped out, and only the page is a file's."""

    def answer(_: int, __: int, arg: "pagemap._ScanArg") -> int:
        absent = [(2, 3, pagemap._SWAPPED), (5, 6, pagemap._SWAPPED), (7, 8, 0)]
        regions = absent if arg.category_inverted else [(2, 3, 4)]
        for number, region in enumerate(regions):
            for column, value in enumerate(region):
                pagemap._vector[number * 3 + column] = value
        arg.walk_end = arg.end
        return len(regions)

    monkeypatch.setattr(PageMap, "scans", True)
    monkeypatch.setattr(pagemap, "ioctl", answer)
    with closing(PageMap("/proc/self")) as tables:
        assert list(tables.resident(0, 10, shared=True)) == [(0, 5), (6, 7), (8, 10)]


def test_gone_process_has_no_page_tables(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        PageMap(str(tmp_path / "1"))
    tables = PageMap("/proc/self")
    tables.close()
    tables.close()


def test_gone_address_space_ends_the_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageMap, "scans", False)
    monkeypatch.setattr(
        pagemap,
        "os",
        SimpleNamespace(
            open=os.open, close=os.close, O_RDONLY=0, O_CLOEXEC=0, pread=lambda *_: b""
        ),
    )
    with closing(PageMap("/proc/self")) as tables:
        assert tables.resident(0, 10 * PAGE, shared=True) == EMPTY
