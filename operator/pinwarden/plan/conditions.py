"""The conditions of a limit, judged from the shares of its nodes.

Each function below is one condition, in the order in which they stand in status. A definite failure comes before what is not known, and
that before success: a limit is called enforced only where nothing speaks against it (H1). Messages name at most `NAMED` subjects, so that
a limit over 150,000 pods has a status that a person can read.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from pinwarden.api.pinlimit import Enforcement
from pinwarden.plan.compile import Limit, Refusal
from pinwarden.plan.summarize import NAMED, NOT_REPORTED, PENDING, SILENT, Findings, Share

Status = Literal["True", "False", "Unknown"]


class Verdict(NamedTuple):
    """A condition without its times."""

    type: str
    status: Status
    reason: str
    message: str


def not_accepted(refusal: Refusal) -> list[Verdict]:
    """The conditions of a limit that is not acted on."""
    return [
        Verdict("Ready", "False", refusal.reason, refusal.message),
        Verdict("Accepted", "False", refusal.reason, refusal.message),
    ]


def judge(limit: Limit, shares: Sequence[Share], overriding: Sequence[str]) -> list[Verdict]:
    """The conditions of an accepted limit: Ready first, then what it sums up; Granted only of a grant."""
    parts = [
        accepted(overriding),
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
    verdicts = {verdict.type: verdict for verdict in parts}
    for name in needed:
        verdict = verdicts[name]
        if verdict.status != "True":
            return Verdict("Ready", verdict.status, verdict.reason, verdict.message)
    last = verdicts["Enforced" if limit.spec.enforcement is Enforcement.ENFORCE else "Applied"]
    return Verdict("Ready", "True", last.reason, last.message)


def accepted(overriding: Sequence[str]) -> Verdict:
    """Whether pinwarden acts on the limit; says when it adds nothing to others (P13)."""
    if not overriding:
        return Verdict("Accepted", "True", "Accepted", "The limit holds beside all others.")
    named = _few([f"{name!r}" for name in overriding])
    return Verdict(
        "Accepted",
        "True",
        "Overridden",
        f"The limit holds, but adds nothing: every matching pod is held to it by {named}.",
    )


def applied(shares: Sequence[Share]) -> Verdict:
    """Whether every node with a matching pod acknowledged this very spec."""
    if not shares:
        return Verdict("Applied", "True", "NoPods", "No pod matches.")
    refused = Findings.of(share.refused for share in shares if share.refused and not share.acknowledged)
    if refused:
        return Verdict("Applied", "False", _reason(refused), _tell("Not taken", refused))
    if silent := _silent(shares):
        return Verdict("Applied", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    missing = [f"node {share.node}" for share in shares if not share.acknowledged]
    if missing:
        return Verdict("Applied", "False", PENDING, f"Not acknowledged yet by {_few(missing)}.")
    return Verdict("Applied", "True", "Acknowledged", f"Acknowledged by {_count(len(shares), 'node')}.")


def enforced(limit: Limit, shares: Sequence[Share]) -> Verdict:
    """Whether every matching pod is held at the level asked for, and who is not (H1)."""
    if limit.spec.enforcement is Enforcement.AUDIT:
        return Verdict("Enforced", "False", "Audit", "The limit is evaluated and refuses nothing.")
    if not shares:
        return Verdict("Enforced", "True", "NoPods", "No pod matches, so there is none to hold.")
    unheld = Findings.all(share.unheld for share in shares)
    if unheld:
        return Verdict("Enforced", "False", _reason(unheld), _tell("Not held", unheld))
    if silent := _silent(shares):
        return Verdict("Enforced", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    pods = _count(sum(share.pods for share in shares), "pod")
    level = f"{limit.spec.minimum_level} or better"
    return Verdict("Enforced", "True", "Enforced", f"{pods} held at {level}{_beside(shares)}.")


def complete(shares: Sequence[Share]) -> Verdict:
    """Whether the figures take in every selected source and pod; otherwise they are lower bounds (H2)."""
    if not shares:
        return Verdict("Complete", "True", "NoPods", "No pod matches.")
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
    unreported = Findings.all(share.unreported for share in shares if not share.silent)
    if unreported:
        reason = "Truncated" if any(share.truncated for share in shares) else NOT_REPORTED
        return Verdict(
            "Complete", "False", reason, _tell("Figures are lower bounds: not reported", unreported)
        )
    if silent := _silent(shares):
        return Verdict(
            "Complete", "Unknown", SILENT, f"Figures may be stale: no answer from the agent of {silent}."
        )
    missing = [f"node {share.node}" for share in shares if not share.reported]
    if missing:
        return Verdict("Complete", "Unknown", NOT_REPORTED, f"Nothing reported yet by {_few(missing)}.")
    return Verdict("Complete", "True", "AllCounted", "Every selected source is counted; figures are sampled.")


def within_limit(shares: Sequence[Share]) -> Verdict:
    """Whether what was last sampled stays at or under the limit, each in the limit's scope (P11)."""
    if not shares:
        return Verdict("WithinLimit", "True", "NoPods", "No pod matches.")
    over = Findings.all(share.over for share in shares if not share.silent)
    if over:
        return Verdict("WithinLimit", "False", "OverLimit", _tell("Over the limit as last sampled", over))
    if silent := _silent(shares):
        return Verdict("WithinLimit", "Unknown", SILENT, f"No answer from the agent of {silent}.")
    unjudged = Findings.all(share.unjudged for share in shares)
    if unjudged:
        return Verdict("WithinLimit", "Unknown", _reason(unjudged), _tell("Use not known", unjudged))
    missing = [f"node {share.node}" for share in shares if not share.reported]
    if missing:
        return Verdict("WithinLimit", "Unknown", NOT_REPORTED, f"Nothing reported yet by {_few(missing)}.")
    return Verdict(
        "WithinLimit", "True", "Sampled", f"At or under the limit as last sampled{_beside(shares)}."
    )


def granted(limit: Limit, shares: Sequence[Share]) -> Verdict:
    """Whether the grant reaches as far as the limit (P14)."""
    if not shares:
        return Verdict("Granted", "True", "NoPods", "No pod matches.")
    amount = limit.spec.limit.bytes
    reached = [share.grant for share in shares if share.grant is not None]
    if not reached:
        return Verdict("Granted", "Unknown", PENDING, "Not compiled for any node yet.")
    least = min(reached)
    if least >= amount:
        return Verdict(
            "Granted", "True", "Granted", f"Every matching pod may be raised up to {limit.spec.limit}."
        )
    why = (
        f"maxGrant lets {least} of {amount} bytes through"
        if least
        else "no ClusterPinLimit with maxGrant lets it through"
    )
    return Verdict("Granted", "False", "BeyondMaxGrant", f"Not for every matching pod: {why}.")


def _beside(shares: Iterable[Share]) -> str:
    """The sources that what is said does not take in (H2)."""
    missing = sorted({source for share in shares for source in share.uncounted})
    return f", not counting {', '.join(missing)}" if missing else ""


def _silent(shares: Iterable[Share]) -> str:
    return _few([f"node {share.node}" for share in shares if share.silent])


def _reason(findings: Findings) -> str:
    """The most frequent reason, the first in order among equals; what is only pending gives way to what will not pass by itself."""
    counts = findings.counts
    lasting = {reason: count for reason, count in counts.items() if reason != PENDING} or counts
    return min(lasting, key=lambda reason: (-lasting[reason], reason))


def _tell(what: str, findings: Findings) -> str:
    lasting = sorted(findings.named, key=lambda finding: finding.reason == PENDING)
    texts = [
        f"{each.subject} ({each.reason}{': ' + each.detail if each.detail else ''})"
        for each in lasting[:NAMED]
    ]
    return f"{what}: {'; '.join(texts)}{_more(sum(findings.counts.values()))}."


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + _more(len(names))


def _more(count: int) -> str:
    return f" and {count - NAMED} more" if count > NAMED else ""


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
