"""The reports of a round for the agent: each group with its borrowers, and the fair view."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pinwarden.api.nodepinconfig import BorrowReport, FairReport, GroupReport, NodeGroup
from pinwarden.api.pinlimit import Enforcement, Level
from pinwarden.api.reasons import AUDIT, NOT_READABLE, SECCOMP_GATE
from pinwarden.api.sharedmemorygroup import Accounting, LimitOn, Management, Phase
from pinwarden.common.guard import Guard
from pinwarden.common.text import printable
from pinwarden.node.accountant.dead_cgroups import DeadCgroups
from pinwarden.node.accountant.finder import Finder
from pinwarden.node.accountant.finder.result import GroupObjects, ObjectsNotFoundError
from pinwarden.node.accountant.provisioner import Provisioner, mount_point
from pinwarden.node.accountant.sampler import Borrow, BorrowSampler
from pinwarden.node.linux.cgroupfs import MemoryUsage, member_pids, memory_usage
from pinwarden.node.pods.cgroups import PodCgroup
from pinwarden.node.shm.objects import ObjectSet
from pinwarden.node.state.gate_status import GateStatus

MOST_BORROWERS: Final = 100
MOST_NODE_BORROWERS: Final = 1024
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class GroupState:
    """The knowledge of a round about a group.

    `problem` is a reason and a message. `claimed` are objects of an older group.
    """

    group: NodeGroup
    objects: GroupObjects | None = None
    claimed: GroupObjects | None = None
    problem: tuple[str, str] = ("", "")
    borrows: dict[str, Borrow] = field(default_factory=dict)
    phase: Phase = Phase.PENDING

    @property
    def object_set(self) -> ObjectSet:
        """The objects as /proc/PID/maps shows them."""
        return self.objects.object_set if self.objects else ObjectSet()

    @property
    def has_shares(self) -> bool:
        """Whether members have a share of the group, known or not."""
        return self.objects is not None or self.problem[0] == NOT_READABLE

    @property
    def path(self) -> str | None:
        """The mount point of a group with `management: Create`."""
        return mount_point(self.group) if self.group.management is Management.CREATE else None


@dataclass(frozen=True, slots=True)
class GroupReporter:
    """Builds the reports of a round. `members` and `others` are the samples of all pods."""

    members: BorrowSampler
    others: BorrowSampler
    finder: Finder
    provisioner: Provisioner
    dead_cgroups: DeadCgroups
    guard: Guard
    clock: Callable[[], float]

    def groups(
        self, states: Iterable[GroupState], pods: Mapping[str, PodCgroup], gate: GateStatus | None
    ) -> Iterator[GroupReport]:
        """Yield a report for each group. All reports fit in one object of the API server."""
        left = MOST_NODE_BORROWERS
        for state in states:
            report = GroupReport(uid=state.group.uid, phase=state.phase, reason=NOT_READABLE)
            with self.guard.item("group", f"{state.group.uid}: report"):
                report = self._group(state, pods, gate, min(MOST_BORROWERS, left))
            left -= len(report.borrowers)
            yield report

    def fair_view(
        self, states: Sequence[GroupState], pods: Mapping[str, PodCgroup]
    ) -> Iterator[FairReport]:
        """Yield the fair view of each attached pod whose shares are all known (M11)."""
        unread = self.members.incomplete()
        for uid, pod in sorted(pods.items()):
            shares = [
                _share(state, uid)
                for state in states
                if uid in state.group.pods() and state.has_shares
            ]
            if None in shares or uid in unread:
                continue
            with self.guard.item("pod", f"{uid}: memory"):
                if own := _pod_memory(pod.paths):
                    yield FairReport(
                        pod=uid,
                        current=own.current,
                        anonymous=own.anonymous,
                        shared=sum(share or 0 for share in shares),
                    )

    def _group(
        self, state: GroupState, pods: Mapping[str, PodCgroup], gate: GateStatus | None, most: int
    ) -> GroupReport:
        group, objects = state.group, state.objects
        counted = group.accounting is Accounting.BORROW
        charge = objects.charge if objects else None
        borrowers = sorted(self._borrows(state, pods).items(), key=_largest_first)
        reason, message = state.problem
        if objects and not reason:
            message = objects.cause
        oldest = min((borrow.time for borrow in state.borrows.values()), default=self.clock())
        sampled = datetime.now(UTC) - timedelta(seconds=self.clock() - oldest)
        return GroupReport(
            uid=group.uid,
            hash=group.hash,
            phase=state.phase,
            reason=reason,
            message=printable(message)[:1024],
            objects=objects.count if objects else 0,
            charge=charge,
            orphaned=self._orphaned(state, charge) if counted and objects else None,
            dead=self._dead(state) if counted and objects else None,
            own=self.provisioner.charged(group) if state.path or group.backing.sysv_shm else None,
            truncated=bool(objects and objects.truncated)
            or len(borrowers) > most
            or (counted and self._incomplete),
            borrowers=[
                _borrower(group, uid, borrow, pods.get(uid), gate)
                for uid, borrow in borrowers[:most]
            ],
            omitted=max(0, len(borrowers) - most),
            sampled_at=sampled.replace(microsecond=0),
        )

    @property
    def _incomplete(self) -> bool:
        """Whether some pod may have unknown mappings, because it could not be read."""
        return bool(self.members.incomplete() or self.others.incomplete())

    def _borrows(self, state: GroupState, pods: Mapping[str, PodCgroup]) -> dict[str, Borrow]:
        """Return the borrows, with an empty one for each idle member with a limit.

        The report shows at which level such a member is limited, too (H1).
        """
        limited = {
            uid
            for member in state.group.members
            if member.borrow_limit is not None
            for uid in member.pods
        }
        unread = self.members.incomplete()
        nothing = Borrow(mapped=0, resident=0, time=0.0)
        idle = {uid: nothing for uid in limited & pods.keys() if uid not in unread}
        return idle | state.borrows if state.objects else state.borrows

    def _orphaned(self, state: GroupState, charge: int | None) -> int | None:
        """Return the bytes of the charge without a mapping in any pod; None if unknown (H2)."""
        if charge is None or self._incomplete:
            return None
        mapped = BorrowSampler.together(state.group.uid, [self.members, self.others])
        if mapped is None or mapped.resident is None:
            return charge
        # the charge includes pages that a shared mapping reserves (hugetlb_reserve_pages)
        return max(
            0, charge - (mapped.mapped if state.group.backing.hugetlbfs else mapped.resident)
        )

    def _dead(self, state: GroupState) -> int | None:
        """Return the bytes charged to removed cgroups (M9); None if unknown."""
        group = state.group
        try:
            return self.dead_cgroups.charged(
                group.uid, lambda: self.finder.open_files(group, path=state.path), self.clock()
            )
        except (OSError, ObjectsNotFoundError) as error:
            _log.debug("%s: the charged cgroups are unknown: %s", group.name, error)
            return None


def _largest_first(item: tuple[str, Borrow]) -> tuple[int, int, str]:
    uid, borrow = item
    return -(borrow.resident or 0), -borrow.mapped, uid


def _borrower(
    group: NodeGroup, uid: str, borrow: Borrow, pod: PodCgroup | None, gate: GateStatus | None
) -> BorrowReport:
    member = uid in group.pods()
    gated = member and pod is not None and gate is not None and _gated(pod, gate)
    level, reason = _level(group, uid, gated) if member else (None, "")
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


def _share(state: GroupState, uid: str) -> int | None:
    """Return a pod's own bytes of a group, by the group's policy.

    Return None if unknown.
    """
    if state.objects is None:
        return None
    if state.group.fair_share is Accounting.CHARGE:
        return state.objects.charge
    borrow = state.borrows.get(uid)
    return borrow.resident if borrow else 0


def _pod_memory(cgroups: Iterable[Path]) -> MemoryUsage | None:
    """Return the memory of a pod with these cgroups; None if unknown (H2)."""
    usages = [usage for path in cgroups if (usage := memory_usage(path))]
    if not usages:
        return None
    return MemoryUsage(
        sum(usage.current for usage in usages), sum(usage.anonymous for usage in usages)
    )


def _level(group: NodeGroup, uid: str, gated: bool) -> tuple[Level | None, str]:
    """Return the level of a member's borrow limits and a reason; None without a limit."""
    limits = [
        member for member in group.members if uid in member.pods and member.borrow_limit is not None
    ]
    if not limits:
        return None, ""
    if group.enforcement is Enforcement.AUDIT:
        return Level.OBSERVE, AUDIT
    if any(member.borrow_limit_on is LimitOn.RESIDENT for member in limits):
        return Level.OBSERVE, "ResidentSeenOnly"
    return (Level.CONVERGE, SECCOMP_GATE) if gated else (Level.OBSERVE, "NotGated")


def _gated(pod: PodCgroup, gate: GateStatus) -> bool:
    """Return whether each running container has a profile of the gate for mappings."""
    running = {
        container.id
        for container in pod.containers
        if any(member_pids(member) for member in container.members)
    }
    sandboxes = {
        gate.containers[identity][2]
        for identity in running & gate.mapping
        if identity in gate.containers
    }
    return bool(running & gate.mapping) and running <= gate.mapping | sandboxes
