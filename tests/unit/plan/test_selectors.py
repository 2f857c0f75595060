"""Selectors select the same objects as in Kubernetes."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.meta import LabelSelector, LabelSelectorRequirement
from pinwarden.plan.selectors import contradiction, named_values, selects

keys = st.sampled_from(["app", "tier", "example.com/zone"])
values = st.sampled_from(["a", "b", ""])
labels = st.dictionaries(keys, values)
expressions = st.one_of(
    st.builds(
        LabelSelectorRequirement,
        key=keys,
        operator=st.sampled_from(["In", "NotIn"]),
        values=st.lists(values, min_size=1),
    ),
    st.builds(
        LabelSelectorRequirement, key=keys, operator=st.sampled_from(["Exists", "DoesNotExist"])
    ),
)
selectors = st.builds(
    LabelSelector, match_labels=labels, match_expressions=st.lists(expressions, max_size=3)
)

OPPOSITE = {"In": "NotIn", "NotIn": "In", "Exists": "DoesNotExist", "DoesNotExist": "Exists"}


@given(labels)
def test_empty_selector_selects_all_and_absent_selector_nothing(
    labels: dict[str, str],
) -> None:
    assert selects(LabelSelector(), labels)
    assert not selects(None, labels)


@given(expressions, labels)
def test_selector_operator_is_negation_of_its_opposite(
    requirement: LabelSelectorRequirement, labels: dict[str, str]
) -> None:
    other = requirement.model_copy(update={"operator": OPPOSITE[requirement.operator]})
    assert selects(LabelSelector(match_expressions=[requirement]), labels) != selects(
        LabelSelector(match_expressions=[other]), labels
    )


@given(selectors, labels)
def test_selector_requires_all_requirements(
    selector: LabelSelector, labels: dict[str, str]
) -> None:
    parts = [
        LabelSelector(match_labels={key: value}) for key, value in selector.match_labels.items()
    ]
    parts += [
        LabelSelector(match_expressions=[requirement]) for requirement in selector.match_expressions
    ]
    assert selects(selector, labels) == all(selects(part, labels) for part in parts)


@pytest.mark.parametrize(
    ("operator", "values", "labels", "expected"),
    [
        ("In", ["a", "b"], {"k": "b"}, True),
        ("In", ["a"], {}, False),
        ("NotIn", ["a"], {}, True),
        ("NotIn", ["a"], {"k": "a"}, False),
        ("Exists", [], {"k": ""}, True),
        ("DoesNotExist", [], {"k": ""}, False),
    ],
)
def test_selector_matches_truth_table_of_kubernetes(
    operator: str, values: list[str], labels: dict[str, str], expected: bool
) -> None:
    requirement = LabelSelectorRequirement.model_validate(
        {"key": "k", "operator": operator, "values": values}
    )
    assert selects(LabelSelector(match_expressions=[requirement]), labels) is expected


def test_named_values_are_those_of_match_labels_and_in() -> None:
    either = LabelSelectorRequirement(key="k", operator="In", values=["a", "b"])
    exists = LabelSelectorRequirement(key="k", operator="Exists")
    assert named_values(LabelSelector(match_labels={"k": "a"}), "k") == frozenset("a")
    assert named_values(LabelSelector(match_expressions=[either, exists]), "k") == frozenset("ab")
    both = LabelSelector(match_labels={"k": "a"}, match_expressions=[either])
    assert named_values(both, "k") == frozenset("a")
    assert named_values(both, "other") is None
    assert named_values(LabelSelector(match_expressions=[exists]), "k") is None


@given(selectors, labels)
def test_selected_object_has_a_named_value(selector: LabelSelector, labels: dict[str, str]) -> None:
    named = named_values(selector, "app")
    assert named is None or not selects(selector, labels) or labels["app"] in named


KEYS = ("app", "tier", "example.com/zone")


@given(selectors)
def test_contradiction_is_found_exactly_if_no_labels_match(
    selector: LabelSelector,
) -> None:
    """All values without a requirement are alike: one value and an absent key represent them."""
    some = ("a", "b", "", "other", None)
    every = (
        {key: value for key, value in zip(KEYS, chosen, strict=True) if value is not None}
        for chosen in product(some, repeat=len(KEYS))
    )
    assert (contradiction(selector) is None) == any(selects(selector, labels) for labels in every)
