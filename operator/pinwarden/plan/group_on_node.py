"""One SharedMemoryGroup on one node: what its agent reports of it, who is held to borrow limits, and what its end waits for.

The facts only; `group_conditions` and `group_status` make words and sums of them. Amounts are in bytes and sampled by the agent (H2).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pinwarden.api.nodepinconfig import BorrowReport, GroupReport
from pinwarden.api.reasons import LEVEL_TOO_LOW, NOT_REPORTED, PENDING, SILENT, TRUNCATED
from pinwarden.api.sharedmemorygroup import Accounting, Borrower, LimitOn, Management, Member, Phase
from pinwarden.common.text import short
from pinwarden.plan.conditions import NO_OBSERVATIONS, Observation, Observations
from pinwarden.plan.group_allowlist import NOT_ALLOWED
from pinwarden.plan.group_compiler import MAX_NODE_GROUP_BYTES, MAX_NODE_GROUPS, Group
from pinwarden.plan.limit_on_node import contested, problem_on, unsupported_on
from pinwarden.plan.node_view import NodeView
from pinwarden.plan.selectors import selects
from pinwarden.plan.types import Pod

TOO_MANY_GROUPS = "TooManyGroups"
FIGURE_MISSING = "FigureMissing"
_NOT_THERE = "NotThere"
_ACCOUNTANT_SILENT = "AccountantSilent"
_AWAITED = frozenset({_NOT_THERE, "NotLookedAt", _ACCOUNTANT_SILENT})
_STUCK = frozenset({"NotRemoved", "NotReadable", "NotMade", NOT_ALLOWED, _ACCOUNTANT_SILENT})

PodLookup = Callable[[str, str], Pod | None]
"""The pod of a node whose cgroup bears a UID, also one that ended lately."""


class DrainWait(NamedTuple):
    """A node that a group's end waits for (M10): who uses it there, why it waits, and what is left there in bytes, if that is known.

    `stuck` is why it may wait in vain, in one word; empty where it need not.
    """

    node: str
    users: tuple[str, ...]
    why: str
    charge: int | None
    stuck: str


@dataclass(frozen=True, slots=True)
class GroupOnNode:
    """What one node contributes to a group's status.

    `acknowledged`: the agent accounts by this very spec of the group; `refused`: why it does not. Of the `limited` pods, which have a
    borrow limit, `unheld` are those held less well than asked, and `unknown` those of which that is not known; a silent node names none.
    `absent`: why there is no object as asked for here, and `awaited`: that it may come yet; neither while the group drains.
    `over` is what is above a limit, and who borrows without being a member; `unjudged`, of what that is not known. `missing`: figures that
    the sums lack. `borrowed` and `count` are None where nobody counts them. `waits` only while the group drains.
    """

    node: str
    pods: int
    silent: bool
    report: GroupReport | None
    acknowledged: bool
    rejected: Observation | None
    limited: int
    unheld: Observations
    unknown: Observations
    absent: Observations
    awaited: Observations
    over: Observations
    unjudged: Observations
    missing: Observations
    borrowed: int | None
    count: int | None
    borrowers: tuple[Borrower, ...]
    waits: DrainWait | None


def summarize_group(group: Group, pods: Sequence[Pod], view: NodeView, find: PodLookup) -> GroupOnNode:
    """What `view`'s node says of `group`, to which exactly these pods of the node are attached."""
    report = view.groups.get(group.uid)
    asked = view.requested_groups.get(group.uid)
    acknowledged = report is not None and report.hash == asked and not view.not_compiled
    borrows = {each.pod: each for each in report.borrowers} if report else {}
    limited = [pod for pod in pods if _limits(group, pod)]
    held = [] if view.silent else list(_held(group, limited, borrows, view, acknowledged))
    known = [each for each in borrows.values() if _borrows(each)]
    figures = [each.borrowed for each in known if each.borrowed is not None]
    counts = report is not None and group.resource.spec.accounting is Accounting.BORROW
    counts = counts and (acknowledged or bool(known))
    complete = counts and not (known and not figures)
    return GroupOnNode(
        node=view.name,
        pods=len(pods),
        silent=view.silent,
        report=report,
        acknowledged=acknowledged,
        rejected=unsupported_on(view, group.uid) or _crowded(group, pods, view) or problem_on(view),
        limited=len(limited),
        unheld=Observations.of(finding for known, finding in held if known),
        unknown=Observations.of(finding for known, finding in held if not known),
        absent=Observations.of(_absent(group, view.name, report, awaited=False))
        if report
        else NO_OBSERVATIONS,
        awaited=Observations.of(_absent(group, view.name, report, awaited=True))
        if report
        else NO_OBSERVATIONS,
        over=Observations.of(_over(group, pods, view, report, find)) if report else NO_OBSERVATIONS,
        unjudged=Observations.of(_unjudged(group, limited, view, report, borrows))
        if report
        else NO_OBSERVATIONS,
        missing=Observations.of(_missing(group, view, report, find)) if report else NO_OBSERVATIONS,
        borrowed=sum(figures) if complete else None,
        count=len(known) + (report.omitted if report else 0) if counts else None,
        borrowers=tuple(_borrower(group, each, view, find) for each in known),
        waits=drain_wait(group, view, find) if group.draining else None,
    )


def _absent(group: Group, node: str, report: GroupReport, *, awaited: bool) -> Iterator[Observation]:
    """What the agent has against the object; with `awaited`, that none is known yet. An object that programs make need not be there."""
    if group.draining or not report.reason or report.phase is Phase.RELEASED:
        return
    if report.reason == _NOT_THERE and group.resource.spec.management is Management.ADOPT:
        return
    if awaited == (report.reason in _AWAITED):
        yield Observation(f"node {node}", report.reason, report.message)


def drain_wait(group: Group, view: NodeView, find: PodLookup, *, rejected: bool = False) -> DrainWait | None:
    """What the end of a group that drains waits for on the node; None once it is released there, or never was there.

    It may wait in vain where nobody answers, and where the agent can do nothing about what it found; never for a user. One that is
    `refused` does not wait where the agent may not look any more: pinwarden makes nothing below an allowed folder.
    """
    report = view.groups.get(group.uid)
    asked = view.requested_groups.get(group.uid)
    released = report is not None and report.phase is Phase.RELEASED
    if asked is None and group.uid not in view.stored_groups and (report is None or released):
        return None
    over = released or (rejected and report is not None and report.reason == NOT_ALLOWED)
    if report is not None and over and asked in (None, report.hash):
        return None
    problem = unsupported_on(view, group.uid) or problem_on(view)
    stuck, why = "", "nothing is reported of it yet"
    if report is not None:
        stuck = report.reason if report.reason in _STUCK else ""
        why = ": ".join(each for each in (stuck, report.message) if each) or report.reason
    if view.silent or problem:
        stuck = why = SILENT if view.silent or problem is None else problem.reason
    users = [
        _name(view.name, each.pod, find) for each in (report.borrowers if report else ()) if _borrows(each)
    ]
    return DrainWait(view.name, tuple(sorted(users)), why, report.charge if report else None, stuck)


def _limits(group: Group, pod: Pod) -> list[Member]:
    """The entries with a borrow limit that hold for the pod; all of them do (M8)."""
    members = group.resource.spec.members
    return [
        each for each in members if each.borrow_limit is not None and selects(each.pod_selector, pod.labels)
    ]


def _held(
    group: Group, limited: Sequence[Pod], borrows: dict[str, BorrowReport], view: NodeView, acknowledged: bool
) -> Iterator[tuple[bool, Observation]]:
    """Who of the limited pods is not held as asked, and whether that is known. Nothing of one that has not started."""
    minimum = group.resource.spec.minimum_level
    for pod in limited:
        name = f"pod {pod.namespace}/{pod.name}"
        if pod.contested:
            yield True, contested(pod)
            continue
        borrow = borrows.get(pod.cgroup_uid)
        if borrow is None and not pod.started:
            continue
        if not acknowledged:
            rejected = unsupported_on(view, group.uid) or problem_on(view)
            late = Observation(name, PENDING, f"node {view.name} has not acknowledged it yet")
            yield True, rejected or late
        elif borrow is None or borrow.level is None:
            yield False, Observation(name, NOT_REPORTED, "its agent does not say how it is held")
        elif borrow.level.rank > minimum.rank:
            yield True, Observation(name, borrow.reason or LEVEL_TOO_LOW, f"held at {borrow.level} only")


def _crowded(group: Group, pods: Sequence[Pod], view: NodeView) -> Observation | None:
    """Whether the group found no room on a node with a member pod."""
    if (
        not pods
        or not view.compiled
        or group.uid in view.requested_groups
        or (group.drains and not group.held)
    ):
        return None
    room = f"there is room for {MAX_NODE_GROUPS}, and for {MAX_NODE_GROUP_BYTES >> 10} KiB of them, on a node"
    return Observation(f"node {view.name}", TOO_MANY_GROUPS, room)


def _over(
    group: Group, pods: Sequence[Pod], view: NodeView, report: GroupReport, find: PodLookup
) -> Iterator[Observation]:
    capacity = group.resource.spec.capacity
    if capacity is not None and report.charge is not None and report.charge > capacity.bytes:
        excess = report.charge - capacity.bytes
        yield Observation(
            f"node {view.name}", "OverCapacity", f"{short(report.charge)} held, {short(excess)} over"
        )
    attached = {uid: pod for pod in pods for uid in pod.cgroup_uids}
    for borrow in report.borrowers:
        pod = attached.get(borrow.pod)
        if pod is None:
            if not borrow.member and _borrows(borrow):
                what = f"{_amount(borrow.mapped)} mapped on node {view.name}"
                yield Observation(f"pod {_name(view.name, borrow.pod, find)}", "NotMember", what)
            continue
        excesses = [_excess(each, borrow) for each in _limits(group, pod)]
        if (worst := max((each or 0 for each in excesses), default=0)) > 0:
            yield Observation(f"pod {pod.namespace}/{pod.name}", "OverLimit", f"{short(worst)} over")


def _unjudged(
    group: Group,
    limited: Sequence[Pod],
    view: NodeView,
    report: GroupReport,
    borrows: dict[str, BorrowReport],
) -> Iterator[Observation]:
    """Of what nobody knows whether it is above a limit."""
    cut = report.truncated or report.omitted > 0
    if group.resource.spec.capacity is not None and report.objects and (report.charge is None or cut):
        yield Observation(f"node {view.name}", FIGURE_MISSING if report.charge is None else TRUNCATED)
    for pod in limited:
        borrow = borrows.get(pod.cgroup_uid)
        if borrow is None and cut:
            yield Observation(f"pod {pod.namespace}/{pod.name}", TRUNCATED)
        elif borrow is not None and None in [_excess(each, borrow) for each in _limits(group, pod)]:
            yield Observation(f"pod {pod.namespace}/{pod.name}", FIGURE_MISSING)


def _missing(group: Group, view: NodeView, report: GroupReport, find: PodLookup) -> Iterator[Observation]:
    """What the sums lack of the node."""
    if report.truncated or report.omitted:
        yield Observation(f"node {view.name}", TRUNCATED, "" if report.reason else report.message)
    if report.objects and report.charge is None:
        yield Observation(f"node {view.name}", FIGURE_MISSING, "the charge is not known")
    for borrow in report.borrowers:
        if borrow.borrowed is None or borrow.mapped is None:
            yield Observation(f"pod {_name(view.name, borrow.pod, find)}", FIGURE_MISSING)


def _excess(member: Member, borrow: BorrowReport) -> int | None:
    """Bytes above (below: negative) one limit, None where the figure is not known."""
    figure = borrow.mapped if member.borrow_limit_on is LimitOn.MAPPED else borrow.borrowed
    if figure is None or member.borrow_limit is None:
        return None
    return figure - member.borrow_limit.bytes


def _borrows(borrow: BorrowReport) -> bool:
    """Whether it may have something of it mapped: a figure that is not known speaks for it."""
    return borrow.borrowed != 0 or borrow.mapped != 0


def _borrower(group: Group, borrow: BorrowReport, view: NodeView, find: PodLookup) -> Borrower:
    pod = find(view.name, borrow.pod)
    attached = pod is not None and pod.namespace == group.namespace
    limits = _limits(group, pod) if pod is not None and attached else []
    amounts = [each.borrow_limit.bytes for each in limits if each.borrow_limit is not None]
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


def _amount(count: int | None) -> str:
    return "an unknown amount" if count is None else short(count)
