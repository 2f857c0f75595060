"""One SharedMemoryGroup on one node: the agent's report, pods above limits, and a waiting drain.

This module yields facts; `group_conditions` and `group_status` make sentences and sums of them.
Amounts are in bytes and sampled by the agent (H2).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pinwarden.api.nodepinconfig import BorrowReport, GroupReport
from pinwarden.api.reasons import (
    ACCOUNTANT_SILENT,
    LEVEL_TOO_LOW,
    NOT_ALLOWED,
    NOT_LOOKED_AT,
    NOT_MADE,
    NOT_READABLE,
    NOT_REMOVED,
    NOT_REPORTED,
    NOT_THERE,
    OVER_LIMIT,
    PENDING,
    SILENT,
    TRUNCATED,
)
from pinwarden.api.sharedmemorygroup import Accounting, Borrower, LimitOn, Management, Member, Phase
from pinwarden.common.text import short
from pinwarden.plan.conditions import NO_OBSERVATIONS, Observation, Observations
from pinwarden.plan.group_compiler import MAX_NODE_GROUP_BYTES, MAX_NODE_GROUPS, Group
from pinwarden.plan.limit_on_node import contested
from pinwarden.plan.node_share import NodeShare, name_pod
from pinwarden.plan.node_view import NodeView, problem_on, unsupported_on
from pinwarden.plan.selectors import selects
from pinwarden.plan.types import Pod

TOO_MANY_GROUPS = "TooManyGroups"
FIGURE_MISSING = "FigureMissing"
_AWAITED = frozenset({NOT_THERE, NOT_LOOKED_AT, ACCOUNTANT_SILENT})
_STUCK = frozenset({NOT_REMOVED, NOT_READABLE, NOT_MADE, NOT_ALLOWED, ACCOUNTANT_SILENT})

PodLookup = Callable[[str, str], Pod | None]
"""Return the pod of a node by the UID of its cgroup, also a recently ended pod."""


class DrainWait(NamedTuple):
    """A node for which the deletion of a group waits (M10).

    `users` use the group there, `why` says why the deletion waits. `charge` is the remaining memory
    in bytes, None if unknown. `stuck` is a reason why the wait may never end, else empty.
    """

    node: str
    users: tuple[str, ...]
    why: str
    charge: int | None
    stuck: str


@dataclass(frozen=True, slots=True)
class GroupOnNode(NodeShare):
    """The share of one node in the status of a group.

    `limited` counts the pods with a borrow limit. `unenforced` pods are below the minimum level,
    and for `unknown` pods the level is unknown; both are empty for a silent node. `absent`: why the
    object is not as requested. `awaited`: the object may still come; both are empty while the group
    drains. `over`: subjects above a limit, and borrowers without membership. `undecided`: subjects
    of unknown use. `missing`: figures missing in the sums. `borrowed` and `count` are None if not
    counted. `waits` is set only while the group drains.
    """

    report: GroupReport | None
    limited: int
    unenforced: Observations
    unknown: Observations
    absent: Observations
    awaited: Observations
    over: Observations
    undecided: Observations
    missing: Observations
    borrowed: int | None
    count: int | None
    borrowers: tuple[Borrower, ...]
    waits: DrainWait | None


def summarize_group(
    group: Group, pods: Sequence[Pod], view: NodeView, find: PodLookup
) -> GroupOnNode:
    """Return the share of the node of `view`; `pods` are all its member pods of `group`."""
    report = view.groups.get(group.uid)
    requested = view.requested_groups.get(group.uid)
    acknowledged = report is not None and report.hash == requested and not view.not_compiled
    borrows = {borrow.pod: borrow for borrow in report.borrowers} if report else {}
    limited = [pod for pod in pods if _limits(group, pod)]
    unenforced = (
        [] if view.silent else list(_unenforced(group, limited, borrows, view, acknowledged))
    )
    borrowing = [borrow for borrow in borrows.values() if _borrows(borrow)]
    figures = [borrow.borrowed for borrow in borrowing if borrow.borrowed is not None]
    counts = report is not None and group.resource.spec.accounting is Accounting.BORROW
    counts = counts and (acknowledged or bool(borrowing))
    complete = counts and not (borrowing and not figures)

    def if_reported(observations: Callable[[GroupReport], Iterator[Observation]]) -> Observations:
        return Observations.of(observations(report)) if report else NO_OBSERVATIONS

    return GroupOnNode(
        node=view.name,
        pods=len(pods),
        silent=view.silent,
        reported=report is not None,
        acknowledged=acknowledged,
        rejected=unsupported_on(view, group.uid)
        or _crowded_out(group, pods, view)
        or problem_on(view),
        report=report,
        limited=len(limited),
        unenforced=Observations.of(observation for known, observation in unenforced if known),
        unknown=Observations.of(observation for known, observation in unenforced if not known),
        absent=if_reported(lambda report: _absent(group, view.name, report, awaited=False)),
        awaited=if_reported(lambda report: _absent(group, view.name, report, awaited=True)),
        over=if_reported(lambda report: _over(group, pods, view, report, find)),
        undecided=if_reported(lambda report: _undecided(group, limited, view, report, borrows)),
        missing=if_reported(lambda report: _missing(view, report, find)),
        borrowed=sum(figures) if complete else None,
        count=len(borrowing) + (report.omitted if report else 0) if counts else None,
        borrowers=tuple(_borrower(group, borrow, view, find) for borrow in borrowing),
        waits=drain_wait(group, view, find) if group.draining else None,
    )


def _absent(
    group: Group, node: str, report: GroupReport, *, awaited: bool
) -> Iterator[Observation]:
    """Yield why the object is not as requested; with `awaited`, why no object is known yet.

    With management Adopt, programs create the object, and it may be absent.
    """
    if group.draining or not report.reason or report.phase is Phase.RELEASED:
        return
    if report.reason == NOT_THERE and group.resource.spec.management is Management.ADOPT:
        return
    if awaited == (report.reason in _AWAITED):
        yield Observation(f"node {node}", report.reason, report.message)


def drain_wait(
    group: Group, view: NodeView, find: PodLookup, *, rejected: bool = False
) -> DrainWait | None:
    """Return why the deletion of a group waits for the node, None if the node does not have it.

    The wait may never end (`stuck`) if the agent is silent, or cannot act on the object. A user is
    no such reason. A `rejected` group does not wait if the agent may not look any more: pinwarden
    creates nothing below an administrator's folder.
    """
    report = view.groups.get(group.uid)
    requested = view.requested_groups.get(group.uid)
    released = report is not None and report.phase is Phase.RELEASED
    if requested is None and group.uid not in view.stored_groups and (report is None or released):
        return None
    over = released or (rejected and report is not None and report.reason == NOT_ALLOWED)
    if report is not None and over and requested in (None, report.hash):
        return None
    problem = unsupported_on(view, group.uid) or problem_on(view)
    stuck, why = "", "the agent has not reported the group yet"
    if report is not None:
        stuck = report.reason if report.reason in _STUCK else ""
        why = ": ".join(text for text in (stuck, report.message) if text) or report.reason
    if view.silent or problem:
        stuck = why = SILENT if view.silent or problem is None else problem.reason
    borrows = [borrow for borrow in (report.borrowers if report else ()) if _borrows(borrow)]
    users = tuple(sorted(_name(view.name, borrow.pod, find) for borrow in borrows))
    return DrainWait(view.name, users, why, report.charge if report else None, stuck)


def _limits(group: Group, pod: Pod) -> list[Member]:
    """Return the entries of `members` with a borrow limit for the pod; all of them apply (M8)."""
    return [
        member
        for member in group.resource.spec.members
        if member.borrow_limit is not None and selects(member.pod_selector, pod.labels)
    ]


def _unenforced(
    group: Group,
    limited: Sequence[Pod],
    borrows: dict[str, BorrowReport],
    view: NodeView,
    acknowledged: bool,
) -> Iterator[tuple[bool, Observation]]:
    """Yield started pods below the minimum level, each with True, or False if unknown."""
    minimum = group.resource.spec.minimum_level
    for pod in limited:
        name = name_pod(pod)
        if pod.contested:
            yield True, contested(pod)
            continue
        borrow = borrows.get(pod.cgroup_uid)
        if borrow is None and not pod.started:
            continue
        if not acknowledged:
            problem = unsupported_on(view, group.uid) or problem_on(view)
            late = Observation(
                name, PENDING, f"node {view.name} has not acknowledged the group yet"
            )
            yield True, problem or late
        elif borrow is None or borrow.level is None:
            yield False, Observation(name, NOT_REPORTED, "the agent has not reported its level")
        elif borrow.level.rank > minimum.rank:
            yield (
                True,
                Observation(name, borrow.reason or LEVEL_TOO_LOW, f"level {borrow.level} only"),
            )


def _crowded_out(group: Group, pods: Sequence[Pod], view: NodeView) -> Observation | None:
    """Return why the group is missing on a node with a member pod, None if present."""
    if (
        not pods
        or not view.compiled
        or group.uid in view.requested_groups
        or (group.drains and not group.has_finalizer)
    ):
        return None
    room = (
        f"a node has room for {MAX_NODE_GROUPS} groups, "
        f"and for {MAX_NODE_GROUP_BYTES >> 10} KiB of groups"
    )
    return Observation(f"node {view.name}", TOO_MANY_GROUPS, room)


def _over(
    group: Group, pods: Sequence[Pod], view: NodeView, report: GroupReport, find: PodLookup
) -> Iterator[Observation]:
    """Yield subjects above capacity or a borrow limit, and borrowers without membership."""
    capacity = group.resource.spec.capacity
    if capacity is not None and report.charge is not None and report.charge > capacity.bytes:
        excess = report.charge - capacity.bytes
        yield Observation(
            f"node {view.name}",
            "OverCapacity",
            f"{short(report.charge)} charged, {short(excess)} over",
        )
    members = {uid: pod for pod in pods for uid in pod.cgroup_uids}
    for borrow in report.borrowers:
        pod = members.get(borrow.pod)
        if pod is None:
            if not borrow.member and _borrows(borrow):
                detail = f"{_amount(borrow.mapped)} mapped on node {view.name}"
                yield Observation(f"pod {_name(view.name, borrow.pod, find)}", "NotMember", detail)
            continue
        excesses = [_excess(member, borrow) or 0 for member in _limits(group, pod)]
        if (worst := max(excesses, default=0)) > 0:
            yield Observation(name_pod(pod), OVER_LIMIT, f"{short(worst)} over")


def _undecided(
    group: Group,
    limited: Sequence[Pod],
    view: NodeView,
    report: GroupReport,
    borrows: dict[str, BorrowReport],
) -> Iterator[Observation]:
    """Yield subjects with an unknown use."""
    cut = report.truncated or report.omitted > 0
    if (
        group.resource.spec.capacity is not None
        and report.objects
        and (report.charge is None or cut)
    ):
        yield Observation(
            f"node {view.name}", FIGURE_MISSING if report.charge is None else TRUNCATED
        )
    for pod in limited:
        borrow = borrows.get(pod.cgroup_uid)
        if borrow is None and cut:
            yield Observation(name_pod(pod), TRUNCATED)
        elif borrow is not None and None in [
            _excess(member, borrow) for member in _limits(group, pod)
        ]:
            yield Observation(name_pod(pod), FIGURE_MISSING)


def _missing(view: NodeView, report: GroupReport, find: PodLookup) -> Iterator[Observation]:
    """Yield missing figures of the node."""
    if report.truncated or report.omitted:
        yield Observation(f"node {view.name}", TRUNCATED, "" if report.reason else report.message)
    if report.objects and report.charge is None:
        yield Observation(f"node {view.name}", FIGURE_MISSING, "the charge is unknown")
    for borrow in report.borrowers:
        if borrow.borrowed is None or borrow.mapped is None:
            yield Observation(f"pod {_name(view.name, borrow.pod, find)}", FIGURE_MISSING)


def _excess(member: Member, borrow: BorrowReport) -> int | None:
    """Return the bytes above a limit (negative below it), None if the figure is unknown."""
    figure = borrow.mapped if member.borrow_limit_on is LimitOn.MAPPED else borrow.borrowed
    if figure is None or member.borrow_limit is None:
        return None
    return figure - member.borrow_limit.bytes


def _borrows(borrow: BorrowReport) -> bool:
    """Return whether the pod may have the group mapped, as with an unknown figure."""
    return borrow.borrowed != 0 or borrow.mapped != 0


def _borrower(group: Group, borrow: BorrowReport, view: NodeView, find: PodLookup) -> Borrower:
    pod = find(view.name, borrow.pod)
    limits = _limits(group, pod) if pod is not None and pod.namespace == group.namespace else []
    amounts = [member.borrow_limit.bytes for member in limits if member.borrow_limit is not None]
    return Borrower(
        pod=pod.name if pod else borrow.pod,
        namespace=pod.namespace if pod else "",
        node=view.name,
        member=borrow.member,
        borrowed_bytes=borrow.borrowed,
        mapped_bytes=borrow.mapped,
        limit_bytes=min(amounts, default=None),
        level=None if view.silent else borrow.level,
        reason=SILENT if view.silent else borrow.reason or None,
        denials=borrow.denials,
    )


def _name(node: str, uid: str, find: PodLookup) -> str:
    pod = find(node, uid)
    return f"{pod.namespace}/{pod.name}" if pod else uid


def _amount(amount: int | None) -> str:
    return "an unknown amount" if amount is None else short(amount)
