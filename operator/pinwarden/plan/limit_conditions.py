"""The conditions of a limit, judged from the shares of its nodes.

Each function below is one condition, in the order in which they stand in status. A definite failure comes before what is not known, and
that before success: a limit is called enforced only where nothing speaks against it (H1).
"""

from collections.abc import Iterable, Sequence

from pinwarden.api.pinlimit import Enforcement
from pinwarden.api.reasons import NO_PODS, NOT_REPORTED, PENDING, SILENT, TRUNCATED
from pinwarden.common.text import MOST, compared
from pinwarden.plan.conditions import Answer, Findings, Verdict, counted, few, main_reason, summary, tell
from pinwarden.plan.limit_compiler import Limit
from pinwarden.plan.limit_on_node import Share

FIGURES_CUT = "FiguresCut"
CUT_FIGURES = f"Figures are lower bounds: nodes report more than {MOST} bytes in sum, which no machine has."


def judge(limit: Limit, shares: Sequence[Share], overriding: Sequence[str]) -> list[Verdict]:
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


def ready(limit: Limit, parts: Sequence[Verdict]) -> Verdict:
    """One summary, as kstatus reads it: the first of Accepted, Applied and Enforced that does not hold; an audit is ready when applied."""
    needed = ["Accepted", "Applied"]
    if limit.spec.enforcement is Enforcement.ENFORCE:
        needed.append("Enforced")
    if limit.spec.grant:
        needed.append("Granted")
    return summary(parts, needed, "Enforced" if "Enforced" in needed else "Applied")


def accepted(limit: Limit, overriding: Sequence[str]) -> Verdict:
    """Whether pinwarden acts on the limit; says when it adds nothing to others (P13)."""
    if not overriding:
        return Verdict("Accepted", "True", "Accepted", "The limit holds beside all others.")
    named = few([f"{name!r}" for name in overriding])
    does = "holds" if limit.spec.enforcement is Enforcement.ENFORCE else "is evaluated"
    return Verdict(
        "Accepted",
        "True",
        "Overridden",
        f"The limit {does}, but adds nothing: every matching pod is held to it by {named}.",
    )


def applied(shares: Sequence[Answer]) -> Verdict:
    """Whether every node with a matching pod acknowledged this very spec."""
    if not shares:
        return Verdict("Applied", "True", NO_PODS, "No pod matches.")
    refused = Findings.of(share.refused for share in shares if share.refused and not share.acknowledged)
    if refused:
        return Verdict("Applied", "False", main_reason(refused), tell("Not taken", refused))
    if silent := silent_nodes(shares):
        return Verdict("Applied", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    missing = [f"node {share.node}" for share in shares if not share.acknowledged]
    if missing:
        return Verdict("Applied", "False", PENDING, f"Not acknowledged yet by {few(missing)}.")
    return Verdict("Applied", "True", "Acknowledged", f"Acknowledged by {counted(len(shares), 'node')}.")


def enforced(limit: Limit, shares: Sequence[Share]) -> Verdict:
    """Whether every matching pod is held at the level asked for, and who is not; unknown while no pod matches (H1)."""
    if limit.spec.enforcement is Enforcement.AUDIT:
        return Verdict("Enforced", "False", "Audit", "The limit is evaluated and refuses nothing.")
    if not shares:
        return Verdict(
            "Enforced", "Unknown", NO_PODS, "No pod matches, so nothing shows that it would be held."
        )
    if not any(share.reachable for share in shares):
        named = few([repr(name) for name in limit.spec.containers])
        return Verdict("Enforced", "False", "NoSuchContainer", f"No matching pod has a container {named}.")
    unheld = Findings.all(share.unheld for share in shares)
    if unheld:
        return Verdict("Enforced", "False", main_reason(unheld), tell("Not held", unheld))
    if silent := silent_nodes(shares):
        return Verdict("Enforced", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    pods = counted(sum(share.pods for share in shares), "pod")
    level = f"{limit.spec.minimum_level} or better"
    return Verdict("Enforced", "True", "Enforced", f"{pods} held at {level}{_beside(shares)}.")


def complete(shares: Sequence[Share]) -> Verdict:
    """Whether the figures take in every selected source and pod; otherwise they are lower bounds (H2)."""
    if not shares:
        return Verdict("Complete", "True", NO_PODS, "No pod matches.")
    sources: dict[str, list[str]] = {}
    for share in shares:
        for source in sorted(share.uncounted):
            sources.setdefault(source, []).append(share.node)
    if sources:
        where = "" if all(len(on) == len(shares) for on in sources.values()) else " on some nodes"
        return Verdict(
            "Complete",
            "False",
            "SourcesNotCounted",
            f"Figures are lower bounds: not counted{where}: {', '.join(sources)}.",
        )
    if is_cut(share.pinned for share in shares):
        return Verdict("Complete", "False", FIGURES_CUT, CUT_FIGURES)
    unreported = Findings.all(share.unreported for share in shares if not share.silent)
    if unreported:
        reason = TRUNCATED if any(share.truncated for share in shares) else NOT_REPORTED
        return Verdict(
            "Complete", "False", reason, tell("Figures are lower bounds: not reported", unreported)
        )
    if silent := silent_nodes(shares):
        return Verdict(
            "Complete", "Unknown", SILENT, f"Figures may be stale: no answer from the agent of {silent}."
        )
    missing = [f"node {share.node}" for share in shares if not share.reported]
    if missing:
        return Verdict("Complete", "Unknown", NOT_REPORTED, f"Nothing reported yet by {few(missing)}.")
    return Verdict("Complete", "True", "AllCounted", "Every selected source is counted; figures are sampled.")


def within_limit(shares: Sequence[Share]) -> Verdict:
    """Whether what was last sampled stays at or under the limit, each in the limit's scope (P11)."""
    if not shares:
        return Verdict("WithinLimit", "True", NO_PODS, "No pod matches.")
    over = Findings.all(share.over for share in shares if not share.silent)
    if over:
        return Verdict("WithinLimit", "False", "OverLimit", tell("Over the limit as last sampled", over))
    if silent := silent_nodes(shares):
        return Verdict("WithinLimit", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    unjudged = Findings.all(share.unjudged for share in shares)
    if unjudged:
        return Verdict("WithinLimit", "Unknown", main_reason(unjudged), tell("Use not known", unjudged))
    missing = [f"node {share.node}" for share in shares if not share.reported]
    if missing:
        return Verdict("WithinLimit", "Unknown", NOT_REPORTED, f"Nothing reported yet by {few(missing)}.")
    return Verdict(
        "WithinLimit", "True", "Sampled", f"At or under the limit as last sampled{_beside(shares)}."
    )


def granted(limit: Limit, shares: Sequence[Share]) -> Verdict:
    """Whether the grant reaches as far as the limit (P14)."""
    if not shares:
        return Verdict("Granted", "True", NO_PODS, "No pod matches.")
    amount = limit.spec.limit.bytes
    reached = [share.grant for share in shares if share.grant is not None]
    if not reached:
        return Verdict("Granted", "Unknown", PENDING, "Not compiled for any node yet.")
    least = min(reached)
    if least >= amount:
        return Verdict(
            "Granted", "True", "Granted", f"Every matching pod may be raised up to {limit.spec.limit}."
        )
    reached_text, asked = compared(least, amount)
    why = (
        f"maxGrant lets {reached_text} of {asked} through"
        if least
        else "no ClusterPinLimit with maxGrant lets it through"
    )
    return Verdict("Granted", "False", "BeyondMaxGrant", f"Not for every matching pod: {why}.")


def is_cut(figures: Iterable[int | None]) -> bool:
    """Whether the sum of what nodes report is more than a status can say."""
    return sum(figure for figure in figures if figure is not None) > MOST


def _beside(shares: Iterable[Share]) -> str:
    """The sources that what is said does not take in (H2)."""
    missing = sorted({source for share in shares for source in share.uncounted})
    return f", not counting {', '.join(missing)}" if missing else ""


def silent_nodes(shares: Iterable[Answer]) -> str:
    """Some of the nodes whose agents are silent; empty where none is."""
    return few([f"node {share.node}" for share in shares if share.silent])
