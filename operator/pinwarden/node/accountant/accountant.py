"""A round of the accountant: finds and makes the objects of all groups, samples what pods borrow, and says what it found.

It has no thread and never waits; the caller gives it a spec and ticks. Nothing is kept from one round to the next but what saves work:
after a crash the next round finds all of it again (H3). The wait after a round is `TIMES_ITS_COST` times the processor time that it
took, so a busy node is sampled less often, and each figure bears its time (H2). It is `LONGEST_SECONDS` at the most: rounds of up to a
second take a twentieth of a core, longer ones more. Pods that are no members are walked every `OTHERS_SECONDS`, or more seldom by
the same rule. Their walk does not delay the next round.

Where two groups may stand for one object, the first of the spec has it, which is the older one, and the other says so.

A pod or group that fails costs itself (`guard`): the group bears the cause, the pod counts as one that cannot be read, and all others
are accounted.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pinwarden.api.nodepinconfig import (
    BorrowReport,
    FairReport,
    GroupReport,
    Mode,
    NodeGroup,
    NodePinConfigSpec,
)
from pinwarden.api.pinlimit import Enforcement, Level
from pinwarden.api.sharedmemorygroup import Accounting, LimitOn, Management, Phase
from pinwarden.common.guard import Guard
from pinwarden.common.text import printable
from pinwarden.node.accountant.dead_cgroups import DeadCgroups
from pinwarden.node.accountant.fair_view import pod_memory
from pinwarden.node.accountant.finder import MOST_OBJECTS, Finder, Instance, NotFoundError
from pinwarden.node.accountant.provisioner import NotMadeError, Provisioner, place
from pinwarden.node.accountant.sampler import Borrow, BorrowSampler
from pinwarden.node.accountant.users import users
from pinwarden.node.linux.cgroupfs import member_pids, process_hierarchy
from pinwarden.node.pods.cgroups import PodCgroup, explore
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.shm.objects import ObjectSet
from pinwarden.node.state.accountant_status import AccountantStatus
from pinwarden.node.state.gate_status import NAME as GATE_RECORD
from pinwarden.node.state.gate_status import GateStatus
from pinwarden.node.state.gate_status import load as load_gate

SHORTEST_SECONDS = 1.0
OTHERS_SECONDS = 10.0
LONGEST_SECONDS = 20.0
TIMES_ITS_COST = 20
MOST_NODE_OBJECTS = 8192
SEGMENTS = "shared-segments.json"
MOST_BORROWERS = 100
MOST_NODE_BORROWERS = 1024
_NAMED = 3
_NOT_READABLE = "NotReadable"
KINDS = ("pod", "group", "budget", "round")
"""Kinds of items that the accountant guards."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Round:
    """What is known of a group in this round. `problem` is a reason and a message; `claimed` is what an older group stands for, too."""

    group: NodeGroup
    instance: Instance | None = None
    claimed: Instance | None = None
    problem: tuple[str, str] = ("", "")
    borrows: dict[str, Borrow] = field(default_factory=dict)
    phase: Phase = Phase.PENDING

    @property
    def extent(self) -> ObjectSet:
        return self.instance.extent if self.instance else ObjectSet()

    @property
    def concerns(self) -> bool:
        """Whether its members have a share of something, be it unknown."""
        return self.instance is not None or self.problem[0] == _NOT_READABLE

    @property
    def path(self) -> str | None:
        """Where pinwarden mounts it, if it does."""
        return place(self.group) if self.group.management is Management.CREATE else None


class Accountant:
    """Accounts for one node. `budget`: bytes that it may make; `run_dir`: with the gate's record; `clock` is monotonic.

    `guard` knows the `KINDS`.
    """

    def __init__(
        self,
        *,
        cgroup_root: Path,
        proc_root: Path,
        run_dir: Path,
        budget: int,
        first: int = 1,
        clock: Callable[[], float] = time.monotonic,
        guard: Guard | None = None,
    ) -> None:
        """Raises ValueError when there is no cgroup hierarchy."""
        self._guard = guard or Guard(KINDS, clock)
        self._pods = PodFinder(process_hierarchy(cgroup_root))
        self._proc_root = proc_root
        self._gate = run_dir / GATE_RECORD
        self._finder = Finder(proc_root, first)
        self._maker = Provisioner(proc_root, cgroup_root, budget, run_dir / SEGMENTS, first)
        self._members = BorrowSampler(proc_root, self._guard)
        self._others = BorrowSampler(proc_root, self._guard)
        self._seen_others: Mapping[tuple[str, str], Borrow] = {}
        self._others_due = float("-inf")
        self._dead_cgroups = DeadCgroups(cgroup_root)
        self._clock = clock
        self._groups: Sequence[NodeGroup] = ()
        self.told = AccountantStatus()

    @property
    def pods_walked(self) -> int:
        """How many pods the last round walked: the others cannot have changed."""
        return self._members.walked

    def configure(self, spec: NodePinConfigSpec) -> None:
        """Takes a spec; the next tick acts on it. In mode Release there is nothing to account, and objects stay."""
        self._groups = () if spec.mode is Mode.RELEASE else spec.groups
        self._others_due = float("-inf")
        self._dead_cgroups.retain({group.uid for group in self._groups})

    def tick(self) -> float:
        """A round; seconds until the next one is wanted. Raises OSError when pods cannot be listed."""
        began, spent = self._clock(), time.process_time()
        if not self._groups:
            self.told = AccountantStatus(failures=dict(self._guard.failures))
            return SHORTEST_SECONDS
        paths = self._pods.find(began)
        attached = frozenset[str]().union(*(group.pods() for group in self._groups))
        pods = dict(self._explored({uid: paths[uid] for uid in attached if uid in paths}))
        rounds = self._find(pods, attached & paths.keys())
        others_cost = self._sample(rounds, pods, paths, began)
        told = self._gates_record()
        for each in rounds:
            name = f"{each.group.uid}: phase"
            with self._guard.item("group", name):
                self._settle(each)
                continue
            each.problem = _NOT_READABLE, self._guard.cause("group", name)
        self.told = AccountantStatus(
            objects={each.group.uid: each.extent for each in rounds},
            groups=tuple(self._reports(rounds, pods, told)),
            fair_view=tuple(self._fair(rounds, pods)),
            failures=dict(self._guard.failures),
        )
        cost = time.process_time() - spent - others_cost  # without the children's, who take pages
        return min(max(SHORTEST_SECONDS, cost * TIMES_ITS_COST), LONGEST_SECONDS)

    def _explored(self, paths: Mapping[str, Sequence[Path]]) -> Iterator[tuple[str, PodCgroup]]:
        for uid, where in paths.items():
            with self._guard.item("pod", uid):
                yield uid, explore(uid, where)

    def _gates_record(self) -> GateStatus | None:
        with self._guard.item("round", "the gate's record"):
            return load_gate(self._gate)
        return None

    # -- objects ---------------------------------------------------------------------------------------------------

    def _find(self, pods: Mapping[str, PodCgroup], here: frozenset[str]) -> list[_Round]:
        """Find the objects of all groups. `here` are the attached pods of this node, also those that cannot be read."""
        pids = {}
        for uid, pod in pods.items():
            with self._guard.item("pod", f"{uid}: processes"):
                pids[uid] = [pid for member in pod.members for pid in sorted(member_pids(member))]
        with self._guard.item("budget"):
            self._maker.begin()
        with self._guard.item("round", "what a round looks at once"):
            self._finder.begin(self._groups, pids)
        rounds = [_Round(group) for group in self._groups]
        taken = ObjectSet()
        for each in rounds:
            group = each.group
            try:
                if group.management is Management.CREATE and not group.draining:
                    self._ensure(each)
                members = {uid: pids[uid] for uid in sorted(group.pods()) if uid in pids}
                room = min(MOST_OBJECTS, MOST_NODE_OBJECTS - len(taken.objects))
                unread = not group.pods() & here <= pids.keys()
                found = self._finder.find(group, members, path=each.path, room=room, unread=unread)
            except NotFoundError as error:
                each.problem = each.problem if each.problem[0] else (error.reason, str(error))
                continue
            except OSError as error:
                each.problem = _NOT_READABLE, f"{error.filename or ''} {error.strerror or error}".strip()
                continue
            except Exception as error:  # noqa: BLE001 - what one pod shows keeps no other group from being accounted
                self._guard.failed("group", group.uid, error)
                each.problem = _NOT_READABLE, self._guard.cause("group", group.uid)
                continue
            self._guard.succeeded("group", group.uid)
            if _claimed(found.extent, taken):
                each.problem = "Claimed", "another group, which is older, stands for this object"
                each.claimed = found
                continue
            taken = ObjectSet(taken.devices | found.extent.devices, taken.objects | found.extent.objects)
            each.instance = found
        return rounds

    def _ensure(self, each: _Round) -> None:
        """Makes a group's object, or says in its `problem` why it cannot."""
        if not self._guard.due("budget"):
            each.problem = "NotMade", f"what is there cannot be told: {self._guard.cause('budget')}"
            return
        try:
            self._maker.ensure(each.group)
        except NotMadeError as error:
            each.problem = error.reason, str(error)

    # -- borrows ---------------------------------------------------------------------------------------------------

    def _sample(
        self,
        rounds: Sequence[_Round],
        pods: Mapping[str, PodCgroup],
        paths: Mapping[str, Sequence[Path]],
        now: float,
    ) -> float:
        """Sample what pods borrow; return the seconds of processor time that the pods which are no members took."""
        others_cost = 0.0
        counted = [each for each in rounds if each.instance and each.group.accounting is Accounting.BORROW]
        extents = {each.group.uid: each.extent for each in counted}
        whole = frozenset[int]().union(*(each.instance.whole for each in counted if each.instance))
        stamps = {each.group.uid: each.instance.charge for each in counted if each.instance}
        members = {uid: pod.members for uid, pod in pods.items() if counted}
        seen = dict(self._members.sample(now, members, extents, extents.keys(), whole, stamps))
        if counted and now >= self._others_due:
            spent = time.process_time()
            strangers = self._explored({uid: where for uid, where in paths.items() if uid not in pods})
            others = {uid: pod.members for uid, pod in strangers}
            self._seen_others = self._others.sample(now, others, extents, extents.keys(), whole, stamps)
            others_cost = time.process_time() - spent
            self._others_due = now + max(OTHERS_SECONDS, others_cost * TIMES_ITS_COST)
        others_now = paths.keys() - pods.keys()
        self._others.keep(others_now)
        seen |= {key: borrow for key, borrow in self._seen_others.items() if key[1] in others_now}
        by_uid = {each.group.uid: each for each in counted}
        for (uid, pod), borrow in seen.items():
            if uid in by_uid:
                by_uid[uid].borrows[pod] = borrow
        return others_cost

    # -- life ------------------------------------------------------------------------------------------------------

    def _settle(self, each: _Round) -> None:
        """Its phase; a draining one that nobody uses goes (M10)."""
        group = each.group
        if group.draining:
            self._drain(each)
        elif each.instance:
            each.phase = Phase.ACTIVE
        else:
            left = each.problem[0] == _NOT_READABLE or self._is_left(each)
            each.phase = Phase.PENDING if group.pods() or left else Phase.RELEASED

    @staticmethod
    def _is_left(each: _Round) -> bool:
        """Whether pinwarden made for the group what an older group stands for now: it is this one's to take away."""
        return each.claimed is not None and each.group.management is Management.CREATE

    def _drain(self, each: _Round) -> None:
        group = each.group
        each.phase = Phase.DRAINING
        created = group.management is Management.CREATE
        if each.instance is None and each.problem[0] == _NOT_READABLE:
            return
        found = each.claimed if self._is_left(each) else each.instance
        try:
            if found and (using := users(self._proc_root, found.extent, opened=created)):
                each.problem = "InUse", f"it waits for {_processes(using)}"
                return
            if found and found.why:
                each.problem = _NOT_READABLE, found.why
                return
            if created:  # also what was only half made
                self._maker.release(group, known=found is not None)
        except OSError as error:
            each.problem = "NotRemoved", f"{error.strerror or error}"
            return
        each.phase, each.problem = Phase.RELEASED, ("", "")
        each.instance = None

    # -- what is told ----------------------------------------------------------------------------------------------

    def _reports(
        self, rounds: Iterable[_Round], pods: Mapping[str, PodCgroup], gate: GateStatus | None
    ) -> Iterable[GroupReport]:
        """One for each group; all of them have to fit in one object of the API server."""
        left = MOST_NODE_BORROWERS
        for each in rounds:
            report = GroupReport(uid=each.group.uid, phase=each.phase, reason=_NOT_READABLE)
            with self._guard.item("group", f"{each.group.uid}: report"):
                report = self._report(each, pods, gate, min(MOST_BORROWERS, left))
            left -= len(report.borrowers)
            yield report

    def _report(
        self, each: _Round, pods: Mapping[str, PodCgroup], gate: GateStatus | None, most: int
    ) -> GroupReport:
        group, found = each.group, each.instance
        counted = group.accounting is Accounting.BORROW
        charge = found.charge if found else None
        borrowers = sorted(
            self._known(each, pods).items(), key=lambda one: (-(one[1].resident or 0), -one[1].mapped, one[0])
        )
        reason, message = each.problem
        if found and not reason:
            message = found.why
        oldest = min((borrow.time for borrow in each.borrows.values()), default=self._clock())
        sampled = datetime.now(UTC) - timedelta(seconds=self._clock() - oldest)
        return GroupReport(
            uid=group.uid,
            hash=group.hash,
            phase=each.phase,
            reason=reason,
            message=printable(message)[:1024],
            objects=found.count if found else 0,
            charge=charge,
            orphaned=self._orphaned(each, charge) if counted and found else None,
            dead=self._dead(each) if counted and found else None,
            own=self._maker.charged(group) if each.path or group.backing.sysv_shm else None,
            truncated=bool(found and found.truncated)
            or len(borrowers) > most
            or (counted and self._incomplete),
            borrowers=[
                self._borrower(group, uid, borrow, pods.get(uid), gate) for uid, borrow in borrowers[:most]
            ],
            omitted=max(0, len(borrowers) - most),
            sampled_at=sampled.replace(microsecond=0),
        )

    @property
    def _incomplete(self) -> bool:
        """Whether a pod could not be read wholly, and may have mapped what is not known."""
        return bool(self._members.incomplete() or self._others.incomplete())

    def _known(self, each: _Round, pods: Mapping[str, PodCgroup]) -> dict[str, Borrow]:
        """The borrows, and none of each member that has a limit and nothing mapped: how it is held is to be told too (H1)."""
        limited = {
            uid for member in each.group.members if member.borrow_limit is not None for uid in member.pods
        }
        unread = self._members.incomplete()
        nothing = Borrow(mapped=0, resident=0, time=0.0)
        idle = {uid: nothing for uid in limited & pods.keys() if uid not in unread}
        return idle | each.borrows if each.instance else each.borrows

    def _orphaned(self, each: _Round, charge: int | None) -> int | None:
        """What of the charge no pod has mapped; None where the charge or a figure is not known (H2)."""
        if charge is None or self._incomplete:
            return None
        have = BorrowSampler.together(each.group.uid, [self._members, self._others])
        if have is None or have.resident is None:
            return charge
        # A shared mapping of hugetlbfs reserves all that it maps (hugetlb_reserve_pages), and that is in the charge.
        return max(0, charge - (have.mapped if each.group.backing.hugetlbfs else have.resident))

    def _dead(self, each: _Round) -> int | None:
        """What of it cgroups pay for that are gone (M9); None where that is not looked at, or cannot be."""
        try:
            return self._dead_cgroups.charged(
                each.group.uid, lambda: self._finder.files(each.group, path=each.path), self._clock()
            )
        except (OSError, NotFoundError) as error:
            _log.debug("%s: who pays for it cannot be told: %s", each.group.name, error)
            return None

    def _borrower(
        self, group: NodeGroup, uid: str, borrow: Borrow, pod: PodCgroup | None, gate: GateStatus | None
    ) -> BorrowReport:
        member = uid in group.pods()
        gated = member and pod is not None and gate is not None and _gated(pod, gate)
        level, reason = (_level(group, uid, gated)) if member else (None, "")
        counts = gate.group_denials.get(group.uid, {}) if gate else {}
        return BorrowReport(
            pod=uid,
            member=member,
            borrowed=borrow.resident,
            mapped=borrow.mapped,
            level=level,
            reason=reason,
            denials=counts.get(uid, 0) if gated or uid in counts else None,
        )

    def _fair(self, rounds: Iterable[_Round], pods: Mapping[str, PodCgroup]) -> Iterable[FairReport]:
        """M11, for each attached pod of whose groups everything is known."""
        unread = self._members.incomplete()
        for uid, pod in sorted(pods.items()):
            shares = [_share(each, uid) for each in rounds if uid in each.group.pods() and each.concerns]
            if None in shares or uid in unread:
                continue
            with self._guard.item("pod", f"{uid}: memory"):
                if own := pod_memory(pod.paths):
                    yield FairReport(
                        pod=uid,
                        current=own.current,
                        anonymous=own.anonymous,
                        shared=sum(each or 0 for each in shares),
                    )


def _claimed(extent: ObjectSet, taken: ObjectSet) -> bool:
    """Whether something of the extent is taken already: by itself, or with all of its device."""
    return not extent.devices.isdisjoint(taken.devices | {one.device for one in taken.objects}) or any(
        taken.has(one) for one in extent.objects
    )


def _share(each: _Round, uid: str) -> int | None:
    """What of a group counts as the pod's own, by the group's policy, in bytes; None where it is not known."""
    if each.instance is None:
        return None
    if each.group.fair_share is Accounting.CHARGE:
        return each.instance.charge
    borrow = each.borrows.get(uid)
    return borrow.resident if borrow else 0


def _level(group: NodeGroup, uid: str, gated: bool) -> tuple[Level | None, str]:
    """How a member is held to its borrow limits; nothing where it has none."""
    limits = [each for each in group.members if uid in each.pods and each.borrow_limit is not None]
    if not limits:
        return None, ""
    if group.enforcement is Enforcement.AUDIT:
        return Level.OBSERVE, "Audit"
    if any(each.borrow_limit_on is LimitOn.RESIDENT for each in limits):
        return Level.OBSERVE, "ResidentSeenOnly"
    return (Level.CONVERGE, "SeccompGate") if gated else (Level.OBSERVE, "NotGated")


def _gated(pod: PodCgroup, gate: GateStatus) -> bool:
    """Whether each container of the pod that runs has a profile of the gate's that sends mappings."""
    running = {
        container.id
        for container in pod.containers
        if any(member_pids(member) for member in container.members)
    }
    sandboxes = {gate.containers[each][2] for each in running & gate.mapping if each in gate.containers}
    return bool(running & gate.mapping) and running <= gate.mapping | sandboxes


def _processes(pids: Sequence[int]) -> str:
    named = ", ".join(str(pid) for pid in pids[:_NAMED])
    more = f" and {len(pids) - _NAMED} more" if len(pids) > _NAMED else ""
    return f"process {named}{more}" if len(pids) == 1 else f"processes {named}{more}"
