"""What conditions are made of: what was found, in little room; the words for it; and the verdicts with their times.

Messages name at most `NAMED` subjects, so that a resource over 150,000 pods has a status that a person can read.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple, Protocol

from pinwarden.api.meta import Condition, LabelSelector
from pinwarden.api.reasons import NO_PODS, PASSING
from pinwarden.plan.selectors import contradiction

NAMED = 3

MOST_REASON = 1024
MOST_MESSAGE = 32768
_CUT = "...cut"

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a resource that the API server stored is not acted on (condition Accepted=False)."""

    reason: str
    message: str


def selects_nothing(field: str, selector: LabelSelector) -> Rejection | None:
    """Return the refusal of a selector that can match no object; `field` is its place in the spec."""
    why = contradiction(selector)
    return Rejection("SelectsNothing", f"spec.{field}: {why}") if why else None


class UntimedCondition(NamedTuple):
    """A condition without its times."""

    type: str
    status: Status
    reason: str
    message: str


class Observation(NamedTuple):
    """Something that a condition names: what it is about (pod, node, source), a reason in one word, and details."""

    subject: str
    reason: str
    detail: str = ""


class Answer(Protocol):
    """What a node says to being asked to hold a resource."""

    @property
    def node(self) -> str:
        """Its name."""

    @property
    def silent(self) -> bool:
        """Whether its agent gives no sign of life."""

    @property
    def acknowledged(self) -> bool:
        """Whether the agent took this very spec of the resource."""

    @property
    def rejected(self) -> Observation | None:
        """Why it never will."""


@dataclass(frozen=True, slots=True)
class Observations:
    """Many findings in little room: how many there are of each reason, and the first `NAMED` of each."""

    counts: Mapping[str, int]
    named: tuple[Observation, ...]

    @classmethod
    def of(cls, found: Iterable[Observation]) -> "Observations":
        """All of `found`, in its order."""
        counts: dict[str, int] = {}
        named = []
        for finding in found:
            count = counts[finding.reason] = counts.get(finding.reason, 0) + 1
            if count <= NAMED:
                named.append(finding)
        return cls(counts, tuple(named)) if counts else NO_OBSERVATIONS

    @classmethod
    def all(cls, parts: Iterable["Observations"]) -> "Observations":
        """Several together, in their order."""
        parts = [part for part in parts if part]
        counts = sum((Counter(part.counts) for part in parts), Counter())
        named = Observations.of(finding for part in parts for finding in part.named).named
        return cls(counts, named)

    def __bool__(self) -> bool:
        return bool(self.counts)


NO_OBSERVATIONS: Final = Observations({}, ())


def not_accepted(rejection: Rejection) -> list[UntimedCondition]:
    """The conditions of a resource that is not acted on."""
    return [
        UntimedCondition("Ready", "False", rejection.reason, rejection.message),
        UntimedCondition("Accepted", "False", rejection.reason, rejection.message),
    ]


def summary(parts: Sequence[UntimedCondition], needed: Sequence[str], holding: str) -> UntimedCondition:
    """Ready, as kstatus reads it: the first of the `needed` verdicts that is not true; the one called `holding` when all are.

    A resource that no pod matches is ready for the first one, so that nobody who applies it waits for a pod.
    """
    verdicts = {verdict.type: verdict for verdict in parts}
    lacking = (
        verdicts[name]
        for name in needed
        if verdicts[name].status != "True" and verdicts[name].reason != NO_PODS
    )
    found = next(lacking, None)
    return found._replace(type="Ready") if found else verdicts[holding]._replace(type="Ready", status="True")


def dated(
    verdicts: Sequence[UntimedCondition], previous: Iterable[Condition], now: datetime, generation: int | None
) -> list[Condition]:
    """The conditions in order, each with the time when its status last changed; to whole seconds, as Kubernetes writes times."""
    before = {condition.type: condition for condition in previous}
    conditions = []
    for verdict in verdicts:
        old = before.get(verdict.type)
        since = (
            old.last_transition_time if old and old.status == verdict.status else now.replace(microsecond=0)
        )
        conditions.append(
            Condition(
                type=verdict.type,
                status=verdict.status,
                reason=cut(verdict.reason, MOST_REASON),
                message=cut(verdict.message, MOST_MESSAGE),
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return conditions


def cut(text: str, most: int) -> str:
    """The text, or as much of it as fits in `most` characters with a word that says that it was cut (H2)."""
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT


def main_reason(findings: Observations) -> str:
    """The most frequent reason, the first in order among equals; what passes by itself gives way to what does not."""
    counts = findings.counts
    lasting = {reason: count for reason, count in counts.items() if reason not in PASSING} or counts
    return min(lasting, key=lambda reason: (-lasting[reason], reason))


def sentence(what: str, findings: Observations) -> str:
    """One sentence that names some of the findings."""
    lasting = sorted(findings.named, key=lambda finding: finding.reason in PASSING)
    texts = [
        f"{each.subject} ({each.reason}{': ' + each.detail if each.detail else ''})"
        for each in lasting[:NAMED]
    ]
    return f"{what}: {'; '.join(texts)}{_more(sum(findings.counts.values()))}."


def name_some(names: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    return ", ".join(names[:NAMED]) + _more(len(names))


def plural(count: int, noun: str) -> str:
    """`1 pod`, `2 pods`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _more(count: int) -> str:
    return f" and {count - NAMED} more" if count > NAMED else ""
