"""Compute the status of one SharedMemoryGroup from the views of its nodes, like `limit_status`.

If a status differs from the previous one only in sample times, no write is needed at once: then
`settled` returns the previous status.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from heapq import nsmallest

from pinwarden.api.meta import ObjectMeta
from pinwarden.api.pinlimit import NodeCount
from pinwarden.api.reasons import NOT_REPORTED, SILENT
from pinwarden.api.sharedmemorygroup import Borrower, GroupNode, Phase, SharedMemoryGroupStatus
from pinwarden.common.text import readable, total
from pinwarden.plan.conditions import Rejection, not_accepted, with_times
from pinwarden.plan.group_compiler import Group
from pinwarden.plan.group_conditions import drained, evaluate_group
from pinwarden.plan.group_on_node import DrainWait, GroupOnNode, PodLookup, summarize_group
from pinwarden.plan.node_view import NodeView
from pinwarden.plan.share_cache import ShareCache
from pinwarden.plan.types import Pod

MOST = 100
STALE = timedelta(minutes=10)
_PHASES = list(Phase)


def group_shares(
    group: Group,
    members: Mapping[str, Sequence[Pod]],
    on: Iterable[str],
    nodes: Mapping[str, NodeView],
    find: PodLookup,
    cache: ShareCache[GroupOnNode] | None = None,
) -> list[GroupOnNode]:
    """Return the shares of nodes with a member pod (`members`) or only the group (`on`), by name.

    A node without a view counts as silent. `cache` is as in `limit_status.aggregate`.
    """
    pods = {name: list(members.get(name, ())) for name in sorted({*members, *on})}
    views = {name: nodes.get(name) or NodeView(name) for name in pods}
    cache = ShareCache() if cache is None else cache
    return cache.update(group, pods, views, partial(summarize_group, find=find))


def rejected_group_status(
    metadata: ObjectMeta,
    rejection: Rejection,
    previous: SharedMemoryGroupStatus | None,
    now: datetime,
    waits: Sequence[DrainWait] = (),
) -> SharedMemoryGroupStatus:
    """Return the status of a rejected group; `waits` are the nodes with the group from before."""
    before = previous.conditions if previous else ()
    generation = metadata.generation
    conditions = [*not_accepted(rejection), *([drained(waits)] if waits else [])]
    return SharedMemoryGroupStatus(
        observed_generation=generation, conditions=with_times(conditions, before, now, generation)
    )


def group_status(
    group: Group,
    shares: Sequence[GroupOnNode],
    previous: SharedMemoryGroupStatus | None,
    now: datetime,
) -> SharedMemoryGroupStatus:
    """Return the status of an accepted group from its shares; `now` has a time zone."""
    generation = group.resource.metadata.generation
    before = previous.conditions if previous else ()
    reports = [share.report for share in shares if share.report is not None]
    all_borrowers = (borrower for share in shares for borrower in share.borrowers)
    borrowers = nsmallest(MOST, all_borrowers, key=_largest_first)
    counts = [share.count for share in shares if share.count is not None]
    with_pods = [share for share in shares if share.pods]
    nodes = sorted(
        map(_group_node, shares), key=lambda node: (_PHASES.index(node.phase), node.node)
    )
    charge = _sum(report.charge for report in reports)
    borrowed = _sum(share.borrowed for share in shares)
    orphaned = _sum(report.orphaned for report in reports)
    return SharedMemoryGroupStatus(
        observed_generation=generation,
        conditions=with_times(evaluate_group(group, shares), before, now, generation),
        phase=nodes[0].phase if nodes else None,
        backing=group.resource.spec.backing.kind,
        matched_pods=sum(share.pods for share in shares),
        node_count=NodeCount(
            desired=len(with_pods), applied=sum(share.acknowledged for share in with_pods)
        ),
        charge_bytes=charge,
        charge=readable(charge),
        borrowed_bytes=borrowed,
        borrowed=readable(borrowed),
        orphaned_bytes=orphaned,
        orphaned=readable(orphaned),
        dead_cgroup_bytes=_sum(report.dead for report in reports),
        borrower_count=_sum(counts),
        borrowers=borrowers,
        omitted=max(0, total(counts) - len(borrowers)) if counts else None,
        nodes=nodes[:MOST],
    )


def settled(
    previous: SharedMemoryGroupStatus | None, status: SharedMemoryGroupStatus
) -> SharedMemoryGroupStatus:
    """Return `previous` if only sample times differ, each by less than `STALE`, else `status`."""
    if previous is None or _timeless(previous) != _timeless(status):
        return status
    pairs = zip(previous.nodes, status.nodes, strict=True)
    stale = any(
        old.sampled_at is None or new.sampled_at is None or new.sampled_at - old.sampled_at >= STALE
        for old, new in pairs
        if old.sampled_at != new.sampled_at
    )
    return status if stale else previous


def _timeless(status: SharedMemoryGroupStatus) -> SharedMemoryGroupStatus:
    nodes = [node.model_copy(update={"sampled_at": None}) for node in status.nodes]
    return status.model_copy(update={"nodes": nodes})


def _sum(figures: Iterable[int | None]) -> int | None:
    """Return the sum of the known figures, None if no figure is known (H2)."""
    known = [figure for figure in figures if figure is not None]
    return total(known) if known else None


def _largest_first(borrower: Borrower) -> tuple[int, int, str, str, str]:
    borrowed, mapped = borrower.borrowed_bytes or 0, borrower.mapped_bytes or 0
    return -borrowed, -mapped, borrower.namespace, borrower.pod, borrower.node


def _group_node(share: GroupOnNode) -> GroupNode:
    report = share.report
    if report is None:
        return GroupNode(
            node=share.node, phase=Phase.PENDING, reason=SILENT if share.silent else NOT_REPORTED
        )
    return GroupNode(
        node=share.node,
        phase=report.phase,
        reason=SILENT if share.silent else report.reason,
        message=report.message,
        objects=report.objects,
        charge_bytes=report.charge,
        orphaned_bytes=report.orphaned,
        sampled_at=report.sampled_at,
    )
