"""The conditions of a SharedMemoryGroup, judged from the shares of its nodes; as `conditions` for limits.

A definite failure comes before what is not known, and that before success (H1).
"""

from collections.abc import Sequence

from pinwarden.api.pinlimit import Enforcement
from pinwarden.api.reasons import NO_PODS, NOT_REPORTED, SILENT
from pinwarden.plan.conditions import (
    Observations,
    UntimedCondition,
    main_reason,
    name_some,
    plural,
    sentence,
    summary,
)
from pinwarden.plan.group_compiler import Group
from pinwarden.plan.group_on_node import DrainWait, GroupOnNode
from pinwarden.plan.limit_conditions import CUT_FIGURES, FIGURES_CUT, applied, is_cut, silent_nodes

NO_LIMITS = "NoLimits"


def evaluate_group(group: Group, shares: Sequence[GroupOnNode]) -> list[UntimedCondition]:
    """The conditions of an accepted group: Ready first, then what it sums up; Drained only while its end is waited for."""
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
    """Whether pinwarden acts on the group; names a borrowLimit that capacity leaves no room for."""
    spec = group.resource.spec
    above = [
        f"members[{number}].borrowLimit {member.borrow_limit}"
        for number, member in enumerate(spec.members)
        if spec.capacity and member.borrow_limit and member.borrow_limit.value > spec.capacity.value
    ]
    remark = f" Above capacity {spec.capacity}, which is reached first: {name_some(above)}." if above else ""
    said = f"The group is accounted for on each node that has it.{remark}"
    return UntimedCondition("Accepted", "True", "Accepted", said)


def available(shares: Sequence[GroupOnNode]) -> UntimedCondition:
    """Whether each node with member pods has the object as it is asked for; one that programs make themselves may be there or not (M1)."""
    if not shares:
        return UntimedCondition("Available", "True", NO_PODS, "No pod matches.")
    if absent := Observations.all(share.absent for share in shares if not share.silent):
        return UntimedCondition(
            "Available", "False", main_reason(absent), sentence("Not as asked for", absent)
        )
    if awaited := Observations.all(share.awaited for share in shares if not share.silent):
        return UntimedCondition(
            "Available", "Unknown", main_reason(awaited), sentence("Not known yet", awaited)
        )
    return _unanswered("Available", shares) or UntimedCondition(
        "Available", "True", "Available", "What there is, is found and accounted for."
    )


def enforced(group: Group, shares: Sequence[GroupOnNode]) -> UntimedCondition:
    """Whether every pod with a borrow limit is held to it at the level asked for, and who is not (H1, M8)."""
    spec = group.resource.spec
    if spec.enforcement is Enforcement.AUDIT:
        return UntimedCondition(
            "Enforced", "False", "Audit", "The borrow limits are evaluated and refuse nothing."
        )
    if all(member.borrow_limit is None for member in spec.members):
        return UntimedCondition(
            "Enforced", "True", NO_LIMITS, "No borrowLimit is set, so there is none to enforce."
        )
    if not shares:
        return UntimedCondition(
            "Enforced", "Unknown", NO_PODS, "No pod matches, so nothing shows that it would be held."
        )
    limited = [share for share in shares if share.limited]
    if not limited:
        return UntimedCondition(
            "Enforced", "True", NO_LIMITS, "No matching pod has a borrowLimit to be held to."
        )
    if unheld := Observations.all(share.unheld for share in limited):
        return UntimedCondition("Enforced", "False", main_reason(unheld), sentence("Not held", unheld))
    if silent := silent_nodes(limited):
        return UntimedCondition("Enforced", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    if unknown := Observations.all(share.unknown for share in limited):
        return UntimedCondition(
            "Enforced", "Unknown", main_reason(unknown), sentence("Not known to be held", unknown)
        )
    pods = plural(sum(share.limited for share in limited), "pod")
    return UntimedCondition("Enforced", "True", "Enforced", f"{pods} held at {spec.minimum_level} or better.")


def complete(shares: Sequence[GroupOnNode]) -> UntimedCondition:
    """Whether the figures take in every object and borrower; otherwise they are lower bounds (H2)."""
    if not shares:
        return UntimedCondition("Complete", "True", NO_PODS, "No pod matches.")
    if is_cut(share.report.charge for share in shares if share.report):
        return UntimedCondition("Complete", "False", FIGURES_CUT, CUT_FIGURES)
    if missing := Observations.all(share.missing for share in shares if not share.silent):
        return UntimedCondition(
            "Complete",
            "False",
            main_reason(missing),
            sentence("Figures are lower bounds: not known", missing),
        )
    return _unanswered("Complete", shares) or UntimedCondition(
        "Complete", "True", "AllCounted", "Every object and borrower is counted; figures are sampled."
    )


def within_limit(group: Group, shares: Sequence[GroupOnNode]) -> UntimedCondition:
    """Whether what was last sampled stays at or under capacity and borrow limits, and only members borrow (M2, M8)."""
    if not shares:
        return UntimedCondition("WithinLimit", "True", NO_PODS, "No pod matches.")
    if over := Observations.all(share.over for share in shares if not share.silent):
        return UntimedCondition("WithinLimit", "False", main_reason(over), sentence("As last sampled", over))
    spec = group.resource.spec
    if spec.capacity is None and all(member.borrow_limit is None for member in spec.members):
        return UntimedCondition("WithinLimit", "True", NO_LIMITS, "Neither capacity nor borrowLimit is set.")
    if unjudged := Observations.all(share.unjudged for share in shares if not share.silent):
        return UntimedCondition(
            "WithinLimit", "Unknown", main_reason(unjudged), sentence("Use not known", unjudged)
        )
    return _unanswered("WithinLimit", shares) or UntimedCondition(
        "WithinLimit", "True", "Sampled", "At or under every limit as last sampled."
    )


def drained(waits: Sequence[DrainWait]) -> UntimedCondition:
    """Whether its end is waited for no more, and else by whom (M10)."""
    if not waits:
        return UntimedCondition("Drained", "True", "Released", "Nothing of it is used or left on any node.")
    return UntimedCondition(
        "Drained", "False", "Draining", f"Waits for {name_some([_wait(each) for each in waits])}."
    )


def _wait(wait: DrainWait) -> str:
    """A node with some of the pods that use the group there."""
    pods = f"pods {name_some(wait.users)}" if len(wait.users) > 1 else f"pod {name_some(wait.users)}"
    details = ": ".join(each for each in (pods if wait.users else "", wait.why) if each)
    return f"node {wait.node} ({details})" if details else f"node {wait.node}"


def _unanswered(kind: str, shares: Sequence[GroupOnNode]) -> UntimedCondition | None:
    """That agents are silent, or have reported nothing yet."""
    if silent := silent_nodes(shares):
        return UntimedCondition(kind, "Unknown", SILENT, f"No answer from the agent of {silent}.")
    missing = [f"node {share.node}" for share in shares if share.report is None]
    if missing:
        return UntimedCondition(
            kind, "Unknown", NOT_REPORTED, f"Nothing reported yet by {name_some(missing)}."
        )
    return None
