"""The status of a SharedMemoryGroup follows from the reports of the nodes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pinwarden.api.nodepinconfig import NodePinConfig, NodePinConfigSpec
from pinwarden.api.sharedmemorygroup import Borrower, SharedMemoryGroup, SharedMemoryGroupStatus
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.group_compiler import NOWHERE, Group, Presence
from pinwarden.plan.group_on_node import DrainWait, GroupOnNode, drain_wait
from pinwarden.plan.group_status import (
    group_shares,
    group_status,
    rejected_group_status,
    settled,
)
from pinwarden.plan.limit_compiler import LimitSettings
from pinwarden.plan.node_spec import compile_node
from pinwarden.plan.node_view import NodeView
from pinwarden.plan.share_cache import ShareCache
from pinwarden.plan.types import Namespace, Node, Pod

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
SAMPLED = "2024-05-01T11:59:00Z"
BORROW: dict[str, Any] = {"accounting": "Borrow", "capacity": "1Mi"}
LIMITED: list[dict[str, Any]] = [
    {"podSelector": {"matchLabels": {"app": "db"}}, "borrowLimit": "8Ki"}
]
Json = dict[str, Any]
ALLOWED = {"a": Namespace("a", allowed="create:1Gi")}


class Scenario:
    """A group, its pods, and the view of each node after a report."""

    def __init__(
        self, *pods: Pod, deleting: bool = False, members: Any = None, **spec: Any
    ) -> None:
        spec = {
            "backing": {"memfd": {"name": "ring"}},
            "members": members or [{"podSelector": {}}],
            **spec,
        }
        metadata = {"name": "g", "namespace": "a", "uid": "uid", "generation": 3}
        resource = SharedMemoryGroup.model_validate({"metadata": metadata, "spec": spec})
        self.group = Group(resource, deleting=deleting)
        self.pods = list(pods)
        self.views: dict[str, NodeView] = {}
        self.cache = ShareCache[GroupOnNode]()

    def reports(
        self, node: str = "n1", *, acknowledge: bool = True, silent: bool = False, **fields: Any
    ) -> None:
        """The node's agent reports these fields of the group; nothing without a phase."""
        pods = [pod for pod in self.pods if pod.node == node]
        presence = Presence(requested=frozenset({"uid"})) if self.group.deleting else NOWHERE
        spec = compile_node(Node(node), pods, ALLOWED, [], LimitSettings(), [self.group], presence)
        hashed = spec.groups[0].hash if spec.groups else ""
        report = {
            "uid": "uid",
            "hash": hashed if acknowledge else "older",
            "sampledAt": SAMPLED,
            **fields,
        }
        report.setdefault("objects", 1)
        status = {"observedGeneration": 1, "groups": [report] if "phase" in fields else []}
        raw = {
            "metadata": {"name": node, "uid": "u", "generation": 1},
            "spec": spec,
            "status": status,
        }
        view = NodeView(node).with_desired(spec).with_object(NodePinConfig.model_validate(raw))
        self.views[node] = view.with_silent(silent)

    def status(self, previous: SharedMemoryGroupStatus | None = None) -> SharedMemoryGroupStatus:
        members: dict[str, list[Pod]] = {}
        for pod in self.pods:
            if pod.namespace == "a" and self.group.has_member(pod.labels):
                members.setdefault(pod.node, []).append(pod)

        def find(node: str, uid: str) -> Pod | None:
            return next(
                (pod for pod in self.pods if (pod.node, pod.cgroup_uid) == (node, uid)), None
            )

        shares = group_shares(self.group, members, self.views, self.views, find, self.cache)
        return group_status(self.group, shares, previous, NOW)

    def condition(self, kind: str) -> tuple[str, str]:
        return next(
            (entry.status, entry.reason) for entry in self.status().conditions if entry.type == kind
        )

    def message(self, kind: str) -> str:
        return next(entry.message for entry in self.status().conditions if entry.type == kind)


def a_pod(
    name: str, node: str = "n1", app: str = "db", namespace: str = "a", started: bool = True
) -> Pod:
    containers = {"main": "id" if started else None}
    return Pod(namespace, name, f"api-{name}", name, node, {"app": app}, containers)


def borrow(pod: str, borrowed: int | None = 4096, mapped: int | None = 4096, **fields: Any) -> Json:
    return {"pod": pod, "member": True, "borrowed": borrowed, "mapped": mapped, **fields}


def limited(pod: str, level: str = "Converge", **fields: Any) -> Json:
    return borrow(pod, **{"level": level, "reason": "SeccompGate", **fields})


# -- sums ---------------------------------


@pytest.mark.rule("M3", "M9")
def test_group_figures_of_all_nodes_are_summed_and_unknown_ones_absent() -> None:
    cluster = Scenario(a_pod("p1"), a_pod("p2", "n2"), **BORROW)
    cluster.reports("n1", phase="Active", charge=100, orphaned=10, borrowers=[borrow("p1", 60, 80)])
    cluster.reports("n2", phase="Active", charge=50, dead=7, borrowers=[borrow("p2", 50, 50)])
    status = cluster.status()
    assert (status.charge_bytes, status.orphaned_bytes, status.dead_cgroup_bytes) == (150, 10, 7)
    assert (status.borrowed_bytes, status.borrower_count, status.omitted) == (110, 2, 0)
    assert [borrower.pod for borrower in status.borrowers] == ["p1", "p2"]
    assert (status.matched_pods, status.backing, status.phase) == (2, "memfd", "Active")
    assert status.node_count is not None
    assert status.node_count.applied == 2
    assert status.pinned_bytes is None


@pytest.mark.rule("H2", "M4")
def test_uncounted_figure_is_absent_not_zero() -> None:
    cluster = Scenario(a_pod("p1"))
    cluster.reports(phase="Active", charge=100)
    status = cluster.status()
    assert (status.charge_bytes, status.borrowed_bytes, status.orphaned_bytes) == (100, None, None)
    assert (status.borrower_count, status.dead_cgroup_bytes, status.omitted) == (None, None, None)
    counting = Scenario(a_pod("p1"), **BORROW)
    counting.reports(phase="Active", acknowledge=False)
    assert counting.status().borrowed_bytes is None, (
        "the report may be from before borrows were counted"
    )
    counting.reports(phase="Active", charge=0)
    status = counting.status()
    assert (status.borrowed_bytes, status.borrower_count, status.charge_bytes) == (0, 0, 0)
    unknown = Scenario(a_pod("p1"), **BORROW)
    unknown.reports(phase="Active", borrowers=[borrow("p1", None, None)])
    status = unknown.status()
    assert (status.borrowed_bytes, status.borrower_count) == (None, 1)


def test_borrowers_and_nodes_are_listed_up_to_a_hundred_largest_and_worst_first() -> None:
    pods = [a_pod(f"p{number:03}", f"n{number:03}") for number in range(120)]
    cluster = Scenario(*pods, **BORROW)
    for number, pod in enumerate(pods):
        phase = "Pending" if number == 110 else "Active"
        more: Json = {"omitted": 2} if number == 5 else {}
        cluster.reports(
            pod.node, phase=phase, borrowers=[borrow(pod.cgroup_uid, number + 1)], **more
        )
    status = cluster.status()
    assert [borrower.pod for borrower in status.borrowers[:2]] == ["p119", "p118"]
    assert (len(status.borrowers), status.borrower_count, status.omitted) == (100, 122, 22)
    assert (len(status.nodes), status.nodes[0].node, status.phase) == (100, "n110", "Pending")


def test_borrower_has_pod_name_and_least_limit() -> None:
    members = [*LIMITED, {"podSelector": {}, "borrowLimit": "4Ki"}]
    cluster = Scenario(
        a_pod("p1"), a_pod("web", app="web", namespace="b"), members=members, **BORROW
    )
    gone = borrow("gone", member=False)
    cluster.reports(
        phase="Active",
        borrowers=[limited("p1", denials=2), borrow("web", 1, 1, member=False), gone],
    )
    first, second, third = cluster.status().borrowers
    assert first == Borrower(
        pod="gone", namespace="", node="n1", member=False, borrowed_bytes=4096, mapped_bytes=4096
    )
    assert (second.pod, second.limit_bytes, second.level, second.denials) == (
        "p1",
        4096,
        "Converge",
        2,
    )
    assert (third.namespace, third.member, third.limit_bytes) == ("b", False, None)


# -- conditions ---------------------------------


@pytest.mark.rule("H1")
def test_applied_is_true_after_acknowledgement_by_every_node_with_member() -> None:
    cluster = Scenario(a_pod("p1"), a_pod("p2", "n2"))
    cluster.reports("n1", phase="Active")
    assert cluster.condition("Applied") == ("Unknown", "AgentSilent")
    cluster.reports("n2", phase="Active", acknowledge=False)
    assert cluster.condition("Applied") == ("False", "Pending")
    assert "n2" in cluster.message("Applied")
    assert cluster.condition("Ready") == ("False", "Pending")
    cluster.reports("n2", phase="Pending", objects=0)
    assert cluster.condition("Applied") == ("True", "Acknowledged")
    assert cluster.condition("Ready") == ("True", "NoLimits")


@pytest.mark.rule("H1", "M8")
def test_enforced_names_pods_below_minimum_level() -> None:
    cluster = Scenario(a_pod("p1"), a_pod("p2"), a_pod("web", app="web"), members=LIMITED, **BORROW)
    cluster.reports(
        phase="Active", borrowers=[limited("p1"), limited("p2", "Observe", reason="NotGated")]
    )
    assert cluster.condition("Enforced") == ("False", "NotGated")
    assert "pod a/p2 (NotGated: level Observe only)" in cluster.message("Enforced")
    cluster.reports(phase="Active", borrowers=[limited("p1")])
    assert cluster.condition("Enforced") == ("Unknown", "NotReported"), (
        "no report has the level of p2"
    )
    cluster.reports(phase="Active", borrowers=[limited("p1"), limited("p2", borrowed=0, mapped=0)])
    assert cluster.condition("Enforced") == ("True", "Enforced")
    assert cluster.status().borrower_count == 1, "one that has nothing mapped is no borrower"
    cluster.reports(phase="Active", borrowers=[limited("p1"), limited("p2")], acknowledge=False)
    assert cluster.condition("Enforced") == ("False", "Pending")
    cluster.reports(phase="Active", borrowers=[limited("p1"), limited("p2")], silent=True)
    assert cluster.condition("Enforced") == ("Unknown", "AgentSilent")


def test_unstarted_pod_is_not_named_in_enforced() -> None:
    cluster = Scenario(a_pod("p1"), a_pod("p2", started=False), members=LIMITED, **BORROW)
    cluster.reports(phase="Active", borrowers=[limited("p1")])
    assert cluster.condition("Enforced") == ("True", "Enforced")


@pytest.mark.parametrize(
    ("spec", "members", "expected"),
    [
        ({"enforcement": "Audit"}, LIMITED, ("False", "Audit")),
        ({}, None, ("True", "NoLimits")),
        (
            {},
            [{"podSelector": {"matchLabels": {"app": "x"}}, "borrowLimit": "1"}],
            ("Unknown", "NoPods"),
        ),
        (
            {},
            [
                {"podSelector": {"matchLabels": {"app": "x"}}, "borrowLimit": "1"},
                {"podSelector": {}},
            ],
            ("True", "NoLimits"),
        ),
    ],
)
def test_enforced_without_borrow_limit_is_true(
    spec: Json, members: Any, expected: tuple[str, str]
) -> None:
    cluster = Scenario(a_pod("p1"), members=members, **BORROW, **spec)
    cluster.reports(phase="Active")
    assert cluster.condition("Enforced") == expected
    assert cluster.condition("Ready")[0] == "True"


@pytest.mark.rule("M8")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"charge": 1 << 20, "borrowers": [limited("p1", mapped=8192)]}, ("True", "Sampled")),
        ({"charge": (1 << 20) + 1}, ("False", "OverCapacity")),
        ({"charge": 1, "borrowers": [limited("p1", mapped=8193)]}, ("False", "OverLimit")),
        ({"charge": 1, "borrowers": [borrow("web", member=False)]}, ("False", "NotMember")),
        ({"charge": 1, "borrowers": [borrow("web", 0, 0, member=False)]}, ("True", "Sampled")),
        ({"charge": 1, "borrowers": [limited("p1", mapped=None)]}, ("Unknown", "FigureMissing")),
        ({"charge": 1, "truncated": True}, ("Unknown", "Truncated")),
        ({}, ("Unknown", "FigureMissing")),
        ({"charge": 1, "silent": True}, ("Unknown", "AgentSilent")),
    ],
)
def test_within_limit_compares_capacity_borrow_limits_and_membership(
    fields: Json, expected: tuple[str, str]
) -> None:
    cluster = Scenario(a_pod("p1"), a_pod("web", app="web"), members=LIMITED, **BORROW)
    cluster.reports(phase="Active", **fields)
    assert cluster.condition("WithinLimit") == expected


def test_borrow_limit_on_resident_compares_resident_pages() -> None:
    members = [{**LIMITED[0], "borrowLimitOn": "Resident"}]
    cluster = Scenario(a_pod("p1"), members=members, **BORROW)
    cluster.reports(
        phase="Active", charge=1, borrowers=[limited("p1", borrowed=4096, mapped=1 << 20)]
    )
    assert cluster.condition("WithinLimit") == ("True", "Sampled")
    cluster.reports(
        phase="Active", charge=1, borrowers=[limited("p1", borrowed=8193, mapped=1 << 20)]
    )
    assert cluster.condition("WithinLimit") == ("False", "OverLimit")


@pytest.mark.rule("H2")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"phase": "Active", "charge": 1, "borrowers": [borrow("p1")]}, ("True", "AllCounted")),
        ({"phase": "Active", "charge": 1, "truncated": True}, ("False", "Truncated")),
        ({"phase": "Active", "charge": 1, "omitted": 3}, ("False", "Truncated")),
        (
            {"phase": "Active", "charge": 1, "borrowers": [borrow("p1", None)]},
            ("False", "FigureMissing"),
        ),
        ({"phase": "Active"}, ("False", "FigureMissing")),
        ({"phase": "Active", "charge": 1, "silent": True}, ("Unknown", "AgentSilent")),
        ({}, ("Unknown", "NotReported")),
    ],
)
def test_complete_names_missing_figures(fields: Json, expected: tuple[str, str]) -> None:
    cluster = Scenario(a_pod("p1"), **BORROW)
    cluster.reports(**fields)
    assert cluster.condition("Complete") == expected


@pytest.mark.rule("M10")
def test_draining_group_names_waiting_nodes_until_all_released_this_spec() -> None:
    nodes = [f"n{number}" for number in range(5)]
    cluster = Scenario(*(a_pod(f"p{node}", node) for node in nodes), deleting=True)
    for node in nodes:
        cluster.reports(node, phase="Draining", reason="InUse", borrowers=[borrow(f"p{node}")])
    assert cluster.condition("Drained") == ("False", "Draining")
    message = cluster.message("Drained")
    assert "node n0 (pod a/pn0: InUse)" in message
    assert message.endswith("and 2 more.")
    assert cluster.condition("Ready") == ("False", "Draining")
    for node in nodes:
        cluster.reports(node, phase="Released", acknowledge=node != "n3", objects=0)
    assert cluster.condition("Drained") == ("False", "Draining"), (
        "n3 released what it was asked before"
    )
    assert "n3" in cluster.message("Drained")
    cluster.reports("n3", phase="Released", objects=0)
    assert cluster.condition("Drained") == ("True", "Released")
    assert cluster.status().phase == "Released"


@pytest.mark.rule("H1")
def test_group_without_room_on_a_node_is_not_applied() -> None:
    cluster = Scenario(a_pod("p1"))
    full = NodeView("n1").with_desired(NodePinConfigSpec())
    cluster.views["n1"] = full.with_silent(False)
    assert cluster.condition("Applied") == ("False", "TooManyGroups")
    assert (
        "node n1 (TooManyGroups: a node has room for 256 groups, and for 256 KiB of groups"
        in cluster.message("Applied")
    )
    cluster.group = replace(cluster.group, has_finalizer=False)
    assert cluster.condition("Applied") == ("False", "Pending"), (
        "no node is asked before the finalizer is set"
    )


@pytest.mark.rule("M10")
@pytest.mark.parametrize(
    ("fields", "stuck", "why"),
    [
        ({"reason": "InUse", "message": "it waits for process 1"}, "", "it waits for process 1"),
        ({"reason": "NotRemoved", "message": "it is busy"}, "NotRemoved", "NotRemoved: it is busy"),
        ({"reason": "NotReadable"}, "NotReadable", "NotReadable"),
        ({"reason": "NotMade"}, "NotMade", "NotMade"),
        ({"reason": "NotAllowed"}, "NotAllowed", "NotAllowed"),
        ({"reason": "AccountantSilent"}, "AccountantSilent", "AccountantSilent"),
        ({"reason": "NotRemoved", "silent": True}, "AgentSilent", "AgentSilent"),
        ({}, "", ""),
    ],
)
def test_drain_with_unremovable_object_is_stuck_and_with_user_is_not(
    fields: Json, stuck: str, why: str
) -> None:
    cluster = Scenario(a_pod("p1"), deleting=True)
    cluster.reports(phase="Draining", charge=4096, **fields)
    expected = DrainWait("n1", (), why, 4096, stuck)
    assert drain_wait(cluster.group, cluster.views["n1"], lambda *_: None) == expected


def test_rejected_group_does_not_wait_for_node_where_agent_may_not_look() -> None:
    cluster = Scenario(a_pod("p1"), deleting=True)
    cluster.reports(phase="Draining", reason="NotAllowed", acknowledge=False)
    assert drain_wait(cluster.group, cluster.views["n1"], lambda *_: None, rejected=True)
    cluster.reports(phase="Draining", reason="NotAllowed")
    assert drain_wait(cluster.group, cluster.views["n1"], lambda *_: None, rejected=True) is None


def test_active_group_has_no_drained_condition() -> None:
    cluster = Scenario(a_pod("p1"))
    cluster.reports(phase="Active")
    assert "Drained" not in {entry.type for entry in cluster.status().conditions}
    assert {entry.observed_generation for entry in cluster.status().conditions} == {3}


def test_group_without_pods_is_ready_without_phase() -> None:
    status = Scenario().status()
    assert (status.phase, status.charge_bytes, status.matched_pods) == (None, None, 0)
    assert {entry.status for entry in status.conditions} == {"True"}


def test_borrow_limit_above_capacity_is_named_in_accepted() -> None:
    members = [*LIMITED, {"podSelector": {}, "borrowLimit": "2Mi"}]
    message = Scenario(accounting="Borrow", capacity="1Mi", members=members).message("Accepted")
    assert message.endswith(
        " Above capacity 1Mi, which is reached first: members[1].borrowLimit 2Mi."
    )
    assert "capacity" not in Scenario(accounting="Borrow", members=members).message("Accepted")


def test_rejected_group_has_reason_and_keeps_transition_time() -> None:
    metadata = Scenario().group.resource.metadata
    first = rejected_group_status(metadata, Rejection("NotAllowed", "why"), None, NOW)
    assert [(entry.type, entry.status, entry.reason) for entry in first.conditions] == [
        ("Ready", "False", "NotAllowed"),
        ("Accepted", "False", "NotAllowed"),
    ]
    assert (
        rejected_group_status(
            metadata, Rejection("NotAllowed", "why"), first, NOW + timedelta(hours=1)
        )
        == first
    )
    waits = [DrainWait("n1", ("a/p1",), "InUse", None, "")]
    waiting = rejected_group_status(metadata, Rejection("NotAllowed", "why"), first, NOW, waits)
    assert waiting.conditions[:2] == first.conditions
    assert waiting.conditions[2].message == "Waits for node n1 (pod a/p1: InUse)."


@pytest.mark.rule("H2")
def test_group_status_with_new_sample_time_only_is_settled_until_stale() -> None:
    cluster = Scenario(a_pod("p1"))
    cluster.reports(phase="Active", charge=1)
    first = cluster.status()
    cluster.reports(phase="Active", charge=1, sampledAt="2024-05-01T12:08:59Z")
    assert settled(first, cluster.status(first)) is first
    cluster.reports(phase="Active", charge=1, sampledAt="2024-05-01T12:09:00Z")
    assert settled(first, cluster.status(first)) is not first
    cluster.reports(phase="Active", charge=2)
    assert settled(first, cluster.status(first)).charge_bytes == 2


# -- the object itself ---------------------------------


@pytest.mark.rule("H1", "M1")
@pytest.mark.parametrize(
    ("reason", "adopted", "expected"),
    [
        ("", True, ("True", "Available")),
        ("NotThere", True, ("True", "Available")),
        ("NotThere", False, ("Unknown", "NotThere")),
        ("AccountantSilent", True, ("Unknown", "AccountantSilent")),
        ("Claimed", True, ("False", "Claimed")),
        ("SymbolicLink", True, ("False", "SymbolicLink")),
        ("NoRoom", False, ("False", "NoRoom")),
        ("NotMade", False, ("False", "NotMade")),
    ],
)
def test_group_without_created_object_is_not_ready(
    reason: str, adopted: bool, expected: tuple[str, str]
) -> None:
    created: Json = {"backing": {"tmpfs": {}}, "management": "Create", "capacity": "1Mi"}
    cluster = Scenario(a_pod("p1"), **({} if adopted else created))
    cluster.reports(phase="Pending" if reason else "Active", reason=reason, message="why")
    assert cluster.condition("Available") == expected
    ready = cluster.condition("Ready")
    assert ready[0] == expected[0]
    if expected[0] == "False":
        assert ready[1] == reason
        assert "why" in cluster.message("Available")
