"""The conditions of a limit, judged from the shares of its nodes.

Each function below is one condition, in the order in which they stand in status. A definite failure comes before what is not known, and
that before success: a limit is called enforced only where nothing speaks against it (H1).
"""

from collections.abc import Iterable, Sequence

from pinwarden.api.pinlimit import Enforcement
from pinwarden.api.reasons import NO_PODS, NOT_REPORTED, PENDING, SILENT, TRUNCATED
from pinwarden.common.text import MOST, compared
from pinwarden.plan.conditions import (
    Answer,
    Observations,
    UntimedCondition,
    main_reason,
    name_some,
    plural,
    sentence,
    summary,
)
from pinwarden.plan.limit_compiler import Limit
from pinwarden.plan.limit_on_node import LimitOnNode

FIGURES_CUT = "FiguresCut"
CUT_FIGURES = f"Figures are lower bounds: nodes report more than {MOST} bytes in sum, which no machine has."


def evaluate_limit(
    limit: Limit, shares: Sequence[LimitOnNode], overriding: Sequence[str]
) -> list[UntimedCondition]:
    """The conditions of an accepted limit: Ready first, then what it sums up; Granted only of a grant."""
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
    """One summary, as kstatus reads it: the first of Accepted, Applied and Enforced that does not hold; an audit is ready when applied."""
    needed = ["Accepted", "Applied"]
    if limit.spec.enforcement is Enforcement.ENFORCE:
        needed.append("Enforced")
    if limit.spec.grant:
        needed.append("Granted")
    return summary(parts, needed, "Enforced" if "Enforced" in needed else "Applied")


def accepted(limit: Limit, overriding: Sequence[str]) -> UntimedCondition:
    """Whether pinwarden acts on the limit; says when it adds nothing to others (P13)."""
    if not overriding:
        return UntimedCondition("Accepted", "True", "Accepted", "The limit holds beside all others.")
    named = name_some([f"{name!r}" for name in overriding])
    does = "holds" if limit.spec.enforcement is Enforcement.ENFORCE else "is evaluated"
    return UntimedCondition(
        "Accepted",
        "True",
        "Overridden",
        f"The limit {does}, but adds nothing: every matching pod is held to it by {named}.",
    )


def applied(shares: Sequence[Answer]) -> UntimedCondition:
    """Whether every node with a matching pod acknowledged this very spec."""
    if not shares:
        return UntimedCondition("Applied", "True", NO_PODS, "No pod matches.")
    rejected = Observations.of(
        share.rejected for share in shares if share.rejected and not share.acknowledged
    )
    if rejected:
        return UntimedCondition("Applied", "False", main_reason(rejected), sentence("Not taken", rejected))
    if silent := silent_nodes(shares):
        return UntimedCondition("Applied", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    missing = [f"node {share.node}" for share in shares if not share.acknowledged]
    if missing:
        return UntimedCondition("Applied", "False", PENDING, f"Not acknowledged yet by {name_some(missing)}.")
    return UntimedCondition(
        "Applied", "True", "Acknowledged", f"Acknowledged by {plural(len(shares), 'node')}."
    )


def enforced(limit: Limit, shares: Sequence[LimitOnNode]) -> UntimedCondition:
    """Whether every matching pod is held at the level asked for, and who is not; unknown while no pod matches (H1)."""
    if limit.spec.enforcement is Enforcement.AUDIT:
        return UntimedCondition("Enforced", "False", "Audit", "The limit is evaluated and refuses nothing.")
    if not shares:
        return UntimedCondition(
            "Enforced", "Unknown", NO_PODS, "No pod matches, so nothing shows that it would be held."
        )
    if not any(share.reachable for share in shares):
        named = name_some([repr(name) for name in limit.spec.containers])
        return UntimedCondition(
            "Enforced", "False", "NoSuchContainer", f"No matching pod has a container {named}."
        )
    unheld = Observations.all(share.unheld for share in shares)
    if unheld:
        return UntimedCondition("Enforced", "False", main_reason(unheld), sentence("Not held", unheld))
    if silent := silent_nodes(shares):
        return UntimedCondition("Enforced", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    pods = plural(sum(share.pods for share in shares), "pod")
    level = f"{limit.spec.minimum_level} or better"
    return UntimedCondition("Enforced", "True", "Enforced", f"{pods} held at {level}{_beside(shares)}.")


def complete(shares: Sequence[LimitOnNode]) -> UntimedCondition:
    """Whether the figures take in every selected source and pod; otherwise they are lower bounds (H2)."""
    if not shares:
        return UntimedCondition("Complete", "True", NO_PODS, "No pod matches.")
    sources: dict[str, list[str]] = {}
    for share in shares:
        for source in sorted(share.uncounted):
            sources.setdefault(source, []).append(share.node)
    if sources:
        where = "" if all(len(on) == len(shares) for on in sources.values()) else " on some nodes"
        return UntimedCondition(
            "Complete",
            "False",
            "SourcesNotCounted",
            f"Figures are lower bounds: not counted{where}: {', '.join(sources)}.",
        )
    if is_cut(share.pinned for share in shares):
        return UntimedCondition("Complete", "False", FIGURES_CUT, CUT_FIGURES)
    unreported = Observations.all(share.unreported for share in shares if not share.silent)
    if unreported:
        reason = TRUNCATED if any(share.truncated for share in shares) else NOT_REPORTED
        return UntimedCondition(
            "Complete", "False", reason, sentence("Figures are lower bounds: not reported", unreported)
        )
    if silent := silent_nodes(shares):
        return UntimedCondition(
            "Complete", "Unknown", SILENT, f"Figures may be stale: no answer from the agent of {silent}."
        )
    missing = [f"node {share.node}" for share in shares if not share.reported]
    if missing:
        return UntimedCondition(
            "Complete", "Unknown", NOT_REPORTED, f"Nothing reported yet by {name_some(missing)}."
        )
    return UntimedCondition(
        "Complete", "True", "AllCounted", "Every selected source is counted; figures are sampled."
    )


def within_limit(shares: Sequence[LimitOnNode]) -> UntimedCondition:
    """Whether what was last sampled stays at or under the limit, each in the limit's scope (P11)."""
    if not shares:
        return UntimedCondition("WithinLimit", "True", NO_PODS, "No pod matches.")
    over = Observations.all(share.over for share in shares if not share.silent)
    if over:
        return UntimedCondition(
            "WithinLimit", "False", "OverLimit", sentence("Over the limit as last sampled", over)
        )
    if silent := silent_nodes(shares):
        return UntimedCondition("WithinLimit", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    unjudged = Observations.all(share.unjudged for share in shares)
    if unjudged:
        return UntimedCondition(
            "WithinLimit", "Unknown", main_reason(unjudged), sentence("Use not known", unjudged)
        )
    missing = [f"node {share.node}" for share in shares if not share.reported]
    if missing:
        return UntimedCondition(
            "WithinLimit", "Unknown", NOT_REPORTED, f"Nothing reported yet by {name_some(missing)}."
        )
    return UntimedCondition(
        "WithinLimit", "True", "Sampled", f"At or under the limit as last sampled{_beside(shares)}."
    )


def granted(limit: Limit, shares: Sequence[LimitOnNode]) -> UntimedCondition:
    """Whether the grant reaches as far as the limit (P14)."""
    if not shares:
        return UntimedCondition("Granted", "True", NO_PODS, "No pod matches.")
    amount = limit.spec.limit.bytes
    reached = [share.grant for share in shares if share.grant is not None]
    if not reached:
        return UntimedCondition("Granted", "Unknown", PENDING, "Not compiled for any node yet.")
    least = min(reached)
    if least >= amount:
        return UntimedCondition(
            "Granted", "True", "Granted", f"Every matching pod may be raised up to {limit.spec.limit}."
        )
    reached_text, asked = compared(least, amount)
    why = (
        f"maxGrant lets {reached_text} of {asked} through"
        if least
        else "no ClusterPinLimit with maxGrant lets it through"
    )
    return UntimedCondition("Granted", "False", "BeyondMaxGrant", f"Not for every matching pod: {why}.")


def is_cut(figures: Iterable[int | None]) -> bool:
    """Whether the sum of what nodes report is more than a status can say."""
    return sum(figure for figure in figures if figure is not None) > MOST


def _beside(shares: Iterable[LimitOnNode]) -> str:
    """The sources that what is said does not take in (H2)."""
    missing = sorted({source for share in shares for source in share.uncounted})
    return f", not counting {', '.join(missing)}" if missing else ""


def silent_nodes(shares: Iterable[Answer]) -> str:
    """Some of the nodes whose agents are silent; empty where none is."""
    return name_some([f"node {share.node}" for share in shares if share.silent])
