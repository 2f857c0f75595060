"""One limit on one node: which pods are below the minimum level and why, and their pinned memory.

This module yields facts; `limit_conditions` and `limit_status` make sentences and sums of them.
Amounts are in bytes and sampled by the agent (H2).

The pod's own report decides whether the pod is limited (H1). Its level covers every source of the
pod, used or possible. So a weaker source of the node does not matter for other pods. If the level
of a pod is too low or unknown, the sources of the node say why.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import nsmallest

from pinwarden.api.pinlimit import ClusterPinLimit, Level, PinLimitSpec, Scope, Source
from pinwarden.api.reasons import (
    ENDED,
    LEVEL_TOO_LOW,
    NO_PROCESSES,
    NOT_READABLE,
    NOT_REPORTED,
    OVER_LIMIT,
    PENDING,
)
from pinwarden.common.text import short
from pinwarden.plan.conditions import NO_OBSERVATIONS, Observation, Observations, name_some
from pinwarden.plan.limit_compiler import MAX_POD_LIMITS, Limit
from pinwarden.plan.node_share import NodeShare, name_pod
from pinwarden.plan.node_spec import (
    MAX_NODE_LIMIT_BYTES,
    MAX_NODE_LIMITS,
    MAX_NODE_POD_BYTES,
    MAX_NODE_PODS,
)
from pinwarden.plan.node_view import NodeView, PodSample, RequestedLimit, problem_on, unsupported_on
from pinwarden.plan.types import Pod

TOP = 10
NOT_COUNTED = "NotCounted"
TOO_MANY_LIMITS = "TooManyLimits"
CONTESTED = "CgroupContested"
TOO_MANY_PODS = "TooManyPods"
LIMIT_ROOM = (
    f"a pod has room for {MAX_POD_LIMITS} limits, "
    f"a node for {MAX_NODE_LIMITS} limits or {MAX_NODE_LIMIT_BYTES >> 10} KiB of limits"
)
POD_ROOM = (
    f"a node has room for {MAX_NODE_PODS} pods or {MAX_NODE_POD_BYTES >> 10} KiB of their entries"
)


@dataclass(frozen=True, slots=True)
class LimitOnNode(NodeShare):
    """The share of one node in the status of a limit.

    `unenforced`: why pods are below the minimum level; empty for a silent node. `over`: subjects
    above the limit. `undecided`: subjects whose use is unknown. `pinned` and `peak` are None if no
    pod is reported; `peak` is the smallest sufficient limit. `denials`: denied calls of the limit,
    None if unknown for every pod. `grant`: the least amount granted to a pod here. `reachable`: a
    pod has a selected container.
    """

    truncated: bool
    unenforced: Observations
    uncounted: frozenset[Source]
    unreported: Observations
    over: Observations
    undecided: Observations
    pinned: int | None
    peak: int | None
    denials: int | None
    top: tuple[tuple[Pod, PodSample], ...]
    overshoot: tuple[int, float, int] | None
    grant: int | None
    reachable: bool


def summarize_limit(limit: Limit, pods: Sequence[Pod], view: NodeView) -> LimitOnNode:
    """Return the share of the node of `view`; `pods` are all its matching pods (at least one)."""
    spec: PinLimitSpec = limit.spec
    uid = limit.metadata.uid or ""
    requests = {pod.uid: _requested(view, pod, uid) for pod in pods}
    requested = {request for request in requests.values() if request is not None}
    samples = {pod.uid: view.pods.get(pod.cgroup_uid) for pod in pods}
    unsupported = unsupported_on(view, uid)
    crowded = (
        reason for pod in pods if requests[pod.uid] is None and (reason := _crowded_out(view, pod))
    )
    uncounted = frozenset(_selected(spec)) - {
        level.source for level in view.sources if level.counted
    }
    unreported = [reason for pod in pods if (reason := _not_sampled(pod, samples[pod.uid]))]
    sampled = [(pod, sample) for pod in pods if (sample := samples[pod.uid]) is not None]
    over, undecided = _compare(limit, sampled)
    denied = [count for _, sample in sampled if (count := sample.denied(uid)) is not None]
    weak = _weak_sources(spec, view)

    def unenforced() -> Iterator[Observation]:
        if unsupported:
            yield unsupported
        if view.reported and all(source in uncounted for source in _selected(spec)):
            yield Observation(
                f"node {view.name}", NOT_COUNTED, "no selected source is counted there"
            )
        running = (pod for pod in pods if _runs(pod, samples[pod.uid]))
        if weak and not all(_suffices(spec, samples[pod.uid]) for pod in running):
            yield Observation(f"node {view.name}", LEVEL_TOO_LOW, weak)
        for pod in pods:
            reason = _unenforced(spec, pod, requests[pod.uid], samples[pod.uid], view, weak)
            if reason:
                yield reason

    grants = [request.grant for request in requested if request.grant is not None]
    return LimitOnNode(
        node=view.name,
        pods=len(pods),
        silent=view.silent,
        reported=view.reported,
        acknowledged=not view.not_compiled
        and None not in requests.values()
        and all((request.uid, request.hash) in view.applied for request in requested),
        rejected=unsupported or next(crowded, None) or problem_on(view),
        truncated=view.truncated,
        unenforced=NO_OBSERVATIONS if view.silent else Observations.of(unenforced()),
        uncounted=uncounted if view.reported else frozenset(),
        unreported=Observations.of(unreported),
        over=Observations.of(over),
        undecided=Observations.of([*undecided, *unreported]),
        pinned=sum(sample.pinned for _, sample in sampled) if sampled else None,
        peak=_peak(limit, sampled),
        denials=sum(denied) if denied else None,
        top=tuple(largest(sampled)),
        overshoot=_overshoot(view, uid),
        grant=min(grants, default=None),
        reachable=not spec.containers
        or any(name in pod.containers for pod in pods for name in spec.containers),
    )


def acknowledges(view: NodeView, pod: Pod, uid: str) -> bool:
    """Return whether the node's agent applies the current limit with this UID to the pod (H1)."""
    return _acknowledges(view, pod, _requested(view, pod, uid))


def largest(sampled: Iterable[tuple[Pod, PodSample]]) -> list[tuple[Pod, PodSample]]:
    """Return the pods with most pinned memory, largest first."""
    return nsmallest(
        TOP, sampled, key=lambda entry: (-entry[1].pinned, entry[0].namespace, entry[0].name)
    )


def _requested(view: NodeView, pod: Pod, uid: str) -> RequestedLimit | None:
    return next(
        (limit for limit in view.requested.get(pod.cgroup_uid, ()) if limit.uid == uid), None
    )


def _acknowledges(view: NodeView, pod: Pod, request: RequestedLimit | None) -> bool:
    return (
        not view.not_compiled
        and request is not None
        and request in view.acknowledged.get(pod.cgroup_uid, ())
        and (request.uid, request.hash) in view.applied
    )


def _selected(spec: PinLimitSpec) -> Sequence[Source]:
    return spec.sources or list(Source)


def contested(pod: Pod) -> Observation:
    """Return the observation of a cgroup with an unknown owner."""
    detail = (
        f"another pod of the node names cgroup {pod.cgroup_uid} too, "
        "so the limits of all these pods apply to the cgroup"
    )
    return Observation(name_pod(pod), CONTESTED, detail)


def _overshoot(view: NodeView, uid: str) -> tuple[int, float, int] | None:
    """Return the highest peak in bytes, the longest time in seconds, and the count."""
    overshoots = [overshoot for overshoot in view.overshoots if overshoot.limit == uid]
    if not overshoots:
        return None
    return (
        max(overshoot.peak for overshoot in overshoots),
        max(overshoot.seconds for overshoot in overshoots),
        sum(overshoot.count for overshoot in overshoots),
    )


def _weak_sources(spec: PinLimitSpec, view: NodeView) -> str:
    """Return the counted sources of the node below the minimum level, empty if there is none."""
    selected = _selected(spec)
    weak = [
        f"{level.source} is at {level.level}: {level.reason}"
        for level in view.sources
        if level.source in selected and level.counted and level.level in _weaker(spec.minimum_level)
    ]
    return name_some(weak)


def _suffices(spec: PinLimitSpec, sample: PodSample | None) -> bool:
    """Return whether the pod is known to be limited at the minimum level or better."""
    return sample is not None and sample.level not in _weaker(spec.minimum_level)


def _unenforced(
    spec: PinLimitSpec,
    pod: Pod,
    request: RequestedLimit | None,
    sample: PodSample | None,
    view: NodeView,
    weak: str,
) -> Observation | None:
    """Return why the pod is below the minimum level, None if it is not.

    A pod without processes is named only if sources of its node are `weak`.
    """
    if pod.contested:
        return contested(pod)
    if request is None and (crowded := _crowded_out(view, pod)):
        return crowded
    if not _runs(pod, sample):
        state = "no process runs" if pod.started else "the pod has not started"
        return (
            Observation(name_pod(pod), PENDING, f"{state}, and on its node {weak}")
            if weak
            else None
        )
    if not _acknowledges(view, pod, request):
        late = Observation(
            name_pod(pod), PENDING, f"node {view.name} has not acknowledged the limit yet"
        )
        return problem_on(view) or late
    if sample is not None and not _suffices(spec, sample):
        detail = sample.message or f"level {sample.level} only"
        return Observation(name_pod(pod), sample.reason or LEVEL_TOO_LOW, detail)
    return _not_sampled(pod, sample)


def _runs(pod: Pod, sample: PodSample | None) -> bool:
    """Return whether the pod has processes, as far as kubelet and agent know.

    Without a process in the agent's report, the kubelet decides. But if the last process has just
    ended, the kubelet may not know yet.
    """
    if sample is None:
        return pod.started
    return (
        sample.processes > 0
        or sample.reason == NOT_READABLE
        or (pod.running and sample.reason != ENDED)
    )


def _not_sampled(pod: Pod, sample: PodSample | None) -> Observation | None:
    """Return why the agent does not see a running pod, None if seen or not running."""
    if not _runs(pod, sample) or (sample and (sample.processes or sample.reason == NOT_READABLE)):
        return None
    if sample is None:
        detail = "its containers started, but the agent has not reported the pod"
        return Observation(name_pod(pod), NOT_REPORTED, detail)
    detail = "its containers run, but its cgroup has no process"
    return Observation(
        name_pod(pod), NO_PROCESSES, sample.message if sample.reason == NO_PROCESSES else detail
    )


@cache
def _weaker(minimum: Level) -> frozenset[Level]:
    """Return the levels below the minimum."""
    return frozenset(level for level in Level if level.rank > minimum.rank)


def _crowded_out(view: NodeView, pod: Pod) -> Observation | None:
    """Return why a limit of the pod did not fit on its node, None if nothing was left out."""
    if pod.cgroup_uid in view.overflow.unlisted:
        return Observation(name_pod(pod), TOO_MANY_PODS, POD_ROOM)
    if view.overflow.limits_cut or len(view.requested.get(pod.cgroup_uid, ())) >= MAX_POD_LIMITS:
        return Observation(name_pod(pod), TOO_MANY_LIMITS, LIMIT_ROOM)
    return None


def _compare(
    limit: Limit, sampled: Sequence[tuple[Pod, PodSample]]
) -> tuple[list[Observation], list[Observation]]:
    """Return the subjects above the limit, and the pods without reports of containers."""
    amount = limit.spec.limit.bytes
    if isinstance(limit, ClusterPinLimit) and limit.spec.scope is Scope.NODE:
        total = sum(sample.pinned for _, sample in sampled)
        return [_over(f"node {sampled[0][0].node}", total, amount)] if total > amount else [], []
    if limit.spec.scope is not Scope.CONTAINER:
        return [
            _over(name_pod(pod), sample.pinned, amount)
            for pod, sample in sampled
            if sample.pinned > amount
        ], []
    over = [
        _over(f"{name_pod(pod)} container {name}", container.pinned, amount)
        for pod, sample in sampled
        for name, container in sample.containers.items()
        if container.pinned > amount
        and (not limit.spec.containers or name in limit.spec.containers)
    ]
    unknown = [pod for pod, sample in sampled if not sample.containers and sample.pinned > amount]
    return over, [Observation(name_pod(pod), "ContainerNotReported") for pod in unknown]


def _over(subject: str, pinned: int, amount: int) -> Observation:
    return Observation(
        subject, OVER_LIMIT, f"{short(pinned)} pinned, {short(pinned - amount)} over"
    )


def _peak(limit: Limit, sampled: Sequence[tuple[Pod, PodSample]]) -> int | None:
    """Return the smallest sufficient limit; with scope Node, peaks add up as if simultaneous."""
    if isinstance(limit, ClusterPinLimit) and limit.spec.scope is Scope.NODE:
        return sum(sample.peak for _, sample in sampled) if sampled else None
    if limit.spec.scope is Scope.CONTAINER:
        selected = limit.spec.containers
        peaks = [
            container.peak
            for _, sample in sampled
            for name, container in sample.containers.items()
            if not selected or name in selected
        ]
        return max(peaks, default=None)
    return max((sample.peak for _, sample in sampled), default=None)
