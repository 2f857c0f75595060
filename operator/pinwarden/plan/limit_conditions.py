"""Evaluate the conditions of a limit from the shares of its nodes.

Each function returns one condition, in the order of the status. A definite failure comes before an
unknown state, and an unknown state before success: a limit counts as enforced only if no
observation contradicts it (H1).
"""

from collections.abc import Iterable, Sequence

from pinwarden.api.pinlimit import Enforcement
from pinwarden.api.reasons import (
    AUDIT,
    NO_PODS,
    NOT_REPORTED,
    OVER_LIMIT,
    PENDING,
    SILENT,
    TRUNCATED,
)
from pinwarden.common.text import compared
from pinwarden.plan.conditions import (
    Observations,
    UntimedCondition,
    name_some,
    plural,
    sentence,
    summary,
)
from pinwarden.plan.limit_compiler import Limit
from pinwarden.plan.limit_on_node import LimitOnNode
from pinwarden.plan.node_share import (
    applied,
    cut_figures,
    missing_reports,
    no_pods,
    silence,
    silent_nodes,
)


def evaluate_limit(
    limit: Limit, shares: Sequence[LimitOnNode], overriding: Sequence[str]
) -> list[UntimedCondition]:
    """Return the conditions of an accepted limit: Ready, its parts, and Granted if a grant."""
    parts = [
        accepted(limit, overriding),
        applied(shares),
        enforced(limit, shares),
        complete(shares),
        within_limit(shares),
        *([granted(limit, shares)] if limit.spec.grant else []),
    ]
    return [ready(limit, parts), *parts]


def ready(limit: Limit, parts: Sequence[UntimedCondition]) -> UntimedCondition:
    """Return the first unmet needed condition; an Audit limit does not need Enforced."""
    needed = ["Accepted", "Applied"]
    if limit.spec.enforcement is Enforcement.ENFORCE:
        needed.append("Enforced")
    if limit.spec.grant:
        needed.append("Granted")
    return summary(parts, needed, "Enforced" if "Enforced" in needed else "Applied")


def accepted(limit: Limit, overriding: Sequence[str]) -> UntimedCondition:
    """Return Accepted, and whether other limits make the limit redundant (P13)."""
    if not overriding:
        return UntimedCondition(
            "Accepted", "True", "Accepted", "The limit applies beside all others."
        )
    named = name_some([f"{name!r}" for name in overriding])
    message = f"Redundant: every matching pod has this limit or a stricter limit from {named}."
    return UntimedCondition("Accepted", "True", "Overridden", message)


def enforced(limit: Limit, shares: Sequence[LimitOnNode]) -> UntimedCondition:
    """Return whether every matching pod has the requested level; unknown without a pod (H1)."""
    if limit.spec.enforcement is Enforcement.AUDIT:
        return UntimedCondition(
            "Enforced", "False", AUDIT, "The limit is evaluated and denies nothing."
        )
    if not shares:
        message = "No pod matches, so enforcement is not confirmed."
        return UntimedCondition("Enforced", "Unknown", NO_PODS, message)
    if not any(share.reachable for share in shares):
        named = name_some([repr(name) for name in limit.spec.containers])
        message = f"No matching pod has a container {named}."
        return UntimedCondition("Enforced", "False", "NoSuchContainer", message)
    if unenforced := Observations.all(share.unenforced for share in shares):
        return unenforced.condition("Enforced", "False", "Not enforced")
    if silent := silence("Enforced", shares):
        return silent
    pods = plural(sum(share.pods for share in shares), "pod")
    message = f"{pods} limited at {limit.spec.minimum_level} or better{_not_counting(shares)}."
    return UntimedCondition("Enforced", "True", "Enforced", message)


def complete(shares: Sequence[LimitOnNode]) -> UntimedCondition:
    """Return whether the figures include every selected source and pod (H2)."""
    if not shares:
        return no_pods("Complete")
    sources: dict[str, list[str]] = {}
    for share in shares:
        for source in sorted(share.uncounted):
            sources.setdefault(source, []).append(share.node)
    if sources:
        where = (
            "" if all(len(nodes) == len(shares) for nodes in sources.values()) else " on some nodes"
        )
        message = f"Figures are lower bounds: not counted{where}: {', '.join(sources)}."
        return UntimedCondition("Complete", "False", "SourcesNotCounted", message)
    if cut := cut_figures(share.pinned for share in shares):
        return cut
    unreported = Observations.all(share.unreported for share in shares if not share.silent)
    if unreported:
        reason = TRUNCATED if any(share.truncated for share in shares) else NOT_REPORTED
        message = sentence("Figures are lower bounds: not reported", unreported)
        return UntimedCondition("Complete", "False", reason, message)
    if silent := silent_nodes(shares):
        message = f"Figures may be stale: no answer from the agent of {silent}."
        return UntimedCondition("Complete", "Unknown", SILENT, message)
    message = "Every selected source is counted; figures are sampled."
    return missing_reports("Complete", shares) or UntimedCondition(
        "Complete", "True", "AllCounted", message
    )


def within_limit(shares: Sequence[LimitOnNode]) -> UntimedCondition:
    """Return whether the last sampled use is at or under the limit, in the limit's scope (P11)."""
    if not shares:
        return no_pods("WithinLimit")
    over = Observations.all(share.over for share in shares if not share.silent)
    if over:
        message = sentence("Over the limit as last sampled", over)
        return UntimedCondition("WithinLimit", "False", OVER_LIMIT, message)
    if silent := silence("WithinLimit", shares):
        return silent
    if undecided := Observations.all(share.undecided for share in shares):
        return undecided.condition("WithinLimit", "Unknown", "Use not known")
    message = f"At or under the limit as last sampled{_not_counting(shares)}."
    return missing_reports("WithinLimit", shares) or UntimedCondition(
        "WithinLimit", "True", "Sampled", message
    )


def granted(limit: Limit, shares: Sequence[LimitOnNode]) -> UntimedCondition:
    """Return whether every matching pod is granted the whole amount of the limit (P14)."""
    if not shares:
        return no_pods("Granted")
    amount = limit.spec.limit.bytes
    grants = [share.grant for share in shares if share.grant is not None]
    if not grants:
        return UntimedCondition("Granted", "Unknown", PENDING, "Not compiled for any node yet.")
    least = min(grants)
    if least >= amount:
        message = f"Every matching pod may be raised up to {limit.spec.limit}."
        return UntimedCondition("Granted", "True", "Granted", message)
    granted_text, asked_text = compared(least, amount)
    cause = "no matching ClusterPinLimit has a maxGrant"
    if least:
        cause = f"maxGrant allows {granted_text} of {asked_text}"
    return UntimedCondition(
        "Granted", "False", "BeyondMaxGrant", f"Not for every matching pod: {cause}."
    )


def _not_counting(shares: Iterable[LimitOnNode]) -> str:
    """Return the missing sources as the end of a sentence (H2)."""
    sources = sorted({source for share in shares for source in share.uncounted})
    return f", not counting {', '.join(sources)}" if sources else ""
