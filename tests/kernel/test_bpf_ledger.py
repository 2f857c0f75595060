"""The ledger of `bpf/` equals each source's own oracle, to the byte.

The oracles: the sum of `VmLck` for mlock, `nr_foll_pin_*` of /proc/vmstat for io_uring, and the
SHM_LOCKED mode of segments. Runs inside the guest, as root with every capability.
"""

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pinwarden.node.ebpf.accounts import LostReason, PinSource, cgroup_id
from pinwarden.node.linux import pinning, sysvshm

from ..waiting import eventually
from .ledger import PAGE, Caller, LoadedLedger, pinned_pages
from .random_pins import (
    lock_at_random,
    lock_segments_at_random,
    register_at_random,
    share_rings_at_random,
)

pytestmark = pytest.mark.emulated

PROCESSES, OPERATIONS = 8, 150
ROUNDS = range(3)
SIZE = 64 * PAGE
MAP_NORESERVE = 0x4000
MLOCK, SHM_LOCK, IO_URING = PinSource.MLOCK, PinSource.SHM_LOCK, PinSource.IO_URING


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedLedger]:
    with LoadedLedger() as loaded:
        yield loaded


@pytest.fixture
def ledger(loaded: LoadedLedger) -> Iterator[LoadedLedger]:
    lost = loaded.lost()
    yield loaded
    loaded.clean()
    assert loaded.lost() == lost


@pytest.fixture
def pod(ledger: LoadedLedger) -> Path:
    return ledger.cgroup("ledger-pod")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    seed = int(os.environ.get("PINWARDEN_SEED", random.randrange(2**31)))
    print(f"PINWARDEN_SEED={seed} runs {request.node.name} again")
    return seed


def has_clones() -> bool:
    with ExitStack() as stack:
        rings = [pinning.open_ring() for _ in range(2)]
        for ring in rings:
            stack.callback(os.close, ring)
        with pytest.raises(OSError, match=r"io_uring_register") as raised:
            pinning.clone_buffers(*rings)
        return raised.value.errno != errno.EINVAL  # ENXIO: the source has no buffers


def locked(size: int = SIZE) -> int:
    address = pinning.map_memory(size)
    pinning.lock(address, size)
    return address


def lock_and_stay(caller: Caller) -> None:
    locked()
    caller.say("locked")


def lock_more(caller: Caller) -> None:
    locked()
    caller.say("locked")
    locked(PAGE)
    caller.say("locked more")


def lock_segment(segment: int) -> Callable[[Caller], None]:
    def run(caller: Caller) -> None:
        sysvshm.set_locked(segment, locked=True)
        caller.say("locked")

    return run


def work_and_stay(work: Callable[[int], None], seed: int) -> Callable[[Caller], None]:
    def run(caller: Caller) -> None:
        work(seed)
        caller.say("done")

    return run


def run_at_random(
    ledger: LoadedLedger, pod: Path, seed: int, work: Callable[[int], None]
) -> list[int]:
    """Start all processes, wait until all have finished, and return their `VmLck`."""
    workers = [ledger.hire(pod, work_and_stay(work, seed + number)) for number in range(PROCESSES)]
    assert [worker.wait() for worker in workers] == ["done"] * PROCESSES
    return [worker.locked for worker in workers]


def wait_equal_to_pinned_pages(ledger: LoadedLedger, pod: Path, before: int) -> None:
    """The kernel folds the counters of its processors one after the other."""
    eventually(
        lambda: (ledger.charged(pod, IO_URING), pinned_pages() - before),
        lambda both: both[0] == both[1],
    )


@pytest.mark.parametrize("number", ROUNDS)
@pytest.mark.rule("P8", level="Observe")
def test_locked_memory_equals_vmlck_after_random_operations(
    ledger: LoadedLedger, pod: Path, seed: int, number: int
) -> None:
    sizes = run_at_random(
        ledger, pod, seed + 1000 * number, lambda seed: lock_at_random(seed, OPERATIONS)
    )
    assert sum(sizes) > 0
    assert ledger.charged(pod, MLOCK) == sum(sizes)
    ledger.end_workers()
    assert ledger.charged(pod, MLOCK) == 0


@pytest.mark.parametrize("number", ROUNDS)
@pytest.mark.rule("P6", level="Observe")
def test_registered_buffers_equal_pinned_pages_after_random_operations(
    ledger: LoadedLedger, pod: Path, seed: int, number: int
) -> None:
    before, clones = pinned_pages(), has_clones()
    run_at_random(
        ledger,
        pod,
        seed + 1000 * number,
        lambda seed: register_at_random(seed, OPERATIONS, clones=clones),
    )
    # A closed ring releases its buffers in a worker of the kernel.
    wait_equal_to_pinned_pages(ledger, pod, before)
    assert ledger.charged(pod, IO_URING) > 0
    ledger.end_workers()
    ledger.until(pod, IO_URING, 0)
    eventually(pinned_pages, lambda pinned: pinned == before)


@pytest.mark.parametrize("number", ROUNDS)
def test_buffers_of_rings_that_processes_share_equal_pinned_pages(
    ledger: LoadedLedger, pod: Path, seed: int, number: int
) -> None:
    """Rings share buffers, and clone and release the same ones at once."""
    before, clones = pinned_pages(), has_clones()
    with ExitStack() as stack:
        rings = [pinning.open_ring() for _ in range(6)]
        for ring in rings:
            stack.callback(os.close, ring)
        run_at_random(
            ledger,
            pod,
            seed + 1000 * number,
            lambda seed: share_rings_at_random(seed, 4 * OPERATIONS, rings, clones=clones),
        )
        ledger.end_workers()
        wait_equal_to_pinned_pages(ledger, pod, before)
    ledger.until(pod, IO_URING, 0)
    eventually(pinned_pages, lambda pinned: pinned == before)


@pytest.mark.parametrize("number", ROUNDS)
def test_locked_segments_equal_shm_locked_after_random_operations(
    ledger: LoadedLedger, pod: Path, seed: int, number: int
) -> None:
    with ExitStack() as stack:
        sizes = {}
        for index in range(6):
            size = index * PAGE + 1
            segment = sysvshm.create(sysvshm.IPC_PRIVATE, size, sysvshm.IPC_CREAT | 0o600)
            stack.callback(sysvshm.remove, segment)
            sizes[segment] = (index + 1) * PAGE
        run_at_random(
            ledger,
            pod,
            seed + 1000 * number,
            lambda seed: lock_segments_at_random(seed, OPERATIONS, list(sizes)),
        )
        ledger.end_workers()
        expected = sum(size for segment, size in sizes.items() if sysvshm.is_locked(segment))
        assert ledger.charged(pod, SHM_LOCK) == expected
    assert ledger.charged(pod, SHM_LOCK) == 0, "removed segments are unlocked"


@pytest.mark.rule("P3", level="Observe")
def test_segment_that_two_pods_lock_is_charged_to_the_first(
    ledger: LoadedLedger, pod: Path
) -> None:
    other = ledger.cgroup("ledger-other")
    segment = sysvshm.create(sysvshm.IPC_PRIVATE, SIZE, sysvshm.IPC_CREAT | 0o600)

    try:
        for cgroup in (pod, other):
            assert ledger.hire(cgroup, lock_segment(segment)).wait() == "locked"
        assert [ledger.charged(cgroup, SHM_LOCK) for cgroup in (pod, other)] == [SIZE, 0]
    finally:
        sysvshm.remove(segment)
    assert ledger.charged(pod, SHM_LOCK) == 0


@pytest.mark.rule("P8", level="Observe")
def test_killed_process_leaves_no_charge(ledger: LoadedLedger, pod: Path) -> None:
    def work(caller: Caller) -> None:
        locked()
        pinning.register_buffers(pinning.open_ring(), [(pinning.map_memory(SIZE), SIZE)])
        caller.say("pinned")

    worker = ledger.hire(pod, work)
    assert worker.wait() == "pinned"
    assert (ledger.charged(pod, MLOCK), ledger.charged(pod, IO_URING)) == (SIZE, SIZE)
    worker.kill()
    assert ledger.charged(pod, MLOCK) == 0
    ledger.until(pod, IO_URING, 0)


@pytest.mark.rule("P8", level="Observe")
def test_fork_of_locked_process_adds_nothing(ledger: LoadedLedger, pod: Path) -> None:
    def work(caller: Caller) -> None:
        address = locked()
        child = os.fork()
        if not child:
            pinning.unlock(address, SIZE)
            caller.say("child")
            os._exit(0)
        os.waitpid(child, 0)
        caller.say("child ended")

    worker = ledger.hire(pod, work)
    assert worker.wait() == "child"
    assert ledger.charged(pod, MLOCK) == SIZE
    assert worker.step() == "child ended"
    assert ledger.charged(pod, MLOCK) == SIZE == worker.locked


@pytest.mark.rule("P6", level="Observe")
def test_ring_that_outlives_its_process_stays_charged_until_closed(
    ledger: LoadedLedger, pod: Path
) -> None:
    other = ledger.cgroup("ledger-other")

    def work(caller: Caller) -> None:
        ring = pinning.open_ring()
        child = os.fork()
        if not child:
            (pod / "cgroup.procs").write_text("0")
            address = pinning.map_memory(SIZE)
            pinning.register_buffers(ring, [(address, SIZE)])
            pinning.unmap_memory(address, SIZE)
            os._exit(0)
        os.waitpid(child, 0)
        caller.say("exited")
        os.close(ring)
        caller.say("closed")

    worker = ledger.hire(other, work)
    assert worker.wait() == "exited"
    assert (ledger.charged(pod, IO_URING), ledger.charged(other, IO_URING)) == (SIZE, 0)
    assert worker.step() == "closed"
    ledger.until(pod, IO_URING, 0)


def test_cloned_buffer_counts_once_until_the_last_ring_releases(
    ledger: LoadedLedger, pod: Path
) -> None:
    if not has_clones():
        pytest.skip("rings share no buffers before Linux 6.12")

    def work(caller: Caller) -> None:
        first, second, third = (pinning.open_ring() for _ in range(3))
        pinning.register_buffers(first, [(pinning.map_memory(SIZE), SIZE)] * 2)
        pinning.clone_buffers(second, first)
        pinning.clone_buffers(third, second)
        caller.say("cloned")
        pinning.unregister_buffers(first)
        os.close(second)
        caller.say("two released")
        pinning.unregister_buffers(third)
        caller.say("all released")

    worker = ledger.hire(pod, work)
    assert worker.wait() == "cloned"
    assert ledger.charged(pod, IO_URING) == 2 * SIZE
    assert worker.step() == "two released"
    assert ledger.charged(pod, IO_URING) == 2 * SIZE
    assert worker.step() == "all released"
    ledger.until(pod, IO_URING, 0)


def test_account_created_late_takes_over_at_the_next_change(ledger: LoadedLedger) -> None:
    late = ledger.cgroup("ledger-late", counted=False)

    worker = ledger.hire(late, lock_more)
    assert worker.wait() == "locked"
    ledger.open(late)
    assert ledger.charged(late, MLOCK) == 0
    assert worker.step() == "locked more"
    assert ledger.charged(late, MLOCK) == SIZE + PAGE


def test_inner_account_takes_over_from_the_outer_account(ledger: LoadedLedger, pod: Path) -> None:
    inner = ledger.cgroup("ledger-pod/container", counted=False)

    worker = ledger.hire(inner, lock_more)
    assert worker.wait() == "locked"
    assert ledger.charged(pod, MLOCK) == SIZE
    ledger.open(inner)
    assert worker.step() == "locked more"
    assert (ledger.charged(pod, MLOCK), ledger.charged(inner, MLOCK)) == (0, SIZE + PAGE)


@pytest.mark.rule("P8", level="Observe")
def test_exec_releases_locked_memory(ledger: LoadedLedger, pod: Path) -> None:
    def work(caller: Caller) -> None:
        locked()
        caller.say("locked")
        os.execv("/bin/sleep", ["sleep", "1000"])

    worker = ledger.hire(pod, work)
    assert worker.wait() == "locked"
    assert ledger.charged(pod, MLOCK) == SIZE
    worker.go_on()
    ledger.until(pod, MLOCK, 0)


@pytest.mark.rule("P3", "P10", level="Observe")
def test_moved_process_takes_locked_memory_and_leaves_buffers(
    ledger: LoadedLedger, pod: Path
) -> None:
    other = ledger.cgroup("ledger-other")

    def work(caller: Caller) -> None:
        locked()
        ring = pinning.open_ring()
        pinning.register_buffers(ring, [(pinning.map_memory(SIZE), SIZE)])
        caller.say("pinned")
        pinning.unregister_buffers(ring)
        caller.say("unregistered")

    worker = ledger.hire(pod, work)
    assert worker.wait() == "pinned"
    (other / "cgroup.procs").write_text(str(worker.pid))
    assert (ledger.charged(pod, MLOCK), ledger.charged(other, MLOCK)) == (0, SIZE)
    assert (ledger.charged(pod, IO_URING), ledger.charged(other, IO_URING)) == (SIZE, 0)
    assert worker.step() == "unregistered"
    assert (ledger.charged(pod, IO_URING), ledger.charged(other, IO_URING)) == (0, 0)


@pytest.mark.rule("P4", level="Observe")
def test_page_that_two_pods_pin_is_charged_to_both(ledger: LoadedLedger, pod: Path) -> None:
    other = ledger.cgroup("ledger-other")
    file = os.memfd_create("shared")
    os.ftruncate(file, SIZE)

    def work(caller: Caller) -> None:
        address = pinning.map_memory(SIZE, descriptor=file)
        pinning.register_buffers(pinning.open_ring(), [(address, SIZE)])
        caller.say("pinned")

    try:
        for cgroup in (pod, other):
            assert ledger.hire(cgroup, work).wait() == "pinned"
        assert [ledger.charged(cgroup, IO_URING) for cgroup in (pod, other)] == [SIZE, SIZE]
    finally:
        os.close(file)


def test_process_without_account_is_not_counted(ledger: LoadedLedger, pod: Path) -> None:
    free = ledger.cgroup("ledger-free", counted=False)
    worker = ledger.hire(free, lock_and_stay)
    assert worker.wait() == "locked"
    assert ledger.charged(pod, MLOCK) == 0


def test_deeply_nested_process_is_charged_to_the_pod(ledger: LoadedLedger, pod: Path) -> None:
    name = pod.name
    for _ in range(40):
        name += "/n"
        ledger.cgroup(name, counted=False)
    worker = ledger.hire(pod.parent / name, lock_and_stay)
    assert worker.wait() == "locked"
    assert ledger.charged(pod, MLOCK) == SIZE


def test_release_without_account_is_counted_as_lost(loaded: LoadedLedger) -> None:
    cgroup = loaded.cgroup("ledger-gone")
    before = loaded.lost()[LostReason.ACCOUNT_GONE]
    try:
        worker = loaded.hire(cgroup, lock_and_stay)
        assert worker.wait() == "locked"
        loaded.delete(cgroup)
        worker.kill()
        assert loaded.lost()[LostReason.ACCOUNT_GONE] == before + 1
    finally:
        loaded.clean()


@pytest.mark.rule("P6", level="Observe")
def test_account_stays_until_nothing_is_charged(ledger: LoadedLedger, pod: Path) -> None:
    worker = ledger.hire(pod, lock_and_stay)
    assert worker.wait() == "locked"
    assert not ledger.accounts.close(cgroup_id(pod))
    assert ledger.charged(pod, MLOCK) == SIZE
    ledger.open(pod)
    assert ledger.charged(pod, MLOCK) == SIZE, "an existing account stays as it is"
    worker.kill()
    ledger.until(pod, MLOCK, 0)
    assert ledger.accounts.close(cgroup_id(pod))
    assert ledger.accounts.read(cgroup_id(pod)) is None


@pytest.mark.rule("P3", level="Observe")
def test_segment_that_was_locked_without_an_account_stays_free(
    ledger: LoadedLedger, pod: Path
) -> None:
    free = ledger.cgroup("ledger-free", counted=False)
    segment = sysvshm.create(sysvshm.IPC_PRIVATE, SIZE, sysvshm.IPC_CREAT | 0o600)

    try:
        for cgroup in (free, pod):
            assert ledger.hire(cgroup, lock_segment(segment)).wait() == "locked"
        assert ledger.charged(pod, SHM_LOCK) == 0
    finally:
        sysvshm.remove(segment)
    assert ledger.charged(pod, SHM_LOCK) == 0


@pytest.mark.rule("P8", level="Observe")
def test_threads_that_lock_at_once_are_counted_exactly(ledger: LoadedLedger, pod: Path) -> None:
    def work(caller: Caller) -> None:
        def lock_often() -> None:
            for _ in range(OPERATIONS):
                address = locked(PAGE)
                pinning.unlock(address, PAGE)
                pinning.lock(address, PAGE)

        threads = [threading.Thread(target=lock_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        caller.say("done")

    worker = ledger.hire(pod, work)
    assert worker.wait() == "done"
    assert ledger.charged(pod, MLOCK) == worker.locked > 0


def test_huge_mapping_with_onfault_counts_whole(ledger: LoadedLedger, pod: Path) -> None:
    size = 1 << 32

    def work(caller: Caller) -> None:
        address = pinning.map_memory(size, MAP_NORESERVE)
        pinning.lock_on_fault(address, size)
        caller.say("locked")

    worker = ledger.hire(pod, work)
    assert worker.wait() == "locked"
    assert ledger.charged(pod, MLOCK) == size
