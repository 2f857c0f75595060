"""Intervals against plain sets."""

from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.linux.intervals import EMPTY, Intervals, union

NUMBER = st.integers(0, 40)
PAIRS = st.lists(st.tuples(NUMBER, NUMBER), max_size=12)


def plain(pairs: list[tuple[int, int]]) -> set[int]:
    return {number for start, end in pairs for number in range(start, end)}


@given(PAIRS)
def test_set_contains_the_numbers_of_its_pairs(pairs: list[tuple[int, int]]) -> None:
    made = Intervals.of(pairs)
    assert plain(list(made)) == plain(pairs)
    assert made.total == len(plain(pairs))


@given(PAIRS)
def test_intervals_are_sorted_and_do_not_touch(pairs: list[tuple[int, int]]) -> None:
    edges = [edge for pair in Intervals.of(pairs) for edge in pair]
    assert edges == sorted(set(edges))


@given(PAIRS, PAIRS)
def test_sets_with_equal_numbers_are_equal(
    one: list[tuple[int, int]], two: list[tuple[int, int]]
) -> None:
    first, second = Intervals.of(one), Intervals.of(two)
    assert (first == second) == (plain(one) == plain(two))
    if first == second:
        assert hash(first) == hash(second)


@given(st.lists(PAIRS, max_size=5))
def test_union_contains_the_numbers_of_every_set(many: list[list[tuple[int, int]]]) -> None:
    joined = union(Intervals.of(pairs) for pairs in many)
    assert joined == Intervals.of([pair for pairs in many for pair in pairs])
    assert plain(list(joined)) == set().union(*map(plain, many))


@given(PAIRS, NUMBER, NUMBER)
def test_gaps_are_the_missing_numbers(pairs: list[tuple[int, int]], start: int, end: int) -> None:
    gaps = Intervals.of(pairs).gaps(start, end)
    assert plain(gaps) == set(range(start, end)) - plain(pairs)
    assert gaps == list(Intervals.of(gaps))


@given(PAIRS, st.integers(0, 9))
def test_moving_adds_to_each_number(pairs: list[tuple[int, int]], by: int) -> None:
    made = Intervals.of(pairs)
    assert plain(list(made.moved(by))) == {number + by for number in plain(pairs)}
    assert made.moved(by).moved(-by) == made


def test_ends_of_an_address_space_are_numbers_too() -> None:
    whole = Intervals.of([(0, 2**64 - 1)])
    assert whole.total == 2**64 - 1
    assert union([whole, EMPTY]) is whole
    assert not EMPTY
    assert repr(whole) == "Intervals.of([(0, 18446744073709551615)])"
    assert EMPTY != 0
