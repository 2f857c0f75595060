"""Whether a shared memory group allows the mapping of its objects (M2, M8, M10). Pure.

- Only a member may borrow. Another pod gets EACCES, which `mmap(2)` and `shmat(2)` return for a
  lack of permission.
- While a group drains, a member with nothing of it mapped may not start to borrow: EACCES.
- A member with a limit on its mapped bytes must not exceed it: ENOMEM. Each byte of an object
  counts once, however many processes of the pod have it mapped. A call without new bytes is never
  denied, also above the limit.

Limits on resident bytes are not checked here, because a mapping makes nothing resident. Groups with
the enforcement Audit deny nothing.
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

CALLS_IN_FLIGHT = "calls in flight do not return"


class ObjectRange(NamedTuple):
    """Bytes [start, end) of an object."""

    object: ObjectId
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BorrowDenial:
    """Why a call is not allowed now, by which group. `group` is None if the object is not known.

    Unless a denial is `final`, the next check may allow the same call. `not_member` is true for a
    pod outside the group. With `allowed`, the call is continued all the same. Amounts are in bytes.
    """

    group: NodeGroup | None
    error: int
    reason: str
    final: bool = True
    not_member: bool = False
    allowed: bool = False
    asked: int | None = None
    mapped: int | None = None
    limit: int | None = None


class BorrowRules:
    """The enforcing groups, and the known objects of each group on this node. Immutable."""

    def __init__(
        self, groups: Iterable[NodeGroup] = (), objects: Mapping[str, ObjectSet] | None = None
    ) -> None:
        self._objects = dict(objects or {})
        self._groups = tuple(
            group
            for group in groups
            if group.enforcement is Enforcement.ENFORCE and self._objects.get(group.uid)
        )
        self._limits = {group.uid: _mapped_limits(group) for group in self._groups}
        self.region_filter = RegionFilter([self._objects[group.uid] for group in self._groups])
        self._segments = {
            (segment.inode, segment.space): segment
            for group in self._groups
            for segment in self._objects[group.uid].objects
            if segment.space
        }
        self._sizes = {
            segment: size
            for group in self._groups
            for segment, size in self._objects[group.uid].sizes
        }

    def __bool__(self) -> bool:
        """Return whether any group can deny a call."""
        return bool(self._groups)

    def groups_of(self, object_id: ObjectId) -> tuple[NodeGroup, ...]:
        """Return the groups of an object. Each of them must allow a call."""
        return tuple(group for group in self._groups if self._objects[group.uid].has(object_id))

    def segment(self, shmid: int, space: int) -> ObjectId | None:
        """Return the System V segment with an id in an IPC namespace, or None without a group."""
        return self._segments.get((shmid, space))

    def size(self, segment: ObjectId) -> int:
        """Return the bytes of a group's System V segment, 1 if its size is not known."""
        return self._sizes.get(segment, 1)

    def has_member(self, pod: str) -> bool:
        """Return whether a pod is a member of any group."""
        return any(pod in limits for limits in self._limits.values())

    def check_member(self, group: NodeGroup, pod: str) -> BorrowDenial | None:
        """Return a denial if a pod is not a member of a group."""
        if pod in self._limits[group.uid]:
            return None
        return BorrowDenial(group, errno.EACCES, "the pod is not a member", not_member=True)

    def limit(self, group: NodeGroup, pod: str) -> int | None:
        """Return the limit on a member's mapped bytes, or None without a limit."""
        return self._limits[group.uid].get(pod)

    def depends_on_mapped(self, group: NodeGroup, pod: str) -> bool:
        """Return whether the decision depends on the member's mapped bytes."""
        return group.draining or self.limit(group, pod) is not None

    def check(
        self,
        group: NodeGroup,
        pod: str,
        wanted: ObjectRange,
        mapped: Iterable[ObjectRange],
        in_flight: Sequence[ObjectRange] | None,
    ) -> BorrowDenial | None:
        """Return a denial if a group does not allow a member to map a range.

        `mapped` are the member's mapped ranges. The ranges of calls `in_flight` may or may not be
        in `mapped`; None stands for any ranges.
        """
        objects = self._objects[group.uid]
        present = [item for item in mapped if objects.has(item.object)]
        pending = None
        if in_flight is not None:
            pending = [item for item in in_flight if objects.has(item.object)]
        before = total(present)
        if group.draining and not before and pending == []:
            reason = "the group drains, and the pod has none of its bytes mapped"
            return BorrowDenial(group, errno.EACCES, reason, mapped=0)
        limit = self.limit(group, pod)
        if limit is None:
            return None
        after = total([*present, wanted])
        if after == before:
            return None
        exceeds = after > limit
        if not exceeds and pending is not None and total([*present, wanted, *pending]) <= limit:
            return None
        return BorrowDenial(
            group,
            errno.ENOMEM,
            "the mapping exceeds the borrow limit" if exceeds else CALLS_IN_FLIGHT,
            final=exceeds,
            asked=after - before,
            mapped=before,
            limit=limit,
        )


def total(ranges: Iterable[ObjectRange]) -> int:
    """Return the bytes in any of the ranges, each byte once."""
    by_object: dict[ObjectId, list[tuple[int, int]]] = {}
    for item in ranges:
        by_object.setdefault(item.object, []).append((item.start, item.end))
    return sum(Intervals.of(pairs).total for pairs in by_object.values())


def _mapped_limits(group: NodeGroup) -> dict[str, int | None]:
    """Return the lowest limit on mapped bytes of each member pod."""
    limits: dict[str, int | None] = {}
    for member in group.members:
        limit = member.borrow_limit if member.borrow_limit_on is LimitOn.MAPPED else None
        for pod in member.pods:
            known = [value for value in (limits.get(pod), limit) if value is not None]
            limits[pod] = min(known, default=None)
    return limits
