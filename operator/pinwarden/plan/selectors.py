"""Match label selectors, as `metav1.LabelSelectorAsSelector` defines them.

An object must meet all requirements. An empty selector selects every object, an absent selector no
object. `NotIn` is also true for an object without the key.
"""

from collections.abc import Mapping

from pinwarden.api.meta import LabelSelector, LabelSelectorRequirement

Labels = Mapping[str, str]


def selects(selector: LabelSelector | None, labels: Labels) -> bool:
    """Return whether `selector` selects an object with these labels."""
    if selector is None:
        return False
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _is_met(requirement, labels) for requirement in selector.match_expressions
    )


def named_values(selector: LabelSelector, key: str) -> frozenset[str] | None:
    """Return the values of the label `key` that the selector names, None if it names none."""
    named = [
        frozenset(requirement.values)
        for requirement in selector.match_expressions
        if requirement.key == key and requirement.operator == "In"
    ]
    if key in selector.match_labels:
        named.append(frozenset([selector.match_labels[key]]))
    return frozenset.intersection(*named) if named else None


def contradiction(selector: LabelSelector) -> str | None:
    """Return why the selector can select no object, None if an object can match."""
    values: dict[str, set[str]] = {key: {value} for key, value in selector.match_labels.items()}
    excluded: dict[str, set[str]] = {}
    present, absent = set(values), set()
    for requirement in selector.match_expressions:
        key, named = requirement.key, set(requirement.values)
        match requirement.operator:
            case "In":
                values[key] = values[key] & named if key in values else named
                present.add(key)
            case "NotIn":
                excluded.setdefault(key, set()).update(named)
            case "Exists":
                present.add(key)
            case "DoesNotExist":
                absent.add(key)
    for key in sorted(present):
        if key in absent:
            return f"the label {key} must both exist and be absent"
        if key in values and not values[key] - excluded.get(key, set()):
            return f"no value of the label {key} meets all requirements"
    return None


def _is_met(requirement: LabelSelectorRequirement, labels: Labels) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
