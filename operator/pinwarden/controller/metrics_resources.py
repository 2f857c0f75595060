"""The metrics of limits, groups and governed pods, as tables."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from pinwarden.api.nodepinconfig import BorrowReport, FairReport
from pinwarden.api.pinlimit import PinLimitSpec, PinLimitStatus
from pinwarden.api.sharedmemorygroup import (
    Management,
    Phase,
    SharedMemoryGroupSpec,
    SharedMemoryGroupStatus,
)
from pinwarden.controller.metrics_families import (
    CONDITIONS,
    FAIR_HELP,
    GROUP_CONDITIONS,
    SINCE,
    MetricRow,
    Value,
)
from pinwarden.controller.metrics_totals import FAIR_PARTS, level_and_reason
from pinwarden.controller.resources import Status
from pinwarden.plan.node_view import NodeView, PodSample

_LIMIT = ("kind", "resource_namespace", "limit")
_GROUP = ("resource_namespace", "group")
_POD = ("resource_namespace", "resource_pod", "resource_node")


class ResourceCounts(NamedTuple):
    """The counters of a limit or group."""

    denials: int
    overshoots: int


class PodOnNode(NamedTuple):
    """A sample of a governed pod, and the view of its node."""

    view: NodeView
    sample: PodSample


def _conditions_among(types: Sequence[str]) -> Callable[[Status], Value]:
    return lambda status: {
        (condition.type, condition.status): 1
        for condition in status.conditions
        if condition.type in types
    }


LIMIT_CONDITION: Final[Sequence[MetricRow[Status]]] = (
    MetricRow(
        "limit_condition",
        "1 for the status of each condition of a limit.",
        (*_LIMIT, "condition", "status"),
        _conditions_among(CONDITIONS),
    ),
)
LIMIT_SPECS: Final[Sequence[MetricRow[PinLimitSpec]]] = (
    MetricRow(
        "limit_info",
        "1 for each limit, with fields of its spec as labels.",
        (*_LIMIT, "scope", "enforcement", "minimum_level", "contention", "grant"),
        lambda spec: {
            (
                spec.scope,
                spec.enforcement,
                spec.minimum_level,
                spec.contention,
                str(spec.grant).lower(),
            ): 1
        },
    ),
    MetricRow(
        "limit_bytes",
        "The limit, in its scope.",
        _LIMIT,
        lambda spec: spec.limit.bytes,
    ),
)
LIMIT_COUNTS: Final[Sequence[MetricRow[ResourceCounts]]] = (
    MetricRow(
        "limit_denials",
        f"Calls that gates denied because of the limit, {SINCE}.",
        _LIMIT,
        lambda counts: counts.denials,
        counter=True,
    ),
    MetricRow(
        "limit_overshoots",
        f"How often sampled use exceeded the limit, {SINCE}: a lower bound.",
        _LIMIT,
        lambda counts: counts.overshoots,
        counter=True,
    ),
)


def _acknowledged(status: PinLimitStatus) -> Value:
    nodes = status.nodes
    return (
        None
        if nodes is None
        else {("true",): nodes.applied, ("false",): nodes.desired - nodes.applied}
    )


def _overshoot_peak(status: PinLimitStatus) -> Value:
    if status.pinned_bytes is None:  # no node sampled the pods
        return None
    return status.overshoot.peak_bytes if status.overshoot else 0


LIMIT_STATUSES: Final[Sequence[MetricRow[PinLimitStatus]]] = (
    MetricRow("limit_pods", "Matching pods.", _LIMIT, lambda status: status.matched_pods),
    MetricRow(
        "limit_pinned_bytes",
        "Locked and pinned bytes of all matching pods, as last sampled.",
        _LIMIT,
        lambda status: status.pinned_bytes,
    ),
    MetricRow(
        "limit_recommended_bytes",
        "A limit that the observed use would not have exceeded.",
        _LIMIT,
        lambda status: status.recommendation.bytes if status.recommendation is not None else None,
    ),
    MetricRow(
        "limit_nodes",
        "Nodes with a matching pod, by whether they acknowledged the limit.",
        (*_LIMIT, "acknowledged"),
        _acknowledged,
    ),
    MetricRow(
        "limit_overshoot_peak_bytes",
        "Highest sampled use above the limit: a lower bound.",
        _LIMIT,
        _overshoot_peak,
    ),
)

GROUP_CONDITION: Final[Sequence[MetricRow[Status]]] = (
    MetricRow(
        "group_condition",
        "1 for the status of each condition of a group.",
        (*_GROUP, "condition", "status"),
        _conditions_among(GROUP_CONDITIONS),
    ),
)


def _group_info(spec: SharedMemoryGroupSpec) -> Value:
    prefault = str(spec.management is Management.CREATE and spec.prefault).lower()
    return {(spec.backing.kind, spec.management, spec.accounting, spec.enforcement, prefault): 1}


GROUP_SPECS: Final[Sequence[MetricRow[SharedMemoryGroupSpec]]] = (
    MetricRow(
        "group_info",
        "1 for each group, with fields of its spec as labels; "
        "prefault is true if pinwarden allocates all pages at once.",
        (*_GROUP, "backing", "management", "accounting", "enforcement", "prefault"),
        _group_info,
    ),
    MetricRow(
        "group_capacity_bytes",
        "Capacity of the group's object on each node.",
        _GROUP,
        lambda spec: spec.capacity.bytes if spec.capacity is not None else None,
    ),
)
GROUP_COUNTS: Final[Sequence[MetricRow[ResourceCounts]]] = (
    MetricRow(
        "group_denials",
        f"Mappings of the group that gates denied, {SINCE}.",
        _GROUP,
        lambda counts: counts.denials,
        counter=True,
    ),
)
GROUP_SHARES: Final[Sequence[MetricRow[Sequence[int]]]] = (
    MetricRow(
        "group_fullest_bytes",
        "Charge of the group on the node with the highest charge.",
        _GROUP,
        lambda charges: max(charges, default=None),
    ),
)
GROUP_STATUSES: Final[Sequence[MetricRow[SharedMemoryGroupStatus]]] = (
    MetricRow(
        "group_charge_bytes",
        "Charge of the group on all nodes.",
        _GROUP,
        lambda status: status.charge_bytes,
    ),
    MetricRow(
        "group_borrowed_bytes",
        "Borrowed bytes of the group, summed over pods.",
        _GROUP,
        lambda status: status.borrowed_bytes,
    ),
    MetricRow(
        "group_orphaned_bytes",
        "Charge of the group that no pod has mapped.",
        _GROUP,
        lambda status: status.orphaned_bytes,
    ),
    MetricRow(
        "group_dead_cgroup_bytes",
        "Charge of the group to deleted cgroups.",
        _GROUP,
        lambda status: status.dead_cgroup_bytes,
    ),
    MetricRow(
        "group_borrowers",
        "Pods that have mapped memory of the group.",
        _GROUP,
        lambda status: status.borrower_count,
    ),
    MetricRow("group_pods", "Attached pods.", _GROUP, lambda status: status.matched_pods),
    MetricRow(
        "group_phase",
        "1 for the worst phase of the group's instances.",
        (*_GROUP, "phase"),
        lambda status: {(phase.value,): phase is status.phase for phase in Phase if status.phase},
    ),
)

PODS: Final[Sequence[MetricRow[PodOnNode]]] = (
    MetricRow(
        "pod_pinned_bytes",
        "Locked and pinned bytes of a governed pod, as last sampled.",
        _POD,
        lambda pod: pod.sample.pinned,
    ),
    MetricRow(
        "pod_peak_bytes",
        "Highest sampled use of the pod: a lower bound.",
        _POD,
        lambda pod: pod.sample.peak,
    ),
    MetricRow(
        "pod_level",
        "1 for the level of the pod, and the reason.",
        (*_POD, "level", "reason"),
        lambda pod: {level_and_reason(pod.view, pod.sample): 1},
    ),
    MetricRow(
        "pod_denials",
        "Calls of the pod that its gate denied because of its limits; absent without a gate.",
        _POD,
        lambda pod: None if pod.sample.denials is None else sum(pod.sample.denials.values()),
        counter=True,
    ),
)
POD_BORROWS: Final[Sequence[MetricRow[BorrowReport]]] = (
    MetricRow(
        "pod_borrowed_bytes",
        "Pages of a group that the pod has mapped, each counted once.",
        (*_POD, "group"),
        lambda borrow: borrow.borrowed,
    ),
    MetricRow(
        "pod_mapped_bytes",
        "Extent of a group that the pod has mapped.",
        (*_POD, "group"),
        lambda borrow: borrow.mapped,
    ),
)
POD_FAIR: Final[Sequence[MetricRow[FairReport]]] = (
    MetricRow(
        "pod_fair_bytes",
        f"Fair view of the pod (M11): {FAIR_HELP}.",
        (*_POD, "part"),
        lambda fair: {(part,): getattr(fair, part) for part in FAIR_PARTS},
    ),
)
