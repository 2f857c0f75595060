"""Sets of numbers as sorted, disjoint, half-open intervals that do not touch: byte offsets in an object.

The work is done by `sorted`, `map` and `compress`, so that an interval costs a tenth of a microsecond: a pod with a large object in small
pieces has many. Two flat arrays hold 16 bytes for each.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain, compress, islice
from operator import gt


class Intervals:
    """One set. It is never changed once it is made; `of` and `union` make one from whatever comes."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, starts: "array[int]", ends: "array[int]") -> None:
        """Takes normalised arrays of 64-bit numbers: starts[i] < ends[i] < starts[i + 1]."""
        self._starts = starts
        self._ends = ends

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> "Intervals":
        """The set of pairs in any order; one that ends where it starts, or before, is empty."""
        kept = [pair for pair in pairs if pair[0] < pair[1]]
        return cls.joined([start for start, _ in kept], [end for _, end in kept])

    @classmethod
    def joined(cls, starts: list[int], ends: list[int]) -> "Intervals":
        """The set of intervals, none of them empty, by their starts and ends, both in any order. Both lists are sorted in place.

        With both sorted apart, as many intervals have begun before the n-th start as have ended by the n-th end before it exactly where the
        start is the greater one: there, and only there, nothing is covered in between.
        """
        if not starts:
            return EMPTY
        starts.sort()
        ends.sort()
        apart = list(map(gt, islice(starts, 1, None), ends))
        return cls(
            array("Q", chain((starts[0],), compress(islice(starts, 1, None), apart))),
            array("Q", chain(compress(ends, apart), (ends[-1],))),
        )

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """How many intervals."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Intervals):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    def __hash__(self) -> int:
        return hash((self._starts.tobytes(), self._ends.tobytes()))

    def __repr__(self) -> str:
        return f"Intervals.of({list(self)})"

    @property
    def total(self) -> int:
        """How many numbers are in it."""
        return sum(self._ends) - sum(self._starts)

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is not in it, in order. Costs the logarithm of its length, and what it finds."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        edges = zip(
            chain((start,), self._ends[first:last]), chain(self._starts[first:last], (end,)), strict=True
        )
        return [edge for edge in edges if edge[0] < edge[1]]

    def moved(self, by: int) -> "Intervals":
        """The set of its numbers with `by` added; none of them may become negative."""
        if not by:
            return self
        add = by.__add__
        return Intervals(array("Q", map(add, self._starts)), array("Q", map(add, self._ends)))


EMPTY = Intervals(array("Q"), array("Q"))


def union(sets: Iterable[Intervals]) -> Intervals:
    """What is in any of them."""
    some = [each for each in sets if each]
    if len(some) < 2:
        return some[0] if some else EMPTY
    return Intervals.joined(
        list(chain.from_iterable(each._starts for each in some)),
        list(chain.from_iterable(each._ends for each in some)),
    )
