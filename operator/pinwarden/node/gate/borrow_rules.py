"""What groups of shared memory have against a call that maps something of theirs (M2, M8, M10). Pure.

- A pod that is no member borrows nothing: EACCES, which mmap(2) and shmat(2) give for a lack of permission.
- While a group drains, a member that has nothing of it mapped does not begin to: EACCES.
- A member under a limit on what it has mapped stays at or under it: ENOMEM. Each byte of an object counts once, however many processes of
  the pod have it mapped. What adds nothing is never refused, also above the limit.

A limit on what is resident is not compared here: a mapping makes nothing resident. BorrowRules that are only audited refuse nothing.
"""

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.api.pinlimit import Enforcement
from pinwarden.api.sharedmemorygroup import LimitOn
from pinwarden.node.linux.intervals import Intervals
from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.shm.regions import RegionFilter

CALLS_IN_FLIGHT = "calls that are under way do not end"


class ObjectRange(NamedTuple):
    """Bytes [start, end) of an object."""

    object: ObjectId
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BorrowDenial:
    """Why a call is not let through, as things are: `group` is the one that has something against it, None where that is not known.

    A refusal that is not `final` depends on what changes by itself, and is looked at again for a while. `stranger`: the pod is no member.
    Amounts are in bytes.
    """

    group: NodeGroup | None
    error: int
    reason: str
    final: bool = True
    not_member: bool = False
    asked: int | None = None
    mapped: int | None = None
    limit: int | None = None


class BorrowRules:
    """The groups that refuse, and what is known to belong to each on this node. It is never changed once it is made."""

    def __init__(
        self, groups: Iterable[NodeGroup] = (), extents: Mapping[str, ObjectSet] | None = None
    ) -> None:
        self._extents = dict(extents or {})
        self._groups = tuple(
            group
            for group in groups
            if group.enforcement is Enforcement.ENFORCE and self._extents.get(group.uid)
        )
        self._terms = {group.uid: _terms(group) for group in self._groups}
        self.wanted = RegionFilter([self._extents[group.uid] for group in self._groups])
        self._segments = {
            (one.inode, one.space): one
            for group in self._groups
            for one in self._extents[group.uid].objects
            if one.space
        }

        self._sizes = {one: size for group in self._groups for one, size in self._extents[group.uid].sizes}

    def __bool__(self) -> bool:
        """Whether anything can be refused."""
        return bool(self._groups)

    def groups_of(self, one: ObjectId) -> tuple[NodeGroup, ...]:
        """The groups that an object belongs to; each has its say."""
        return tuple(group for group in self._groups if self._extents[group.uid].has(one))

    def segment(self, identity: int, space: int) -> ObjectId | None:
        """The System V segment with this id in this IPC namespace; None when it belongs to no group."""
        return self._segments.get((identity, space))

    def size(self, segment: ObjectId) -> int:
        """Bytes of a System V segment of a group: a page at least, where nobody told."""
        return self._sizes.get(segment, 1)

    def check_member(self, group: NodeGroup, pod: str) -> BorrowDenial | None:
        """What a group has against a pod that is no member."""
        if pod in self._terms[group.uid]:
            return None
        return BorrowDenial(group, errno.EACCES, "the pod is no member", not_member=True)

    def limit(self, group: NodeGroup, pod: str) -> int | None:
        """Bytes that a member may have mapped."""
        return self._terms[group.uid].get(pod)

    def depends_on_mapped(self, group: NodeGroup, pod: str) -> bool:
        """Whether it matters what a member has mapped already."""
        return group.draining or self.limit(group, pod) is not None

    def check(
        self,
        group: NodeGroup,
        pod: str,
        wanted: ObjectRange,
        mapped: Iterable[ObjectRange],
        in_flight: Sequence[ObjectRange] | None,
    ) -> BorrowDenial | None:
        """What a group has against a member that maps this range beside what it has `mapped`.

        Calls that are `under_way` may have mapped these ranges or may not yet; None stands for anything.
        """
        extent = self._extents[group.uid]
        mine = [one for one in mapped if extent.has(one.object)]
        coming = None if in_flight is None else [one for one in in_flight if extent.has(one.object)]
        now = total(mine)
        if group.draining and not now and not coming and coming is not None:
            return BorrowDenial(
                group, errno.EACCES, "it is being drained, and the pod has nothing of it", mapped=0
            )
        limit = self.limit(group, pod)
        if limit is None:
            return None
        then = total([*mine, wanted])
        if then == now:
            return None
        if then > limit:
            return BorrowDenial(
                group,
                errno.ENOMEM,
                "it does not fit in the borrow limit",
                asked=then - now,
                mapped=now,
                limit=limit,
            )
        if coming is None or total([*mine, wanted, *coming]) > limit:
            return BorrowDenial(
                group,
                errno.ENOMEM,
                CALLS_IN_FLIGHT,
                final=False,
                asked=then - now,
                mapped=now,
                limit=limit,
            )
        return None


def total(ranges: Iterable[ObjectRange]) -> int:
    """Bytes in any of them, each once."""
    by_object: dict[ObjectId, list[tuple[int, int]]] = {}
    for one in ranges:
        by_object.setdefault(one.object, []).append((one.start, one.end))
    return sum(Intervals.of(pairs).total for pairs in by_object.values())


def _terms(group: NodeGroup) -> dict[str, int | None]:
    """The tightest limit on what is mapped that each member pod has."""
    found: dict[str, int | None] = {}
    for member in group.members:
        limit = member.borrow_limit if member.borrow_limit_on is LimitOn.MAPPED else None
        for pod in member.pods:
            before = found.get(pod)
            found[pod] = limit if before is None else before if limit is None else min(before, limit)
    return found
