"""Builds the status of the node: the level of each governed pod, its reason (H1), and its use (H2).

Names and messages are cut and escaped here. So the API server accepts the status, whatever names
users choose, and whichever report of a pod cannot be built.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from pinwarden import __version__
from pinwarden.api.nodepinconfig import (
    AppliedLimit,
    ContainerReport,
    DenialReport,
    LimitDenials,
    NodePinConfigStatus,
    PodReport,
)
from pinwarden.api.pinlimit import Level
from pinwarden.api.reasons import (
    AUDIT,
    ENDED,
    GATE_LOST,
    GATE_UNAVAILABLE,
    NO_PROCESSES,
    NOT_READABLE,
    PASSING,
    POD_GONE,
    RESTART_GATES,
    RLIMIT_GATE,
    SECCOMP_GATE,
    STARTING,
)
from pinwarden.common.guard import Guard, shown
from pinwarden.node.agent.accountant_reader import AccountantReader
from pinwarden.node.agent.enforcer import RlimitEnforcer
from pinwarden.node.agent.gate_reader import GateReader
from pinwarden.node.agent.overshoots import Overshoots
from pinwarden.node.agent.source_levels import source_levels
from pinwarden.node.linux.prlimit import GateAbility
from pinwarden.node.pods.constraints import has_unknown_container, running_containers
from pinwarden.node.pods.policy import NodePolicy, reported_name
from pinwarden.node.pods.privileges import HeldBackReason
from pinwarden.node.pods.process import Process, ProcessTable, UsageState
from pinwarden.node.pods.subject import Subject
from pinwarden.node.state.config import LONGEST_MESSAGE

_PODS = 4096
_LIMITS = 1024
_CONTAINERS = 64
_DENIALS = 32
_GATED_PODS = 1024
_FAIR = 1024
STARTING_SECONDS = 5.0
"""A process of the runtime keeps all capabilities for about this long, before its program runs."""
_SILENT = "its gate does not answer: pinning calls wait"


@dataclass(frozen=True, slots=True)
class PodLevel:
    """The level of a pod, its reason, and a message with details."""

    level: Level
    reason: str
    message: str = ""


class StatusBuilder:
    """Builds statuses. Facts that do not change are read once."""

    def __init__(
        self,
        ability: GateAbility,
        cgroup_version: Literal["v2", "v1", "hybrid"],
        gate: GateReader,
        accountant: AccountantReader | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._ability = ability
        self._guard = guard or Guard(("report",))
        self._gate = gate
        self._accountant = accountant or AccountantReader(None)
        self._sources = {gated: source_levels(ability, gated=gated) for gated in (False, True)}
        self._empty = NodePinConfigStatus(
            agent_version=__version__,
            kernel_version=os.uname().release,
            cgroup_version=cgroup_version,
        )

    def build(
        self,
        acknowledged: NodePolicy | None,
        subjects: Sequence[Subject],
        table: ProcessTable,
        enforcer: RlimitEnforcer,
        overshoots: Overshoots,
        sampled: datetime | None,
    ) -> NodePinConfigStatus:
        """Return the status. `acknowledged` is the last completely applied policy, if any."""
        subjects = [subject for subject in subjects if subject.keys or not subject.policy.gone]
        listed, cut = overshoots.reports()
        applied = acknowledge(acknowledged, subjects, enforcer) if acknowledged else []
        unsupported = list(acknowledged.unsupported) if acknowledged else []
        groups = acknowledged.groups if acknowledged else ()
        fair_view = self._accountant.fair_view(groups)
        gated = self._gate.gated_pods
        return self._empty.model_copy(
            update={
                "observed_generation": acknowledged.generation if acknowledged else None,
                "applied_limits": applied[:_LIMITS],
                "unsupported_limits": unsupported[:_LIMITS],
                "pods": [
                    self._guarded_pod(subject, table, enforcer) for subject in subjects[:_PODS]
                ],
                "overshoots": listed,
                "sources": self._sources[self._gate.status is not None],
                "gated_pods": gated and [reported_name(uid) for uid in gated[:_GATED_PODS]],
                "groups": self._accountant.groups(groups),
                "fair_view": fair_view[:_FAIR],
                "truncated": cut
                or len(subjects) > _PODS
                or max(len(applied), len(unsupported)) > _LIMITS
                or len(fair_view) > _FAIR
                or len(gated or ()) > _GATED_PODS,
                "sampled_at": sampled,
                **self._denials(),
            }
        )

    def _guarded_pod(
        self, subject: Subject, table: ProcessTable, enforcer: RlimitEnforcer
    ) -> PodReport:
        """Return the report of a pod, at level Observe after a failure (H1)."""
        with self._guard.item("report", subject.uid):
            return self._pod(subject, table, enforcer)
        return PodReport(
            uid=reported_name(subject.uid),
            vm_lck=0,
            vm_pin=0,
            peak=0,
            processes=0,
            level=Level.OBSERVE,
            reason=NOT_READABLE,
            message=self._guard.cause("report", subject.uid),
        )

    def _pod(self, subject: Subject, table: ProcessTable, enforcer: RlimitEnforcer) -> PodReport:
        processes = [table[key] for key in sorted(subject.keys)]
        level = _level(subject, processes, enforcer, self._ability, gate_silent=self._gate.silent)
        if subject.policy.gone:
            level = _gone(level)
        return PodReport(
            uid=reported_name(subject.uid),
            vm_lck=subject.locked,
            vm_pin=subject.pinned,
            peak=subject.peaks.pod,
            processes=len(subject.keys),
            level=level.level,
            reason=level.reason,
            message=shown(level.message, LONGEST_MESSAGE),
            denials=self._denials_of(subject) if subject.coverage.gated else None,
            containers=_containers(subject, table)[:_CONTAINERS],
        )

    def _denials_of(self, subject: Subject) -> list[LimitDenials]:
        counts = self._gate.status.denials.get(subject.uid, {}) if self._gate.status else {}
        limits = {limit.uid for limit in subject.policy.limits}
        denials = [
            LimitDenials(uid=uid, count=count) for uid, count in counts.items() if uid in limits
        ]
        return denials[:_DENIALS]

    def _denials(self) -> dict[str, object]:
        """Return the fields about recent denials, empty without a gate."""
        status = self._gate.status
        if status is None:
            return {}
        recent: list[DenialReport] = []
        for denial in status.recent:
            with self._guard.item("report", "denial"):
                recent.append(DenialReport.model_validate(denial))
        return {"recent_denials": recent, "denials_dropped": max(0, status.number - len(recent))}


def acknowledge(
    policy: NodePolicy, subjects: Iterable[Subject], enforcer: RlimitEnforcer
) -> list[AppliedLimit]:
    """Return the limits that apply to all their processes, empty in mode Release.

    A limit on a subject whose gate is behind does not apply yet.
    """
    if policy.release:
        return []
    failed = {
        limit.name
        for subject in subjects
        if subject.failure
        or subject.coverage.behind
        or any(key in enforcer.failures for key in subject.keys)
        for limit in subject.policy.limits
    }
    return [
        AppliedLimit(uid=limit.uid, hash=limit.hash)
        for limit in policy.limits
        if limit.name not in failed
    ]


def _level(
    subject: Subject,
    processes: Sequence[Process],
    enforcer: RlimitEnforcer,
    ability: GateAbility,
    *,
    gate_silent: bool,
) -> PodLevel:
    """Return the level of a subject with these processes, and the reason against a better level."""
    coverage = subject.coverage
    if subject.failure:
        return PodLevel(Level.OBSERVE, NOT_READABLE, subject.failure)
    if coverage.lost:
        return PodLevel(Level.OBSERVE, GATE_LOST, coverage.why)
    if coverage.exact and subject.policy.enforced and not subject.truncated:
        return PodLevel(Level.DENY, SECCOMP_GATE, _SILENT if gate_silent else "")
    if not (subject.keys or subject.by_container):
        return _without_processes(subject)
    if not ability.available:
        return PodLevel(Level.OBSERVE, GATE_UNAVAILABLE, ability.reason)
    if not subject.policy.limits:
        return PodLevel(
            Level.OBSERVE,
            subject.policy.unsupported,
            "none of its limits can be enforced on this node",
        )
    if not subject.policy.enforced:
        return PodLevel(Level.OBSERVE, AUDIT, "its limits are evaluated only")
    own, passing = {process.key.pid for process in processes}, None
    for process in processes:
        failure = enforcer.failures.get(process.key, "")
        managed = failure or process.key in enforcer.records
        if managed and (level := _not_enforced(process, failure, own)):
            if level.reason not in PASSING:
                if RESTART_GATES in coverage.why:
                    level = replace(level, message=f"{level.message}; {coverage.why}")
                return level
            passing = passing or level
    if passing:
        return passing
    if subject.truncated:
        return PodLevel(
            Level.OBSERVE, "TreeTooDeep", "its cgroups are nested deeper than a path can name"
        )
    if has_unknown_container(subject):
        return PodLevel(
            Level.OBSERVE,
            "ContainerUnknown",
            "processes outside all known container cgroups share one limit: "
            "the runtime's names are unknown",
        )
    return PodLevel(
        Level.CONVERGE, RLIMIT_GATE, f"not exactly: {coverage.why}" if coverage.why else ""
    )


def _gone(level: PodLevel) -> PodLevel:
    """Return the level of a pod that the operator no longer lists: the message says so first."""
    detail = f"{level.reason}: {level.message}" if level.message else level.reason
    return PodLevel(
        level.level,
        POD_GONE,
        "no longer listed by the operator: the last limits stay until the operator lists the pod "
        f"again or the processes end ({detail})",
    )


def _without_processes(subject: Subject) -> PodLevel:
    """Return the level of a subject without processes: no limit is enforced."""
    if subject.ended:
        return PodLevel(Level.OBSERVE, ENDED, "its last process ended just now")
    where = subject.paths[0] if subject.paths else "any cgroup of it"
    return PodLevel(
        Level.OBSERVE,
        NO_PROCESSES,
        f"no process is in {where}. If its containers run, the cgroup drivers of kubelet and "
        "runtime may differ: /proc/PID/cgroup of one of its processes shows its cgroup",
    )


def _not_enforced(process: Process, failure: str, own: Collection[int]) -> PodLevel | None:
    pid = process.key.pid
    if failure:
        return PodLevel(Level.OBSERVE, "NotDealt", f"process {pid}: {failure}")
    if process.usage_state is UsageState.UNKNOWN:
        return PodLevel(Level.OBSERVE, "UseUnknown", f"process {pid}: its first thread has ended")
    if process.held_back is None:
        return None
    if process.held_back is HeldBackReason.THREADS_UNREAD:
        return PodLevel(
            Level.OBSERVE,
            process.held_back.value,
            f"process {pid}: some of its threads are not read yet",
        )
    if _is_starting(process, own):
        why = (
            f"process {pid} has {process.held_back} or can gain it, and may belong to the runtime "
            "until its program starts"
        )
        return PodLevel(Level.OBSERVE, STARTING, why)
    return PodLevel(Level.OBSERVE, process.held_back.value, f"process {pid} has it or can gain it")


def _is_starting(process: Process, own: Collection[int]) -> bool:
    """Return whether the process is young, and its parent is not one of the subject's `own` pids.

    Such a process is the first of a container, or of an exec into a container. A process forked by
    the pod has a parent in the pod: after the end of its parent, the first process of its PID
    namespace.
    """
    return process.age < STARTING_SECONDS and process.status.parent not in own


def _containers(subject: Subject, table: ProcessTable) -> list[ContainerReport]:
    return [
        ContainerReport(
            name=name,
            pinned=sum(table[key].use for key in keys),
            peak=subject.peaks.containers.get(name, 0),
        )
        for name, keys in running_containers(subject.policy.by_container, subject).items()
    ]
