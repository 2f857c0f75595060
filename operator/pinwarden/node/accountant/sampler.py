"""What each pod borrows of each group's shared memory (M3 to M6), sampled no more often than it can have changed.

What a pod has in its page tables changes by its own doing, and then it used processor time; by the object's pages being freed or
replaced, and then the object's charge changes; and by the kernel taking pages out on its own (`vmstat`). Where none of it happened,
the figure of the last walk still holds and keeps its time. The kernel counts some of its work before the page tables change, so a walk is
not kept if the counters changed since the previous sample. What goes unnoticed is rare (pages punched out and filled again at once, a
write past the page cache, a page put there by another pod through userfaultfd), and made up for by a walk every `FRESH_SECONDS`.

A System V segment is known by its number in an IPC namespace. A process that attached one and then went to another IPC namespace, which
takes CAP_SYS_ADMIN in a user namespace, has it mapped under a number that is not of its namespace, and it is not found.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pinwarden.common.guard import Guard
from pinwarden.node.accountant.page_walk import Found, walk
from pinwarden.node.linux.cgroupfs import cpu_time, member_pids
from pinwarden.node.linux.intervals import Intervals, union
from pinwarden.node.linux.vmstat import ReclaimCounters, reclaim_counters
from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.shm.regions import RegionFilter

FRESH_SECONDS: Final = 60.0
"""A figure is never older than this after a sample."""


@dataclass(frozen=True, slots=True)
class Borrow:
    """What a pod, or several together, have of a group, in bytes; `resident` is None where it was not asked for.

    `time` is when it was really looked at, of several the earliest. Where it is not `complete`, the amounts are lower bounds (H2), and
    `reason` says why.
    """

    mapped: int
    resident: int | None
    time: float
    complete: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked for; equal while it is the same."""

    extents: Mapping[str, ObjectSet]
    resident: frozenset[str]
    whole: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a pod's figures depend on and is the pod's, read before the walk."""

    directories: tuple[Path, ...]
    pids: tuple[frozenset[int], ...]
    activity: tuple[bytes | None, ...]


@dataclass(slots=True)
class _Walk:
    """A walk over a pod: what it found, what that depends on, and the objects of each group in it."""

    time: float
    seen: _Seen
    tops: tuple[Path, ...]
    reclaim_counters: ReclaimCounters | None
    found: Found
    groups: dict[str, list[ObjectId]] = field(default_factory=dict)
    stamps: dict[str, object] = field(default_factory=dict)
    borrows: dict[str, Borrow] = field(default_factory=dict)


class BorrowSampler:
    """Samples some pods, and keeps of each what saves the next walk: 16 bytes for each stretch of pages, mapped or resident."""

    def __init__(self, proc_root: Path = Path("/proc"), guard: Guard | None = None) -> None:
        """`guard` knows the kind `pod`."""
        self._guard = guard or Guard(["pod"])
        self._proc_root = proc_root
        self._asked = _Asked({}, frozenset(), frozenset())
        self._wanted = RegionFilter(())
        self._by_device: dict[int, list[str]] = {}
        self._by_object: dict[ObjectId, list[str]] = {}
        self._walks: dict[str, _Walk] = {}
        self._pressure: ReclaimCounters | None = None
        self.walked = 0
        """How many pods the last sample walked."""

    def sample(
        self,
        now: float,
        pods: Mapping[str, Sequence[Path]],
        extents: Mapping[str, ObjectSet],
        resident: Collection[str],
        whole: frozenset[int] = frozenset(),
        stamps: Mapping[str, object] | None = None,
    ) -> dict[tuple[str, str], Borrow]:
        """What the pods have mapped, by the uids of group and pod; a pair with nothing mapped is not in it.

        Args:
            now: seconds of a monotonic clock.
            pods: all cgroup directories of each, as `cgroups.PodCgroup.members` has them.
            extents: what belongs to each group.
            resident: the groups whose resident pages are wanted; of others only what is mapped.
            whole: devices whose objects are resident wherever they are mapped, and whose pages are in no page table as such: dma-bufs.
            stamps: of a group, what is another value once its objects' content has changed: their charge. Where it is missing or None, who
                has the group mapped is walked every time, unless only mapped bytes are wanted.
        """
        self._ask(_Asked(dict(extents), frozenset(resident) & extents.keys(), whole))
        taken = reclaim_counters(self._proc_root)
        calm = taken == self._pressure
        self._pressure = taken
        before, self._walks = self._walks, {}
        for uid, directories in pods.items():
            self._walks[uid] = self._unread(now, tuple(directories))
            with self._guard.item("pod", f"{uid}: mappings"):
                self._walks[uid] = self._look(
                    now, tuple(directories), before.get(uid), taken, stamps or {}, calm=calm
                )
        self.walked = sum(each is not before.get(uid) for uid, each in self._walks.items())
        return {(group, uid): one for uid, each in self._walks.items() for group, one in each.borrows.items()}

    def keep(self, uids: Collection[str]) -> None:
        """Forget what was seen of all pods but these: the others are gone."""
        self._walks = {uid: each for uid, each in self._walks.items() if uid in uids}

    def incomplete(self) -> dict[str, str]:
        """The pods of the last sample that could not be read wholly, and why: they may have mapped what is not in it."""
        return {uid: each.found.reason for uid, each in self._walks.items() if each.found.reason}

    def _ask(self, asked: _Asked) -> None:
        if asked == self._asked:
            return
        self._asked = asked
        self._wanted = RegionFilter(asked.extents.values())
        self._by_device, self._by_object, self._walks = {}, {}, {}
        for uid, extent in asked.extents.items():
            for device in extent.devices:
                self._by_device.setdefault(device, []).append(uid)
            for one in extent.objects:
                if one.device not in extent.devices:
                    self._by_object.setdefault(one, []).append(uid)

    def _groups(self, one: ObjectId) -> list[str]:
        return self._by_device.get(one.device, []) + self._by_object.get(one, [])

    def _is_walked(self, one: ObjectId) -> bool:
        return one.device not in self._asked.whole and not self._asked.resident.isdisjoint(self._groups(one))

    def _look(
        self,
        now: float,
        directories: tuple[Path, ...],
        last: _Walk | None,
        taken: ReclaimCounters | None,
        stamps: Mapping[str, object],
        *,
        calm: bool,
    ) -> _Walk:
        """The last walk, if nothing can have changed since, or a new one.

        Unless it is `calm`, the kernel may be taking pages during the new walk, so the next sample walks again.
        """
        tops = last.tops if last and last.seen.directories == directories else _tops(directories)
        activity = tuple(cpu_time(top) for top in tops)
        pids = []
        reason = ""
        for directory in directories:
            try:
                pids.append(member_pids(directory))
            except OSError as error:
                reason = f"{directory} cannot be read: {error.strerror}"
        seen = _Seen(directories, tuple(pids), activity)
        if last and not reason and _holds(last, seen, now, taken, stamps):
            return last
        found = walk(self._proc_root, sorted(frozenset[int]().union(*pids)), self._wanted, self._is_walked)
        found.reason = found.reason or reason
        made = _Walk(now, seen, tops, taken if calm else None, found)
        for one, extent in found.mapped.items():
            if one.device in self._asked.whole:
                found.resident[one] = extent
            for group in self._groups(one):
                made.groups.setdefault(group, []).append(one)
        for group in made.groups:
            made.borrows[group] = self._add(group, [made])
            if group in self._asked.resident:
                made.stamps[group] = stamps.get(group)
        return made

    @staticmethod
    def _unread(now: float, directories: tuple[Path, ...]) -> _Walk:
        """In place of a walk over a pod that cannot be read."""
        return _Walk(now, _Seen(directories, (), ()), (), None, Found(reason="it cannot be read"))

    def _add(self, group: str, walks: Sequence[_Walk]) -> Borrow:
        reasons = [each.found.reason for each in walks if each.found.reason]
        return Borrow(
            mapped=_total(group, ((each, each.found.mapped) for each in walks)),
            resident=_total(group, ((each, each.found.resident) for each in walks))
            if group in self._asked.resident
            else None,
            time=min(each.time for each in walks),
            complete=not reasons,
            reason=reasons[0] if reasons else "",
        )

    @staticmethod
    def together(group: str, samples: Iterable["BorrowSampler"]) -> Borrow | None:
        """What all pods of these samples have of a group, each page once; None without any pod.

        What the group is charged beyond `resident` nobody borrows (M9).
        """
        samples = list(samples)
        walks = [each for sample in samples for each in sample._walks.values()]
        return samples[0]._add(group, walks) if walks else None


def _total(group: str, walks: Iterable[tuple[_Walk, Mapping[ObjectId, Intervals]]]) -> int:
    """The size of a union, object by object."""
    parts: dict[ObjectId, list[Intervals]] = {}
    for each, found in walks:
        for one in each.groups.get(group, ()):
            if one in found:
                parts.setdefault(one, []).append(found[one])
    return sum(union(extents).total for extents in parts.values())


def _holds(
    last: _Walk, seen: _Seen, now: float, taken: ReclaimCounters | None, stamps: Mapping[str, object]
) -> bool:
    """Whether all that a walk's figures depend on is as it was; for resident pages that is also the objects and the kernel."""
    return (
        not last.found.reason
        and now - last.time < FRESH_SECONDS
        and None not in seen.activity
        and seen == last.seen
        and (not last.stamps or (taken is not None and taken == last.reclaim_counters))
        and all(stamp is not None and stamps.get(group) == stamp for group, stamp in last.stamps.items())
    )


def _tops(directories: Sequence[Path]) -> tuple[Path, ...]:
    """Those that are below none of the others: processor time is told for all below."""
    every = frozenset(directories)
    return tuple(each for each in directories if every.isdisjoint(each.parents))
