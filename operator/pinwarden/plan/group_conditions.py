"""Evaluate the conditions of a SharedMemoryGroup from its nodes' shares, like `limit_conditions`.

A definite failure comes before an unknown state, and an unknown state before success (H1).
"""

from collections.abc import Sequence

from pinwarden.api.pinlimit import Enforcement
from pinwarden.api.reasons import AUDIT, NO_PODS
from pinwarden.plan.conditions import Observations, UntimedCondition, name_some, plural, summary
from pinwarden.plan.group_compiler import Group
from pinwarden.plan.group_on_node import DrainWait, GroupOnNode
from pinwarden.plan.node_share import applied, cut_figures, missing_reports, no_pods, silence

NO_LIMITS = "NoLimits"


def evaluate_group(group: Group, shares: Sequence[GroupOnNode]) -> list[UntimedCondition]:
    """Return the conditions of an accepted group: Ready, its parts, and Drained if draining."""
    with_pods = [share for share in shares if share.pods]
    parts = [
        accepted(group),
        applied(with_pods),
        available(with_pods),
        enforced(group, with_pods),
        complete(shares),
        within_limit(group, shares),
        *([drained([share.waits for share in shares if share.waits])] if group.draining else []),
    ]
    needed = ["Accepted", "Applied", "Available"]
    if group.resource.spec.enforcement is Enforcement.ENFORCE:
        needed.append("Enforced")
    if group.draining:
        needed.insert(1, "Drained")
    return [summary(parts, needed, needed[-1]), *parts]


def accepted(group: Group) -> UntimedCondition:
    """Return Accepted, with each borrowLimit above the capacity."""
    spec = group.resource.spec
    above = [
        f"members[{number}].borrowLimit {member.borrow_limit}"
        for number, member in enumerate(spec.members)
        if spec.capacity and member.borrow_limit and member.borrow_limit.value > spec.capacity.value
    ]
    remark = (
        f" Above capacity {spec.capacity}, which is reached first: {name_some(above)}."
        if above
        else ""
    )
    message = f"The group is accounted on each of its nodes.{remark}"
    return UntimedCondition("Accepted", "True", "Accepted", message)


def available(shares: Sequence[GroupOnNode]) -> UntimedCondition:
    """Return whether each node with member pods has the requested object.

    With management Adopt, the object may be absent (M1).
    """
    if not shares:
        return no_pods("Available")
    if absent := Observations.all(share.absent for share in shares if not share.silent):
        return absent.condition("Available", "False", "Not as requested")
    if awaited := Observations.all(share.awaited for share in shares if not share.silent):
        return awaited.condition("Available", "Unknown", "Not known yet")
    return _unanswered("Available", shares) or UntimedCondition(
        "Available", "True", "Available", "All existing objects are found and accounted."
    )


def enforced(group: Group, shares: Sequence[GroupOnNode]) -> UntimedCondition:
    """Return whether every pod with a borrow limit has the requested level (H1, M8)."""
    spec = group.resource.spec
    if spec.enforcement is Enforcement.AUDIT:
        message = "The borrow limits are evaluated and deny nothing."
        return UntimedCondition("Enforced", "False", AUDIT, message)
    if all(member.borrow_limit is None for member in spec.members):
        message = "No borrowLimit is set."
        return UntimedCondition("Enforced", "True", NO_LIMITS, message)
    if not shares:
        message = "No pod matches, so enforcement is not confirmed."
        return UntimedCondition("Enforced", "Unknown", NO_PODS, message)
    limited = [share for share in shares if share.limited]
    if not limited:
        message = "No matching pod has a borrowLimit."
        return UntimedCondition("Enforced", "True", NO_LIMITS, message)
    if unenforced := Observations.all(share.unenforced for share in limited):
        return unenforced.condition("Enforced", "False", "Not enforced")
    if silent := silence("Enforced", limited):
        return silent
    if unknown := Observations.all(share.unknown for share in limited):
        return unknown.condition("Enforced", "Unknown", "Level unknown")
    pods = plural(sum(share.limited for share in limited), "pod")
    message = f"{pods} limited at {spec.minimum_level} or better."
    return UntimedCondition("Enforced", "True", "Enforced", message)


def complete(shares: Sequence[GroupOnNode]) -> UntimedCondition:
    """Return whether the figures include every object and borrower (H2)."""
    if not shares:
        return no_pods("Complete")
    if cut := cut_figures(share.report.charge for share in shares if share.report):
        return cut
    if missing := Observations.all(share.missing for share in shares if not share.silent):
        return missing.condition("Complete", "False", "Figures are lower bounds: not known")
    return _unanswered("Complete", shares) or UntimedCondition(
        "Complete",
        "True",
        "AllCounted",
        "Every object and borrower is counted; figures are sampled.",
    )


def within_limit(group: Group, shares: Sequence[GroupOnNode]) -> UntimedCondition:
    """Return whether the last sample is within all limits, and only members borrow (M2, M8)."""
    if not shares:
        return no_pods("WithinLimit")
    if over := Observations.all(share.over for share in shares if not share.silent):
        return over.condition("WithinLimit", "False", "As last sampled")
    spec = group.resource.spec
    if spec.capacity is None and all(member.borrow_limit is None for member in spec.members):
        message = "Neither capacity nor borrowLimit is set."
        return UntimedCondition("WithinLimit", "True", NO_LIMITS, message)
    if undecided := Observations.all(share.undecided for share in shares if not share.silent):
        return undecided.condition("WithinLimit", "Unknown", "Use not known")
    return _unanswered("WithinLimit", shares) or UntimedCondition(
        "WithinLimit", "True", "Sampled", "At or under every limit as last sampled."
    )


def drained(waits: Sequence[DrainWait]) -> UntimedCondition:
    """Return whether every node has released the group, else the nodes that have not (M10)."""
    if not waits:
        message = "Every node has released the group."
        return UntimedCondition("Drained", "True", "Released", message)
    message = f"Waits for {name_some([_describe(wait) for wait in waits])}."
    return UntimedCondition("Drained", "False", "Draining", message)


def _describe(wait: DrainWait) -> str:
    """Return a node with some of the group's users there."""
    pods = (
        f"pods {name_some(wait.users)}" if len(wait.users) > 1 else f"pod {name_some(wait.users)}"
    )
    details = ": ".join(text for text in (pods if wait.users else "", wait.why) if text)
    return f"node {wait.node} ({details})" if details else f"node {wait.node}"


def _unanswered(kind: str, shares: Sequence[GroupOnNode]) -> UntimedCondition | None:
    return silence(kind, shares) or missing_reports(kind, shares)
