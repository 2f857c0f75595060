"""Build conditions: observations in little memory, sentences about them, and transition times.

A message names at most `NAMED` subjects, so a person can read the status of a resource with 150,000
pods.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple

from pinwarden.api.meta import Condition, LabelSelector
from pinwarden.api.reasons import NO_PODS, PASSING
from pinwarden.plan.selectors import contradiction

NAMED = 3

MAX_REASON = 1024
MAX_MESSAGE = 32768
_CUT = "...cut"

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why pinwarden does not act on a stored resource (condition Accepted=False)."""

    reason: str
    message: str


def selects_nothing(field: str, selector: LabelSelector) -> Rejection | None:
    """Return the rejection of a selector without any possible object; `field` is its place."""
    problem = contradiction(selector)
    return Rejection("SelectsNothing", f"spec.{field}: {problem}") if problem else None


class UntimedCondition(NamedTuple):
    """A condition without its times."""

    type: str
    status: Status
    reason: str
    message: str


class Observation(NamedTuple):
    """A fact for a condition: the subject (pod, node or source), a reason, and details."""

    subject: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Observations:
    """Many observations in little memory: the count and the first `NAMED` of each reason."""

    counts: Mapping[str, int]
    named: tuple[Observation, ...]

    @classmethod
    def of(cls, observations: Iterable[Observation]) -> "Observations":
        """Collect observations in their order."""
        counts: dict[str, int] = {}
        named = []
        for observation in observations:
            count = counts[observation.reason] = counts.get(observation.reason, 0) + 1
            if count <= NAMED:
                named.append(observation)
        return cls(counts, tuple(named)) if counts else NO_OBSERVATIONS

    @classmethod
    def all(cls, parts: Iterable["Observations"]) -> "Observations":
        """Join several collections in their order."""
        parts = [part for part in parts if part]
        counts = sum((Counter(part.counts) for part in parts), Counter())
        named = Observations.of(observation for part in parts for observation in part.named).named
        return cls(counts, named)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def condition(self, kind: str, status: Status, sentence_start: str) -> UntimedCondition:
        """Return a condition with some of the observations."""
        return UntimedCondition(kind, status, main_reason(self), sentence(sentence_start, self))


NO_OBSERVATIONS: Final = Observations({}, ())


def not_accepted(rejection: Rejection) -> list[UntimedCondition]:
    """Return the conditions of a rejected resource."""
    return [
        UntimedCondition("Ready", "False", rejection.reason, rejection.message),
        UntimedCondition("Accepted", "False", rejection.reason, rejection.message),
    ]


def summary(
    parts: Sequence[UntimedCondition], needed: Sequence[str], success: str
) -> UntimedCondition:
    """Return Ready, as kstatus reads it: the first unmet `needed` condition, else `success`.

    A condition with reason NoPods counts as true, so a client need not wait for a first pod.
    """
    by_type = {condition.type: condition for condition in parts}
    unmet = (
        by_type[name]
        for name in needed
        if by_type[name].status != "True" and by_type[name].reason != NO_PODS
    )
    first = next(unmet, None)
    return (
        first._replace(type="Ready")
        if first
        else by_type[success]._replace(type="Ready", status="True")
    )


def with_times(
    conditions: Sequence[UntimedCondition],
    previous: Iterable[Condition],
    now: datetime,
    generation: int | None,
) -> list[Condition]:
    """Return the conditions in order, each with its last transition in whole seconds."""
    before = {condition.type: condition for condition in previous}
    timed = []
    for condition in conditions:
        old = before.get(condition.type)
        unchanged = old is not None and old.status == condition.status
        timed.append(
            Condition(
                type=condition.type,
                status=condition.status,
                reason=cut(condition.reason, MAX_REASON),
                message=cut(condition.message, MAX_MESSAGE),
                last_transition_time=old.last_transition_time
                if old and unchanged
                else now.replace(microsecond=0),
                observed_generation=generation,
            )
        )
    return timed


def cut(text: str, most: int) -> str:
    """Return the text, cut to `most` characters with a mark at the end (H2)."""
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT


def main_reason(observations: Observations) -> str:
    """Return the most frequent reason, then the first by name; `PASSING` reasons come last."""
    counts = observations.counts
    lasting = {reason: count for reason, count in counts.items() if reason not in PASSING} or counts
    return min(lasting, key=lambda reason: (-lasting[reason], reason))


def sentence(start: str, observations: Observations) -> str:
    """Return a sentence with some of the observations."""
    ordered = sorted(observations.named, key=lambda observation: observation.reason in PASSING)
    texts = [
        f"{subject} ({reason}{': ' + detail if detail else ''})"
        for subject, reason, detail in ordered[:NAMED]
    ]
    return f"{start}: {'; '.join(texts)}{_more(sum(observations.counts.values()))}."


def name_some(names: Sequence[str]) -> str:
    """Return the first names and the number of the others."""
    return ", ".join(names[:NAMED]) + _more(len(names))


def plural(count: int, noun: str) -> str:
    """Return the count and the noun: `1 pod`, `2 pods`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _more(count: int) -> str:
    return f" and {count - NAMED} more" if count > NAMED else ""
