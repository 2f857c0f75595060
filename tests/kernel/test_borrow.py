"""Borrows of pods, to the page, compared with page frame numbers and plain sets of pages.

The comparison shares no code with the accountant. Runs inside the guest (`make test-kernel`), or on
any machine as root with cgroup v2 and CAP_SYS_ADMIN, which shows frame numbers.
"""

import ctypes
import errno
import json
import mmap
import os
import random
import re
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from pinwarden.node.accountant.sampler import Borrow, BorrowSampler
from pinwarden.node.linux.pagemap import PageMap
from pinwarden.node.linux.vmstat import reclaim_counters
from pinwarden.node.shm.objects import ObjectId, ObjectSet

PAGE = mmap.PAGESIZE
MIB = 2**20
PROGRAM = Path(__file__).with_name("borrower.py")
ROUNDS = 100
DEADLINE_SECONDS = 60.0
BOTH, FRAME = 1 << 63 | 1 << 61, (1 << 55) - 1  # present, and a file's
LINE = re.compile(r"(\w+)-(\w+) ...(.) (\w+) (\w+):(\w+) (\d+) *(.*)")
PROC = Path("/proc")
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
libc.shmdt.argtypes = (ctypes.c_void_p,)


@dataclass
class Shared:
    """An object as a borrower opens it: `pages` is the size of its pages."""

    path: str | int
    size: int
    pages: int
    private: bool
    id: ObjectId


@dataclass
class Truth:
    """Of one pod and object."""

    mapped: set[int] = field(default_factory=set)
    frames: set[int] = field(default_factory=set)


class Borrower:
    """A process that maps memory on request, and stands still otherwise."""

    def __init__(self, cgroup: Path, objects: list[Shared], keep: tuple[int, ...]) -> None:
        areas = json.dumps([[each.path, each.size, each.pages, each.private] for each in objects])
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(PROGRAM), areas],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=keep,
        )
        self.pid = self._process.pid
        assert self._read() == "ready"
        (cgroup / "cgroup.procs").write_text(str(self.pid))

    def begin(self, seed: int, operations: int) -> None:
        assert self._process.stdin is not None
        print(seed, operations, file=self._process.stdin, flush=True)

    def wait(self) -> None:
        assert self._read() == "done"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Place:
    """Cgroups of pods, objects, borrowers in one and of the other, and children of this process."""

    def __init__(self, folder: Path) -> None:
        roots = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
        self.root = next(root for root in roots if (root / "cgroup.controllers").exists())
        self.root /= f"pinwarden-borrow-{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.pods: dict[str, list[Path]] = {}
        self.objects: dict[str, Shared] = {}
        self.borrowers: list[Borrower] = []
        self._children: list[int] = []
        self._files: list[int] = []
        self._segments: list[int] = []
        self._mounts: list[Path] = []

    def pod(self, name: str) -> Path:
        container = self.root / name / ("1a" * 32)
        container.mkdir(parents=True)
        self.pods[name] = [container.parent, container]
        return container

    @property
    def extents(self) -> dict[str, ObjectSet]:
        return {
            name: ObjectSet(objects=frozenset([each.id])) for name, each in self.objects.items()
        }

    def file(self, name: str, path: Path, size: int) -> Shared:
        path.write_bytes(bytes(size))
        one = identify(path)
        self.objects[name] = Shared(str(path), size, PAGE, True, one)
        return self.objects[name]

    def memfd(self, name: str, size: int, pages: int = PAGE) -> Shared:
        file = os.memfd_create(name, os.MFD_HUGETLB if pages > PAGE else 0)
        self._files.append(file)
        os.set_inheritable(file, True)
        os.ftruncate(file, size)
        self.objects[name] = Shared(
            f"/proc/self/fd/{file}", size, pages, pages == PAGE, identify(file, pages)
        )
        return self.objects[name]

    def segment(self, name: str, size: int) -> Shared:
        number = libc.shmget(0, size, 0o1600)
        assert number >= 0
        self._segments.append(number)
        address = libc.shmat(number, None, 0)
        device = lines(os.getpid())[address]
        libc.shmdt(address)
        space = os.stat("/proc/self/ns/ipc").st_ino
        self.objects[name] = Shared(
            number, size, PAGE, False, ObjectId(device[0], device[1], space)
        )
        assert device[1] == number
        return self.objects[name]

    def mount(self, options: str) -> Path | None:
        """A tmpfs; None where the kernel does not know an option."""
        path = self.folder / f"mount{len(self._mounts)}"
        path.mkdir()
        if libc.mount(b"t", os.fsencode(path), b"tmpfs", 0, options.encode()):
            assert ctypes.get_errno() == errno.EINVAL
            return None
        self._mounts.append(path)
        return path

    def hire(self, pod: str, objects: list[Shared]) -> Borrower:
        self.borrowers.append(Borrower(self.pods[pod][1], objects, tuple(self._files)))
        return self.borrowers[-1]

    def child(self, pod: str, does: Callable[[], object]) -> "Child":
        child = Child(self.pods[pod][1], does)
        self._children.append(child.pid)
        return child

    def close(self) -> None:
        for borrower in self.borrowers:
            borrower.end()
        for pid in self._children:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
        for file in self._files:
            os.close(file)
        for number in self._segments:
            libc.shmctl(number, 0, None)
        for mount in self._mounts:
            until(partial(_unmounted, mount))
        for path, _, _ in os.walk(self.root, topdown=False):
            until(partial(removed, path))


class Child:
    """A fork of the test in a pod that runs a step of a generator at each order."""

    def __init__(self, cgroup: Path, does: Callable[[], object]) -> None:
        orders, self._order = os.pipe()
        self._answers, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                (cgroup / "cgroup.procs").write_text("0")
                steps = does()
                assert isinstance(steps, Iterator)
                while os.read(orders, 1):
                    next(steps)
                    os.write(answer, b"1")
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answer)

    def step(self) -> None:
        os.write(self._order, b"1")
        assert os.read(self._answers, 1)

    def end(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def _unmounted(path: Path) -> bool:
    return bool(libc.umount2(os.fsencode(path), 0) == 0)


def removed(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True


def lines(pid: int) -> dict[int, tuple[int, int, int, int, str]]:
    """Of each mapping by its start: device, inode, end, offset, path."""
    found = {}
    for line in (PROC / str(pid) / "maps").read_text(errors="replace").splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        start, end, _, offset, major, minor, inode, path = match.groups()
        device = os.makedev(int(major, 16), int(minor, 16))
        found[int(start, 16)] = (device, int(inode), int(end, 16), int(offset, 16), path)
    return found


def identify(file: Path | int, pages: int = PAGE) -> ObjectId:
    """Return the device and inode of the mapping; on some file systems stat has others."""
    descriptor = os.open(file, os.O_RDWR) if isinstance(file, Path) else file
    area = mmap.mmap(descriptor, pages)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    device, inode, *_ = lines(os.getpid())[address]
    if isinstance(file, Path):
        os.close(descriptor)
    return ObjectId(device, inode)


def compute(pids: set[int], objects: Mapping[str, Shared]) -> dict[str, Truth]:
    """Page by page: which of an object are mapped, and which frames of it are in any page table."""
    found: dict[str, Truth] = {}
    for pid in pids:
        with (PROC / str(pid) / "pagemap").open("rb", buffering=0) as tables:
            for start, (device, inode, end, offset, path) in lines(pid).items():
                for name, each in objects.items():
                    system_v = path.startswith("/SYSV")
                    if (device, inode) != each.id[:2] or system_v != isinstance(each.path, int):
                        continue
                    truth = found.setdefault(name, Truth())
                    truth.mapped.update(range(offset // PAGE, (offset + end - start) // PAGE))
                    tables.seek(start // PAGE * 8)
                    count = (end - start) // PAGE
                    entries = struct.unpack(f"{count}Q", tables.read(count * 8))
                    frames = {entry & FRAME for entry in entries if entry & BOTH == BOTH}
                    assert 0 not in frames, "frame numbers take CAP_SYS_ADMIN"
                    truth.frames |= frames
    return found


def processes(directories: list[Path]) -> set[int]:
    return {int(pid) for path in directories for pid in (path / "cgroup.procs").read_text().split()}


def truths(place: Place) -> dict[tuple[str, str], tuple[int, int]]:
    """Mapped and resident bytes of each pair."""
    return {
        (name, pod): (len(truth.mapped) * PAGE, len(truth.frames) * PAGE)
        for pod, directories in place.pods.items()
        for name, truth in compute(processes(directories), place.objects).items()
    }


def amounts(
    sample: Mapping[tuple[str, str], Borrow],
) -> dict[tuple[str, str], tuple[int, int | None]]:
    assert all(borrow.complete for borrow in sample.values()), sample
    return {pair: (borrow.mapped, borrow.resident) for pair, borrow in sample.items()}


def kernel_moves() -> tuple[object, ...]:
    """Changes when the kernel moved or took pages meanwhile."""
    text = (PROC / "vmstat").read_text()
    return reclaim_counters(PROC), re.findall(
        r"(?:pgmigrate|compact_isolated|thp_|htlb)\w* \d+", text
    )


def sampled(
    place: Place, borrows: BorrowSampler, stamps: Mapping[str, object] | None = None, now: float = 0
) -> dict[tuple[str, str], Borrow]:
    return borrows.sample(now, place.pods, place.extents, place.objects.keys(), stamps=stamps)


def check(place: Place, what: str, borrows: BorrowSampler) -> int:
    """Compare both ways of reading page tables, and `borrows`, with the truth.

    Repeat if the kernel interfered. Return how many pods `borrows` did not walk again, because no
    process ran in them and no page of an object was freed.
    """
    for _ in range(10):
        before = kernel_moves()
        expected = truths(place)
        went_on = amounts(sampled(place, borrows, dict.fromkeys(place.objects, "none is freed")))
        skipped = len(place.pods) - borrows.walked
        fresh = amounts(sampled(place, BorrowSampler()))
        scans, PageMap.scans = PageMap.scans, False
        try:
            by_entries = amounts(sampled(place, BorrowSampler()))
        finally:
            PageMap.scans = scans
        if (went_on, fresh, by_entries) == (expected,) * 3 or kernel_moves() == before:
            break
    assert (went_on, fresh, by_entries) == (expected,) * 3, what
    return skipped


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def no_collapse() -> Iterator[None]:
    """khugepaged stopped: it replaces page tables at any later time and counts nothing then.

    A kept walk may miss that for `FRESH_SECONDS` (collapse_pte_mapped_thp).
    """
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not file.exists():
        yield
        return
    match = re.search(r"\[(\w+)\]", file.read_text())
    assert match is not None
    file.write_text("never")
    try:
        yield
    finally:
        file.write_text(match[1])


@pytest.fixture
def huge_pages() -> Iterator[bool]:
    """Reserve hugetlb pages, and free them afterwards; False if there are none."""
    file = PROC / "sys/vm/nr_hugepages"
    before = int(file.read_text())
    file.write_text(str(before + 8))
    try:
        yield int(file.read_text()) >= before + 8
    finally:
        file.write_text(str(before))


def objects(place: Place, huge_pages: bool) -> list[str]:
    """Create an object of each kind, and print the kinds that cannot be created here."""
    tmpfs = place.mount("size=64m")
    assert tmpfs is not None
    place.file("tmpfs", tmpfs / "a b\n00:01", 100 * PAGE)
    place.file("ordinary", place.folder / "file", 64 * PAGE)
    place.file("other", place.folder / "other", 3 * PAGE)
    place.memfd("memfd", 200 * PAGE)
    place.segment("segment", 50 * PAGE)
    missing = []
    if huge_pages:
        place.memfd("hugetlb", 6 * MIB, 2 * MIB)
    else:
        missing.append("hugetlb")
    if (mount := place.mount("size=64m,huge=always")) is not None:
        place.file("huge", mount / "file", 5 * MIB)
    else:
        missing.append("huge pages of a tmpfs")
    return missing


@pytest.mark.emulated
@pytest.mark.rule("M3", "M6")
@pytest.mark.usefixtures("no_collapse")
def test_borrow_and_mapped_are_exact_to_the_page(place: Place, huge_pages: bool) -> None:
    missing = objects(place, huge_pages)
    print("without", *missing)
    for pod, count in (("one", 2), ("two", 1), ("three", 1)):
        place.pod(pod)
        for _ in range(count):
            place.hire(pod, list(place.objects.values()))
    first = random.randrange(1 << 30)
    going_on = BorrowSampler()
    resident = skipped = 0
    for number in range(ROUNDS):
        seed = first + number
        choose = random.Random(seed)
        for borrower in (
            chosen := choose.sample(place.borrowers, choose.randint(1, len(place.borrowers)))
        ):
            borrower.begin(choose.randrange(1 << 30), choose.randint(1, 4))
        for borrower in chosen:
            borrower.wait()
        skipped += check(place, f"seed {seed}, the {number + 1}th round since {first}", going_on)
        resident += sum(each.resident or 0 for each in sampled(place, BorrowSampler()).values())
    assert resident
    assert skipped, "what cannot have changed is not walked again"


@pytest.mark.rule("M3")
def test_mapping_of_fifty_processes_of_a_pod_counts_once(place: Place) -> None:
    one = place.memfd("memfd", MIB)
    file = os.open(str(one.path), os.O_RDWR)

    def some(number: int) -> Callable[[], Iterator[None]]:
        def steps() -> Iterator[None]:
            area = mmap.mmap(file, MIB)
            for page in range(0, MIB // 2, PAGE):
                area[page] = 1
            area[MIB // 2 + number * PAGE] = 1
            yield

        return steps

    for pod in ("one", "two"):
        place.pod(pod)
        for number in range(50):
            place.child(pod, some(number)).step()
    os.close(file)
    check(place, "fifty", BorrowSampler())
    borrows = BorrowSampler()
    expected = (MIB, MIB // 2 + 50 * PAGE)
    assert amounts(sampled(place, borrows)) == {
        ("memfd", "one"): expected,
        ("memfd", "two"): expected,
    }
    union = BorrowSampler.together("memfd", [borrows])
    assert union is not None
    assert (union.mapped, union.resident) == expected


@pytest.mark.rule("M5", "M6")
def test_borrow_changes_only_by_the_pods_own_actions(place: Place) -> None:
    """Also compare a sample that walks only possible changes, and pages that others got."""
    one = place.memfd("memfd", MIB)
    file = os.open(str(one.path), os.O_RDWR)

    def borrower() -> Iterator[None]:
        area = mmap.mmap(file, MIB // 2)
        area[:PAGE] = bytes(PAGE)
        yield
        area[: 16 * PAGE] = bytes(16 * PAGE)
        yield
        area.close()
        yield
        area = mmap.mmap(file, MIB, offset=0)
        area[: 5 * PAGE] = bytes(5 * PAGE)
        yield
        os.execv("/bin/sleep", ["sleep", "100"])

    def writer() -> Iterator[None]:
        area = mmap.mmap(file, MIB)
        yield
        area[MIB // 4 :] = bytes(MIB * 3 // 4)
        yield

    place.pod("borrows")
    place.pod("writes")
    reader, other = place.child("borrows", borrower), place.child("writes", writer)
    os.close(file)
    borrows = BorrowSampler()

    def borrowed() -> tuple[int, int | None] | None:
        charge = os.stat(f"/proc/self/fd/{str(one.path).rsplit('/', 1)[1]}").st_blocks
        seen = amounts(sampled(place, borrows, {"memfd": charge}))
        assert seen == truths(place)
        return seen.get(("memfd", "borrows"))

    assert borrowed() is None
    reader.step()
    assert borrowed() == (MIB // 2, PAGE)
    reader.step()
    assert borrowed() == (MIB // 2, 16 * PAGE)
    other.step()
    assert borrowed() == (MIB // 2, 16 * PAGE)
    other.step()
    assert borrowed() == (MIB // 2, 16 * PAGE), "what another pod writes is not lent"
    reader.step()
    assert borrowed() is None
    reader.step()
    assert borrowed() == (MIB, 5 * PAGE)
    with pytest.raises(AssertionError):
        reader.step()
    assert borrowed() is None, "it became another program"
    other.end()
    assert sampled(place, borrows, {"memfd": 0}) == {}


@pytest.mark.rule("M3")
def test_process_whose_first_thread_ended_still_counts_as_borrower(place: Place) -> None:
    one = place.memfd("memfd", MIB)
    cgroup = place.pod("pod")
    program = (
        "import mmap, os, ctypes, threading, time\n"
        f"area = mmap.mmap(os.open({one.path!r}, os.O_RDWR), {MIB})\n"
        f"area[:{PAGE}] = bytes({PAGE})\n"
        "threading.Thread(target=lambda: time.sleep(100)).start()\n"
        "input()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    keep = int(str(one.path).rsplit("/", 1)[1])
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", program], stdin=subprocess.PIPE, text=True, pass_fds=[keep]
    ) as process:
        try:
            (cgroup / "cgroup.procs").write_text(str(process.pid))
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
            until(lambda: "State:\tZ" in (PROC / str(process.pid) / "status").read_text())
            assert (PROC / str(process.pid) / "task").exists()
            assert amounts(sampled(place, BorrowSampler())) == {("memfd", "pod"): (MIB, PAGE)}
        finally:
            process.kill()


@pytest.mark.emulated
@pytest.mark.rule("M4", "H2")
def test_idle_pod_is_not_walked_again_and_its_figure_keeps_its_time(place: Place) -> None:
    one = place.memfd("memfd", MIB)
    file = os.open(str(one.path), os.O_RDWR)

    def steps() -> Iterator[None]:
        area = mmap.mmap(file, MIB)
        area[:PAGE] = b"1" * PAGE
        yield
        area[PAGE : 2 * PAGE] = b"1" * PAGE
        yield

    for pod in ("idle", "runs"):
        place.pod(pod)
    idle, runs = (place.child(pod, steps) for pod in ("idle", "runs"))
    os.close(file)
    idle.step()
    runs.step()
    borrows = BorrowSampler()
    time.sleep(0.1)  # both are asleep again
    stamps = {"memfd": 2}
    sampled(place, borrows, stamps, now=1)
    until(lambda: bool(sampled(place, borrows, stamps, now=2)) and borrows.walked == 0)
    runs.step()
    time.sleep(0.1)
    seen = sampled(place, borrows, stamps, now=3)
    assert borrows.walked == 1
    assert seen["memfd", "idle"].time < 3
    assert (seen["memfd", "runs"].time, seen["memfd", "runs"].resident) == (3, 2 * PAGE)
    sampled(place, borrows, {"memfd": 3}, now=4)
    assert borrows.walked == 2, "the object changed"
    (place.pods["idle"][0] / "cgroup.procs").write_text(str(runs.pid))
    seen = sampled(place, borrows, {"memfd": 3}, now=5)
    assert set(seen) == {("memfd", "idle")}, "a process moved"
    assert seen["memfd", "idle"].resident == 2 * PAGE
