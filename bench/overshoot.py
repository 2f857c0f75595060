"""Measure how far racing processes exceed their pod's limit, and how much the agent reports (H2).

All processes of a pod start at the same moment and lock memory until the kernel denies a call. They
lock page by page, or the whole limit in one call, which is the worst case. Each process records its
locked bytes in shared memory, and a separate process samples them. This record counts a call at its
return, the kernel at its start. The report of the reconciler is printed beside it. Every process
keeps its memory until all are denied, and then ends. As under a kubelet, the pods' cgroups have the
cpu controller. The reconciler runs in a pod of its own, beside processes that leave no core idle.

Needs cgroup v2, root and `CAP_SYS_RESOURCE`; the project's guest has them:

    PYTHONPATH=operator:tools python -m cluster guest -- .venv/bin/python bench/overshoot.py
        [--processes 2 4 16 64]
"""

import argparse
import ctypes
import mmap
import os
import resource
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.api.pinlimit import Contention
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.reconciler import Reconciler
from pinwarden.node.linux.prlimit import probe

CGROUP = Path("/sys/fs/cgroup")
PODS = CGROUP / "kubepods" / "burstable"
PAGE = mmap.PAGESIZE
LIMIT = 4 << 20
GIVEN = 64 << 20
NOBODY = 65534
PR_SET_NO_NEW_PRIVS = 38
DEADLINE_SECONDS = 120.0
KEPT_SECONDS = 1.0
GO, STOP, PEAK, PASSED_AT, GREW_AT, BACK_AT, FIRST = range(7)
LIBC = ctypes.CDLL(None, use_errno=True)


class Board:
    """Shared numbers: the slots above, then locked bytes and the denial of each process."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._area = mmap.mmap(-1, 8 * (FIRST + 2 * processes))
        self.slots = memoryview(self._area).cast("q")

    @property
    def held(self) -> int:
        """Bytes that all hold together."""
        return sum(self.slots[FIRST : FIRST + self.processes])

    @property
    def refused(self) -> bool:
        """Whether each was."""
        return all(self.slots[FIRST + self.processes :])


@dataclass(frozen=True)
class Outcome:
    """One race; amounts in bytes above the limit, times in seconds."""

    settled: int
    peak: int
    growing: float
    above: float
    reported_peak: int
    reported_above: float


def grab(board: Board, number: int, step: int, directory: Path) -> None:
    """What a grabbing process does."""
    (directory / "cgroup.procs").write_text("0")
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (GIVEN, GIVEN))
    os.setuid(NOBODY)
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    area = mmap.mmap(-1, 2 * LIMIT)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    held, slots = 0, board.slots
    while not slots[GO]:
        time.sleep(0.001)
    while held + step <= 2 * LIMIT and not LIBC.mlock(
        ctypes.c_void_p(start + held), ctypes.c_size_t(step)
    ):
        held += step
        slots[FIRST + number] = held
    slots[FIRST + board.processes + number] = 1
    while not slots[STOP]:
        time.sleep(0.001)
    LIBC.munlock(ctypes.c_void_p(start), ctypes.c_size_t(2 * LIMIT))
    slots[FIRST + number] = 0


def watch(board: Board) -> None:
    """Samples until all memory is unlocked; times are nanoseconds of the monotonic clock."""
    (CGROUP / "cgroup.procs").write_text("0")
    slots, last = board.slots, 0
    while not (slots[STOP] and not board.held):
        held, now = board.held, time.monotonic_ns()
        if held > last:
            slots[GREW_AT] = now
        if held > LIMIT:
            slots[PASSED_AT] = slots[PASSED_AT] or now
            slots[BACK_AT] = now
            slots[PEAK] = max(slots[PEAK], held - LIMIT)
        last = held
        time.sleep(0.001)


def fork(work: Callable[[], None]) -> int:
    """Do `work` in a child that ends with it; its pid. The caller reaps it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def make_pod() -> tuple[str, Path]:
    """The uid of a new pod and the directory of its container."""
    uid = str(uuid.uuid4())
    directory = PODS / f"pod{uid}" / ("1a" * 32)
    directory.mkdir(parents=True)
    for parent in (CGROUP, PODS.parent, PODS):
        (parent / "cgroup.subtree_control").write_text("+cpu")
    return uid, directory


def race(processes: int, step: int, contention: Contention, state: Path) -> Outcome:
    """Raises TimeoutError when it does not come to its end."""
    uid, directory = make_pod()
    board = Board(processes)
    ability = probe()
    pids = [fork(partial(grab, board, number, step, directory)) for number in range(processes)]
    reconciler = Reconciler(
        cgroup_root=CGROUP,
        proc_root=Path("/proc"),
        store=RlimitRecordStore(state / f"{uid}.json", "boot"),
        ability=ability,
    )
    try:
        return _run(reconciler, board, uid, contention, pids)
    finally:
        board.slots[GO] = board.slots[STOP] = 1
        for pid in pids:
            os.waitpid(pid, 0)
        reconciler.close()
        for path in (directory, directory.parent):
            path.rmdir()


def _run(
    reconciler: Reconciler, board: Board, uid: str, contention: Contention, pids: list[int]
) -> Outcome:
    limit = {"name": "l", "uid": "l", "scope": "Pod", "limit": LIMIT, "contention": contention}
    spec = NodePinConfigSpec.model_validate(
        {"limits": [limit], "pods": [{"uid": uid, "limits": ["l"]}]}
    )
    reconciler.configure(spec, [], 1)
    share = LIMIT // board.processes if contention is Contention.RESERVE else LIMIT
    _until(
        reconciler,
        lambda: all(resource.prlimit(pid, resource.RLIMIT_MEMLOCK)[1] <= share for pid in pids),
    )
    pids.append(fork(lambda: watch(board)))
    board.slots[GO] = 1
    _until(reconciler, lambda: board.refused)
    settled = board.held
    _until(reconciler, lambda: reconciler.report().pods[0].vm_lck == settled)
    kept = time.monotonic() + KEPT_SECONDS
    _until(reconciler, lambda: time.monotonic() > kept)
    board.slots[STOP] = 1
    _until(reconciler, lambda: not board.held and reconciler.report().pods[0].vm_lck == 0)
    reported = reconciler.report().overshoots
    slots = board.slots
    return Outcome(
        settled=settled,
        peak=slots[PEAK],
        growing=(slots[GREW_AT] - slots[PASSED_AT]) / 1e9 if slots[PEAK] else 0.0,
        above=(slots[BACK_AT] - slots[PASSED_AT]) / 1e9,
        reported_peak=reported[0].peak if reported else 0,
        reported_above=reported[0].seconds if reported else 0.0,
    )


def _until(reconciler: Reconciler, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(str(reconciler.report()))
        time.sleep(reconciler.tick())


def main() -> int:
    """Prints a table; 1 where this machine cannot run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[2, 4, 16, 64], help="how many grab at once"
    )
    options = parser.parse_args()
    ability = probe()
    if not ability.available:
        print(f"cannot be measured here: {ability.reason}", file=sys.stderr)
        return 1
    print(f"limit {LIMIT >> 10} KiB; all amounts in KiB, over = above the limit, times in ms")
    print(
        f"{'processes':>9} {'each asks':>9} {'contention':>10} {'locked':>8} {'over':>8} "
        f"{'reported':>8} {'grew for':>9} {'above for':>9} {'reported':>9}"
    )
    _, own = make_pod()
    (own / "cgroup.procs").write_text("0")
    state = Path(tempfile.mkdtemp(prefix="pinwarden-overshoot-"))
    try:
        for contention in Contention:
            for name, step in (("a page", PAGE), ("all", LIMIT)):
                for count in options.processes:
                    found = race(count, step, contention, state)
                    print(
                        f"{count:>9} {name:>9} {contention:>10} {found.settled >> 10:>8} "
                        f"{found.peak >> 10:>8} {found.reported_peak >> 10:>8} "
                        f"{found.growing * 1e3:>9.1f} {found.above * 1e3:>9.0f} "
                        f"{found.reported_above * 1e3:>9.0f}",
                        flush=True,
                    )
    finally:
        shutil.rmtree(state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
