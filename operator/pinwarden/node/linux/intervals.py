"""Sets of numbers, such as byte offsets in an object, as sorted half-open intervals.

There is a gap between any two intervals.

`sorted`, `map` and `compress` do the work, so an interval costs a tenth of a microsecond. This
matters for a pod with a large object in many small pieces. Two flat arrays take 16 bytes for
each interval.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain, compress, islice
from operator import gt


class Intervals:
    """One set, immutable. `of` and `union` create a set from any input."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, starts: "array[int]", ends: "array[int]") -> None:
        """Take normalised arrays of 64-bit numbers: starts[i] < ends[i] < starts[i + 1]."""
        self._starts = starts
        self._ends = ends

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> "Intervals":
        """Return the set of pairs in any order. A pair without start < end is empty."""
        kept = [pair for pair in pairs if pair[0] < pair[1]]
        return cls.joined([start for start, _ in kept], [end for _, end in kept])

    @classmethod
    def joined(cls, starts: list[int], ends: list[int]) -> "Intervals":
        """Return the set of nonempty intervals by their starts and ends, both in any order.

        Both lists are sorted in place, each on its own. There is a gap before the n-th start
        exactly if this start is greater than the previous end in order: then as many intervals
        have ended as have begun.
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
        """Return the number of intervals."""
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
        """The number of elements."""
        return sum(self._ends) - sum(self._starts)

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the parts of [start, end) outside the set, in order.

        The cost is the logarithm of the length, and the number of parts.
        """
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        edges = zip(
            chain((start,), self._ends[first:last]),
            chain(self._starts[first:last], (end,)),
            strict=True,
        )
        return [edge for edge in edges if edge[0] < edge[1]]

    def moved(self, by: int) -> "Intervals":
        """Return the set with `by` added to each number; no number may become negative."""
        if not by:
            return self
        add = by.__add__
        return Intervals(array("Q", map(add, self._starts)), array("Q", map(add, self._ends)))


EMPTY = Intervals(array("Q"), array("Q"))


def union(sets: Iterable[Intervals]) -> Intervals:
    """Return the union of sets."""
    nonempty = [intervals for intervals in sets if intervals]
    if len(nonempty) < 2:
        return nonempty[0] if nonempty else EMPTY
    return Intervals.joined(
        list(chain.from_iterable(intervals._starts for intervals in nonempty)),
        list(chain.from_iterable(intervals._ends for intervals in nonempty)),
    )
