"""Which mappings the groups of shared memory allow."""

import errno
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.gate.borrow_rules import BorrowDenial, BorrowRules, ObjectRange, total
from pinwarden.node.gate.pin_requests import PAGE
from pinwarden.node.shm.objects import ObjectId, ObjectSet

from .mappings import EXTENT, LIMIT, SEGMENT, group, pages

ONE, SECOND, FOREIGN = ObjectId(7, 1), ObjectId(7, 2), ObjectId(8, 1)


def checked(
    wanted: ObjectRange,
    has: Iterable[ObjectRange] = (),
    in_flight: Sequence[ObjectRange] | None = (),
    **more: Any,
) -> BorrowDenial | None:
    only = group(**more)
    return BorrowRules([only], {"g": EXTENT}).check(only, "pod", wanted, has, in_flight)


def test_group_in_audit_or_without_objects_has_no_rules() -> None:
    assert not BorrowRules([group(enforcement="Audit")], {"g": EXTENT})
    assert not BorrowRules([group()], {})
    assert not BorrowRules([group()], {"g": ObjectSet()})
    assert not BorrowRules([], {"g": EXTENT})
    assert BorrowRules([group()], {"g": EXTENT})


@pytest.mark.rule("M2")
def test_object_of_several_groups_needs_each_group() -> None:
    both = [group(), group("h", members=[]), group("i")]
    groups = BorrowRules(
        both,
        {"g": EXTENT, "h": ObjectSet(objects=frozenset({ONE})), "i": ObjectSet(frozenset({9}))},
    )
    assert [owner.uid for owner in groups.groups_of(ONE)] == ["g", "h"]
    assert [owner.uid for owner in groups.groups_of(SECOND)] == ["g"]
    assert groups.groups_of(FOREIGN) == ()
    assert groups.segment(5, SEGMENT.space) == SEGMENT
    assert groups.segment(5, 1) is None
    assert groups.segment(1, 0) is None
    assert groups.check_member(both[0], "pod") is None
    denial = groups.check_member(both[1], "pod")
    assert denial is not None
    assert (denial.error, denial.not_member, denial.final) == (errno.EACCES, True, True)


@pytest.mark.rule("M8")
def test_lowest_mapped_limit_applies() -> None:
    def limit(*members: tuple[int | None, str]) -> int | None:
        only = group(
            members=[
                {"pods": ["pod"], "borrowLimit": amount, "borrowLimitOn": on}
                for amount, on in members
            ]
        )
        return BorrowRules([only], {"g": EXTENT}).limit(only, "pod")

    assert limit((None, "Mapped")) is None
    assert limit((5, "Mapped"), (None, "Mapped"), (3, "Mapped"), (1, "Resident")) == 3
    assert limit((1, "Resident")) is None
    assert limit((None, "Mapped"), (0, "Mapped")) == 0


@pytest.mark.rule("M8")
def test_mapping_above_the_limit_is_denied_unless_it_adds_nothing() -> None:
    assert checked(pages(ONE, 0, 10)) is None
    denial = checked(pages(ONE, 0, 11))
    assert denial is not None
    assert (denial.error, denial.final) == (errno.ENOMEM, True)
    assert (denial.asked, denial.mapped, denial.limit) == (11 * PAGE, 0, LIMIT)
    denial = checked(pages(ONE, 5, 11), [pages(ONE, 0, 6), pages(ONE, 3, 8), pages(SECOND, 0, 2)])
    assert denial is not None
    assert (denial.asked, denial.mapped) == (3 * PAGE, 10 * PAGE)
    assert checked(pages(ONE, 2, 8), [pages(ONE, 0, 30)]) is None
    assert checked(pages(ONE, 0, 10), [pages(FOREIGN, 0, 30)]) is None
    assert checked(pages(ONE, 0, 30), limit=None) is None


@pytest.mark.rule("M8")
def test_mapping_that_depends_on_calls_in_flight_waits() -> None:
    assert checked(pages(ONE, 0, 5), in_flight=[pages(ONE, 0, 10), pages(FOREIGN, 0, 99)]) is None
    for in_flight in ([pages(ONE, 5, 11)], None):
        denial = checked(pages(ONE, 0, 5), in_flight=in_flight)
        assert denial is not None
        assert (denial.error, denial.final) == (errno.ENOMEM, False)
    denial = checked(pages(ONE, 0, 11), in_flight=[pages(ONE, 0, 11)])
    assert denial is not None
    assert denial.final


@pytest.mark.rule("M10")
def test_draining_group_denies_a_new_borrower() -> None:
    denial = checked(pages(ONE, 0, 1), draining=True, limit=None)
    assert denial is not None
    assert (denial.error, denial.final, denial.not_member) == (errno.EACCES, True, False)
    assert checked(pages(ONE, 0, 1), [pages(FOREIGN, 0, 1)], draining=True) is not None
    assert checked(pages(ONE, 5, 6), [pages(SECOND, 0, 1)], draining=True) is None
    assert checked(pages(ONE, 5, 6), in_flight=[pages(ONE, 0, 1)], draining=True) is None


PAIRS = st.lists(
    st.tuples(st.sampled_from([ONE, SECOND, FOREIGN]), st.integers(0, 30), st.integers(0, 30))
)


@given(pairs=PAIRS)
def test_each_byte_of_an_object_counts_once(pairs: list[tuple[ObjectId, int, int]]) -> None:
    ranges = [ObjectRange(object_id, min(ends), max(ends)) for object_id, *ends in pairs]
    assert total(ranges) == len(
        {(item.object, byte) for item in ranges for byte in range(item.start, item.end)}
    )
