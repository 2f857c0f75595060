"""What a call maps, from its registers; which object that is; and what groups of shared memory have against it."""

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.node.gate import borrow_gate, map_requests, map_targets
from pinwarden.node.gate.borrow_gate import BorrowCheck, BorrowGate
from pinwarden.node.gate.borrow_rules import BorrowDenial, BorrowRules, ObjectRange, total
from pinwarden.node.gate.map_requests import MapRequest, NamedBy
from pinwarden.node.gate.map_targets import MapTarget
from pinwarden.node.gate.pin_requests import PAGE
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.linux.syscalls import AUDIT_ARCH_AARCH64, AUDIT_ARCH_X86_64, NUMBERS
from pinwarden.node.shm.objects import ObjectId, ObjectSet

GARBAGE = 0xABCD << 32
PROC, OWN = Path("/proc"), Path("/proc/self")
ONE, SECOND, FOREIGN = ObjectId(7, 1), ObjectId(7, 2), ObjectId(8, 1)
SEGMENT = ObjectId(1, 5, 4026531839)
EXTENT = ObjectSet(devices=frozenset({7}), objects=frozenset({SEGMENT}))
LIMIT = 10 * PAGE


def call(name: str, *registers: int, arch: int = AUDIT_ARCH_X86_64, tid: int = 1) -> Notification:
    six = tuple(each % 2**64 for each in (*registers, *[0] * (6 - len(registers))))
    return Notification(1, tid, NUMBERS[arch][name], arch, six)  # type: ignore[arg-type]


def group(uid: str = "g", limit: int | None = LIMIT, **more: Any) -> NodeGroup:
    return NodeGroup.model_validate(
        {
            "name": f"ns/{uid}",
            "uid": uid,
            "backing": {"memfd": {"name": "x"}},
            "management": "Adopt",
            "accounting": "Borrow",
            "fairShare": "Borrow",
            "members": [{"pods": ["pod"], "borrowLimit": limit}],
            **more,
        }
    )


def pages(one: ObjectId, start: int, end: int) -> ObjectRange:
    return ObjectRange(one, start * PAGE, end * PAGE)


# -- registers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", NUMBERS)
@pytest.mark.parametrize("flags", [1, 3, 1 | 0x2000, 1 | 0x8000, 1 | GARBAGE])
def test_a_shared_mapping_is_of_its_descriptor(arch: int, flags: int) -> None:
    found = map_requests.read(call("mmap", 0, 2 * PAGE - 1, 3, flags, 5 | GARBAGE, PAGE, arch=arch))
    assert found == MapRequest(NamedBy.DESCRIPTOR, 5, PAGE, 2 * PAGE)


@pytest.mark.parametrize(
    ("name", "registers"),
    [
        ("mmap", (0, PAGE, 3, 2, 5, 0)),
        ("mmap", (0, PAGE, 3, 0x21, -1, 0)),
        ("mmap", (0, PAGE, 3, 0x2022, -1, 0)),
        ("mmap", (0, 0, 3, 1, 5, 0)),
        ("mmap", (0, 2**64 - 1, 3, 1, 5, 0)),
        ("mmap", (0, PAGE, 3, 1, 5, 1)),
        ("mmap", (0, PAGE, 3, 1, 5, 2**63)),
        ("shmat", (-1, 0, 0)),
        ("mremap", (PAGE, PAGE, PAGE, 1)),
        ("mremap", (PAGE, 2 * PAGE, PAGE, 1)),
        ("mremap", (PAGE, PAGE, 0, 1)),
        ("mremap", (1, PAGE, 2 * PAGE, 1)),
        ("mremap", (PAGE, PAGE, 2 * PAGE, 8)),
        ("remap_file_pages", (PAGE, 0, 0, 0, 0)),
        ("remap_file_pages", (PAGE, PAGE, 3, 0, 0)),
        ("mlock", (PAGE, PAGE)),
        ("ioctl", (3, 0x3B71, 0)),
    ],
)
def test_what_maps_nothing_that_others_have_is_not_asked_about(name: str, registers: tuple[int, ...]) -> None:
    assert map_requests.read(call(name, *registers)) is None


def test_other_calls_name_a_segment_or_what_is_mapped_already() -> None:
    assert map_requests.read(call("shmat", 5 | GARBAGE, 0, 0)) == MapRequest(NamedBy.SEGMENT, 5)
    assert map_requests.read(call("mremap", PAGE, PAGE + 1, 3 * PAGE, 1)) == MapRequest(
        NamedBy.ADDRESS, PAGE, 0, 3 * PAGE, relative=True
    )
    assert map_requests.read(call("mremap", PAGE, 0, PAGE, 1)) == MapRequest(
        NamedBy.ADDRESS, PAGE, 0, PAGE, relative=True
    )
    tagged = call("mremap", 0xAB << 56 | PAGE, 0, PAGE, 1, arch=AUDIT_ARCH_AARCH64)
    assert map_requests.read(tagged) == MapRequest(NamedBy.ADDRESS, PAGE, 0, PAGE, relative=True)
    assert map_requests.read(call("remap_file_pages", PAGE + 1, 2 * PAGE + 1, 0, 7, 0)) == MapRequest(
        NamedBy.ADDRESS, PAGE, 7 * PAGE, 2 * PAGE
    )


@given(
    name=st.sampled_from(["mmap", "shmat", "mremap", "remap_file_pages"]),
    registers=st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
)
def test_no_registers_are_too_strange(name: str, registers: tuple[int, ...]) -> None:
    found = map_requests.read(call(name, *registers))
    assert found is None or 0 <= found.offset <= found.offset + found.size <= 2**63


# -- rules ----------------------------------------------------------------------------------------------------------------------


def judged(
    wanted: ObjectRange,
    has: Iterable[ObjectRange] = (),
    coming: Sequence[ObjectRange] | None = (),
    **more: Any,
) -> BorrowDenial | None:
    one = group(**more)
    groups = BorrowRules([one], {"g": EXTENT})
    return groups.check(one, "pod", wanted, has, coming)


def test_groups_that_are_audited_or_not_known_yet_have_nothing() -> None:
    assert not BorrowRules([group(enforcement="Audit")], {"g": EXTENT})
    assert not BorrowRules([group()], {})
    assert not BorrowRules([group()], {"g": ObjectSet()})
    assert not BorrowRules([], {"g": EXTENT})
    assert BorrowRules([group()], {"g": EXTENT})


@pytest.mark.rule("M2")
def test_each_group_that_has_an_object_has_its_say() -> None:
    both = [group(), group("h", members=[]), group("i")]
    groups = BorrowRules(
        both, {"g": EXTENT, "h": ObjectSet(objects=frozenset({ONE})), "i": ObjectSet(frozenset({9}))}
    )
    assert [each.uid for each in groups.groups_of(ONE)] == ["g", "h"]
    assert [each.uid for each in groups.groups_of(SECOND)] == ["g"]
    assert groups.groups_of(FOREIGN) == ()
    assert groups.segment(5, SEGMENT.space) == SEGMENT
    assert groups.segment(5, 1) is None
    assert groups.segment(1, 0) is None
    assert groups.check_member(both[0], "pod") is None
    denial = groups.check_member(both[1], "pod")
    assert denial is not None
    assert (denial.error, denial.not_member, denial.final) == (errno.EACCES, True, True)


@pytest.mark.rule("M8")
def test_the_tightest_limit_on_what_is_mapped_holds() -> None:
    def limit(*members: tuple[int | None, str]) -> int | None:
        one = group(
            members=[{"pods": ["pod"], "borrowLimit": amount, "borrowLimitOn": on} for amount, on in members]
        )
        return BorrowRules([one], {"g": EXTENT}).limit(one, "pod")

    assert limit((None, "Mapped")) is None
    assert limit((5, "Mapped"), (None, "Mapped"), (3, "Mapped"), (1, "Resident")) == 3
    assert limit((1, "Resident")) is None
    assert limit((None, "Mapped"), (0, "Mapped")) == 0


@pytest.mark.rule("M8")
def test_what_does_not_fit_is_refused_and_what_adds_nothing_never() -> None:
    assert judged(pages(ONE, 0, 10)) is None
    denial = judged(pages(ONE, 0, 11))
    assert denial is not None
    assert (denial.error, denial.final) == (errno.ENOMEM, True)
    assert (denial.asked, denial.mapped, denial.limit) == (11 * PAGE, 0, LIMIT)
    denial = judged(pages(ONE, 5, 11), [pages(ONE, 0, 6), pages(ONE, 3, 8), pages(SECOND, 0, 2)])
    assert denial is not None
    assert (denial.asked, denial.mapped) == (3 * PAGE, 10 * PAGE)
    assert judged(pages(ONE, 2, 8), [pages(ONE, 0, 30)]) is None
    assert judged(pages(ONE, 0, 10), [pages(FOREIGN, 0, 30)]) is None
    assert judged(pages(ONE, 0, 30), limit=None) is None


@pytest.mark.rule("M8")
def test_calls_under_way_are_waited_for_where_it_depends_on_them() -> None:
    assert judged(pages(ONE, 0, 5), coming=[pages(ONE, 0, 10), pages(FOREIGN, 0, 99)]) is None
    for coming in ([pages(ONE, 5, 11)], None):
        denial = judged(pages(ONE, 0, 5), coming=coming)
        assert denial is not None
        assert (denial.error, denial.final) == (errno.ENOMEM, False)
    denial = judged(pages(ONE, 0, 11), coming=[pages(ONE, 0, 11)])
    assert denial is not None
    assert denial.final


@pytest.mark.rule("M10")
def test_a_group_that_drains_takes_no_new_borrower() -> None:
    denial = judged(pages(ONE, 0, 1), draining=True, limit=None)
    assert denial is not None
    assert (denial.error, denial.final, denial.not_member) == (errno.EACCES, True, False)
    assert judged(pages(ONE, 0, 1), [pages(FOREIGN, 0, 1)], draining=True) is not None
    assert judged(pages(ONE, 5, 6), [pages(SECOND, 0, 1)], draining=True) is None
    assert judged(pages(ONE, 5, 6), coming=[pages(ONE, 0, 1)], draining=True) is None


PAIRS = st.lists(st.tuples(st.sampled_from([ONE, SECOND, FOREIGN]), st.integers(0, 30), st.integers(0, 30)))


@given(pairs=PAIRS)
def test_each_byte_of_each_object_counts_once(pairs: list[tuple[ObjectId, int, int]]) -> None:
    ranges = [ObjectRange(one, min(a, b), max(a, b)) for one, a, b in pairs]
    assert total(ranges) == len(
        {(each.object, byte) for each in ranges for byte in range(each.start, each.end)}
    )


# -- what /proc tells -----------------------------------------------------------------------------------------------------------


def test_every_way_to_look_at_a_descriptor_finds_the_same_file(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        about = os.fstat(file.fileno())
        expected = ObjectId(about.st_dev, about.st_ino)
        for identify in (map_targets.identify, map_targets.by_mount, map_targets.by_copy):
            assert identify(OWN, file.fileno()) == expected
    secret = os.memfd_create("x")
    about = os.fstat(secret)
    assert (
        map_targets.identify(OWN, secret)
        == map_targets.by_copy(OWN, secret)
        == ObjectId(about.st_dev, about.st_ino)
    )
    assert map_targets.by_mount(OWN, secret) is None
    os.close(secret)
    assert map_targets.by_copy(OWN, 999999) is None
    for identify in (map_targets.identify, map_targets.by_mount):
        with pytest.raises(FileNotFoundError):
            identify(OWN, 999999)


def test_what_is_mapped_is_found_by_descriptor_and_by_address() -> None:
    descriptor, other = os.memfd_create("x"), os.memfd_create("y")
    os.ftruncate(descriptor, 8 * PAGE)
    about = os.fstat(descriptor)
    one = ObjectId(about.st_dev, about.st_ino)
    groups = BorrowRules([group()], {"g": ObjectSet(objects=frozenset({one}))})
    pid = os.getpid()

    def target(request: MapRequest) -> MapTarget:
        return map_targets.target(PROC, pid, request, groups)

    assert target(MapRequest(NamedBy.DESCRIPTOR, descriptor, PAGE, PAGE)) == MapTarget(
        ObjectRange(one, PAGE, 2 * PAGE)
    )
    for missing in (other, 999999):
        assert target(MapRequest(NamedBy.DESCRIPTOR, missing, 0, PAGE)) == map_targets.NOTHING
    assert target(MapRequest(NamedBy.SEGMENT, 1)) == map_targets.NOTHING
    with mmap.mmap(descriptor, 4 * PAGE, offset=2 * PAGE) as area:
        anchor = ctypes.c_char.from_buffer(area)
        address = ctypes.addressof(anchor)
        assert target(MapRequest(NamedBy.ADDRESS, address + PAGE, 0, 5 * PAGE, relative=True)) == MapTarget(
            ObjectRange(one, 3 * PAGE, 8 * PAGE)
        )
        assert target(MapRequest(NamedBy.ADDRESS, address, 0, PAGE)) == MapTarget(ObjectRange(one, 0, PAGE))
        assert target(MapRequest(NamedBy.ADDRESS, address + 4 * PAGE, 0, PAGE)) == map_targets.NOTHING
        del anchor
    assert (
        map_targets.target(PROC, 2**22 + 1, MapRequest(NamedBy.DESCRIPTOR, 0, 0, PAGE), groups)
        == map_targets.NOTHING
    )
    os.close(descriptor)
    os.close(other)


# -- decisions ------------------------------------------------------------------------------------------------------------------


class OnePod:
    """Its cgroup is found nowhere, so that nothing of it is mapped; or the cgroups cannot be read."""

    readable = True

    def cgroup_paths(self, pod: str) -> tuple[Path, ...]:
        if not self.readable:
            raise PermissionError(errno.EACCES, "not to be read")
        return ()


@pytest.fixture
def pods() -> OnePod:
    return OnePod()


@pytest.fixture
def gate(pods: OnePod, monkeypatch: pytest.MonkeyPatch) -> BorrowGate:
    """With a group that has ONE, which every call is for."""
    made = BorrowGate(PROC, cast(PodLimits, pods))
    made.configure([group()])
    made.set_objects({"g": EXTENT})
    found(
        monkeypatch,
        lambda request: MapTarget(ObjectRange(ONE, request.offset, request.offset + request.size)),
    )
    return made


def found(monkeypatch: pytest.MonkeyPatch, target: Callable[[MapRequest], MapTarget]) -> None:
    monkeypatch.setattr(borrow_gate, "target", lambda root, tid, request, groups: target(request))


def asked(gate: BorrowGate, first: int, last: int, tid: int = 1) -> BorrowCheck:
    one = gate.begin(call("mmap", 0, (last - first) * PAGE, 3, 1, 5, first * PAGE, tid=tid), "pod")
    assert one is not None
    return one


def decided(gate: BorrowGate, one: BorrowCheck, pod: str = "pod") -> BorrowDenial | None:
    """As the gate asks again and again."""
    for _ in range(1000):
        denial = gate.decide(one, pod, lambda tids: None)
        if denial is None or "still being read" not in denial.reason:
            return denial
    raise AssertionError("it is never read")


def test_a_node_without_groups_has_nothing_to_decide() -> None:
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
def test_a_call_that_was_let_through_counts_until_it_is_over(gate: BorrowGate) -> None:
    first, second = asked(gate, 0, 6), asked(gate, 6, 11, tid=2)
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
def test_what_an_earlier_gate_let_through_stands_for_anything(gate: BorrowGate) -> None:
    gate.track(1, "pod", None)
    denial = decided(gate, asked(gate, 0, 1))
    assert denial is not None
    assert not denial.final
    gate.end(1)
    assert decided(gate, asked(gate, 0, 1)) is None


def test_a_pod_has_no_more_than_so_many_calls_under_way(gate: BorrowGate) -> None:
    for tid in range(borrow_gate.MAX_IN_FLIGHT):
        gate.track(100 + tid, "pod", (pages(ONE, 0, 1),))
    denial = decided(gate, asked(gate, 0, 1))
    assert denial is not None
    assert not denial.final
    gate.end(100)
    assert decided(gate, asked(gate, 0, 1)) is None


def test_what_was_settled_is_decided_anew_when_the_groups_change(gate: BorrowGate) -> None:
    one = asked(gate, 0, 6)
    assert decided(gate, one) is None
    assert gate.is_settled(one)
    gate.set_objects({"g": EXTENT})
    assert gate.is_settled(one)
    gate.configure([group(limit=PAGE)])
    assert not gate.is_settled(one)
    assert decided(gate, one) is not None


def test_what_cannot_be_read_refuses_what_is_known_to_be_a_group_s(
    gate: BorrowGate, pods: OnePod, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods.readable = False
    denial = decided(gate, asked(gate, 0, 1))
    assert denial is not None
    assert denial.group is not None
    assert (denial.error, denial.final) == (errno.ENOMEM, False)

    def unreadable(request: MapRequest) -> MapTarget:
        raise PermissionError(errno.EACCES, "not to be read")

    found(monkeypatch, unreadable)
    denial = decided(gate, asked(gate, 0, 1))
    assert denial is not None
    assert denial.group is None
    assert denial.final


def test_a_file_whose_server_does_not_answer_holds_up_nobody_else(
    gate: BorrowGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hangs(request: MapRequest) -> MapTarget:
        answers.wait(10)
        return map_targets.NOTHING

    found(monkeypatch, hangs)
    one = asked(gate, 0, 1)
    denial = gate.decide(one, "pod", lambda tids: None)
    assert denial is not None
    assert (denial.group, denial.final) == (None, False)
    answers.set()
    assert decided(gate, one) is None


def test_refusals_are_logged_once_a_second_and_counted(
    gate: BorrowGate, caplog: pytest.LogCaptureFixture
) -> None:
    one = asked(gate, 0, 11, tid=os.getpid())
    denial = decided(gate, one)
    assert denial is not None
    for now in (0.0, 0.1, 0.2, 2.0):
        gate.log(denial, one.notification, "pod", now)
    assert len(caplog.records) == 2
    first, second = (record.getMessage() for record in caplog.records)
    assert all(
        part in first for part in ("ns/g", "pod", str(os.getpid()), f"asked {11 * PAGE}", "limit 40960")
    )
    assert "2 more" in second
    gate.forget("pod")
    gate.log(denial, one.notification, "pod", 2.1)
    assert len(caplog.records) == 3
