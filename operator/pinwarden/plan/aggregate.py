"""From what the nodes report to the status of one limit.

`aggregate` is the whole of it: the limit, the pods that it holds for, a view of each of their nodes, and the status that stands now, in;
the status that should stand, out. A result equal to `previous` needs no write: a condition keeps its transition time while its status
stays. It goes in two steps, so that a caller with 5,000 nodes can keep the first: `summarize` each node, then `conclude` over all.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from heapq import nsmallest

from pinwarden.api.meta import Condition
from pinwarden.api.pinlimit import NodeCount, Overshoot, PinLimitStatus
from pinwarden.plan.compile import Limit, Refusal
from pinwarden.plan.conditions import Verdict, judge, refused
from pinwarden.plan.recommend import recommend
from pinwarden.plan.report import NodeView
from pinwarden.plan.summarize import TOP, Share, summarize
from pinwarden.plan.world import Pod


def aggregate(
    limit: Limit,
    pods: Iterable[Pod],
    nodes: Mapping[str, NodeView],
    previous: PinLimitStatus | None,
    now: datetime,
    *,
    refusal: Refusal | None = None,
    overriding: Iterable[str] = (),
) -> PinLimitStatus:
    """The status of `limit`.

    `pods` are those it holds for (`World.pods_of`), `refusal` and `overriding` what `World` says of it. `nodes` has a view by node name; a
    node without one counts as silent. `previous` is the status that the API server has; `now` is aware of its time zone.
    """
    by_node: dict[str, list[Pod]] = {}
    for pod in pods:
        by_node.setdefault(pod.node, []).append(pod)
    shares = [
        summarize(limit, on_node, nodes.get(name) or NodeView(name)) for name, on_node in by_node.items()
    ]
    return conclude(limit, shares, previous, now, refusal=refusal, overriding=overriding)


def conclude(
    limit: Limit,
    shares: Sequence[Share],
    previous: PinLimitStatus | None,
    now: datetime,
    *,
    refusal: Refusal | None = None,
    overriding: Iterable[str] = (),
) -> PinLimitStatus:
    """The status of `limit` from the share of each node that has a pod which it holds for; see `aggregate`."""
    generation = limit.metadata.generation
    if refusal is not None:
        verdicts = refused(refusal)
        return PinLimitStatus(
            observed_generation=generation, conditions=_dated(verdicts, previous, now, generation)
        )
    shares = sorted(shares, key=lambda share: share.node)
    verdicts = judge(limit, shares, sorted(overriding))
    pinned = [share.pinned for share in shares if share.pinned is not None]
    top = nsmallest(
        TOP,
        (usage for share in shares for usage in share.top),
        key=lambda usage: (-usage.pinned_bytes, usage.namespace, usage.name),
    )
    return PinLimitStatus(
        observed_generation=generation,
        conditions=_dated(verdicts, previous, now, generation),
        matched_pods=sum(share.pods for share in shares),
        nodes=NodeCount(desired=len(shares), applied=sum(share.acknowledged for share in shares)),
        pinned_bytes=sum(pinned) if pinned else None,
        denials=None,
        overshoot=_overshoot(shares),
        top_pods=top,
        recommendation=recommend(
            max((share.peak for share in shares if share.peak is not None), default=None)
        ),
    )


def _overshoot(shares: Sequence[Share]) -> Overshoot | None:
    """The worst of the nodes: the highest peak, the longest time, and how often it happened on all of them."""
    found = [share.overshoot for share in shares if share.overshoot is not None]
    if not found:
        return None
    peaks, seconds, counts = zip(*found, strict=True)
    return Overshoot(peak_bytes=max(peaks), seconds=max(seconds), count=sum(counts))


def _dated(
    verdicts: Sequence[Verdict], previous: PinLimitStatus | None, now: datetime, generation: int | None
) -> list[Condition]:
    """The conditions in order, each with the time when its status last changed; to whole seconds, as Kubernetes writes times."""
    before = {condition.type: condition for condition in (previous.conditions if previous else [])}
    dated = []
    for verdict in verdicts:
        old = before.get(verdict.type)
        since = (
            old.last_transition_time if old and old.status == verdict.status else now.replace(microsecond=0)
        )
        dated.append(
            Condition(
                type=verdict.type,
                status=verdict.status,
                reason=verdict.reason,
                message=verdict.message,
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return dated
