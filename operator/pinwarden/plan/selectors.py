"""Label selectors, as `metav1.LabelSelectorAsSelector` defines them.

All requirements hold together. An empty selector selects every object, an absent one none. NotIn is also true of an object without the key.
"""

from collections.abc import Mapping

from pinwarden.api.meta import LabelSelector, LabelSelectorRequirement

Labels = Mapping[str, str]


def selects(selector: LabelSelector | None, labels: Labels) -> bool:
    """Whether `selector` selects an object with these labels."""
    if selector is None:
        return False
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _holds(requirement, labels) for requirement in selector.match_expressions
    )


def names_value(selector: LabelSelector, key: str, value: str) -> bool:
    """Whether the selector asks for `value` of `key` by name, rather than reaching it by being broad."""
    return selector.match_labels.get(key) == value or any(
        requirement.key == key and requirement.operator == "In" and value in requirement.values
        for requirement in selector.match_expressions
    )


def _holds(requirement: LabelSelectorRequirement, labels: Labels) -> bool:
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
