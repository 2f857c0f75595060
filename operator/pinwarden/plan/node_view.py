"""The operator's view of one node: requested, acknowledged and reported limits.

A `NodeView` is small, immutable and shared by all limits. The controller keeps a view per node,
applies each change, and forgets the NodePinConfig.

A pod is limited only by an acknowledged spec. So the view has, for each pod, the limits of the last
spec that the agent acknowledged (`status.observedGeneration` equals `metadata.generation`). A newer
spec neither removes nor adds such a limit before its acknowledgement (H1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from pinwarden.api.nodepinconfig import (
    FairReport,
    GroupReport,
    NodePinConfig,
    NodePinConfigSpec,
    NodePinConfigStatus,
    OvershootReport,
    PodReport,
    SourceLevel,
    UnsupportedReport,
)
from pinwarden.api.pinlimit import Level
from pinwarden.api.reasons import UNSUPPORTED
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.common.text import total
from pinwarden.plan.conditions import Observation
from pinwarden.plan.group_compiler import Presence
from pinwarden.plan.node_spec import Overflow

NOT_COMPILED: Final = "NotCompiled"
_NO_OVERFLOW: Final = Overflow()
_NO_CONTAINERS: Final[Mapping[str, "ContainerSample"]] = MappingProxyType({})
_NO_DENIALS: Final[Mapping[str, int]] = MappingProxyType({})


class RequestedLimit(NamedTuple):
    """A limit in a node's spec: UID of the resource, hash of the constraint, granted bytes."""

    uid: str
    hash: str
    grant: int | None


class ContainerSample(NamedTuple):
    """The pinned memory of a container at the last sample, and its peak, in bytes."""

    pinned: int
    peak: int


@dataclass(frozen=True, slots=True)
class PodSample:
    """The last sample of a pod, its peak in bytes, its processes and its level."""

    pinned: int
    peak: int
    level: Level
    reason: str
    message: str
    containers: Mapping[str, ContainerSample]
    denials: Mapping[str, int] | None
    processes: int = 1

    def denied(self, uid: str) -> int | None:
        """Return how many calls the limit with this UID denied, None if unknown."""
        return None if self.denials is None else self.denials.get(uid, 0)


RequestedLimits = Mapping[str, tuple[RequestedLimit, ...]]
"""The limits of each pod by the UID of its cgroup."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as status and metrics read it.

    `requested` limits are those of the compiled spec; `overflow` did not fit into it.
    `not_compiled`: why compiling failed. `acknowledged` limits are those of the last acknowledged
    spec. `problem`: why the agent rejected the newest spec and keeps the last good spec. A node is
    `silent` until its agent is known to be alive, and `reported` once the agent wrote a status.

    `groups` are the reported SharedMemoryGroups by UID. `requested_groups` has the hash of each
    group in the compiled spec, once `compiled`. `stored_groups` are those of the API server's spec.
    `fair_view` is about member pods (M11). `denied` counts the denied calls since the gate's
    journal began, None without a gate (H2).
    """

    name: str
    requested: RequestedLimits = field(default_factory=dict)
    overflow: Overflow = _NO_OVERFLOW
    not_compiled: str = ""
    acknowledged: RequestedLimits = field(default_factory=dict)
    applied: frozenset[tuple[str, str]] = frozenset()
    unsupported: Mapping[str, UnsupportedReport] = field(default_factory=dict)
    problem: UnsupportedReport | None = None
    sources: tuple[SourceLevel, ...] = ()
    pods: Mapping[str, PodSample] = field(default_factory=dict)
    overshoots: tuple[OvershootReport, ...] = ()
    truncated: bool = False
    reported: bool = False
    silent: bool = True
    groups: Mapping[str, GroupReport] = field(default_factory=dict)
    compiled: bool = False
    requested_groups: Mapping[str, str] = field(default_factory=dict)
    stored_groups: frozenset[str] = frozenset()
    fair_view: tuple[FairReport, ...] = ()
    denied: int | None = None

    def with_desired(
        self, spec: NodePinConfigSpec, overflow: Overflow = _NO_OVERFLOW
    ) -> "NodeView":
        """Return the view after the operator compiled `spec`, written or not."""
        return replace(
            self,
            requested=_requested_limits(spec),
            overflow=overflow,
            not_compiled="",
            compiled=True,
            requested_groups={group.uid: group.hash for group in spec.groups},
        )

    def with_object(self, config: NodePinConfig) -> "NodeView":
        """Return the view after a change of the node's NodePinConfig."""
        status = config.status or NodePinConfigStatus()
        acknowledged = self.acknowledged
        if (
            status.observed_generation is not None
            and status.observed_generation == config.metadata.generation
        ):
            acknowledged = _requested_limits(config.spec)
            acknowledged = self.requested if acknowledged == self.requested else acknowledged
        shared_uids = {uid: uid for uid in self.requested}
        whole_spec = {"", config.metadata.uid}
        return replace(
            self,
            acknowledged=acknowledged,
            applied=frozenset((limit.uid, limit.hash) for limit in status.applied_limits),
            unsupported={report.uid: report for report in status.unsupported_limits},
            problem=next(
                (report for report in status.unsupported_limits if report.uid in whole_spec), None
            ),
            sources=_shared_sources(tuple(status.sources)),
            pods={shared_uids.get(pod.uid, pod.uid): _pod_sample(pod) for pod in status.pods},
            overshoots=tuple(status.overshoots),
            truncated=status.truncated,
            reported=config.status is not None,
            groups={group.uid: group for group in status.groups},
            stored_groups=frozenset(group.uid for group in config.spec.groups),
            fair_view=tuple(status.fair_view),
            denied=None
            if status.denials_dropped is None
            else status.denials_dropped + len(status.recent_denials),
        )

    def without_object(self) -> "NodeView":
        """Return the view after the NodePinConfig was deleted, without the state of the agent."""
        return NodeView(
            self.name,
            requested=self.requested,
            overflow=self.overflow,
            not_compiled=self.not_compiled,
            silent=self.silent,
            compiled=self.compiled,
            requested_groups=self.requested_groups,
        )

    def presence(self, before: Presence) -> Presence:
        """Return why groups stay on the node; without a report, they stay `unreleased` as `before`.

        The report counts only for groups of the spec. Else the token of an agent could put any
        group on its node, and the deletion of the group would wait for the node.
        """
        requested = self.stored_groups | self.requested_groups.keys()
        unreleased = frozenset(
            uid
            for uid in requested & self.groups.keys()
            if self.groups[uid].phase is not Phase.RELEASED
        )
        return Presence(
            unreleased=unreleased if self.reported else before.unreleased, requested=requested
        )

    def with_silent(self, silent: bool) -> "NodeView":
        """Return the view after the node's agent became silent, or alive again."""
        return replace(self, silent=silent)


def unsupported_on(view: NodeView, uid: str) -> Observation | None:
    """Return why the agent cannot apply the limit or group with this UID, None if it can."""
    return _from_agent(view, view.unsupported.get(uid))


def problem_on(view: NodeView) -> Observation | None:
    """Return why the newest spec was not compiled, or rejected by the agent; else None."""
    if view.not_compiled:
        return Observation(f"node {view.name}", NOT_COMPILED, view.not_compiled)
    return _from_agent(view, view.problem)


def _from_agent(view: NodeView, report: UnsupportedReport | None) -> Observation | None:
    if report is None:
        return None
    return Observation(f"node {view.name}", UNSUPPORTED, f"{report.reason}: {report.message}")


def _requested_limits(spec: NodePinConfigSpec) -> RequestedLimits:
    limits = {
        limit.name: RequestedLimit(limit.uid, limit.hash, limit.grant) for limit in spec.limits
    }
    shared: dict[tuple[str, ...], tuple[RequestedLimit, ...]] = {}
    by_pod: dict[str, tuple[RequestedLimit, ...]] = {}
    for pod in spec.pods:
        names = tuple(pod.limits)
        if names not in shared:
            shared[names] = tuple(limits[name] for name in names if name in limits)
        if names:
            by_pod[pod.uid] = shared[names]
    return by_pod


def _pod_sample(report: PodReport) -> PodSample:
    containers = {
        container.name: ContainerSample(container.pinned, container.peak)
        for container in report.containers
    }
    denials = None
    if report.denials is not None:
        denials = {denial.uid: denial.count for denial in report.denials} or _NO_DENIALS
    return PodSample(
        pinned=total((report.vm_lck, report.vm_pin)),
        peak=report.peak,
        level=report.level,
        reason=_shared_text(report.reason),
        message=_shared_text(report.message),
        containers=containers or _NO_CONTAINERS,
        denials=denials,
        processes=report.processes,
    )


@lru_cache(maxsize=4096)
def _shared_text(text: str) -> str:
    """Return the same object for equal reasons and messages, which thousands of pods have."""
    return text


@lru_cache(maxsize=1024)
def _shared_sources(sources: tuple[SourceLevel, ...]) -> tuple[SourceLevel, ...]:
    """Return the same object for equal tables, which nodes with one kernel and one agent have."""
    return sources
