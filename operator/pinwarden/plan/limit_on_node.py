"""One limit on one node: who is held, who is not and why, and what its pods pin there.

The facts only; `conditions` and `aggregate` make words and sums of them. Amounts are in bytes and sampled by the agent (H2).

Who is held is for the pod's own report to say (H1): its level is over everything that the pod can use or has used, so a source that the
node holds less well for others does not speak against it. Where a pod's level is too low, or not known, such sources tell why.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import nsmallest

from pinwarden.api.nodepinconfig import UnsupportedReport
from pinwarden.api.pinlimit import ClusterPinLimit, Level, PinLimitSpec, Scope, Source
from pinwarden.api.reasons import (
    ENDED,
    LEVEL_TOO_LOW,
    NO_PROCESSES,
    NOT_READABLE,
    NOT_REPORTED,
    PENDING,
    UNSUPPORTED,
)
from pinwarden.common.text import short
from pinwarden.plan.conditions import NAMED, NO_OBSERVATIONS, Observation, Observations
from pinwarden.plan.limit_compiler import (
    MAX_NODE_LIMIT_BYTES,
    MAX_NODE_LIMITS,
    MAX_NODE_POD_BYTES,
    MAX_NODE_PODS,
    MAX_POD_LIMITS,
    Limit,
)
from pinwarden.plan.node_view import NodeView, PodSample, RequestedLimit
from pinwarden.plan.types import Pod

TOP = 10
NOT_COUNTED = "NotCounted"
TOO_MANY_LIMITS = "TooManyLimits"
CONTESTED = "CgroupContested"
TOO_MANY_PODS = "TooManyPods"
NOT_COMPILED = "NotCompiled"
ROOM = (
    f"there is room for {MAX_POD_LIMITS} limits on a pod and {MAX_NODE_LIMITS} on a node, "
    f"or {MAX_NODE_LIMIT_BYTES >> 10} KiB of them"
)
POD_ROOM = f"there is room for {MAX_NODE_PODS} pods, or {MAX_NODE_POD_BYTES >> 10} KiB of them, on a node"


@dataclass(frozen=True, slots=True)
class LimitOnNode:
    """What one node contributes to a limit's status.

    `acknowledged`: the agent took this very spec of the limit; `refused`: why it never will. `unheld`: why a pod, or all of them, is not
    held as asked; a silent node names none. `over`: what is above the limit, with the excess. `unjudged`: subjects whose use is not known.
    `pinned` and `peak` are None where no pod is reported; `peak` is what the limit would have had to be. `denials`: the calls refused for
    the limit, None where that is seen of no pod. `grant`: the least that a pod is granted here. `reachable`: whether some pod has a
    container that the limit is about.
    """

    node: str
    pods: int
    silent: bool
    reported: bool
    acknowledged: bool
    truncated: bool
    rejected: Observation | None
    unheld: Observations
    uncounted: frozenset[Source]
    unreported: Observations
    over: Observations
    unjudged: Observations
    pinned: int | None
    peak: int | None
    denials: int | None
    top: tuple[tuple[Pod, PodSample], ...]
    overshoot: tuple[int, float, int] | None
    grant: int | None
    reachable: bool


def summarize_limit(limit: Limit, pods: Sequence[Pod], view: NodeView) -> LimitOnNode:
    """What `view`'s node says of `limit`, which holds for exactly these pods of the node (at least one)."""
    spec: PinLimitSpec = limit.spec
    uid = limit.metadata.uid or ""
    asked = {pod.uid: _asked(view, pod, uid) for pod in pods}
    wanted = {ask for ask in asked.values() if ask is not None}
    uses = {pod.uid: view.pods.get(pod.cgroup_uid) for pod in pods}
    unsupported = unsupported_on(view, uid)
    crowded = (found for pod in pods if asked[pod.uid] is None and (found := _crowded(view, pod)))
    uncounted = frozenset(_selected(spec)) - {level.source for level in view.sources if level.counted}
    unreported = [finding for pod in pods if (finding := _unseen(pod, uses[pod.uid]))]
    known = [(pod, use) for pod in pods if (use := uses[pod.uid]) is not None]
    over, unjudged = _compare(limit, known)
    denied = [count for _, use in known if (count := use.denied(uid)) is not None]
    weak = _weak_sources(spec, view)

    def unheld() -> Iterator[Observation]:
        if unsupported:
            yield unsupported
        if view.reported and all(source in uncounted for source in _selected(spec)):
            yield Observation(f"node {view.name}", NOT_COUNTED, "no selected source is counted there")
        running = (pod for pod in pods if _runs(pod, uses[pod.uid]))
        if weak and not all(_suffices(spec, uses[pod.uid]) for pod in running):
            yield Observation(f"node {view.name}", LEVEL_TOO_LOW, weak)
        for pod in pods:
            finding = _unheld(spec, pod, asked[pod.uid], uses[pod.uid], view, weak)
            if finding:
                yield finding

    grants = [ask.grant for ask in wanted if ask.grant is not None]
    return LimitOnNode(
        node=view.name,
        pods=len(pods),
        silent=view.silent,
        reported=view.reported,
        acknowledged=not view.not_compiled
        and None not in asked.values()
        and all((ask.uid, ask.hash) in view.applied for ask in wanted),
        truncated=view.truncated,
        rejected=unsupported or next(crowded, None) or problem_on(view),
        unheld=NO_OBSERVATIONS if view.silent else Observations.of(unheld()),
        uncounted=uncounted if view.reported else frozenset(),
        unreported=Observations.of(unreported),
        over=Observations.of(over),
        unjudged=Observations.of([*unjudged, *unreported]),
        pinned=sum(use.pinned for _, use in known) if known else None,
        peak=_peak(limit, known),
        denials=sum(denied) if denied else None,
        top=tuple(largest(known)),
        overshoot=_overshoot(view, uid),
        grant=min(grants, default=None),
        reachable=not spec.containers
        or any(name in pod.containers for pod in pods for name in spec.containers),
    )


def acknowledges(view: NodeView, pod: Pod, uid: str) -> bool:
    """Whether the node's agent took a spec that asks it to hold this pod to the limit with this UID as it is now, and deals it (H1)."""
    return _acknowledges(view, pod, _asked(view, pod, uid))


def largest(known: Iterable[tuple[Pod, PodSample]]) -> list[tuple[Pod, PodSample]]:
    """The pods that pin most, largest first."""
    return nsmallest(TOP, known, key=lambda each: (-each[1].pinned, each[0].namespace, each[0].name))


def _asked(view: NodeView, pod: Pod, uid: str) -> RequestedLimit | None:
    return next((ask for ask in view.requested.get(pod.cgroup_uid, ()) if ask.uid == uid), None)


def _acknowledges(view: NodeView, pod: Pod, ask: RequestedLimit | None) -> bool:
    return (
        not view.not_compiled
        and ask is not None
        and ask in view.acknowledged.get(pod.cgroup_uid, ())
        and (ask.uid, ask.hash) in view.applied
    )


def _selected(spec: PinLimitSpec) -> Sequence[Source]:
    return spec.sources or list(Source)


def _name(pod: Pod) -> str:
    return f"pod {pod.namespace}/{pod.name}"


def unsupported_on(view: NodeView, uid: str) -> Observation | None:
    """What the agent said of this very limit or group."""
    return _from_agent(view, view.unsupported.get(uid))


def problem_on(view: NodeView) -> Observation | None:
    """Why the agent did not take the newest spec at all, or there is none, so that what it has not acknowledged stays so."""
    if view.not_compiled:
        return Observation(f"node {view.name}", NOT_COMPILED, view.not_compiled)
    return _from_agent(view, view.problem)


def contested(pod: Pod) -> Observation:
    """That nobody can tell whose the cgroup of the pod is."""
    detail = (
        f"another pod of its node names cgroup {pod.cgroup_uid} too, for which the limits of all of them hold"
    )
    return Observation(_name(pod), CONTESTED, detail)


def _from_agent(view: NodeView, report: UnsupportedReport | None) -> Observation | None:
    if report is None:
        return None
    return Observation(f"node {view.name}", UNSUPPORTED, f"{report.reason}: {report.message}")


def _overshoot(view: NodeView, uid: str) -> tuple[int, float, int] | None:
    """The highest peak in bytes, the longest time in seconds, and how often, as far as the node saw."""
    found = [each for each in view.overshoots if each.limit == uid]
    if not found:
        return None
    return (
        max(each.peak for each in found),
        max(each.seconds for each in found),
        sum(each.count for each in found),
    )


def _weak_sources(spec: PinLimitSpec, view: NodeView) -> str:
    """The counted sources below the minimum level for a pod of the node that nothing better is known of; empty where there is none."""
    selected = _selected(spec)
    weak = [
        f"{level.source} is at {level.level}: {level.reason}"
        for level in view.sources
        if level.source in selected and level.counted and level.level in _weaker(spec.minimum_level)
    ]
    more = f" and {len(weak) - NAMED} more" if len(weak) > NAMED else ""
    return ", ".join(weak[:NAMED]) + more


def _suffices(spec: PinLimitSpec, use: PodSample | None) -> bool:
    """Whether the pod is known to be held at the minimum level or better."""
    return use is not None and use.level not in _weaker(spec.minimum_level)


def _unheld(
    spec: PinLimitSpec, pod: Pod, ask: RequestedLimit | None, use: PodSample | None, view: NodeView, weak: str
) -> Observation | None:
    """Why this pod is not held as asked.

    Nothing of a pod of which nothing runs, unless it may turn out to be held less well than asked: `weak` are the sources of the node for
    which it may.
    """
    if pod.contested:
        return contested(pod)
    if ask is None and (crowded := _crowded(view, pod)):
        return crowded
    if not _runs(pod, use):
        what = "nothing of it runs" if pod.started else "it has not started"
        return Observation(_name(pod), PENDING, f"{what}, and on its node {weak}") if weak else None
    if not _acknowledges(view, pod, ask):
        problem = problem_on(view)
        return problem or Observation(_name(pod), PENDING, f"node {view.name} has not acknowledged it yet")
    if use is not None and not _suffices(spec, use):
        return Observation(
            _name(pod), use.reason or LEVEL_TOO_LOW, use.message or f"held at {use.level} only"
        )
    return _unseen(pod, use)


def _runs(pod: Pod, use: PodSample | None) -> bool:
    """Whether there is something of the pod to hold, as far as kubelet and agent say.

    Of a pod without processes the kubelet's word counts, unless the agent just saw them end: the kubelet may not have said so yet.
    """
    if use is None:
        return pod.started
    return use.processes > 0 or use.reason == NOT_READABLE or (pod.running and use.reason != ENDED)


def _unseen(pod: Pod, use: PodSample | None) -> Observation | None:
    """Of a pod that runs, and whose agent sees nothing of it."""
    if not _runs(pod, use) or (use is not None and (use.processes or use.reason == NOT_READABLE)):
        return None
    if use is None:
        return Observation(
            _name(pod), NOT_REPORTED, "its containers started, but its agent has not reported it"
        )
    where = (
        use.message if use.reason == NO_PROCESSES else "its containers run, and no process is in its cgroup"
    )
    return Observation(_name(pod), NO_PROCESSES, where)


@cache
def _weaker(minimum: Level) -> frozenset[Level]:
    """The levels at which a pod is not held as asked."""
    return frozenset(level for level in Level if level.rank > minimum.rank)


def _crowded(view: NodeView, pod: Pod) -> Observation | None:
    """That a limit which the node is not asked to hold for the pod found no room there."""
    if pod.cgroup_uid in view.overflow.unlisted:
        return Observation(_name(pod), TOO_MANY_PODS, POD_ROOM)
    if view.overflow.full or len(view.requested.get(pod.cgroup_uid, ())) >= MAX_POD_LIMITS:
        return Observation(_name(pod), TOO_MANY_LIMITS, ROOM)
    return None


def _compare(
    limit: Limit, known: Sequence[tuple[Pod, PodSample]]
) -> tuple[list[Observation], list[Observation]]:
    """What was above the limit, and what cannot be judged because the use of a container is not known by itself."""
    amount = limit.spec.limit.bytes
    if isinstance(limit, ClusterPinLimit) and limit.spec.scope is Scope.NODE:
        total = sum(use.pinned for _, use in known)
        return [_over(f"node {known[0][0].node}", total, amount)] if total > amount else [], []
    if limit.spec.scope is not Scope.CONTAINER:
        return [_over(_name(pod), use.pinned, amount) for pod, use in known if use.pinned > amount], []
    over = [
        _over(f"{_name(pod)} container {name}", each.pinned, amount)
        for pod, use in known
        for name, each in use.containers.items()
        if each.pinned > amount and (not limit.spec.containers or name in limit.spec.containers)
    ]
    blind = [pod for pod, use in known if not use.containers and use.pinned > amount]
    return over, [Observation(_name(pod), "ContainerNotReported") for pod in blind]


def _over(subject: str, pinned: int, amount: int) -> Observation:
    return Observation(subject, "OverLimit", f"{short(pinned)} pinned, {short(pinned - amount)} over")


def _peak(limit: Limit, known: Sequence[tuple[Pod, PodSample]]) -> int | None:
    """The least limit that what was seen would have fitted in; with scope Node the peaks are added as if they came together."""
    if isinstance(limit, ClusterPinLimit) and limit.spec.scope is Scope.NODE:
        return sum(use.peak for _, use in known) if known else None
    if limit.spec.scope is Scope.CONTAINER:
        selected = limit.spec.containers
        peaks = [
            each.peak
            for _, use in known
            for name, each in use.containers.items()
            if not selected or name in selected
        ]
        return max(peaks, default=None)
    return max((use.peak for _, use in known), default=None)
