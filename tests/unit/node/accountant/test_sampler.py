"""Sampling the borrows of real processes, with folders as the cgroups of pods."""

import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinwarden.node.accountant import page_walk as walking
from pinwarden.node.accountant import sampler as module
from pinwarden.node.accountant.sampler import FRESH_SECONDS, Borrow, BorrowSampler
from pinwarden.node.linux.intervals import EMPTY
from pinwarden.node.linux.pagemap import PAGE, PageMap
from pinwarden.node.linux.vmstat import reclaim_counters
from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.shm.regions import ProcessMaps, Region, RegionFilter

PAGES = 16
SIZE = PAGES * PAGE


class Place:
    """A memfd, children with a mapping of it, and pods. `taken` are the reclaim counters."""

    def __init__(self, folder: Path) -> None:
        self.file = os.memfd_create("object")
        os.ftruncate(self.file, SIZE)
        about = os.fstat(self.file)
        self.object = ObjectId(about.st_dev, about.st_ino)
        self.objects = {"group": ObjectSet(objects=frozenset([self.object]))}
        self.folder = folder
        self.pods: dict[str, list[Path]] = {}
        self.children: list[int] = []
        self.taken: tuple[bytes, ...] | None = (b"0",)
        self.borrows = BorrowSampler()

    def pod(self, uid: str, *pids: int) -> None:
        container = self.folder / uid / "c"
        container.mkdir(parents=True, exist_ok=True)
        for path, some in ((container.parent, ()), (container, pids)):
            (path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in some))
            self.runs(path, 1)
        self.pods[uid] = [container.parent, container]

    @staticmethod
    def runs(path: Path, usage: int) -> None:
        (path / "cpu.stat").write_text(f"usage_usec {usage}\n")

    def child(self, *pages: int, length: int = SIZE) -> int:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            area = mmap.mmap(self.file, length)
            for page in pages:
                area[page * PAGE] = 1
            os.write(writer, b"1")
            while True:
                signal.pause()
        os.close(writer)
        assert os.read(reader, 1)
        os.close(reader)
        self.children.append(pid)
        return pid

    def sample(
        self, now: float = 0, stamp: object = 1, resident: tuple[str, ...] = ("group",)
    ) -> dict[tuple[str, str], Borrow]:
        return self.borrows.sample(now, self.pods, self.objects, resident, stamps={"group": stamp})

    def close(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(self.file)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path)
    monkeypatch.setattr(module, "reclaim_counters", lambda _: made.taken)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.rule("M3")
def test_page_counts_once_in_each_pod_with_a_mapping(place: Place) -> None:
    place.pod("a", place.child(0, 1), place.child(1, 2, 3))
    place.pod("b", place.child(3, length=8 * PAGE))
    place.pod("c")
    assert place.sample(5) == {
        ("group", "a"): Borrow(SIZE, 4 * PAGE, 5),
        ("group", "b"): Borrow(8 * PAGE, PAGE, 5),
    }
    assert BorrowSampler.together("group", [place.borrows]) == Borrow(SIZE, 4 * PAGE, 5)


@pytest.mark.rule("M4")
def test_resident_pages_are_read_only_for_wanted_groups(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "PageMap", None)
    place.pod("a", place.child(0))
    assert place.sample(resident=()) == {("group", "a"): Borrow(SIZE, None, 0)}
    together = BorrowSampler.together("group", [place.borrows])
    assert together is not None
    assert together.resident is None


@pytest.mark.rule("M3")
def test_object_of_several_groups_counts_in_each(place: Place) -> None:
    place.objects |= {
        "device": ObjectSet(devices=frozenset([place.object.device])),
        "none": ObjectSet(),
    }
    place.pod("a", place.child(0))
    assert place.sample(resident=("device",)) == {
        ("group", "a"): Borrow(SIZE, None, 0),
        ("device", "a"): Borrow(SIZE, PAGE, 0),
    }


def test_dma_buf_is_resident_wherever_it_is_mapped(place: Place) -> None:
    place.pod("a", place.child(length=8 * PAGE))
    whole = frozenset([place.object.device])
    borrows = place.borrows.sample(0, place.pods, place.objects, ["group"], whole)
    assert borrows == {("group", "a"): Borrow(8 * PAGE, 8 * PAGE, 0)}


def test_page_seen_in_a_process_is_not_walked_in_another(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Counted(PageMap):
        def __init__(self, folder: str) -> None:
            opened.append(folder)
            super().__init__(folder)

    monkeypatch.setattr(walking, "PageMap", Counted)
    place.pod("a", *(place.child(*range(PAGES)) for _ in range(5)))
    place.sample()
    assert len(opened) == 1


@pytest.mark.parametrize("gaps", [0, 100])
def test_distant_pages_are_found_in_whole_and_in_pieces(
    place: Place, monkeypatch: pytest.MonkeyPatch, gaps: int
) -> None:
    monkeypatch.setattr(walking, "_MOST_GAPS", gaps)
    place.pod("a", place.child(*range(0, PAGES, 2)), place.child(1, 2, 9), place.child(15))
    assert place.sample()["group", "a"].resident == (PAGES // 2 + 3) * PAGE


@pytest.mark.rule("M4")
def test_unchanged_pod_is_not_walked_again(place: Place) -> None:
    place.pod("a", first := place.child(0))
    place.pod("b", place.child(1))
    place.sample(-1)
    place.sample(0)
    assert place.borrows.walked == 2, "the kernel may have removed pages before the first sample"
    assert place.sample(1)["group", "a"].time == 0
    assert place.borrows.walked == 0

    place.runs(place.pods["a"][0], 2)
    assert place.sample(2)["group", "a"].time == 2
    assert place.borrows.walked == 1

    place.pod("b", first)
    assert place.sample(3)["group", "b"].time == 3, "other processes"
    assert place.borrows.walked == 1

    place.sample(4, stamp=2)
    assert place.borrows.walked == 2, "the object changed"

    place.taken = (b"1",)
    place.sample(5, stamp=2)
    assert place.borrows.walked == 2, "the kernel removed pages"
    place.sample(5, stamp=2)
    assert place.borrows.walked == 2, "the kernel may have removed pages during the walk"

    place.objects = {**place.objects, "more": ObjectSet(devices=frozenset([place.object.device]))}
    assert ("more", "a") in place.sample(6, stamp=2)
    place.sample(7, stamp=2)
    assert place.borrows.walked == 0
    place.sample(6 + FRESH_SECONDS, stamp=2)
    assert place.borrows.walked == 2, "the figures are too old"


@pytest.mark.rule("M4")
def test_walk_during_reclaim_is_not_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts a huge page first, and removes the small pages later.

    See thp_collapse_alloc and retract_page_tables.
    """
    place.pod("a", place.child(0, 1))
    for now in range(2):
        place.sample(now)
    place.taken = (b"1",)
    place.sample(2)
    monkeypatch.setattr(PageMap, "resident", lambda *_, **__: EMPTY)
    assert place.sample(3)["group", "a"] == Borrow(SIZE, 0, 3)
    assert place.sample(4)["group", "a"].time == 3, "the counters stood still"


def test_idle_pod_without_mappings_depends_on_no_object_and_no_kernel(place: Place) -> None:
    place.pod("a", os.getpid())
    place.objects = {"group": ObjectSet(objects=frozenset([ObjectId(place.object.device, 0)]))}
    place.sample(0)
    place.taken = None
    place.sample(1, stamp=2)
    assert place.borrows.walked == 0


@pytest.mark.parametrize("unknown", ["activity", "reclaim_counters", "stamp"])
def test_pod_with_an_unknown_condition_is_walked_again(place: Place, unknown: str) -> None:
    place.pod("a", place.child(0))
    stamp = None if unknown == "stamp" else 1
    if unknown == "activity":
        (place.pods["a"][0] / "cpu.stat").unlink()
    if unknown == "reclaim_counters":
        place.taken = None
    place.sample(0, stamp)
    place.sample(1, stamp)
    assert place.borrows.walked == 1


@pytest.mark.rule("M6")
def test_ended_pod_borrows_nothing(place: Place) -> None:
    place.pod("a", place.child(0))
    assert place.sample()
    del place.pods["a"]
    assert place.sample() == {}
    assert BorrowSampler.together("group", [place.borrows]) is None
    place.pods["gone"] = [place.folder / "gone"]
    assert place.sample() == {}


@pytest.mark.rule("H2")
def test_unreadable_process_makes_a_lower_bound(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable, hidden = place.child(0), place.child(1)
    place.pod("a", readable, hidden)
    place.pod("b", hidden)
    place.pod("c", readable)
    original = ProcessMaps.lines

    def guarded(process: ProcessMaps) -> Iterator[bytes]:
        if process.folder.endswith(f"/{hidden}"):
            raise PermissionError(13, "Permission denied")
        return original(process)

    monkeypatch.setattr(ProcessMaps, "lines", guarded)
    reason = f"process {hidden} cannot be read: Permission denied"
    assert place.sample(0) == {
        ("group", "a"): Borrow(SIZE, PAGE, 0, False, reason),
        ("group", "c"): Borrow(SIZE, PAGE, 0),
    }
    assert place.borrows.incomplete() == {"a": reason, "b": reason}
    together = BorrowSampler.together("group", [place.borrows])
    assert together is not None
    assert (together.complete, together.reason) == (False, reason)
    monkeypatch.undo()
    monkeypatch.setattr(module, "reclaim_counters", lambda _: place.taken)
    assert place.sample(1)["group", "b"] == Borrow(SIZE, PAGE, 1), "the process is read again"
    assert place.borrows.incomplete() == {}


@pytest.mark.rule("H2")
def test_unreadable_cgroup_makes_a_lower_bound(place: Place) -> None:
    place.pod("a", place.child(0))
    file = place.pods["a"][0] / "cgroup.procs"
    file.unlink()
    file.mkdir()
    assert not place.sample()["group", "a"].complete


@pytest.mark.parametrize("settles", [True, False])
def test_process_with_a_new_mapping_meanwhile_is_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, settles: bool
) -> None:
    place.pod("a", place.child(0, 1))
    original = RegionFilter.regions
    calls: list[int] = []

    def moving(wanted: RegionFilter, process: ProcessMaps) -> list[Region]:
        calls.append(1)
        (region,) = original(wanted, process)
        if settles and len(calls) > 2:
            return [region]
        return [region._replace(end=region.start + (1 + len(calls) % 2) * PAGE)]

    monkeypatch.setattr(RegionFilter, "regions", moving)
    borrow = place.sample()["group", "a"]
    assert borrow.complete is settles
    if settles:
        assert (borrow.mapped, borrow.resident) == (SIZE, 2 * PAGE)
    else:
        assert "faster" in borrow.reason


def test_process_that_ends_meanwhile_is_left_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.pod("a", place.child(0), place.child(1))

    class Gone:
        def __init__(self, folder: str) -> None:
            raise ProcessLookupError(3, folder)

    monkeypatch.setattr(walking, "PageMap", Gone)
    assert place.sample() == {}


def test_pods_of_two_samplers_are_counted_together(place: Place) -> None:
    place.pod("a", place.child(0, 1))
    place.sample(1)
    other = BorrowSampler()
    place.pods = {}
    place.pod("b", place.child(1, 2))
    other.sample(2, place.pods, place.objects, ["group"])
    assert BorrowSampler.together("group", [place.borrows, other]) == Borrow(SIZE, 3 * PAGE, 1)


def test_reclaim_counters_change_once_pages_may_leave_page_tables(tmp_path: Path) -> None:
    def counters(text: str) -> object:
        (tmp_path / "vmstat").write_text(text)
        return reclaim_counters(tmp_path)

    calm = (
        "nr_shmem_hugepages 0\nnr_file_hugepages 0\npgfault 1\npswpout 0\n"
        "pgscan_anon 1\npgscan_file 2\nthp_split_pmd 3\n"
    )
    assert reclaim_counters(tmp_path) is None
    assert counters("pgscan_kswapd 1\n") is None
    quiet = counters(calm)
    assert quiet is not None
    assert counters(calm.replace("pgfault 1", "pgfault 2")) == quiet
    assert counters(calm.replace("split_pmd 3", "split_pmd 4")) == quiet
    assert counters(calm.replace("pgscan_file 2", "pgscan_file 3")) != quiet
    huge = calm.replace("shmem_hugepages 0", "shmem_hugepages 1")
    assert counters(huge) not in (quiet, counters(huge.replace("split_pmd 3", "split_pmd 4")))
    assert reclaim_counters(Path("/proc")) is not None
