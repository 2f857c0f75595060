"""The rlimit gate's formula: what it promises for every set of processes and constraints."""

import dataclasses
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.api.pinlimit import Contention, Scope
from pinwarden.node.agent.allocator import ProcessUsage, allocate
from pinwarden.node.linux.prlimit import UNLIMITED, Limits
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.constraints import Constraint

PAGE = 4096
MIB = 1 << 20

pages = st.integers(0, 64).map(lambda count: count * PAGE)
amounts = st.integers(0, 128 * PAGE)
hard_limits = amounts | st.just(UNLIMITED)


@st.composite
def process_lists(draw: st.DrawFn, *, one_kind: bool = False) -> list[ProcessUsage]:
    found = []
    for pid in range(1, draw(st.integers(1, 6)) + 1):
        first, second = draw(pages), 0 if one_kind else draw(pages)
        locked, pinned = draw(st.permutations([first, second]))
        hard = draw(hard_limits)
        found.append(
            ProcessUsage(
                ProcessKey(pid, 100 + pid), locked, pinned, min(draw(hard_limits), hard), hard
            )
        )
    return found


@st.composite
def constraint_lists(draw: st.DrawFn, processes: list[ProcessUsage]) -> list[Constraint]:
    keys = [process.key for process in processes]
    return draw(
        st.lists(
            st.builds(
                constraint,
                limit=st.integers(0, 600 * PAGE),
                members=st.frozensets(st.sampled_from(keys)),
                contention=st.sampled_from(Contention),
                grant=st.none() | amounts,
            ),
            max_size=4,
        )
    )


@st.composite
def cases(
    draw: st.DrawFn, *, one_kind: bool = False
) -> tuple[list[ProcessUsage], list[Constraint]]:
    processes = draw(process_lists(one_kind=one_kind))
    return processes, draw(constraint_lists(processes))


def process(
    pid: int, locked: int = 0, pinned: int = 0, soft: int = UNLIMITED, hard: int = UNLIMITED
) -> ProcessUsage:
    return ProcessUsage(ProcessKey(pid, pid), locked, pinned, soft, hard)


def constraint(
    limit: int, members: frozenset[ProcessKey], contention: Contention, grant: int | None = None
) -> Constraint:
    asked = NodeLimit(
        name="l", uid="u", scope=Scope.POD, limit=limit, contention=contention, grant=grant
    )
    return Constraint(asked, members, "p")


def over(
    processes: list[ProcessUsage],
    limit: int,
    contention: Contention = Contention.SHARE,
    grant: int | None = None,
) -> Constraint:
    return constraint(limit, frozenset(one.key for one in processes), contention, grant)


@pytest.mark.rule("P14")
@given(cases())
def test_a_process_gets_at_most_its_original_limit_or_its_grant(
    case: tuple[list[ProcessUsage], list[Constraint]],
) -> None:
    processes, constraints = case
    for one in processes:
        limits = allocate(processes, constraints, page_size=PAGE)[one.key]
        grants = [
            c.limit.grant for c in constraints if one.key in c.members and c.limit.grant is not None
        ]
        assert limits.soft <= limits.hard <= max([one.original_hard, *grants])
        assert limits.soft <= max([one.original_soft, *grants])


@pytest.mark.rule("P13")
@given(cases(one_kind=True))
def test_a_single_pinning_process_exceeds_no_constraint(
    case: tuple[list[ProcessUsage], list[Constraint]],
) -> None:
    processes, constraints = case
    dealt = allocate(processes, constraints, page_size=PAGE)
    use = {one.key: one.use for one in processes}
    for taker in processes:
        after = use | {taker.key: max(taker.use, dealt[taker.key].hard)}
        for constraint in constraints:
            before = sum(use[key] for key in constraint.members)
            assert sum(after[key] for key in constraint.members) <= max(
                constraint.limit.limit, before
            )


@given(process_lists(), st.integers(0, 600 * PAGE))
def test_reserve_with_fitting_use_never_exceeds_the_limit_in_sum(
    processes: list[ProcessUsage], room: int
) -> None:
    limit = sum(one.use for one in processes) + room
    dealt = allocate(processes, [over(processes, limit, Contention.RESERVE)], page_size=PAGE)
    assert sum(limits.hard for limits in dealt.values()) <= limit


@pytest.mark.rule("P5")
@given(process_lists(), st.integers(0, 600 * PAGE), st.data())
def test_share_denies_no_fitting_pin(
    processes: list[ProcessUsage], limit: int, data: st.DataObject
) -> None:
    dealt = allocate(processes, [over(processes, limit)], page_size=PAGE)
    left = limit - sum(one.use for one in processes)
    asker = data.draw(st.sampled_from(processes))
    asked = data.draw(st.integers(0, max(0, left) // PAGE)) * PAGE
    for kind in (asker.locked, asker.pinned):
        assert dealt[asker.key].hard >= min(kind + asked, asker.original_hard)
        assert dealt[asker.key].soft >= min(kind + asked, asker.original_soft)


@pytest.mark.rule("P11")
@given(process_lists(), st.sampled_from(Contention), st.data())
def test_a_limit_below_use_allows_exactly_the_own_use(
    processes: list[ProcessUsage], contention: Contention, data: st.DataObject
) -> None:
    limit = data.draw(st.integers(0, sum(one.use for one in processes)))
    for one in processes:
        limits = allocate(processes, [over(processes, limit, contention)], page_size=PAGE)[one.key]
        assert limits.hard == min(max(one.locked, one.pinned), one.original_hard)


@given(cases(), st.randoms(use_true_random=False))
def test_a_second_allocation_in_any_order_changes_nothing(
    case: tuple[list[ProcessUsage], list[Constraint]], random: Random
) -> None:
    processes, constraints = case
    dealt = allocate(processes, constraints, page_size=PAGE)
    again = [
        dataclasses.replace(
            one, original_soft=dealt[one.key].soft, original_hard=dealt[one.key].hard
        )
        for one in processes
    ]
    assert allocate(again, constraints, page_size=PAGE) == dealt
    random.shuffle(processes)
    random.shuffle(constraints)
    assert allocate(processes, constraints, page_size=PAGE) == dealt


@pytest.mark.rule("P12")
@given(
    process_lists(),
    st.integers(0, 600 * PAGE),
    st.integers(0, 600 * PAGE),
    st.sampled_from(Contention),
)
def test_a_raised_limit_lowers_no_process(
    processes: list[ProcessUsage], limit: int, more: int, contention: Contention
) -> None:
    low = allocate(processes, [over(processes, limit, contention)], page_size=PAGE)
    high = allocate(processes, [over(processes, limit + more, contention)], page_size=PAGE)
    assert all(high[key].hard >= low[key].hard and high[key].soft >= low[key].soft for key in low)


@given(process_lists())
def test_a_process_without_constraints_gets_its_original_limits(
    processes: list[ProcessUsage],
) -> None:
    dealt = allocate(processes, [], page_size=PAGE)
    assert dealt == {one.key: Limits(one.original_soft, one.original_hard) for one in processes}


def test_share_allows_all_free_room_to_each_and_reserve_divides_the_room() -> None:
    pair = [process(1, locked=2 * MIB), process(2, pinned=4 * MIB)]
    shared = allocate(pair, [over(pair, 16 * MIB)], page_size=PAGE)
    assert [limits.hard for limits in shared.values()] == [12 * MIB, 14 * MIB]
    reserved = allocate(pair, [over(pair, 16 * MIB, Contention.RESERVE)], page_size=PAGE)
    assert [limits.hard for limits in reserved.values()] == [7 * MIB, 9 * MIB]


@pytest.mark.rule("P2", "P13")
def test_use_of_both_kinds_counts_and_the_smallest_constraint_applies() -> None:
    both = [process(1, locked=3 * MIB, pinned=2 * MIB), process(2)]
    dealt = allocate(both, [over(both, 10 * MIB), over(both[:1], 6 * MIB)], page_size=PAGE)
    assert [limits.hard for limits in dealt.values()] == [4 * MIB, 5 * MIB]


@pytest.mark.rule("P14")
def test_a_limit_raises_only_with_a_grant() -> None:
    poor = [process(1, soft=MIB, hard=2 * MIB)]
    assert allocate(poor, [over(poor, 64 * MIB)], page_size=PAGE)[poor[0].key] == (MIB, 2 * MIB)
    granted = allocate(poor, [over(poor, 64 * MIB, grant=32 * MIB)], page_size=PAGE)
    assert granted[poor[0].key] == (32 * MIB, 32 * MIB)
    ceiling = [over(poor, 64 * MIB, grant=32 * MIB), over(poor, 8 * MIB)]
    assert allocate(poor, ceiling, page_size=PAGE)[poor[0].key] == (8 * MIB, 8 * MIB)


def test_a_program_keeps_its_own_lower_soft_limit() -> None:
    modest = [process(1, soft=MIB)]
    assert allocate(modest, [over(modest, 64 * MIB)], page_size=PAGE)[modest[0].key] == (
        MIB,
        64 * MIB,
    )


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_part_of_a_page_allows_nothing(page_size: int) -> None:
    trio = [process(pid) for pid in (1, 2, 3)]
    limit = 10 * page_size - 1
    assert {
        one.hard for one in allocate(trio, [over(trio, limit)], page_size=page_size).values()
    } == {9 * page_size}
    reserved = allocate(trio, [over(trio, limit, Contention.RESERVE)], page_size=page_size)
    assert {one.hard for one in reserved.values()} == {3 * page_size}


@pytest.mark.rule("H2")
def test_a_member_of_unknown_use_is_an_error() -> None:
    known, unknown = process(1), process(2)
    with pytest.raises(KeyError):
        allocate([known], [over([known, unknown], MIB)], page_size=PAGE)


@pytest.mark.rule("P14")
def test_a_grant_below_the_original_limit_lowers_nothing() -> None:
    rich = [process(1, soft=MIB, hard=32 * MIB)]
    assert allocate(rich, [over(rich, 64 * MIB, grant=4 * MIB)], page_size=PAGE)[rich[0].key] == (
        4 * MIB,
        32 * MIB,
    )
    assert allocate(rich, [over(rich, 64 * MIB, grant=0)], page_size=PAGE)[rich[0].key] == (
        MIB,
        32 * MIB,
    )


@pytest.mark.rule("P1", "P14")
@given(cases())
def test_exact_processes_get_the_whole_limit_up_to_their_original_limit(
    case: tuple[list[ProcessUsage], list[Constraint]],
) -> None:
    processes, constraints = case
    exact = [dataclasses.replace(each, exact=True) for each in processes]
    dealt = allocate(exact, constraints, page_size=PAGE)
    for each in exact:
        limits = [one.limit.limit for one in constraints if each.key in one.members]
        grants = [
            one.limit.grant
            for one in constraints
            if each.key in one.members and one.limit.grant is not None
        ]
        may = max(each.own, min(limits, default=UNLIMITED))
        most = min(
            may if may == UNLIMITED else may - may % PAGE, max(each.original_hard, *grants, 0)
        )
        assert dealt[each.key].hard == most
        assert dealt[each.key].soft <= most


@pytest.mark.rule("P1")
def test_use_of_another_process_does_not_lower_an_exact_process() -> None:
    full = [constraint(4 * MIB, frozenset({ProcessKey(1, 1), ProcessKey(2, 2)}), Contention.SHARE)]
    holder, other = process(1, locked=3 * MIB), dataclasses.replace(process(2), exact=True)
    dealt = allocate([holder, other], full, page_size=PAGE)
    assert dealt[other.key].hard == 4 * MIB
    assert dealt[holder.key].hard == 4 * MIB
