"""Compute the status of one limit from the views of its nodes.

`aggregate` summarizes each node (`summarize_limit`), and combines the shares (`combine`). If the
result equals `previous`, no write is needed: a condition keeps its transition time while its status
stays the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pinwarden.api.pinlimit import NodeCount, Overshoot, PinLimitStatus, PodUsage
from pinwarden.api.reasons import POD_GONE, SILENT
from pinwarden.common.text import readable, total
from pinwarden.plan.conditions import Rejection, not_accepted, with_times
from pinwarden.plan.limit_compiler import Limit
from pinwarden.plan.limit_conditions import evaluate_limit
from pinwarden.plan.limit_on_node import LimitOnNode, largest, summarize_limit
from pinwarden.plan.node_view import NodeView, PodSample
from pinwarden.plan.recommendation import recommend
from pinwarden.plan.share_cache import ShareCache
from pinwarden.plan.types import Pod


def aggregate(
    limit: Limit,
    pods: Iterable[Pod],
    nodes: Mapping[str, NodeView],
    previous: PinLimitStatus | None,
    now: datetime,
    *,
    rejection: Rejection | None = None,
    overriding: Iterable[str] = (),
    cache: ShareCache[LimitOnNode] | None = None,
) -> PinLimitStatus:
    """Return the status of `limit`.

    `pods`, `rejection` and `overriding` are the answers of the `Cluster`. `nodes` has the views by
    node name; a node without a view counts as silent. `previous` is the status in the API server.
    `now` has a time zone. If a caller passes the same `cache` for each status of a limit, unchanged
    nodes are not summarized again.
    """
    by_node: dict[str, list[Pod]] = {}
    for pod in pods:
        by_node.setdefault(pod.node, []).append(pod)
    views = {name: nodes.get(name) or NodeView(name) for name in by_node}
    cache = ShareCache() if cache is None else cache
    shares = cache.update(limit, by_node, views, summarize_limit)
    return combine(limit, shares, previous, now, rejection=rejection, overriding=overriding)


def combine(
    limit: Limit,
    shares: Sequence[LimitOnNode],
    previous: PinLimitStatus | None,
    now: datetime,
    *,
    rejection: Rejection | None = None,
    overriding: Iterable[str] = (),
) -> PinLimitStatus:
    """Return the status of `limit` from the share of each node with a matching pod."""
    generation = limit.metadata.generation
    before = previous.conditions if previous else ()
    if rejection is not None:
        rejected = with_times(not_accepted(rejection), before, now, generation)
        return PinLimitStatus(observed_generation=generation, conditions=rejected)
    shares = sorted(shares, key=lambda share: share.node)
    pinned = [share.pinned for share in shares if share.pinned is not None]
    denials = [share.denials for share in shares if share.denials is not None]
    peaks = [share.peak for share in shares if share.peak is not None]
    silent = {share.node for share in shares if share.silent}
    pinned_bytes = total(pinned) if pinned else None
    conditions = evaluate_limit(limit, shares, sorted(overriding))
    return PinLimitStatus(
        observed_generation=generation,
        conditions=with_times(conditions, before, now, generation),
        matched_pods=sum(share.pods for share in shares),
        nodes=NodeCount(desired=len(shares), applied=sum(share.acknowledged for share in shares)),
        pinned_bytes=pinned_bytes,
        pinned=readable(pinned_bytes),
        denials=total(denials) if denials else None,
        overshoot=_worst_overshoot(shares),
        top_pods=[
            _pod_usage(pod, sample, limit.metadata.uid or "", pod.node in silent)
            for pod, sample in largest(top for share in shares for top in share.top)
        ],
        recommendation=recommend(max(peaks, default=None)),
    )


def _pod_usage(pod: Pod, sample: PodSample, uid: str, silent: bool) -> PodUsage:
    """Return an entry of `topPods` of the limit with this UID; `silent`: level unknown (H1)."""
    return PodUsage(
        namespace=pod.namespace,
        name=pod.name,
        node=pod.node,
        pinned_bytes=sample.pinned,
        level=None if silent else sample.level,
        reason=SILENT if silent else POD_GONE if pod.gone else sample.reason or None,
        denials=sample.denied(uid),
    )


def _worst_overshoot(shares: Sequence[LimitOnNode]) -> Overshoot | None:
    """Return the highest peak, the longest time, and the count over all nodes."""
    overshoots = [share.overshoot for share in shares if share.overshoot is not None]
    if not overshoots:
        return None
    peaks, seconds, counts = zip(*overshoots, strict=True)
    return Overshoot(peak_bytes=max(peaks), seconds=max(seconds), count=total(counts))
