"""Allocations and the rlimit gate on a real kernel: processes lock memory and are denied.

Runs inside the guest (`make test-kernel`), as root with every capability. The workers lock one page
at a time until the kernel denies a call. Then they print their locked bytes and the error.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.api.pinlimit import Contention, Scope
from pinwarden.node.agent.allocator import ProcessUsage, allocate
from pinwarden.node.linux.prlimit import Limits, ProcessHandle, probe
from pinwarden.node.linux.procfs import StatusReader
from pinwarden.node.pods.constraints import Constraint
from pinwarden.node.pods.privileges import HeldBackReason, held_back

pytestmark = pytest.mark.emulated
PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20
GIVEN = 64 * MIB
NOBODY = 65534
WORKER = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 64 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
os.setuid(int(sys.argv[1]))
locked = 0
for line in sys.stdin:
    most = int(line)
    error = 0
    while locked < most and not error:
        if libc.mlock(ctypes.c_void_p(start + locked), ctypes.c_size_t(mmap.PAGESIZE)):
            error = ctypes.get_errno()
        else:
            locked += mmap.PAGESIZE
    print(locked, error, flush=True)
"""


class Worker:
    """A process that locks memory on request."""

    def __init__(self, stack: ExitStack, *, user: int) -> None:
        self._process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-ISc", WORKER, str(user)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(self._process.kill)
        self.reader = stack.enter_context(StatusReader(PROC, self._process.pid))
        self.handle = stack.enter_context(ProcessHandle(self.reader))
        self.lock(0)

    def lock(self, most: int) -> tuple[int, int]:
        """Lock pages up to `most` bytes or a denial; return the locked bytes and errno."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(most, file=self._process.stdin, flush=True)
        locked, error = self._process.stdout.readline().split()
        return int(locked), int(error)

    @property
    def locked(self) -> int:
        """VmLck in bytes."""
        locked = self.reader.read().locked
        assert locked is not None
        return locked


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def hire(stack: ExitStack, count: int = 1, user: int = NOBODY) -> list[Worker]:
    workers = [Worker(stack, user=user) for _ in range(count)]
    for worker in workers:
        worker.handle.set(Limits(GIVEN, GIVEN))
    return workers


def govern(workers: list[Worker], limit: int, contention: Contention = Contention.SHARE) -> None:
    """One allocate over the workers as one pod."""
    pod = [ProcessUsage(worker.reader.key, worker.locked, 0, GIVEN, GIVEN) for worker in workers]
    asked = NodeLimit(name="l", uid="u", scope=Scope.POD, limit=limit, contention=contention)
    constraint = Constraint(asked, frozenset(one.key for one in pod), "pod")
    for worker in workers:
        worker.handle.set(allocate(pod, [constraint], page_size=PAGE)[worker.reader.key])


def test_probe_finds_the_rlimit_gate_able() -> None:
    ability = probe()
    assert ability.available, ability


@pytest.mark.rule("P5", level="Converge")
@pytest.mark.parametrize("limit", [8 * MIB, 8 * MIB + PAGE - 1, PAGE])
def test_single_process_is_denied_exactly_at_the_limit(stack: ExitStack, limit: int) -> None:
    workers = hire(stack)
    govern(workers, limit)
    assert workers[0].lock(2 * limit) == (limit - limit % PAGE, errno.ENOMEM)
    assert workers[0].locked == limit - limit % PAGE, "a refused call leaves no charge"


@pytest.mark.rule("P12", level="Converge")
def test_raised_limit_lets_a_running_process_lock_more(stack: ExitStack) -> None:
    workers = hire(stack)
    govern(workers, 4 * MIB)
    assert workers[0].lock(32 * MIB) == (4 * MIB, errno.ENOMEM)
    govern(workers, 6 * MIB)
    assert workers[0].lock(32 * MIB) == (6 * MIB, errno.ENOMEM)


@pytest.mark.rule("P11", level="Converge")
def test_limit_below_use_evicts_nothing_and_denies_more(stack: ExitStack) -> None:
    workers = hire(stack)
    workers[0].lock(4 * MIB)
    govern(workers, 2 * MIB)
    assert workers[0].lock(32 * MIB) == (4 * MIB, errno.ENOMEM)
    assert workers[0].locked == 4 * MIB


@pytest.mark.rule("P1", "P13", level="Converge")
@pytest.mark.parametrize("contention", Contention)
def test_four_processes_with_new_allowances_after_each_call_stay_within_the_limit(
    stack: ExitStack, contention: Contention
) -> None:
    workers = hire(stack, 4)
    for worker in workers * 2:
        govern(workers, 8 * MIB, contention)
        worker.lock(3 * MIB)
        assert sum(each.locked for each in workers) <= 8 * MIB
    if contention is Contention.SHARE:
        assert sum(each.locked for each in workers) == 8 * MIB, "what fits is not refused"


@pytest.mark.rule("P1", level="Converge")
def test_calls_between_two_allocations_under_reserve_never_exceed_the_limit(
    stack: ExitStack,
) -> None:
    workers = hire(stack, 4)
    govern(workers, 8 * MIB, Contention.RESERVE)
    assert [worker.lock(32 * MIB) for worker in workers] == [(2 * MIB, errno.ENOMEM)] * 4


@pytest.mark.rule("P14", level="Converge")
def test_original_limits_of_a_process_are_restored(stack: ExitStack) -> None:
    workers = hire(stack)
    govern(workers, PAGE)
    workers[0].handle.set(Limits(GIVEN, GIVEN))
    assert workers[0].handle.get() == (GIVEN, GIVEN)
    assert workers[0].lock(4 * MIB) == (4 * MIB, 0)


@pytest.mark.rule("H1", level="Observe")
def test_process_with_cap_ipc_lock_exceeds_the_limit_and_is_reported(stack: ExitStack) -> None:
    workers = hire(stack, user=0)
    govern(workers, MIB)
    assert workers[0].lock(4 * MIB) == (4 * MIB, 0)
    reason = held_back(workers[0].reader.read(), "         0          0 4294967295\n")
    assert reason is HeldBackReason.CAP_IPC_LOCK
