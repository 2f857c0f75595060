"""Totals of reports: updates by changed views equal a computation of all views."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import FairReport, GroupReport, SourceLevel, UnsupportedReport
from pinwarden.api.pinlimit import Level, Source
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.metrics_totals import (
    LEVELS,
    OTHER,
    PROBLEMS,
    REASONS,
    TotalsCache,
    node_totals,
)
from pinwarden.plan.node_view import NodeView, PodSample, RequestedLimit
from pinwarden.plan.types import Pod

ASKED = {"p": (RequestedLimit("u", "h", None),)}
SOURCES = (
    SourceLevel(source=Source.MLOCK, counted=True, level=Level.CONVERGE, reason="RlimitGate"),
)

ITEMS = Items(Metrics())


def pods(node: str) -> Mapping[str, Pod]:
    return {
        f"p{number}": Pod(f"ns{number % 2}", f"pod{number}", f"p{number}", f"p{number}", node)
        for number in range(4)
    }


def use(pinned: int, level: Level = Level.DENY, reason: str = "SeccompGate") -> PodSample:
    return PodSample(pinned, pinned, level, reason, "", {}, None)


views = st.builds(
    NodeView,
    name=st.sampled_from(["n1", "n2", "n3"]),
    silent=st.booleans(),
    truncated=st.booleans(),
    requested=st.sampled_from([{}, ASKED]),
    sources=st.sampled_from([(), SOURCES]),
    pods=st.dictionaries(
        st.sampled_from(["p0", "p1", "p2", "p3", "stranger"]),
        st.builds(
            use,
            st.integers(0, 9),
            st.sampled_from(Level),
            st.sampled_from(["Audit", "GateLost", "new"]),
        ),
    ),
    fair_view=st.lists(
        st.builds(
            FairReport,
            pod=st.sampled_from(["p0", "p1"]),
            current=st.just(0),
            anonymous=st.just(0),
            shared=st.integers(0, 3),
        ),
        max_size=2,
    ).map(tuple),
)


@given(st.lists(st.lists(views, unique_by=lambda view: view.name), min_size=1, max_size=6))
def test_totals_updated_equal_totals_computed_anew(
    moments: list[list[NodeView]],
) -> None:
    kept = TotalsCache()
    for moment in moments:
        by_name = {view.name: view for view in moment}
        fresh, found = TotalsCache().update(by_name, pods, ITEMS), kept.update(by_name, pods, ITEMS)
        for problem in PROBLEMS:
            assert found.problems.get(problem, set()) == fresh.problems.get(problem, set())
        assert (found.pinned, found.silent) == (fresh.pinned, fresh.silent)
        assert (found.pods, found.sources, found.namespaces) == (
            fresh.pods,
            fresh.sources,
            fresh.namespaces,
        )


def test_totals_unchanged_view_is_not_read_again() -> None:
    read: list[str] = []

    def read_pods(node: str) -> Mapping[str, Pod]:
        read.append(node)
        return pods(node)

    kept = TotalsCache()
    one, two = NodeView("n1"), NodeView("n2")
    kept.update({"n1": one, "n2": two}, read_pods, ITEMS)
    kept.update({"n1": one, "n2": NodeView("n2", truncated=True)}, read_pods, ITEMS)
    assert read == ["n1", "n2", "n2"]


def test_totals_of_silent_node_keep_figures_at_unknown_level() -> None:
    share = node_totals(
        NodeView("n1", pods={"p0": use(5)}, silent=True, requested=ASKED), pods("n1")
    )
    assert share.pods == {("Unknown", "AgentSilent"): 1}
    assert share.pinned == share.namespaces["ns0"].pinned == 5
    assert share.problems == {"AgentSilent": {"n1"}}


def test_problem_silent_needs_limits_or_groups_on_the_node() -> None:
    share = node_totals(NodeView("n1", silent=True), {})
    assert (share.silent, share.problems) == (1, {})


def test_reason_unknown_counts_as_other() -> None:
    share = node_totals(
        NodeView("n1", pods={"p0": use(1, reason="x" * 9000)}, silent=False), pods("n1")
    )
    assert share.pods == {("Deny", OTHER): 1}
    assert all(level in LEVELS and reason in REASONS for level, reason in share.pods)


def test_problems_are_each_detected() -> None:
    observed = SourceLevel(
        source=Source.MLOCK, counted=True, level=Level.OBSERVE, reason="GateUnavailable"
    )
    group = GroupReport(uid="g", phase=Phase.PENDING, reason="AccountantSilent")
    view = NodeView(
        "n1",
        silent=False,
        truncated=True,
        problem=UnsupportedReport(uid="", reason="InvalidSpec", message=""),
        sources=(observed,),
        pods={"p0": use(1, Level.OBSERVE, "GateLost")},
        groups={"g": group},
    )
    assert node_totals(view, {}).problems.keys() == PROBLEMS.keys() - {"AgentSilent"}
    assert not node_totals(NodeView("n1", silent=False, sources=SOURCES), {}).problems
