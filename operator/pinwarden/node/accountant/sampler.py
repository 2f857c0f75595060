"""The borrows of each pod from each group (M3 to M6), sampled only after a possible change.

The pages in a pod's page tables change for three reasons. The pod did it, and used processor time.
Or pages of the object were freed or replaced, and the object's charge changed. Or the kernel
removed pages on its own (`vmstat`). Without any of these, the figure of the last walk is still
true and keeps its time. The kernel counts some of its work before the page tables change. So a
walk is not kept if the counters changed since the previous sample.

Some rare changes are missed until the next walk, after `FRESH_SECONDS` at most:

- pages punched out and filled again at once, and a write past the page cache,
- a page inserted by another pod through userfaultfd,
- a page table replaced by khugepaged long after the collapse of its pages
  (collapse_pte_mapped_thp).

A System V segment is known by its number in an IPC namespace. If a process attaches a segment
and then moves to another IPC namespace, the mapping is not found: its number belongs to the other
namespace. The move takes CAP_SYS_ADMIN in a user namespace.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pinwarden.common.guard import Guard
from pinwarden.node.accountant.page_walk import PodPages, walk
from pinwarden.node.linux.cgroupfs import cpu_time, member_pids
from pinwarden.node.linux.intervals import Intervals, union
from pinwarden.node.linux.vmstat import ReclaimCounters, reclaim_counters
from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.shm.regions import RegionFilter

FRESH_SECONDS: Final = 60.0
"""A figure is never older than this after a sample."""


@dataclass(frozen=True, slots=True)
class Borrow:
    """The share of one or several pods in a group, in bytes; `resident` is None if not wanted.

    `time` is the time of the walk, of several walks the earliest. If the borrow is not `complete`,
    the amounts are lower bounds (H2), and `reason` says why.
    """

    mapped: int
    resident: int | None
    time: float
    complete: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Query:
    """The arguments of a sample; walks are kept while they are equal."""

    objects: Mapping[str, ObjectSet]
    resident: frozenset[str]
    dmabufs: frozenset[int]


@dataclass(frozen=True, slots=True)
class _PodState:
    """The pod's own state, read before the walk, on which its figures depend."""

    cgroups: tuple[Path, ...]
    pids: tuple[frozenset[int], ...]
    activity: tuple[bytes | None, ...]


@dataclass(slots=True)
class _Walk:
    """A walk over a pod: its result, the result's conditions, and the objects of each group."""

    time: float
    state: _PodState
    tops: tuple[Path, ...]
    counters: ReclaimCounters | None
    pages: PodPages
    groups: dict[str, list[ObjectId]] = field(default_factory=dict)
    stamps: dict[str, object] = field(default_factory=dict)
    borrows: dict[str, Borrow] = field(default_factory=dict)


class BorrowSampler:
    """Samples some pods, and keeps their last walks.

    This is 16 bytes for each stretch of pages, mapped or resident.
    """

    def __init__(self, proc_root: Path = Path("/proc"), guard: Guard | None = None) -> None:
        """`guard` knows the kind `pod`."""
        self._guard = guard or Guard(["pod"])
        self._proc_root = proc_root
        self._query = _Query({}, frozenset(), frozenset())
        self._wanted = RegionFilter(())
        self._by_device: dict[int, list[str]] = {}
        self._by_object: dict[ObjectId, list[str]] = {}
        self._walks: dict[str, _Walk] = {}
        self._counters: ReclaimCounters | None = None
        self.walked = 0
        """The number of pods walked in the last sample."""

    def sample(
        self,
        now: float,
        pods: Mapping[str, Sequence[Path]],
        objects: Mapping[str, ObjectSet],
        resident: Collection[str],
        dmabufs: frozenset[int] = frozenset(),
        stamps: Mapping[str, object] | None = None,
    ) -> dict[tuple[str, str], Borrow]:
        """Return the borrows of the pods by the UIDs of group and pod, without empty borrows.

        Args:
            now: seconds of a monotonic clock.
            pods: all cgroups of each pod, as in `cgroups.PodCgroup.members`.
            objects: the objects of each group.
            resident: the groups whose resident pages are wanted; of others only mapped bytes.
            dmabufs: devices of dma-bufs. Their objects are resident wherever they are mapped, and
                their pages are in no page table as such.
            stamps: for each group a value to compare, which changes with the content: the charge. A
                pod with resident pages of a group without a value is walked every time.
        """
        self._set_query(_Query(dict(objects), frozenset(resident) & objects.keys(), dmabufs))
        counters = reclaim_counters(self._proc_root)
        calm = counters == self._counters
        self._counters = counters
        before, self._walks = self._walks, {}
        for uid, cgroups in pods.items():
            self._walks[uid] = self._unread(now, tuple(cgroups))
            with self._guard.item("pod", f"{uid}: mappings"):
                self._walks[uid] = self._sample_pod(
                    now, tuple(cgroups), before.get(uid), counters, stamps or {}, calm=calm
                )
        self.walked = sum(pod_walk is not before.get(uid) for uid, pod_walk in self._walks.items())
        return {
            (group, uid): borrow
            for uid, pod_walk in self._walks.items()
            for group, borrow in pod_walk.borrows.items()
        }

    def retain(self, uids: Collection[str]) -> None:
        """Forget all other pods, which are gone."""
        self._walks = {uid: pod_walk for uid, pod_walk in self._walks.items() if uid in uids}

    def incomplete(self) -> dict[str, str]:
        """Return the pods of the last sample with possibly unknown mappings, and the reasons."""
        return {
            uid: pod_walk.pages.reason
            for uid, pod_walk in self._walks.items()
            if pod_walk.pages.reason
        }

    def _set_query(self, query: _Query) -> None:
        if query == self._query:
            return
        self._query = query
        self._wanted = RegionFilter(query.objects.values())
        self._by_device, self._by_object, self._walks = {}, {}, {}
        for uid, objects in query.objects.items():
            for device in objects.devices:
                self._by_device.setdefault(device, []).append(uid)
            for identity in objects.objects:
                if identity.device not in objects.devices:
                    self._by_object.setdefault(identity, []).append(uid)

    def _groups(self, identity: ObjectId) -> list[str]:
        return self._by_device.get(identity.device, []) + self._by_object.get(identity, [])

    def _is_walked(self, identity: ObjectId) -> bool:
        return identity.device not in self._query.dmabufs and not self._query.resident.isdisjoint(
            self._groups(identity)
        )

    def _sample_pod(
        self,
        now: float,
        cgroups: tuple[Path, ...],
        last: _Walk | None,
        counters: ReclaimCounters | None,
        stamps: Mapping[str, object],
        *,
        calm: bool,
    ) -> _Walk:
        """Return the last walk if nothing can have changed since, else a new one.

        Unless `calm`, the kernel may remove pages during the new walk, so the next sample walks
        again.
        """
        tops = last.tops if last and last.state.cgroups == cgroups else _tops(cgroups)
        activity = tuple(cpu_time(top) for top in tops)
        pids = []
        reason = ""
        for cgroup in cgroups:
            try:
                pids.append(member_pids(cgroup))
            except OSError as error:
                reason = f"{cgroup} cannot be read: {error.strerror}"
        state = _PodState(cgroups, tuple(pids), activity)
        if last and not reason and _is_current(last, state, now, counters, stamps):
            return last
        pages = walk(
            self._proc_root, sorted(frozenset[int]().union(*pids)), self._wanted, self._is_walked
        )
        pages.reason = pages.reason or reason
        new = _Walk(now, state, tops, counters if calm else None, pages)
        for identity, mapped in pages.mapped.items():
            if identity.device in self._query.dmabufs:
                pages.resident[identity] = mapped
            for group in self._groups(identity):
                new.groups.setdefault(group, []).append(identity)
        for group in new.groups:
            new.borrows[group] = self._borrow(group, [new])
            if group in self._query.resident:
                new.stamps[group] = stamps.get(group)
        return new

    @staticmethod
    def _unread(now: float, cgroups: tuple[Path, ...]) -> _Walk:
        """Return the walk of an unreadable pod."""
        return _Walk(
            now, _PodState(cgroups, (), ()), (), None, PodPages(reason="the pod cannot be read")
        )

    def _borrow(self, group: str, walks: Sequence[_Walk]) -> Borrow:
        reasons = [pod_walk.pages.reason for pod_walk in walks if pod_walk.pages.reason]
        resident = None
        if group in self._query.resident:
            resident = _total(group, ((pod_walk, pod_walk.pages.resident) for pod_walk in walks))
        return Borrow(
            mapped=_total(group, ((pod_walk, pod_walk.pages.mapped) for pod_walk in walks)),
            resident=resident,
            time=min(pod_walk.time for pod_walk in walks),
            complete=not reasons,
            reason=reasons[0] if reasons else "",
        )

    @staticmethod
    def together(group: str, samplers: Iterable["BorrowSampler"]) -> Borrow | None:
        """Return the borrow of all pods of these samplers together, each page once.

        Return None without any pod. The group's charge beyond `resident` is orphaned (M9).
        """
        samplers = list(samplers)
        walks = [pod_walk for sampler in samplers for pod_walk in sampler._walks.values()]
        return samplers[0]._borrow(group, walks) if walks else None


def _total(group: str, walks: Iterable[tuple[_Walk, Mapping[ObjectId, Intervals]]]) -> int:
    """Return the bytes of a union, object by object."""
    parts: dict[ObjectId, list[Intervals]] = {}
    for pod_walk, by_object in walks:
        for identity in pod_walk.groups.get(group, ()):
            if identity in by_object:
                parts.setdefault(identity, []).append(by_object[identity])
    return sum(union(intervals).total for intervals in parts.values())


def _is_current(
    last: _Walk,
    state: _PodState,
    now: float,
    counters: ReclaimCounters | None,
    stamps: Mapping[str, object],
) -> bool:
    """Return whether all conditions of a walk's figures are unchanged.

    Resident pages also depend on the objects and on the kernel.
    """
    return (
        not last.pages.reason
        and now - last.time < FRESH_SECONDS
        and None not in state.activity
        and state == last.state
        and (not last.stamps or (counters is not None and counters == last.counters))
        and all(
            stamp is not None and stamps.get(group) == stamp for group, stamp in last.stamps.items()
        )
    )


def _tops(cgroups: Sequence[Path]) -> tuple[Path, ...]:
    """Return the cgroups below none of the others; their processor time includes all below."""
    every = frozenset(cgroups)
    return tuple(cgroup for cgroup in cgroups if every.isdisjoint(cgroup.parents))
