"""Findings about SharedMemoryGroups with the pod as member or borrower."""

from collections.abc import Iterator

from pinwarden.api.nodepinconfig import BorrowReport
from pinwarden.api.sharedmemorygroup import LimitOn, Member
from pinwarden.common.text import short
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.explain.advice import kubectl_step
from pinwarden.plan.explain.evidence import Case
from pinwarden.plan.explain.findings import Cause, Finding, GroupUse, NextStep, problem
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
    decided = admissions(
        [group for group in case.evidence.groups if group.namespace == case.pod.namespace],
        case.evidence.namespace,
    )
    for group, borrow in _concerned(case):
        admission = decided.get(group.name)
        if isinstance(admission, Rejection) and _is_member(case, group):
            yield problem(
                Cause.GROUP_REJECTED,
                f"The pod is a member of SharedMemoryGroup {group.name}, which is rejected "
                f"({admission.reason}): {admission.message}.",
                _describe(group, "See its conditions."),
            )
        if borrow is not None and not case.view.silent:
            yield from _of_borrow(case, group, borrow)


def _of_borrow(case: Case, group: Group, borrow: BorrowReport) -> Iterator[Finding]:
    if not _is_member(case, group):
        yield problem(
            Cause.NOT_MEMBER,
            f"The pod has SharedMemoryGroup {group.name} mapped, but is not a member.",
            _describe(group, "See the selectors of its members."),
        )
        return
    for member in _limits(case, group):
        figure = borrow.mapped if member.borrow_limit_on is LimitOn.MAPPED else borrow.borrowed
        allowed = member.borrow_limit.bytes if member.borrow_limit else 0
        if figure is not None and figure > allowed:
            yield problem(
                Cause.BORROW_OVER,
                f"The pod's borrow of SharedMemoryGroup {group.name} is {short(figure)} "
                f"{member.borrow_limit_on}, its borrowLimit {member.borrow_limit}: existing "
                "mappings stay, and new mappings are denied only in a gated pod.",
                _edit(group),
            )
    if borrow.denials:
        yield problem(
            Cause.BORROW_DENIED,
            f"The gate denied {borrow.denials} mapping(s) of SharedMemoryGroup {group.name}.",
            _edit(group),
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
    return kubectl_step(text, "describe sharedmemorygroup", name, namespace=group.namespace)


def _edit(group: Group) -> NextStep:
    name = group.resource.metadata.name
    return kubectl_step(
        "If the pod needs more, raise the borrowLimit of its entry in spec.members.",
        "edit sharedmemorygroup",
        name,
        namespace=group.namespace,
    )
