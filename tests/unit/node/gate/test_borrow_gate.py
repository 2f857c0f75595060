"""Decisions about mappings while calls are in flight and reads take time."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from pinwarden.node.gate import borrow_gate, map_targets
from pinwarden.node.gate.borrow_gate import BorrowCheck, BorrowGate
from pinwarden.node.gate.borrow_rules import BorrowDenial, ObjectRange
from pinwarden.node.gate.map_requests import MapRequest
from pinwarden.node.gate.map_targets import MapTarget
from pinwarden.node.gate.pin_requests import PAGE
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.shm.objects import ObjectId

from .mappings import EXTENT, call, group, pages

PROC = Path("/proc")
ONE = ObjectId(7, 1)


class OnePod:
    """A pod without cgroups, which therefore maps nothing, or with unreadable cgroups."""

    readable = True

    def cgroup_paths(self, pod: str) -> tuple[Path, ...]:
        if not self.readable:
            raise PermissionError(errno.EACCES, "unreadable")
        return ()


@pytest.fixture
def pods() -> OnePod:
    return OnePod()


@pytest.fixture
def gate(pods: OnePod, monkeypatch: pytest.MonkeyPatch) -> BorrowGate:
    """Return a gate with a group. Each call maps the group's object ONE."""
    made = BorrowGate(PROC, cast(PodLimits, pods))
    made.configure([group()])
    made.set_objects({"g": EXTENT})
    replace_target(
        monkeypatch,
        lambda request: MapTarget(ObjectRange(ONE, request.offset, request.offset + request.size)),
    )
    return made


def replace_target(
    monkeypatch: pytest.MonkeyPatch, target: Callable[[MapRequest], MapTarget]
) -> None:
    monkeypatch.setattr(borrow_gate, "target", lambda root, tid, request, groups: target(request))


def begun(gate: BorrowGate, first: int, last: int, tid: int = 1) -> BorrowCheck:
    check = gate.begin(
        call("mmap", 0, (last - first) * PAGE, 3, 1, 5, first * PAGE, tid=tid), "pod"
    )
    assert check is not None
    return check


def decided(gate: BorrowGate, check: BorrowCheck, pod: str = "pod") -> BorrowDenial | None:
    """Repeat the decision until its reads have ended."""
    for _ in range(1000):
        denial = gate.decide(check, pod, lambda tids: None)
        if denial is None or "still being read" not in denial.reason:
            return denial
    raise AssertionError("the reads do not end")


def test_node_without_groups_checks_no_call() -> None:
    gate = BorrowGate(PROC, cast(PodLimits, OnePod()))
    assert gate.begin(call("mmap", 0, PAGE, 3, 1, 5, 0), "pod") is None
    gate.configure([group()])
    assert gate.begin(call("mmap", 0, PAGE, 3, 1, 5, 0), "pod") is None
    gate.set_objects({"g": EXTENT})
    assert gate.begin(call("mmap", 0, PAGE, 3, 1, 5, 0), "pod") is not None
    assert gate.begin(call("mlock", 0, PAGE), "pod") is None
    gate.configure([])
    assert gate.begin(call("mmap", 0, PAGE, 3, 1, 5, 0), "pod") is None


@pytest.mark.rule("M8")
def test_continued_call_counts_until_its_return(gate: BorrowGate) -> None:
    first, second = begun(gate, 0, 6), begun(gate, 6, 11, tid=2)
    assert decided(gate, first) is None
    gate.track(1, "pod", first.ranges)
    denial = decided(gate, second)
    assert denial is not None
    assert not denial.final
    assert decided(gate, second, "other") is not None
    gate.end(1)
    assert decided(gate, second) is None
    assert second.ranges == (pages(ONE, 6, 11),)
    gate.end(1)


@pytest.mark.rule("M8")
def test_call_of_an_earlier_gate_stands_for_any_ranges(gate: BorrowGate) -> None:
    gate.track(1, "pod", None)
    denial = decided(gate, begun(gate, 0, 1))
    assert denial is not None
    assert not denial.final
    gate.end(1)
    assert decided(gate, begun(gate, 0, 1)) is None


def test_pod_with_the_maximum_of_calls_in_flight_waits(gate: BorrowGate) -> None:
    for tid in range(borrow_gate.MAX_IN_FLIGHT):
        gate.track(100 + tid, "pod", (pages(ONE, 0, 1),))
    denial = decided(gate, begun(gate, 0, 1))
    assert denial is not None
    assert not denial.final
    gate.end(100)
    assert decided(gate, begun(gate, 0, 1)) is None


def test_settled_call_is_decided_again_after_a_change_of_groups(gate: BorrowGate) -> None:
    check = begun(gate, 0, 6)
    assert decided(gate, check) is None
    assert gate.is_settled(check)
    gate.set_objects({"g": EXTENT})
    assert gate.is_settled(check)
    gate.configure([group(limit=PAGE)])
    assert not gate.is_settled(check)
    assert decided(gate, check) is not None


def unreadable(request: MapRequest) -> MapTarget:
    raise PermissionError(errno.EACCES, "unreadable")


@pytest.mark.rule("M8")
def test_unreadable_pod_denies_only_mappings_of_known_group_objects(
    gate: BorrowGate, pods: OnePod, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods.readable = False
    denial = decided(gate, begun(gate, 0, 1))
    assert denial is not None
    assert denial.group is not None
    assert (denial.error, denial.final, denial.allowed) == (errno.ENOMEM, False, False)
    replace_target(monkeypatch, unreadable)
    denial = decided(gate, begun(gate, 0, 1))
    assert denial is not None
    assert denial.group is None
    assert denial.final
    assert denial.allowed


@pytest.mark.rule("M8")
def test_growth_of_a_members_unreadable_mapping_waits_and_is_not_allowed(
    gate: BorrowGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_target(monkeypatch, unreadable)
    check = gate.begin(call("mremap", PAGE, PAGE, 2 * PAGE, 1), "pod")
    assert check is not None
    denial = decided(gate, check)
    assert denial is not None
    assert (denial.error, denial.final, denial.allowed) == (errno.ENOMEM, False, False)
    denial = decided(gate, check, "other")
    assert denial is not None
    assert (denial.final, denial.allowed) == (True, True)
    replace_target(monkeypatch, lambda request: map_targets.NOTHING)
    assert decided(gate, check) is None


@pytest.mark.rule("M8")
def test_unfinished_read_denies_a_mapping_of_members_only(
    gate: BorrowGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hangs(request: MapRequest) -> MapTarget:
        answers.wait(10)
        return map_targets.NOTHING

    replace_target(monkeypatch, hangs)
    check = begun(gate, 0, 1)
    for pod, allowed in (("pod", False), ("other", True)):
        denial = gate.decide(check, pod, lambda tids: None)
        assert denial is not None
        assert (denial.group, denial.final, denial.allowed) == (None, False, allowed)
    answers.set()
    assert decided(gate, check) is None


def test_denials_are_logged_once_a_second_and_counted(
    gate: BorrowGate, caplog: pytest.LogCaptureFixture
) -> None:
    check = begun(gate, 0, 11, tid=os.getpid())
    denial = decided(gate, check)
    assert denial is not None
    for now in (0.0, 0.1, 0.2, 2.0):
        gate.log(denial, check.notification, "pod", now)
    assert len(caplog.records) == 2
    first, second = (record.getMessage() for record in caplog.records)
    assert all(
        part in first
        for part in ("ns/g", "pod", str(os.getpid()), f"asked {11 * PAGE}", "limit 40960")
    )
    assert "2 more" in second
    gate.forget("pod")
    gate.log(denial, check.notification, "pod", 2.1)
    assert len(caplog.records) == 3
