"""RLIMIT_MEMLOCK of new containers, and the annotation with the inherited limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.linux.prlimit import UNLIMITED, Limits
from pinwarden.node.nri.memlock import ANNOTATION, annotation, found, lowered
from pinwarden.node.nri.messages import Container, Pod

POD = Pod("sandbox", "name", "uid", "team")
APPLIED = Limits(100, 200)
ENDLESS = Limits(UNLIMITED, UNLIMITED)

amounts = st.integers(0, UNLIMITED)
pairs = st.tuples(amounts, amounts).map(lambda pair: Limits(min(pair), max(pair)))


def noted(text: str, memlock: Limits | None = APPLIED) -> Container:
    return Container("id", "s", "main", 3, None, memlock=memlock, annotations={ANNOTATION: text})


@pytest.mark.rule("P14")
@given(pairs, amounts)
def test_limits_are_lowered_to_the_amount_or_stay(inherited: Limits, amount: int) -> None:
    limits = lowered(inherited, amount)
    if limits is None:
        assert inherited.hard <= amount
        return
    assert limits.soft <= limits.hard == amount
    assert limits == Limits(min(inherited.soft, amount), min(inherited.hard, amount))


@given(pairs)
def test_annotation_names_the_inherited_limits(inherited: Limits) -> None:
    limits = found(POD, noted(annotation(inherited)), inherited)
    assert limits == ("uid", inherited, APPLIED)


@pytest.mark.rule("P14")
@given(pairs, pairs)
def test_limits_of_an_annotation_never_exceed_the_inherited_ones(
    written: Limits, inherited: Limits
) -> None:
    limits = found(POD, noted(annotation(written)), inherited)
    assert limits is not None
    assert limits.inherited.soft <= inherited.soft
    assert limits.inherited.hard <= inherited.hard


def test_annotation_of_unlimited_limits_is_readable() -> None:
    assert annotation(Limits(65536, UNLIMITED)) == "65536:unlimited"


@pytest.mark.parametrize(
    "text", ["", "1", "1:", ":1", "-1:1", "1:1:1", "1:infinity", "1 :1", "9" * 30]
)
def test_other_annotation_is_ignored(text: str) -> None:
    assert found(POD, noted(text), ENDLESS) is None


def test_annotation_of_a_container_without_limits_is_ignored() -> None:
    assert found(POD, noted("1:1", None), ENDLESS) is None


@pytest.mark.rule("P14")
def test_annotation_from_the_author_of_the_pod_has_no_meaning() -> None:
    """A runtime can be configured to copy the annotations of pods into containers."""
    forged = Pod("sandbox", "name", "uid", "team", annotations={ANNOTATION: "unlimited:unlimited"})
    assert found(forged, noted("unlimited:unlimited"), ENDLESS) is None
    assert found(POD, noted("unlimited:unlimited"), ENDLESS) is not None
