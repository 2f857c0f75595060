"""A limit is overridden only if another limit implies it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.plan.limit_compiler import Limit
from pinwarden.plan.limit_overrides import implies, overriding


def limit(name: str, amount: str = "8Mi", **spec: Any) -> PinLimit:
    return PinLimit.model_validate(
        {
            "metadata": {"name": name, "namespace": "a", "uid": name},
            "spec": {"podSelector": {}, "limit": amount, **spec},
        }
    )


def ceiling(name: str, amount: str = "8Mi", **spec: Any) -> ClusterPinLimit:
    return ClusterPinLimit.model_validate(
        {"metadata": {"name": name, "uid": name}, "spec": {"limit": amount, **spec}}
    )


def implied(strong: Limit, weak: Limit, *others: Limit) -> bool:
    return implies(strong, weak, [strong, weak, *others])


SPECS = st.fixed_dictionaries(
    {
        "amount": st.sampled_from(["1Mi", "2Mi"]),
        "scope": st.sampled_from(["Pod", "Container"]),
        "sources": st.sampled_from([[], ["Mlock"], ["Mlock", "Rdma"]]),
        "enforcement": st.sampled_from(["Enforce", "Audit"]),
        "minimumLevel": st.sampled_from(["Deny", "Converge"]),
        "contention": st.sampled_from(["Share", "Reserve"]),
    }
)


@pytest.mark.rule("P13")
@given(SPECS, SPECS)
def test_implying_limit_asks_for_at_least_as_much(
    first: dict[str, Any], other: dict[str, Any]
) -> None:
    strong, weak = limit("s", **first), limit("w", **other)
    expected = (
        first["enforcement"] == "Enforce"
        and first["amount"] <= other["amount"]
        and first["scope"] == other["scope"]
        and (
            not first["sources"]
            or (other["sources"] and set(other["sources"]) <= set(first["sources"]))
        )
        and (first["minimumLevel"] == "Deny" or other["minimumLevel"] == "Converge")
        and (first["contention"] == "Reserve" or other["contention"] == "Share")
    )
    assert implied(strong, weak) == bool(expected)


@pytest.mark.rule("P13")
@given(SPECS, SPECS, SPECS)
def test_implying_is_transitive(
    first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]
) -> None:
    a, b, c = limit("a", **first), limit("b", **second), limit("c", **third)
    if implied(a, b, c) and implied(b, c, a):
        assert implied(a, c, b)


@pytest.mark.rule("P13")
@pytest.mark.parametrize(
    ("strong", "weak", "expected"),
    [
        (["web"], ["web"], True),
        ([], ["web"], True),
        (["web", "log"], ["web"], True),
        (["web"], [], False),
        (["web"], ["log"], False),
    ],
)
def test_containers_are_covered_like_sources(
    strong: list[str], weak: list[str], expected: bool
) -> None:
    first = limit("s", scope="Container", containers=strong)
    assert implied(first, limit("w", scope="Container", containers=weak)) is expected


@pytest.mark.rule("P14")
def test_grant_is_not_implied_by_smaller_grant() -> None:
    leave = ceiling("leave", "1Gi", maxGrant="4Mi")
    grant, plain = limit("g", "8Mi", grant=True), limit("x", "8Mi")
    assert not implied(plain, grant, leave)
    assert implied(grant, plain, leave)
    assert implied(plain, grant), "no administrator's leave: the grant gives nothing"
    assert implied(limit("h", "8Mi", grant=True), grant, leave)
    assert implied(limit("t", "2Mi", grant=True), grant, leave), (
        "no process is raised above 2Mi in either case"
    )


@pytest.mark.rule("P14")
def test_ceiling_is_not_implied_by_ceiling_with_smaller_max_grant() -> None:
    assert not implied(ceiling("t", "1Mi"), ceiling("u", "8Mi", maxGrant="8Mi"))
    assert implied(ceiling("t", "8Mi", maxGrant="8Mi"), ceiling("u", "8Mi", maxGrant="4Mi"))


@pytest.mark.rule("P13")
def test_of_equal_limits_exactly_one_is_not_redundant() -> None:
    first, second = limit("first"), limit("second")
    both = [first, second]
    assert overriding(first, [both]) == frozenset()
    assert overriding(second, [both]) == {"a/first"}


@pytest.mark.rule("P13")
def test_redundant_limit_is_implied_for_every_pod() -> None:
    weak, tight, tighter = limit("weak", "8Mi"), limit("tight", "4Mi"), limit("tighter", "2Mi")
    assert overriding(weak, [[weak, tight], [weak]]) == frozenset()
    assert overriding(weak, [[weak, tight], [weak, tighter]]) == {"a/tight", "a/tighter"}
    assert overriding(weak, [[weak, tight], [weak, tight, tighter]]) == {"a/tight"}
    assert overriding(weak, []) == frozenset(), "no pod, nothing to be held to"


@pytest.mark.rule("P13")
def test_node_limit_is_implied_only_by_one_limit_for_all_pods() -> None:
    weak, red, blue = (
        ceiling(name, amount, scope="Node")
        for name, amount in (("weak", "8Mi"), ("red", "1Mi"), ("blue", "1Mi"))
    )
    assert overriding(weak, [[weak, red], [weak, blue]]) == frozenset()
    assert overriding(weak, [[weak, red], [weak, red, blue]]) == {"red"}
