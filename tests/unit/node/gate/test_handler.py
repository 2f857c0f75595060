"""Answers to calls of reused thread numbers, and the time that each reason to wait has."""

import errno
import os
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from pinwarden.common.guard import Guard
from pinwarden.node.gate.budgets import Key, Look, Place
from pinwarden.node.gate.container import Identity
from pinwarden.node.gate.handler import LEAVING_SECONDS, RAISED_SECONDS, Decider
from pinwarden.node.gate.journal import Journal
from pinwarden.node.gate.pending import Gated, Waiting
from pinwarden.node.gate.pod_limits import Pods
from pinwarden.node.gate.publisher import Record
from pinwarden.node.linux.seccomp_notify import Call, Listener
from pinwarden.node.state.gate_status import load

PAGE = 4096
ONE, OTHER = Place("one", "main"), Place("other", "main")


class Caller(Listener):
    """In place of the kernel: whether the thread still waits, and what it was answered."""

    def __init__(self, *, waiting: bool) -> None:
        self._waiting = waiting
        self.let_through_ids: list[int] = []
        self.refused: list[int] = []

    def waits(self, identity: int) -> bool:
        return self._waiting

    def let_through(self, identity: int) -> bool:
        self.let_through_ids.append(identity)
        return self._waiting

    def refuse(self, identity: int, error: int) -> bool:
        self.refused.append(error)
        return self._waiting


class TwoPods:
    """Each under a limit of ten pages, of which the kernel counts none yet."""

    def covering(self) -> dict[Place, tuple[Key, ...]]:
        return {place: (Key("l", place.pod),) for place in (ONE, OTHER)}

    def look(self, place: Place) -> dict[Key, Look]:
        return {Key("l", place.pod): Look(10 * PAGE, 0)}

    def sums(self, place: Place, *, distinct: bool = False) -> dict[Key, Look]:
        return self.look(place)

    def listed(self, pod: str) -> bool:
        return True

    def granted(self, pod: str) -> int:
        return 0

    def deep_stack(self, pod: str) -> bool:
        return False

    def has(self, pod: str, pid: int) -> bool:
        return True


def process(proc_root: Path, tid: int) -> None:
    (proc_root / str(tid)).mkdir()
    for name, text in {
        "syscall": "running",
        "stat": f"{tid} (x) R " + "0 " * 50,
        "status": f"Tgid:\t{tid}\nVmSize:\t100 kB\nVmLck:\t0 kB\nVmPin:\t0 kB\n",
    }.items():
        (proc_root / str(tid) / name).write_text(text)


@pytest.mark.rule("P1")
def test_a_dead_call_ends_nothing_of_the_thread_that_has_its_number_now(tmp_path: Path) -> None:
    for tid in (5, 6):
        process(tmp_path, tid)
    with closing(Journal(tmp_path / "journal")) as journal:
        decider = Decider(
            journal, cast(Pods, TwoPods()), tmp_path, Record(tmp_path / "gate.json"), Guard(["call"])
        )
        decider.configure()

        def waiting(number: int, place: Place, tid: int, *, alive: bool = True) -> tuple[Caller, Waiting]:
            caller = Caller(waiting=alive)
            call = Call(number, tid, 149, 0xC000003E, (0x10000000 * number, 8 * PAGE, 0, 0, 0, 0))
            gated = Gated(number, caller, Identity("x", place, "", b""))
            return caller, decider.received(number, call, gated, 0.0)

        dead, stale = waiting(1, ONE, 5, alive=False)
        first, asked = waiting(2, OTHER, 5)
        assert decider.decide(asked, 1.0) == 0.0
        assert first.let_through_ids == [2]
        assert decider.decide(stale, 1.1) == 0.0
        second, asked = waiting(3, OTHER, 6)
        assert decider.decide(asked, 1.2) > 0.0
        assert not dead.let_through_ids + second.let_through_ids
        decider.close()


class Granted(TwoPods):
    """The same with a grant that the threads' soft rlimit is below."""

    def granted(self, pod: str) -> int:
        return 20 * PAGE


@pytest.mark.rule("P5")
def test_a_read_after_the_wait_for_a_raised_rlimit_has_its_own_time(tmp_path: Path) -> None:
    """A busy machine reads what a process has locked later than the call asks for it."""
    process(tmp_path, 5)
    (tmp_path / "5" / "status").write_text("Tgid:\t5\nVmSize:\t100 kB\nVmLck:\t4 kB\nVmPin:\t0 kB\n")
    (tmp_path / "5" / "limits").write_text(
        "Max locked memory         4096                 4096                 bytes\n"
    )
    smaps = tmp_path / "5" / "smaps"
    os.mkfifo(smaps)  # whoever opens it waits
    with closing(Journal(tmp_path / "journal")) as journal:
        decider = Decider(
            journal, cast(Pods, Granted()), tmp_path, Record(tmp_path / "gate.json"), Guard(["call"])
        )
        decider.configure()
        call = Call(1, 5, 149, 0xC000003E, (0x10000000, PAGE, 0, 0, 0, 0))
        caller = Caller(waiting=True)
        asked = decider.received(1, call, Gated(1, caller, Identity("x", ONE, "", b"")), 0.0)
        assert decider.decide(asked, 1.0) > 0.0, "the agent may still raise the rlimit"
        late = 1.0 + 1.1 * RAISED_SECONDS
        assert decider.decide(asked, late) > 0.0, "what is locked is being read"
        smaps.write_text("")
        while decider.decide(asked, late) > 0.0:
            pass
        assert caller.let_through_ids == [1]
        decider.close()


class Unforeseen(TwoPods):
    """Pods whose state leads to an exception that nobody foresaw."""

    def look(self, place: Place) -> dict[Key, Look]:
        raise RecursionError("a tree that somebody made")

    def limit(self, key: Key) -> None:
        return None


@pytest.mark.rule("P5")
def test_a_call_that_nobody_foresaw_is_denied_in_the_end_and_counted(tmp_path: Path) -> None:
    process(tmp_path, 5)
    guard = Guard(["call"])
    with closing(Journal(tmp_path / "journal")) as journal:
        record = Record(tmp_path / "gate.json", guard.failures)
        decider = Decider(journal, cast(Pods, Unforeseen()), tmp_path, record, guard)
        decider.configure()
        caller = Caller(waiting=True)
        call = Call(1, 5, 149, 0xC000003E, (0x10000000, 20 * PAGE, 0, 0, 0, 0))
        asked = decider.received(1, call, Gated(1, caller, Identity("x", ONE, "", b"")), 0.0)
        assert decider.decide(asked, 1.0) > 0.0
        assert decider.decide(asked, 1.0 + 2 * LEAVING_SECONDS) == 0.0
        assert caller.refused == [errno.ENOMEM]
        assert not caller.let_through_ids
        record.flush(0.0)
        decider.close()
    told = load(tmp_path / "gate.json")
    assert told is not None
    assert told.failures == {"call": 2}
    assert "a tree that somebody made" in told.recent[0]["message"]
