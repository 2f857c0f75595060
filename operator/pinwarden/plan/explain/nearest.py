"""Find why a limit does not match: the unmet requirements of pod, namespace and node.

`selectors.selects` checks each requirement separately, so the answer agrees with the operator.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pinwarden.api.meta import LabelSelector, LabelSelectorRequirement
from pinwarden.api.pinlimit import PinLimit
from pinwarden.plan.explain.evidence import Evidence
from pinwarden.plan.limit_compiler import Limit, limit_name, reaches_namespace
from pinwarden.plan.selectors import Labels, selects
from pinwarden.plan.types import NAME_LABEL, Node


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A limit without a match, and why; `labels` are missing on the pod, if nothing else is."""

    limit: Limit
    differences: tuple[str, ...]
    labels: dict[str, str]


def nearest(evidence: Evidence) -> NearMiss | None:
    """Return the limit with the fewest differences; then a PinLimit, then the first by name."""
    misses = [near(limit, evidence) for limit in evidence.limits]
    return min(
        (miss for miss in misses if miss.differences),
        key=lambda miss: (
            len(miss.differences),
            not isinstance(miss.limit, PinLimit),
            limit_name(miss.limit),
        ),
        default=None,
    )


def near(limit: Limit, evidence: Evidence) -> NearMiss:
    """Return the differences between the pod and a limit, empty if the limit matches."""
    pod, namespace = evidence.pod, evidence.namespace
    differences = list(_unmet(limit.spec.pod_selector, pod.labels, "the pod's label"))
    wanted = limit.spec.pod_selector
    labels = {
        key: value for key, value in wanted.match_labels.items() if pod.labels.get(key) != value
    }
    reached = reaches_namespace(limit, namespace, evidence.settings)
    if not isinstance(limit, PinLimit):
        own = {**namespace.labels, NAME_LABEL: namespace.name}
        unmet = list(_unmet(limit.spec.namespace_selector, own, "the namespace's label"))
        if not unmet and not reached:
            unmet = [
                f"namespace {namespace.name} is exempt unless selected by the label {NAME_LABEL}"
            ]
        node = evidence.node or Node(pod.node)
        unmet += _unmet(
            limit.spec.node_selector, node.labels, f"the label of node {node.name or '(none yet)'}"
        )
        differences += unmet
        reached = not unmet
    by_labels_alone = reached and len(labels) == len(differences)
    return NearMiss(limit, tuple(differences), labels if by_labels_alone else {})


def _unmet(selector: LabelSelector, labels: Labels, label: str) -> Iterator[str]:
    for key, value in selector.match_labels.items():
        if not selects(LabelSelector(match_labels={key: value}), labels):
            yield f"{label} {key} is {_value(labels, key)}, and the limit wants {value!r}"
    for requirement in selector.match_expressions:
        if not selects(LabelSelector(match_expressions=[requirement]), labels):
            has, wanted = _value(labels, requirement.key), _wanted(requirement)
            yield f"{label} {requirement.key} is {has}, and the limit wants {wanted}"


def _value(labels: Labels, key: str) -> str:
    return repr(labels[key]) if key in labels else "absent"


def _wanted(requirement: LabelSelectorRequirement) -> str:
    values: Sequence[str] = [repr(value) for value in requirement.values]
    match requirement.operator:
        case "In":
            return f"one of {', '.join(values)}"
        case "NotIn":
            return f"none of {', '.join(values)}"
        case "Exists":
            return "any value"
        case "DoesNotExist":
            return "no such label"
