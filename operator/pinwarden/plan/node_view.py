"""What is known of one node: what it is asked to hold, what its agent took, and what it last reported.

A `NodeView` is small and immutable, and all limits share it: the controller keeps one per node, gives it each change, and forgets the
NodePinConfig that the change came with.

A pod is held to a limit only where the agent took a spec that says so. So the view remembers, for each pod, which limits the last spec
that the agent said it had taken (`status.observedGeneration` equal to `metadata.generation`) asked for. A spec that is on its way takes
nothing back from that, and gives nothing in advance (H1).
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
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.common.text import total
from pinwarden.plan.group_compiler import Presence
from pinwarden.plan.limit_compiler import Overflow


class RequestedLimit(NamedTuple):
    """A limit as a node is asked to hold it: UID of the resource, hash of the constraint, and bytes granted (P14)."""

    uid: str
    hash: str
    grant: int | None


_ALL: Final = Overflow()
_NONE: Final[Mapping[str, "ContainerSample"]] = MappingProxyType({})
_NONE_DENIED: Final[Mapping[str, int]] = MappingProxyType({})


class ContainerSample(NamedTuple):
    """What a container was last seen to pin, and the most that was seen, in bytes."""

    pinned: int
    peak: int


@dataclass(frozen=True, slots=True)
class PodSample:
    """What a pod was last seen to pin, the most that was seen (both in bytes), how many processes it had, and how it is held."""

    pinned: int
    peak: int
    level: Level
    reason: str
    message: str
    containers: Mapping[str, ContainerSample]
    denials: Mapping[str, int] | None
    processes: int = 1

    def denied(self, uid: str) -> int | None:
        """How many calls were refused for the limit with this UID; None where that cannot be seen."""
        return None if self.denials is None else self.denials.get(uid, 0)


RequestedLimits = Mapping[str, tuple[RequestedLimit, ...]]
"""By the UID that a pod's cgroup bears: the limits that hold for it."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as the aggregation reads it.

    `room`: which of what it should hold found no room. `not_compiled`: why what it shall hold could not be worked out. `problem`: why the
    agent took nothing of the newest spec and keeps the last good one.
    `silent` until the agent is known to be alive; `reported` once it wrote a status. By UID, `groups` is what it reports of
    SharedMemoryGroups, `requested_groups` the hash of each that it is asked to hold, once `compiled`; `stored_groups` are those of the API
    server's spec. `fair_view` is of pods that are attached to groups (M11). `denied` counts the calls that the node's gate refused
    since its journal began, None where no gate sees them (H2).
    """

    name: str
    requested: RequestedLimits = field(default_factory=dict)
    overflow: Overflow = _ALL
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

    def with_desired(self, spec: NodePinConfigSpec, overflow: Overflow = _ALL) -> "NodeView":
        """The view after the operator compiled `spec` for the node, written or not; `room` says what did not fit in."""
        groups = {group.uid: group.hash for group in spec.groups}
        return replace(
            self,
            requested=_asks(spec),
            overflow=overflow,
            not_compiled="",
            compiled=True,
            requested_groups=groups,
        )

    def with_object(self, config: NodePinConfig) -> "NodeView":
        """The view after the API server told of the node's NodePinConfig; `config.metadata.generation` counts its specs."""
        status = config.status or NodePinConfigStatus()
        acknowledged = self.acknowledged
        if (
            status.observed_generation is not None
            and status.observed_generation == config.metadata.generation
        ):
            acknowledged = _asks(config.spec)
            acknowledged = self.requested if acknowledged == self.requested else acknowledged
        uids = {uid: uid for uid in self.requested}
        whole = {"", config.metadata.uid}
        return replace(
            self,
            acknowledged=acknowledged,
            applied=frozenset((limit.uid, limit.hash) for limit in status.applied_limits),
            unsupported={limit.uid: limit for limit in status.unsupported_limits},
            problem=next((each for each in status.unsupported_limits if each.uid in whole), None),
            sources=_shared(tuple(status.sources)),
            pods={uids.get(pod.uid, pod.uid): _use(pod) for pod in status.pods},
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
        """The view after the NodePinConfig was deleted: nothing is known of what the agent took or holds."""
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
        """Return what keeps groups on the node; without a report, they stay `unreleased` as `before`.

        The report counts only for groups that the node was asked to have. Else one agent's token could put any group on its
        node, and the end of that group would wait for the node.
        """
        asked = self.stored_groups | self.requested_groups.keys()
        unreleased = frozenset(
            uid for uid in asked & self.groups.keys() if self.groups[uid].phase is not Phase.RELEASED
        )
        return Presence(unreleased=unreleased if self.reported else before.unreleased, asked=asked)

    def with_silent(self, silent: bool) -> "NodeView":
        """The view after the node's agent fell silent, or was heard again."""
        return replace(self, silent=silent)


def _asks(spec: NodePinConfigSpec) -> RequestedLimits:
    limits = {limit.name: RequestedLimit(limit.uid, limit.hash, limit.grant) for limit in spec.limits}
    shared: dict[tuple[str, ...], tuple[RequestedLimit, ...]] = {}
    asks: dict[str, tuple[RequestedLimit, ...]] = {}
    for pod in spec.pods:
        names = tuple(pod.limits)
        if names not in shared:
            shared[names] = tuple(limits[name] for name in names if name in limits)
        if names:
            asks[pod.uid] = shared[names]
    return asks


def _use(report: PodReport) -> PodSample:
    containers = {each.name: ContainerSample(each.pinned, each.peak) for each in report.containers}
    denials = None
    if report.denials is not None:
        denials = {each.uid: each.count for each in report.denials} or _NONE_DENIED
    return PodSample(
        pinned=total((report.vm_lck, report.vm_pin)),
        peak=report.peak,
        level=report.level,
        reason=_text(report.reason),
        message=_text(report.message),
        containers=containers or _NONE,
        denials=denials,
        processes=report.processes,
    )


@lru_cache(maxsize=4096)
def _text(text: str) -> str:
    """The same object for equal reasons and messages: thousands of pods have the same one."""
    return text


@lru_cache(maxsize=1024)
def _shared(sources: tuple[SourceLevel, ...]) -> tuple[SourceLevel, ...]:
    """The same object for equal tables: nodes with one kernel and one agent report the same."""
    return sources
