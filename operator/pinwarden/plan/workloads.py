"""Recommend limits for workloads from the peaks of their pods.

A workload is the Deployment, Rollout, StatefulSet, DaemonSet, CronJob or Job behind the owner
references of a pod, a Spark application, or the pod itself. Its selector is the owner's if known,
else the common labels of its pods. Labels missing in the next version of the workload are
left out (`lasting`).

Agents report only pods with limits. So if no pod was observed, the recommendation is an Audit
limit, which denies nothing and starts to observe.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pinwarden.api.meta import LabelSelector, LabelSelectorRequirement, Model
from pinwarden.api.pinlimit import Enforcement, PinLimit, Scope
from pinwarden.api.quantity import Quantity
from pinwarden.common.text import short
from pinwarden.plan.conditions import plural
from pinwarden.plan.lasting import is_changing_key, lasting, looks_like, names_something
from pinwarden.plan.recommendation import HEADROOM, recommend
from pinwarden.plan.selectors import selects
from pinwarden.plan.types import Pod

OBSERVING: Final = "8Mi"
"""The amount of an Audit limit that only observes: the usual default of runtimes."""

_LONGEST_NAME: Final = 63
_NO_NAME: Final = re.compile(r"[^a-z0-9.-]+")
_MOST_NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """A pod, its workload, and its peak since `since` or later.

    The peak is None if no agent reports the pod. `selector` is the workload's, None if absent or
    unreadable.
    """

    pod: Pod
    workload: str
    peak: int | None = None
    since: datetime | None = None
    limits: Sequence[PinLimit] = ()
    selector: LabelSelector | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """A selector for a workload and its next version.

    `left_out` are labels that a reader may expect, each with the reason.
    """

    labels: Mapping[str, str]
    expressions: Sequence[LabelSelectorRequirement] = ()
    left_out: Sequence[str] = ()

    def __bool__(self) -> bool:
        """Return whether the selector distinguishes the workload from others."""
        return names_something(self.labels) or any(
            expression.operator == "In" for expression in self.expressions
        )

    @property
    def selector(self) -> LabelSelector:
        """The selector for a limit."""
        return LabelSelector(
            match_labels=dict(self.labels), match_expressions=list(self.expressions)
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """The pods of one controller."""

    namespace: str
    name: str
    pods: Sequence[ObservedPod]
    others: Sequence[Pod] = field(default=())

    @property
    def selection(self) -> Selection:
        """The selector of these pods and their next version: the owner's, else common labels."""
        common = dict(
            sorted(set.intersection(*(set(observed.pod.labels.items()) for observed in self.pods)))
        )
        kept = {
            key: value
            for key, value in lasting(common).items()
            if value not in self._of_single_pods
        }
        doubtful = [_doubt(key, common[key]) for key in common if not is_changing_key(key)]
        by_labels = Selection(kept, (), [doubt for doubt in doubtful if doubt])
        owner = self.pods[0].selector
        if owner is None:
            return by_labels
        chosen = Selection(
            {key: value for key, value in kept.items() if key in owner.match_labels},
            [expression for expression in owner.match_expressions if _lasts(expression)],
            [
                _doubt(key, common[key])
                for key in common
                if key in owner.match_labels and key not in kept
            ],
        )
        return chosen or by_labels

    @property
    def _of_single_pods(self) -> frozenset[str]:
        """Values that name a pod or its node, and not the workload."""
        if self.name.startswith("pod/"):
            return frozenset()
        return frozenset(
            name
            for observed in self.pods
            for name in (observed.pod.name, observed.pod.uid, observed.pod.node)
        )


class Recommendation(Model):
    """A limit for a workload, and its basis. Without `manifest` there is no limit to apply."""

    namespace: str
    workload: str
    pods: int
    observed: int
    peak: int | None = None
    since: datetime | None = None
    limit: str | None = None
    headroom: float = HEADROOM
    current: str | None = None
    basis: str
    warning: str | None = None
    manifest: dict[str, Any] | None = None


def _doubt(key: str, value: str) -> str:
    """Return the label and why it is left out; empty if key and value look permanent."""
    looks = looks_like(value)
    if is_changing_key(key):
        return f"{key}={value} is of one version, instance, run or node"
    return f"{key}={value} looks like {looks}" if looks else ""


def _lasts(requirement: LabelSelectorRequirement) -> bool:
    return not is_changing_key(requirement.key) and not any(map(looks_like, requirement.values))


def workloads(observed: Iterable[ObservedPod], all_pods: Iterable[Pod]) -> list[Workload]:
    """Return the workloads of these pods by name; `all_pods` are all pods of their namespaces."""
    by_name: dict[tuple[str, str], list[ObservedPod]] = {}
    for observation in observed:
        name = observation.workload or f"pod/{observation.pod.name}"
        by_name.setdefault((observation.pod.namespace, name), []).append(observation)
    all_pods = list(all_pods)
    return [
        Workload(namespace, name, pods, tuple(_others(name, pods, all_pods)))
        for (namespace, name), pods in sorted(by_name.items())
    ]


def advise(workload: Workload) -> Recommendation:
    """Return the recommendation for a workload."""
    peaks = [observed.peak for observed in workload.pods if observed.peak is not None]
    peak = max(peaks, default=None)
    governing = {
        limit.metadata.name: limit for observed in workload.pods for limit in observed.limits
    }
    amount = recommend(peak)
    advice = Recommendation(
        namespace=workload.namespace,
        workload=workload.name,
        pods=len(workload.pods),
        observed=len(peaks),
        peak=peak,
        since=min((observed.since for observed in workload.pods if observed.since), default=None),
        limit=amount,
        current=_current(governing.values()),
        basis="",
    )
    selection = workload.selection
    if not selection:
        return _with(advice, _unselectable(workload))
    advice = advice.model_copy(update={"warning": _warning(selection)})
    if amount is not None:
        also = f"{_may_need_more(peak or 0, governing.values())}{_also(workload)}"
        basis = (
            f"peak {short(peak or 0)} of {len(peaks)} of {len(workload.pods)} pods, "
            f"{HEADROOM:.0%} headroom{also}"
        )
        return _with(
            advice,
            basis,
            _manifest(workload, selection, amount, Enforcement.ENFORCE, governing.values()),
        )
    if peak is not None:
        return _with(advice, "no pinned memory was observed yet")
    if governing:
        return _with(
            advice, f"no agent has reported the pods yet; limits: {', '.join(sorted(governing))}"
        )
    basis = (
        "nothing was observed yet: agents report only pods with limits, "
        f"so apply this Audit limit first{_also(workload)}"
    )
    return _with(
        advice, basis, _manifest(workload, selection, Quantity(OBSERVING), Enforcement.AUDIT, ())
    )


def advise_limit(limit: PinLimit) -> Recommendation:
    """Return the recommendation in the status of a limit."""
    status = limit.status
    amount = status.recommendation if status else None
    advice = Recommendation(
        namespace=limit.metadata.namespace or "",
        workload=f"pinlimit/{limit.metadata.name}",
        pods=(status.matched_pods or 0) if status else 0,
        observed=len(status.top_pods) if status else 0,
        limit=amount,
        current=_current([limit]),
        basis="",
    )
    if amount is None:
        return _with(advice, "its status has no recommendation: no pinned memory was observed yet")
    manifest = _of_limit(limit, amount, Enforcement.ENFORCE)
    basis = f"recommended in its status: {HEADROOM:.0%} above the highest observed use of a pod"
    changing = [
        doubt
        for key, value in sorted(limit.spec.pod_selector.match_labels.items())
        if (doubt := _doubt(key, value))
    ]
    changing += [
        expression.key
        for expression in limit.spec.pod_selector.match_expressions
        if not _lasts(expression)
    ]
    if changing:
        advice = advice.model_copy(
            update={
                "warning": "its selector may match nothing after the next release: "
                + "; ".join(changing)
            }
        )
    return _with(advice, basis, manifest)


def _unselectable(workload: Workload) -> str:
    has = [f"{key}={value}" for key, value in sorted(workload.pods[0].pod.labels.items())]
    seen = (
        f" ({', '.join(has[:_MOST_NAMED])}{', ...' if len(has) > _MOST_NAMED else ''})"
        if has
        else ""
    )
    return (
        f"no limit is possible: the pods have no permanent label of this workload only{seen}. "
        f"Add a label to the pod template, such as app: {_object_name(workload)}"
    )


def _warning(selection: Selection) -> str | None:
    if not selection.left_out:
        return None
    left_out = "; ".join(selection.left_out)
    return f"left out of the selector, because the next release may change: {left_out}"


def _with(
    advice: Recommendation, basis: str, manifest: dict[str, Any] | None = None
) -> Recommendation:
    return advice.model_copy(update={"basis": basis, "manifest": manifest})


def _current(limits: Iterable[PinLimit]) -> str | None:
    names = [
        f"{limit.metadata.name} {limit.spec.limit}"
        f"{' (Audit)' if limit.spec.enforcement is Enforcement.AUDIT else ''}"
        for limit in sorted(limits, key=lambda limit: limit.metadata.name)
    ]
    return ", ".join(names) or None


def _others(name: str, pods: Sequence[ObservedPod], all_pods: Iterable[Pod]) -> Iterator[Pod]:
    own = {observed.pod.uid for observed in pods}
    selection = Workload("", name, pods).selection
    for pod in all_pods if selection else ():
        same = pod.namespace == pods[0].pod.namespace and selects(selection.selector, pod.labels)
        if same and pod.uid not in own and not pod.terminal:
            yield pod


def _may_need_more(peak: int, governing: Iterable[PinLimit]) -> str:
    """Return a remark if a limit stopped the pods at their peak (H2), else the empty text."""
    for limit in sorted(governing, key=lambda limit: limit.metadata.name):
        amount = limit.spec.limit.bytes
        if limit.spec.enforcement is Enforcement.ENFORCE and 0 < amount <= peak + amount // 16:
            why = "limited the pods there" if peak <= amount else "is lower"
            return f"; {limit.metadata.name} ({limit.spec.limit}) {why}, so they may need more"
    return ""


def _also(workload: Workload) -> str:
    count = len(workload.others)
    if not count:
        return ""
    first = workload.others[0].name
    return f"; its selector also matches {plural(count, 'other pod')}, such as {first}"


def _manifest(
    workload: Workload,
    selection: Selection,
    amount: Quantity,
    enforcement: Enforcement,
    governing: Iterable[PinLimit],
) -> dict[str, Any]:
    """Return the PinLimit with exactly this selector: an existing limit with `amount`, or new."""
    for limit in sorted(governing, key=lambda limit: limit.metadata.name):
        if limit.spec.pod_selector == selection.selector and limit.spec.scope is Scope.POD:
            return _of_limit(limit, amount, enforcement)
    selector = selection.selector.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
    )
    spec = {"podSelector": selector, "limit": str(amount), "enforcement": str(enforcement)}
    return _object(workload.namespace, _object_name(workload), spec)


def _object_name(workload: Workload) -> str:
    """Return the workload's name in the allowed letters of an object's name."""
    name = _NO_NAME.sub("-", workload.name.partition("/")[2].lower())
    return name[:_LONGEST_NAME].strip("-.") or "workload"


def _of_limit(limit: PinLimit, amount: Quantity, enforcement: Enforcement) -> dict[str, Any]:
    spec = limit.spec.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
    )
    changed = {"limit": str(amount), "enforcement": str(enforcement)}
    return _object(limit.metadata.namespace or "", limit.metadata.name, spec | changed)


def _object(namespace: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": "PinLimit",
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }
