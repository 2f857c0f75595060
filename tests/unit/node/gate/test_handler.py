"""Answers to calls with reused thread ids, and the deadline of each reason to wait."""

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import pytest

from pinwarden.common.guard import Guard
from pinwarden.node.gate.budgets import BudgetKey, LimitUsage
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.gate.handler import NotificationHandler
from pinwarden.node.gate.journal import Journal
from pinwarden.node.gate.pending import (
    RAISED_SECONDS,
    RETURN_SECONDS,
    ContainerListener,
    PendingNotification,
)
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.gate.publisher import GatePublisher
from pinwarden.node.linux.seccomp_notify import Listener, Notification
from pinwarden.node.state.gate_status import load

from .mappings import EXTENT, call, group

PAGE = 4096
ONE, OTHER = ContainerRef("one", "main"), ContainerRef("other", "main")


class Caller(Listener):
    """Replaces the kernel: whether the thread still waits, and the answers."""

    def __init__(self, *, valid: bool) -> None:
        self._valid = valid
        self.continued: list[int] = []
        self.failed: list[int] = []

    def is_valid(self, notification_id: int) -> bool:
        return self._valid

    def continue_(self, notification_id: int) -> bool:
        self.continued.append(notification_id)
        return self._valid

    def fail(self, notification_id: int, error: int) -> bool:
        self.failed.append(error)
        return self._valid


class TwoPods:
    """Two pods, each with a limit of ten pages and nothing pinned."""

    def budget_keys(self) -> dict[ContainerRef, tuple[BudgetKey, ...]]:
        return {ref: (BudgetKey("l", ref.pod),) for ref in (ONE, OTHER)}

    def sample(self, ref: ContainerRef) -> dict[BudgetKey, LimitUsage]:
        return {BudgetKey("l", ref.pod): LimitUsage(10 * PAGE, 0)}

    def totals(self, ref: ContainerRef, *, distinct: bool = False) -> dict[BudgetKey, LimitUsage]:
        return self.sample(ref)

    def is_listed(self, pod: str) -> bool:
        return True

    def rlimit_grant(self, pod: str) -> int:
        return 0

    def has_deep_stack(self, pod: str) -> bool:
        return False

    def contains(self, pod: str, pid: int) -> bool:
        return True


@contextmanager
def handling(folder: Path, pods: TwoPods) -> Iterator[NotificationHandler]:
    """Return a handler over the folder's processes, which has its files there too."""
    publisher = GatePublisher(folder / "gate.json")
    with closing(Journal(folder / "journal")) as journal:
        handler = NotificationHandler(
            journal, cast(PodLimits, pods), folder, publisher, Guard(["call"])
        )
        handler.configure()
        yield handler
        handler.close()


def process(proc_root: Path, tid: int) -> None:
    (proc_root / str(tid)).mkdir()
    for name, text in {
        "syscall": "running",
        "stat": f"{tid} (x) R " + "0 " * 50,
        "status": f"Tgid:\t{tid}\nVmSize:\t100 kB\nVmLck:\t0 kB\nVmPin:\t0 kB\n",
    }.items():
        (proc_root / str(tid) / name).write_text(text)


@pytest.mark.rule("P1")
def test_ended_call_with_a_reused_thread_id_ends_no_other_call(tmp_path: Path) -> None:
    for tid in (5, 6):
        process(tmp_path, tid)
    with handling(tmp_path, TwoPods()) as handler:

        def pending(
            number: int, ref: ContainerRef, tid: int, *, alive: bool = True
        ) -> tuple[Caller, PendingNotification]:
            caller = Caller(valid=alive)
            call = Notification(
                number, tid, 149, 0xC000003E, (0x10000000 * number, 8 * PAGE, 0, 0, 0, 0)
            )
            origin = ContainerListener(number, caller, GatedContainer("x", ref, "", b""))
            return caller, handler.receive(number, call, origin, 0.0)

        dead, stale = pending(1, ONE, 5, alive=False)
        first, request = pending(2, OTHER, 5)
        assert handler.handle(request, 1.0) == 0.0
        assert first.continued == [2]
        assert handler.handle(stale, 1.1) == 0.0
        second, request = pending(3, OTHER, 6)
        assert handler.handle(request, 1.2) > 0.0
        assert not dead.continued + second.continued


class Granted(TwoPods):
    """Two pods with a grant above the threads' soft rlimit."""

    def rlimit_grant(self, pod: str) -> int:
        return 20 * PAGE


@pytest.mark.rule("P5")
def test_read_after_the_wait_for_the_rlimit_has_its_full_time(tmp_path: Path) -> None:
    """On a busy machine, the read of the locked bytes takes long."""
    process(tmp_path, 5)
    (tmp_path / "5" / "status").write_text(
        "Tgid:\t5\nVmSize:\t100 kB\nVmLck:\t4 kB\nVmPin:\t0 kB\n"
    )
    (tmp_path / "5" / "limits").write_text(
        "Max locked memory         4096                 4096                 bytes\n"
    )
    smaps = tmp_path / "5" / "smaps"
    os.mkfifo(smaps)  # opening it waits
    with handling(tmp_path, Granted()) as handler:
        call = Notification(1, 5, 149, 0xC000003E, (0x10000000, PAGE, 0, 0, 0, 0))
        caller = Caller(valid=True)
        request = handler.receive(
            1, call, ContainerListener(1, caller, GatedContainer("x", ONE, "", b"")), 0.0
        )
        assert handler.handle(request, 1.0) > 0.0, "the agent may still raise the rlimit"
        late = 1.0 + 1.1 * RAISED_SECONDS
        assert handler.handle(request, late) > 0.0, "the locked bytes are being read"
        smaps.write_text("")
        while handler.handle(request, late) > 0.0:
            pass
        assert caller.continued == [1]


@pytest.mark.rule("M8")
def test_member_that_delays_the_read_of_its_mappings_cannot_grow_them(tmp_path: Path) -> None:
    process(tmp_path, 5)
    maps = tmp_path / "5" / "maps"
    os.mkfifo(maps)  # opening it waits
    with handling(tmp_path, TwoPods()) as handler:
        handler.configure([group(members=[{"pods": ["one"], "borrowLimit": PAGE}])])
        handler.set_objects({"g": EXTENT})
        answers = {}
        for ref in (ONE, OTHER):
            caller = answers[ref] = Caller(valid=True)
            origin = ContainerListener(1, caller, GatedContainer("x", ref, "", b""))
            growth = call("mremap", PAGE, PAGE, 2 * PAGE, 1, tid=5)
            request = handler.receive(1, growth, origin, 0.0)
            assert handler.handle(request, 1.0) > 0.0
            assert handler.handle(request, 1.0 + 1.1 * RETURN_SECONDS) == 0.0
        assert (answers[ONE].failed, answers[ONE].continued) == ([errno.ENOMEM], [])
        assert (answers[OTHER].failed, answers[OTHER].continued) == ([], [1])
        waiting = maps.rename(tmp_path / "waiting")
        maps.write_text("")
        os.close(os.open(waiting, os.O_RDWR))  # the reads end


class Unforeseen(TwoPods):
    """Pods whose state causes an unexpected exception."""

    def sample(self, ref: ContainerRef) -> dict[BudgetKey, LimitUsage]:
        raise RecursionError("a tree of another user")

    def limit(self, key: BudgetKey) -> None:
        return None


@pytest.mark.rule("P5")
def test_call_with_an_unexpected_exception_is_denied_and_counted(tmp_path: Path) -> None:
    process(tmp_path, 5)
    guard = Guard(["call"])
    with closing(Journal(tmp_path / "journal")) as journal:
        publisher = GatePublisher(tmp_path / "gate.json", guard.failures)
        handler = NotificationHandler(
            journal, cast(PodLimits, Unforeseen()), tmp_path, publisher, guard
        )
        handler.configure()
        caller = Caller(valid=True)
        call = Notification(1, 5, 149, 0xC000003E, (0x10000000, 20 * PAGE, 0, 0, 0, 0))
        request = handler.receive(
            1, call, ContainerListener(1, caller, GatedContainer("x", ONE, "", b"")), 0.0
        )
        assert handler.handle(request, 1.0) > 0.0
        assert handler.handle(request, 1.0 + 2 * RETURN_SECONDS) == 0.0
        assert caller.failed == [errno.ENOMEM]
        assert not caller.continued
        publisher.flush(0.0)
        handler.close()
    status = load(tmp_path / "gate.json")
    assert status is not None
    assert status.failures == {"call": 2}
    assert "a tree of another user" in status.recent[0]["message"]
