"""From what the nodes report to the status of one limit.

`aggregate` is the whole of it: the limit, the pods that it holds for, a view of each of their nodes, and the status that stands now, in;
the status that should stand, out. A result equal to `previous` needs no write: a condition keeps its transition time while its status
stays.

It goes in two steps: `summarize_limit` each node, then `conclude` over all. A ceiling over 150,000 pods is asked for every few seconds
while few nodes have changed, so the caller may keep the shares of the nodes from one call to the next (`Kept`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Generic, TypeVar

from pinwarden.api.meta import Condition
from pinwarden.api.pinlimit import NodeCount, Overshoot, PinLimitStatus, PodUsage
from pinwarden.api.reasons import POD_GONE, SILENT
from pinwarden.common.text import readable, total
from pinwarden.plan.conditions import Rejection, dated, not_accepted
from pinwarden.plan.limit_compiler import Limit
from pinwarden.plan.limit_conditions import evaluate_limit
from pinwarden.plan.limit_on_node import LimitOnNode, largest, summarize_limit
from pinwarden.plan.node_view import NodeView, PodSample
from pinwarden.plan.recommendation import recommend
from pinwarden.plan.types import Pod

_Resource = TypeVar("_Resource")
_Share = TypeVar("_Share")


class ShareCache(Generic[_Share]):
    """The shares of one resource's nodes, each good while resource and view are the same objects and the pods are equal."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[object, NodeView, list[Pod], _Share]] = {}

    def shares(
        self,
        resource: _Resource,
        pods: Mapping[str, list[Pod]],
        views: Mapping[str, NodeView],
        summarize_limit: Callable[[_Resource, list[Pod], NodeView], _Share],
    ) -> list[_Share]:
        """The share of each node, as `summarize_limit` makes it; those of other nodes are forgotten."""
        now: dict[str, tuple[object, NodeView, list[Pod], _Share]] = {}
        for name, on_node in pods.items():
            view = views[name]
            last = self._last.get(name)
            same = last is not None and last[0] is resource and last[1] is view and last[2] == on_node
            now[name] = (
                last if last and same else (resource, view, on_node, summarize_limit(resource, on_node, view))
            )
        self._last = now
        return self.last

    @property
    def last(self) -> list[_Share]:
        """What was answered last."""
        return [share for *_, share in self._last.values()]


class Kept(ShareCache[LimitOnNode]):
    """The shares of a limit."""


def aggregate(
    limit: Limit,
    pods: Iterable[Pod],
    nodes: Mapping[str, NodeView],
    previous: PinLimitStatus | None,
    now: datetime,
    *,
    rejection: Rejection | None = None,
    overriding: Iterable[str] = (),
    kept: Kept | None = None,
) -> PinLimitStatus:
    """The status of `limit`.

    `pods`, `rejection` and `overriding` come from the `Cluster`. `nodes` has the views by node name; a node without one counts as silent.
    `previous` is the status that the API server has. `now` is aware of its time zone. A caller that passes the same `kept` each time has
    only changed nodes summarized again; the result is the same.
    """
    by_node: dict[str, list[Pod]] = {}
    for pod in pods:
        by_node.setdefault(pod.node, []).append(pod)
    views = {name: nodes.get(name) or NodeView(name) for name in by_node}
    kept = Kept() if kept is None else kept
    shares = kept.shares(limit, by_node, views, summarize_limit)
    return conclude(limit, shares, previous, now, rejection=rejection, overriding=overriding)


def conclude(
    limit: Limit,
    shares: Sequence[LimitOnNode],
    previous: PinLimitStatus | None,
    now: datetime,
    *,
    rejection: Rejection | None = None,
    overriding: Iterable[str] = (),
) -> PinLimitStatus:
    """The status of `limit` from the share of each node that has a pod which it holds for; see `aggregate`."""
    generation = limit.metadata.generation
    if rejection is not None:
        verdicts = not_accepted(rejection)
        return PinLimitStatus(
            observed_generation=generation, conditions=dated(verdicts, _conditions(previous), now, generation)
        )
    shares = sorted(shares, key=lambda share: share.node)
    verdicts = evaluate_limit(limit, shares, sorted(overriding))
    pinned = [share.pinned for share in shares if share.pinned is not None]
    denials = [share.denials for share in shares if share.denials is not None]
    silent = {share.node for share in shares if share.silent}
    pinned_bytes = total(pinned) if pinned else None
    return PinLimitStatus(
        observed_generation=generation,
        conditions=dated(verdicts, _conditions(previous), now, generation),
        matched_pods=sum(share.pods for share in shares),
        nodes=NodeCount(desired=len(shares), applied=sum(share.acknowledged for share in shares)),
        pinned_bytes=pinned_bytes,
        pinned=readable(pinned_bytes),
        denials=total(denials) if denials else None,
        overshoot=_overshoot(shares),
        top_pods=[
            _usage(pod, use, limit.metadata.uid or "", pod.node in silent)
            for pod, use in largest(each for share in shares for each in share.top)
        ],
        recommendation=recommend(
            max((share.peak for share in shares if share.peak is not None), default=None)
        ),
    )


def _usage(pod: Pod, use: PodSample, uid: str, silent: bool) -> PodUsage:
    """One of `topPods` of the limit with this UID; where the agent is silent, the level is not known any more (H1)."""
    return PodUsage(
        namespace=pod.namespace,
        name=pod.name,
        node=pod.node,
        pinned_bytes=use.pinned,
        level=None if silent else use.level,
        reason=SILENT if silent else POD_GONE if pod.gone else use.reason or None,
        denials=use.denied(uid),
    )


def _overshoot(shares: Sequence[LimitOnNode]) -> Overshoot | None:
    """The worst of the nodes: the highest peak, the longest time, and how often it happened on all of them."""
    found = [share.overshoot for share in shares if share.overshoot is not None]
    if not found:
        return None
    peaks, seconds, counts = zip(*found, strict=True)
    return Overshoot(peak_bytes=max(peaks), seconds=max(seconds), count=total(counts))


def _conditions(status: PinLimitStatus | None) -> Sequence[Condition]:
    return status.conditions if status else ()
