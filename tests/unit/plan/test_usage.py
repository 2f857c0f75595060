"""`top` shows reports joined with pods, and invents nothing."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.node.agent.source_levels import source_levels
from pinwarden.node.linux.prlimit import GateAbility
from pinwarden.plan.types import Pod
from pinwarden.plan.usage import (
    COUNTED_IN,
    STALE,
    FigureFilter,
    pod_figures,
    shared_figures,
    uncounted,
)

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
MIB = 1 << 20
POD = Pod("team-a", "db-0", "api-uid", "static-hash", "n1")
OTHER = Pod("team-a", "db-1", "u2", "u2", "n2")


def config(
    name: str = "n1", uses: list[dict[str, Any]] | None = None, *, age: float = 3.0, **parts: Any
) -> NodePinConfig:
    limits = [
        {"name": "team-a/db@0", "uid": "l1", "scope": "Pod", "limit": 64 * MIB},
        {"name": "team-a/each", "uid": "l2", "scope": "Container", "limit": MIB},
        {"name": "audit", "uid": "l3", "scope": "Pod", "limit": 4096, "enforcement": "Audit"},
    ]
    spec = {"limits": limits, "pods": [], **parts.pop("spec", {})}
    status = {"sampledAt": (NOW - timedelta(seconds=age)).isoformat(), "pods": uses or [], **parts}
    return NodePinConfig.model_validate(
        {"metadata": {"name": name}, "spec": spec, "status": status}
    )


def use(uid: str, locked: int = MIB, **more: Any) -> dict[str, Any]:
    return {
        "uid": uid,
        "vmLck": locked,
        "vmPin": MIB,
        "peak": 4 * MIB,
        "processes": 1,
        "level": "Deny",
    } | more


NODES = {"n1", "n2", "n3", "n9"}
ALL = FigureFilter(NODES)


def test_static_pod_is_shown_by_hash_with_strictest_limit() -> None:
    spec = {"pods": [{"uid": "static-hash", "limits": ["audit", "team-a/each", "team-a/db@0"]}]}
    (figure,) = pod_figures([POD], [config(uses=[use("static-hash")], spec=spec)], ALL, NOW)
    assert (figure.namespace, figure.pod, figure.total, figure.locked, figure.pinned) == (
        "team-a",
        "db-0",
        2 * MIB,
        MIB,
        MIB,
    )
    assert (figure.limit, figure.limit_name) == (64 * MIB, "team-a/db")
    assert figure.denials is None


@pytest.mark.rule("H2")
def test_unreported_pod_has_absent_figures_and_comes_last() -> None:
    spec = {"pods": [{"uid": "static-hash", "limits": ["audit"]}, {"uid": "free"}]}
    two = config("n2", [use("u2", 0, vmPin=0, denials=[])])
    silent, zero = reversed(pod_figures([POD, OTHER], [config(spec=spec), two], ALL, NOW))
    assert (zero.pod, zero.total, zero.denials) == ("db-1", 0, 0)
    assert (silent.pod, silent.total, silent.level, silent.sampled_at) == ("db-0", None, None, None)
    assert "total" not in silent.to_wire()


def test_gone_pod_is_shown_by_uid_without_filter() -> None:
    configs = [config(uses=[use("gone")])]
    (figure,) = pod_figures([POD], configs, ALL, NOW)
    assert (figure.namespace, figure.pod) == (None, "gone")
    assert not pod_figures([POD], configs, FigureFilter(NODES, "team-a"), NOW)
    assert not pod_figures([POD], configs, FigureFilter(NODES, selected=True), NOW)


@pytest.mark.rule("H1")
@pytest.mark.parametrize(
    ("age", "level"), [(STALE.total_seconds(), "Deny"), (STALE.total_seconds() + 1, None)]
)
def test_stale_report_shows_no_level(age: float, level: str | None) -> None:
    (figure,) = pod_figures([OTHER], [config("n2", [use("u2")], age=age)], ALL, NOW)
    assert figure.level == level
    assert figure.total == 2 * MIB
    assert figure.stale is (level is None)


@pytest.mark.rule("H1")
def test_silent_agent_makes_level_unknown() -> None:
    (figure,) = pod_figures([OTHER], [config("n2", [use("u2")])], FigureFilter({"n1"}), NOW)
    assert (figure.level, figure.reason, figure.stale, figure.total) == (
        None,
        "AgentSilent",
        False,
        2 * MIB,
    )


def test_uid_of_another_node_is_not_joined_with_pod() -> None:
    assert (
        pod_figures([POD], [config("n9", [use("static-hash")])], FigureFilter(NODES, "team-a"), NOW)
        == []
    )


def test_counted_in_matches_counters_of_agent() -> None:
    """The plugin may not ask the agent's code; this test may."""
    messages = {level.source: level.message for level in source_levels(GateAbility(True, ""))}
    for counter, sources in COUNTED_IN.items():
        assert all(f"counted in {counter}" in messages[source] for source in sources)
    counted = {source for sources in COUNTED_IN.values() for source in sources}
    assert {source for source, message in messages.items() if "counted in Vm" in message} == counted


def test_uncounted_sources_are_listed_with_nodes() -> None:
    blind = [{"source": "Xdp", "counted": False, "level": "Observe", "reason": "NotCounted"}]
    sources = uncounted([config("n1", sources=blind), config("n2", sources=blind), config("n3")])
    assert sources == {("Xdp",): ["n1", "n2"]}


def test_shared_figures_have_groups_of_namespace_and_borrows_of_pods() -> None:
    group = {
        "name": "team-a/cache",
        "uid": "g1",
        "backing": {"memfd": {"name": "ring"}},
        "management": "Adopt",
        "accounting": "Borrow",
        "fairShare": "Borrow",
        "members": [{"pods": ["static-hash"], "borrowLimit": 8 * MIB}],
    }
    borrowers = [
        {
            "pod": "static-hash",
            "member": True,
            "borrowed": MIB,
            "mapped": 2 * MIB,
            "level": "Converge",
        },
        {"pod": "stranger", "member": False, "mapped": MIB},
    ]
    report = {
        "uid": "g1",
        "phase": "Active",
        "objects": 1,
        "charge": 4 * MIB,
        "borrowers": borrowers,
    }
    fair = {"pod": "static-hash", "current": 9, "anonymous": 4, "shared": 3}
    node_config = config(spec={"groups": [group]}, groups=[report], fairView=[fair])
    shared = shared_figures([POD], [node_config], FigureFilter(NODES, "team-a"), NOW)
    assert [(group.group, group.charge, group.orphaned) for group in shared.groups] == [
        ("team-a/cache", 4 * MIB, None)
    ]
    assert [(borrow.pod, borrow.borrowed, borrow.limit) for borrow in shared.borrows] == [
        ("db-0", MIB, 8 * MIB)
    ]
    assert [(fair.pod, fair.fair) for fair in shared.fair_view] == [("db-0", 7)]
    assert not shared_figures([], [node_config], FigureFilter(NODES, "team-b"), NOW).groups
    assert [borrow.pod for borrow in shared_figures([POD], [node_config], ALL, NOW).borrows] == [
        "db-0",
        "stranger",
    ]


def frames(sampled: datetime | None, *, age: float = 3.0) -> NodePinConfig:
    """A node with a group sampled at `sampled`; the agent reported `age` seconds ago."""
    group = {
        "name": "team-a/frames",
        "uid": "g1",
        "backing": {"memfd": {"name": "ring"}},
        "management": "Adopt",
        "accounting": "Borrow",
        "fairShare": "Borrow",
        "members": [{"pods": ["static-hash"], "borrowLimit": MIB}],
    }
    borrow = {
        "pod": "static-hash",
        "member": True,
        "borrowed": MIB,
        "mapped": MIB,
        "level": "Converge",
    }
    report = {"uid": "g1", "phase": "Active", "objects": 1, "charge": MIB, "borrowers": [borrow]}
    if sampled:
        report["sampledAt"] = sampled.isoformat()
    views = [
        {"pod": uid, "current": 9, "anonymous": 4, "shared": 3} for uid in ("static-hash", "other")
    ]
    return config(spec={"groups": [group]}, groups=[report], fairView=views, age=age)


@pytest.mark.rule("H1", "H2")
@pytest.mark.parametrize(
    ("accountant", "agent", "stale"),
    [(10.0, 3.0, False), (STALE.total_seconds() + 1, 3.0, True), (8000.0, 7000.0, True)],
)
def test_shared_figures_have_age_of_accountants_sample(
    accountant: float, agent: float, stale: bool
) -> None:
    sampled = NOW - timedelta(seconds=accountant)
    shared = shared_figures([POD], [frames(sampled, age=agent)], ALL, NOW)
    (fair,) = [fair for fair in shared.fair_view if fair.pod == "db-0"]
    for figure in (shared.groups[0], shared.borrows[0], fair):
        assert (figure.sampled_at, figure.stale) == (sampled, stale)
    assert shared.borrows[0].level == (None if stale else "Converge")
    (other,) = [fair for fair in shared.fair_view if fair.pod == "other"]
    assert other.sampled_at == NOW - timedelta(seconds=agent)
