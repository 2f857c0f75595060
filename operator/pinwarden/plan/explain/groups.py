"""Findings about SharedMemoryGroups with the pod as member or borrower."""

from collections.abc import Iterator

from pinwarden.api.nodepinconfig import BorrowReport
from pinwarden.api.sharedmemorygroup import LimitOn, Member
from pinwarden.common.text import short
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.explain.advice import kubectl
from pinwarden.plan.explain.evidence import Case
from pinwarden.plan.explain.findings import Cause, Finding, GroupUse, NextStep
from pinwarden.plan.group_compiler import Group, admissions
from pinwarden.plan.selectors import selects
from pinwarden.plan.usage import is_stale


def uses(case: Case) -> Iterator[GroupUse]:
    """Yield a row for each group with the pod as member or borrower."""
    for group, borrow in _concerned(case):
        limits = _limits(case, group)
        report = case.view.groups.get(group.uid)
        known = (
            not case.view.silent
            and report is not None
            and not is_stale(report.sampled_at, case.evidence.now)
        )
        yield GroupUse(
            name=group.name,
            member=_is_member(case, group),
            borrowed=borrow.borrowed if borrow else None,
            mapped=borrow.mapped if borrow else None,
            limit=min(
                (member.borrow_limit.bytes for member in limits if member.borrow_limit),
                default=None,
            ),
            level=borrow.level if borrow and known else None,
            denials=borrow.denials if borrow else None,
        )


def findings(case: Case) -> Iterator[Finding]:
    """Yield rejected groups, denied mappings, and borrows above a limit."""
    standing = admissions(
        [group for group in case.evidence.groups if group.namespace == case.pod.namespace],
        case.evidence.namespace,
    )
    for group, borrow in _concerned(case):
        how = standing.get(group.name)
        if isinstance(how, Rejection) and _is_member(case, group):
            yield Finding(
                cause=Cause.GROUP_REJECTED,
                problem=True,
                message=f"The pod is a member of SharedMemoryGroup {group.name}, which is rejected "
                f"({how.reason}): {how.message}.",
                next=_describe(group, "See its conditions."),
            )
        if borrow is not None and not case.view.silent:
            yield from _of_borrow(case, group, borrow)


def _of_borrow(case: Case, group: Group, borrow: BorrowReport) -> Iterator[Finding]:
    if not _is_member(case, group):
        yield Finding(
            cause=Cause.NOT_MEMBER,
            problem=True,
            message=f"The pod has SharedMemoryGroup {group.name} mapped, but is not a member.",
            next=_describe(group, "See the selectors of its members."),
        )
        return
    for member in _limits(case, group):
        figure = borrow.mapped if member.borrow_limit_on is LimitOn.MAPPED else borrow.borrowed
        allowed = member.borrow_limit.bytes if member.borrow_limit else 0
        if figure is not None and figure > allowed:
            yield Finding(
                cause=Cause.BORROW_OVER,
                problem=True,
                message=f"The pod's borrow of SharedMemoryGroup {group.name} is {short(figure)} "
                f"{member.borrow_limit_on}, its borrowLimit {member.borrow_limit}: existing "
                "mappings stay, and new mappings are denied only in a gated pod.",
                next=_edit(group),
            )
    if borrow.denials:
        yield Finding(
            cause=Cause.BORROW_DENIED,
            problem=True,
            message=f"The gate denied {borrow.denials} mapping(s) of SharedMemoryGroup "
            f"{group.name}.",
            next=_edit(group),
        )


def _concerned(case: Case) -> Iterator[tuple[Group, BorrowReport | None]]:
    for group in sorted(case.evidence.groups, key=lambda group: group.name):
        report = case.view.groups.get(group.uid)
        borrows = report.borrowers if report else ()
        borrow = next((borrow for borrow in borrows if borrow.pod == case.pod.cgroup_uid), None)
        if borrow is not None or _is_member(case, group):
            yield group, borrow


def _is_member(case: Case, group: Group) -> bool:
    return (
        not case.windows
        and group.namespace == case.pod.namespace
        and group.has_member(case.pod.labels)
    )


def _limits(case: Case, group: Group) -> list[Member]:
    """Return the entries of `members` with a borrow limit that select the pod."""
    if group.namespace != case.pod.namespace:
        return []
    members = group.resource.spec.members
    return [
        member
        for member in members
        if member.borrow_limit and selects(member.pod_selector, case.pod.labels)
    ]


def _describe(group: Group, text: str) -> NextStep:
    name = group.resource.metadata.name
    return NextStep(
        text=text, command=kubectl("describe", "sharedmemorygroup", name, namespace=group.namespace)
    )


def _edit(group: Group) -> NextStep:
    name = group.resource.metadata.name
    return NextStep(
        text="If the pod needs more, raise the borrowLimit of its entry in spec.members.",
        command=kubectl("edit", "sharedmemorygroup", name, namespace=group.namespace),
    )
