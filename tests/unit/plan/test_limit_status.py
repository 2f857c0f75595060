"""A status follows from the reports of the nodes and claims no more than known."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.meta import Condition
from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit, PinLimitStatus
from pinwarden.api.reasons import ENDED, NO_PROCESSES
from pinwarden.plan.limit_compiler import MAX_POD_LIMITS, Limit, LimitSettings, rejection
from pinwarden.plan.limit_on_node import LimitOnNode, summarize_limit
from pinwarden.plan.limit_status import aggregate
from pinwarden.plan.node_spec import compile_node
from pinwarden.plan.node_view import NodeView
from pinwarden.plan.share_cache import ShareCache
from pinwarden.plan.types import Node, Pod

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, UTC)
MIB = 2**20
SOURCES = [{"source": "Mlock", "counted": True, "level": "Converge", "reason": "RlimitGate"}]
ONLY_MLOCK = ["Mlock"]


def limit(name: str = "db", amount: str = "8Mi", **spec: Any) -> PinLimit:
    return PinLimit.model_validate(
        {
            "metadata": {"name": name, "namespace": "a", "uid": f"uid-{name}", "generation": 3},
            "spec": {"podSelector": {}, "limit": amount, "sources": ONLY_MLOCK, **spec},
        }
    )


def ceiling(name: str = "top", amount: str = "1Gi", **spec: Any) -> ClusterPinLimit:
    return ClusterPinLimit.model_validate(
        {
            "metadata": {"name": name, "uid": f"uid-{name}", "generation": 3},
            "spec": {"limit": amount, "sources": ONLY_MLOCK, **spec},
        }
    )


def pod(uid: str, node: str = "n1", *, started: bool = True) -> Pod:
    return Pod("a", f"pod-{uid}", uid, uid, node, containers={"main": "id" if started else None})


def use(uid: str, pinned: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "uid": uid,
        "vmLck": pinned,
        "vmPin": 0,
        "peak": pinned,
        "processes": 1,
        "level": "Converge",
    } | more


def view(
    pods: Sequence[Pod],
    limits: Sequence[Limit],
    uses: Sequence[Mapping[str, Any]] = (),
    *,
    acknowledged: bool = True,
    silent: bool = False,
    new: Sequence[Pod] = (),
    **status: Any,
) -> NodeView:
    """A node whose agent acknowledged everything (or nothing) and reported these uses.

    The spec with `new` pods is not written yet.
    """
    name = pods[0].node
    desired = compile_node(Node(name), [*pods, *new], {}, limits, LimitSettings())
    spec = compile_node(Node(name), pods, {}, limits, LimitSettings())
    applied = [{"uid": row.uid, "hash": row.hash} for row in spec.limits] if acknowledged else []
    reported = {
        "observedGeneration": 7 if acknowledged else 6,
        "appliedLimits": applied,
        "sources": SOURCES,
        "pods": list(uses),
    }
    config = NodePinConfig.model_validate(
        {
            "metadata": {"name": name, "uid": f"uid-{name}", "generation": 7},
            "spec": spec.to_wire(),
            "status": reported | status,
        }
    )
    return NodeView(name).with_desired(desired).with_object(config).with_silent(silent)


def status_of(limit: Limit, pods: Sequence[Pod], *views: NodeView, **more: Any) -> PinLimitStatus:
    return aggregate(limit, pods, {node.name: node for node in views}, None, NOW, **more)


def condition(status: PinLimitStatus, kind: str) -> Condition:
    (match,) = [entry for entry in status.conditions if entry.type == kind]
    return match


def outcome(status: PinLimitStatus, kind: str) -> tuple[str, str]:
    match = condition(status, kind)
    return match.status, match.reason


def test_limit_enforced_on_all_pods_is_ready() -> None:
    db, pods = limit(), [pod("1"), pod("2", "n2")]
    status = status_of(
        db,
        pods,
        view(pods[:1], [db], [use("1", MIB)]),
        view(pods[1:], [db], [use("2", 2 * MIB)]),
    )
    assert [(entry.type, entry.status, entry.reason) for entry in status.conditions] == [
        ("Ready", "True", "Enforced"),
        ("Accepted", "True", "Accepted"),
        ("Applied", "True", "Acknowledged"),
        ("Enforced", "True", "Enforced"),
        ("Complete", "True", "AllCounted"),
        ("WithinLimit", "True", "Sampled"),
    ]
    assert {entry.observed_generation for entry in status.conditions} == {3}
    assert status.observed_generation == 3
    assert status.matched_pods == 2
    assert status.nodes is not None
    assert (status.nodes.desired, status.nodes.applied) == (2, 2)
    assert status.pinned_bytes == 3 * MIB
    assert [top.name for top in status.top_pods] == ["pod-2", "pod-1"]
    assert PinLimitStatus.model_validate(status.to_wire()) == status


@pytest.mark.rule("H1")
def test_limit_without_pods_is_ready_with_unknown_enforced() -> None:
    status = status_of(limit(), [])
    assert outcome(status, "Ready") == ("True", "NoPods")
    assert outcome(status, "Enforced") == ("Unknown", "NoPods")
    assert [entry.type for entry in status.conditions if entry.status != "True"] == ["Enforced"]
    assert (status.matched_pods, status.pinned_bytes, status.recommendation) == (0, None, None)


@pytest.mark.rule("H1")
def test_rejected_limit_has_only_its_reason() -> None:
    broken = limit(counting="OncePerPod")
    status = status_of(broken, [], rejection=rejection(broken))
    assert [(entry.type, entry.status, entry.reason) for entry in status.conditions] == [
        ("Ready", "False", "NotSupported"),
        ("Accepted", "False", "NotSupported"),
    ]
    assert status.matched_pods is None


@pytest.mark.rule("H1")
def test_acknowledgement_of_another_spec_does_not_count() -> None:
    old, new, pods = limit(amount="8Mi"), limit(amount="4Mi"), [pod("1")]
    before = view(pods, [old], [use("1")])
    edited = before.with_desired(compile_node(Node("n1"), pods, {}, [new], LimitSettings()))
    status = status_of(new, pods, edited)
    assert outcome(status, "Applied") == ("False", "Pending")
    assert outcome(status, "Enforced") == ("False", "Pending")
    assert outcome(status, "Ready") == ("False", "Pending")
    assert "n1" in condition(status, "Applied").message
    assert status.nodes is not None
    assert status.nodes.applied == 0


@pytest.mark.rule("H1")
def test_pod_under_known_limit_is_not_enforced_before_acknowledgement() -> None:
    db, other = limit("db", podSelector={"matchLabels": {"app": "db"}}), limit("other")
    old, relabelled = (
        replace(pod("1"), labels={"app": "db"}),
        replace(pod("2"), labels={"app": "db"}),
    )
    before = view([old, pod("2")], [db, other], [use("1"), use("2")])
    assert outcome(status_of(db, [old], before), "Enforced") == ("True", "Enforced")
    desired = compile_node(Node("n1"), [old, relabelled], {}, [db, other], LimitSettings())
    status = status_of(db, [old, relabelled], before.with_desired(desired))
    assert outcome(status, "Applied") == ("True", "Acknowledged"), (
        "the limit itself is known to the node"
    )
    assert outcome(status, "Enforced") == ("False", "Pending")
    assert "pod a/pod-2" in condition(status, "Enforced").message


@pytest.mark.rule("H1")
def test_pod_in_unwritten_spec_is_not_enforced() -> None:
    db, old, new = limit(), pod("1"), pod("2")
    status = status_of(db, [old, new], view([old], [db], [use("1"), use("2")], new=[new]))
    assert outcome(status, "Enforced") == ("False", "Pending")
    assert "pod a/pod-2" in condition(status, "Enforced").message


def test_unacknowledged_newer_spec_keeps_limits_enforced() -> None:
    db, pods = limit(), [pod("1")]
    before = view(pods, [db], [use("1")])
    config = NodePinConfig.model_validate(
        {
            "metadata": {"name": "n1", "generation": 8},
            "spec": compile_node(
                Node("n1"), [*pods, pod("9")], {}, [db], LimitSettings()
            ).to_wire(),
            "status": {
                "observedGeneration": 7,
                "appliedLimits": [{"uid": uid, "hash": digest} for uid, digest in before.applied],
                "sources": SOURCES,
                "pods": [use("1")],
            },
        }
    )
    assert outcome(status_of(db, pods, before.with_object(config)), "Enforced") == (
        "True",
        "Enforced",
    )
    forgotten = before.without_object().with_object(config)
    assert outcome(status_of(db, pods, forgotten), "Enforced") == ("False", "Pending"), (
        "no view has its acknowledgement"
    )


@pytest.mark.rule("H1")
def test_silent_agent_makes_conditions_unknown() -> None:
    db, pods = limit(), [pod("1"), pod("2", "n2")]
    status = status_of(
        db,
        pods,
        view(pods[:1], [db], [use("1", MIB)]),
        view(pods[1:], [db], [use("2", MIB)], silent=True),
    )
    for kind in ("Ready", "Applied", "Enforced", "Complete", "WithinLimit"):
        assert outcome(status, kind) == ("Unknown", "AgentSilent")
        assert "n2" in condition(status, kind).message
    assert [(top.name, top.level, top.reason) for top in status.top_pods] == [
        ("pod-1", "Converge", None),
        ("pod-2", None, "AgentSilent"),
    ]


@pytest.mark.rule("H1")
def test_node_without_view_is_silent() -> None:
    assert outcome(status_of(limit(), [pod("1")]), "Enforced") == ("Unknown", "AgentSilent")


@pytest.mark.rule("H1")
def test_enforced_names_weak_pod_even_beside_silent_node() -> None:
    db, pods = limit(), [*(pod(str(i)) for i in range(6)), pod("x", "n2")]
    uses = [
        use(str(i), level="Observe", reason="CapIPCLock", message="holds CAP_IPC_LOCK")
        for i in range(5)
    ]
    status = status_of(
        db, pods, view(pods[:6], [db], [*uses, use("5")]), view(pods[6:], [db], silent=True)
    )
    assert outcome(status, "Enforced") == ("False", "CapIPCLock")
    message = condition(status, "Enforced").message
    assert "pod a/pod-0 (CapIPCLock: holds CAP_IPC_LOCK)" in message
    assert message.endswith("and 2 more.")
    assert "pod-5" not in message


@pytest.mark.rule("H1")
def test_level_sufficient_for_one_limit_fails_stricter_minimum() -> None:
    lax, strict, pods = limit("lax"), limit("strict", minimumLevel="Deny"), [pod("1")]
    node = view(pods, [lax, strict], [use("1")])
    assert outcome(status_of(lax, pods, node), "Enforced") == ("True", "Enforced")
    assert outcome(status_of(strict, pods, node), "Enforced") == ("False", "LevelTooLow")


WEAK = {"source": "IoUring", "counted": True, "level": "Observe", "reason": "SharedUid"}


@pytest.mark.rule("H1")
@pytest.mark.parametrize("uses", [[use("1", level="Observe", reason="CapIPCLock")], []])
def test_weak_counted_source_is_named_if_pod_level_is_unknown(
    uses: list[dict[str, Any]],
) -> None:
    db, pods = limit(sources=["Mlock", "IoUring"]), [pod("1")]
    status = status_of(db, pods, view(pods, [db], uses, sources=[*SOURCES, WEAK]))
    assert outcome(status, "Enforced")[0] == "False"
    message = condition(status, "Enforced").message
    assert "node n1 (LevelTooLow: IoUring is at Observe: SharedUid)" in message
    assert f"pod a/pod-1 ({'CapIPCLock' if uses else 'NotReported'}" in message


@pytest.mark.rule("H1")
def test_weak_source_does_not_matter_for_pod_with_sufficient_level() -> None:
    db, pods = limit(sources=["Mlock", "IoUring"], minimumLevel="Deny"), [pod("1"), pod("2")]

    def judged(*levels: str) -> PinLimitStatus:
        uses = [
            use(pod.uid, level=level, reason="Gated" if level == "Deny" else "NotGated")
            for pod, level in zip(pods, levels, strict=True)
        ]
        return status_of(db, pods, view(pods, [db], uses, sources=[*SOURCES, WEAK]))

    good, bad = judged("Deny", "Deny"), judged("Deny", "Converge")
    assert outcome(good, "Enforced") == ("True", "Enforced")
    assert condition(good, "Enforced").message == "2 pods limited at Deny or better."
    assert outcome(bad, "Enforced")[0] == "False"
    message = condition(bad, "Enforced").message
    assert "pod a/pod-2 (NotGated: level Converge only)" in message
    assert "Mlock is at Converge: RlimitGate, IoUring is at Observe: SharedUid" in message
    assert "pod-1" not in message


@pytest.mark.rule("H1")
def test_unstarted_pod_on_node_with_weak_source_is_pending() -> None:
    db, pods = limit(minimumLevel="Deny"), [pod("1"), pod("2", started=False)]
    status = status_of(db, pods, view(pods, [db], [use("1", level="Deny")]))
    assert outcome(status, "Enforced") == ("False", "Pending")
    assert condition(status, "Enforced").message == (
        "Not enforced: pod a/pod-2 (Pending: the pod has not started, "
        "and on its node Mlock is at Converge: RlimitGate)."
    )
    strong = [{**SOURCES[0], "level": "Deny"}]
    status = status_of(db, pods, view(pods, [db], [use("1", level="Deny")], sources=strong))
    assert outcome(status, "Enforced") == ("True", "Enforced"), (
        "it cannot come up weaker, and has nothing to hold"
    )


EMPTY = {
    "processes": 0,
    "level": "Observe",
    "reason": NO_PROCESSES,
    "message": "no process is in kubepods",
}


@pytest.mark.rule("H1")
@pytest.mark.parametrize("report", [EMPTY, {"processes": 0}], ids=["agent", "older agent"])
def test_running_pod_without_processes_is_not_enforced(report: dict[str, Any]) -> None:
    """Another cgroup driver: https://github.com/kubernetes/kubernetes/issues/106514."""
    db, pods = limit(), [replace(pod("1"), running=True)]
    status = status_of(db, pods, view(pods, [db], [use("1", **report)]))
    assert outcome(status, "Enforced") == ("False", NO_PROCESSES)
    assert outcome(status, "WithinLimit") == ("Unknown", NO_PROCESSES)
    assert outcome(status, "Complete") == ("False", "NotReported")
    assert "pod a/pod-1" in condition(status, "Enforced").message


@pytest.mark.rule("H1")
@pytest.mark.parametrize(
    ("running", "report"),
    [(False, EMPTY), (False, {"processes": 0}), (True, {**EMPTY, "reason": ENDED})],
    ids=["nothing runs", "nothing runs, older agent", "ended just now"],
)
def test_pod_with_nothing_running_does_not_fail_enforced(
    running: bool, report: dict[str, Any]
) -> None:
    db = limit()
    for started in (True, False):
        pods = [replace(pod("1", started=started), running=running)]
        status = status_of(db, pods, view(pods, [db], [use("1", **report)]))
        assert {entry.status for entry in status.conditions} == {"True"}


@pytest.mark.rule("H1")
@pytest.mark.parametrize("running", [True, False])
def test_pod_with_unreadable_processes_is_not_enforced(running: bool) -> None:
    db, pods = limit(), [replace(pod("1"), running=running)]
    unread = use("1", processes=0, level="Observe", reason="NotReadable")
    assert outcome(status_of(db, pods, view(pods, [db], [unread])), "Enforced") == (
        "False",
        "NotReadable",
    )


@pytest.mark.rule("H1")
@given(
    st.lists(
        st.sampled_from(["Deny", "Kill", "Converge", "Observe", None]), min_size=1, max_size=5
    ),
    st.sampled_from(["Deny", "Kill", "Converge", "Observe"]),
    st.lists(st.sampled_from(["Deny", "Converge", "Observe"]), min_size=1, max_size=3),
)
def test_limit_is_enforced_exactly_if_every_started_pod_has_level(
    levels: list[str | None], minimum: str, sources: list[str]
) -> None:
    ranks = ["Deny", "Kill", "Converge", "Observe"]
    db = limit(minimumLevel=minimum, sources=["Mlock", "IoUring", "Vfio"][: len(sources)])
    pods = [pod(str(i)) for i in range(len(levels))]
    table = [
        {"source": source, "counted": True, "level": level, "reason": "r"}
        for source, level in zip(db.spec.sources, sources, strict=True)
    ]
    uses = [use(pod.uid, level=level) for pod, level in zip(pods, levels, strict=True) if level]
    status = status_of(db, pods, view(pods, [db], uses, sources=table))
    enforced = all(
        level is not None and ranks.index(level) <= ranks.index(minimum) for level in levels
    )
    assert outcome(status, "Enforced")[0] == str(enforced)
    if not enforced:
        weak = [
            pod
            for pod in pods
            if not (level := levels[int(pod.uid)]) or ranks.index(level) > ranks.index(minimum)
        ]
        assert any(pod.name in condition(status, "Enforced").message for pod in weak)


@pytest.mark.rule("H1")
def test_limit_without_counted_source_is_not_enforced() -> None:
    db, pods = limit(sources=["Xdp"]), [pod("1")]
    status = status_of(db, pods, view(pods, [db], [use("1")]))
    assert outcome(status, "Enforced") == ("False", "NotCounted")


@pytest.mark.rule("H1")
def test_unreported_running_pod_is_not_enforced_and_unstarted_pod_is_ignored() -> None:
    db, running, waiting = limit(), pod("1"), pod("2", started=False)
    assert outcome(status_of(db, [running], view([running], [db])), "Enforced") == (
        "False",
        "NotReported",
    )
    assert outcome(status_of(db, [waiting], view([waiting], [db])), "Enforced") == (
        "True",
        "Enforced",
    )
    not_yet = status_of(db, [waiting], view([waiting], [db], acknowledged=False))
    assert outcome(not_yet, "Enforced") == ("True", "Enforced"), (
        "a pod that comes has nothing to hold yet"
    )
    assert outcome(not_yet, "Ready") == ("False", "Pending")


@pytest.mark.rule("H1")
def test_unsupported_limit_is_not_applied_with_agents_reason() -> None:
    db, pods = limit(), [pod("1")]
    report = {"uid": "uid-db", "reason": "UnknownField", "message": "limits.0.weight"}
    status = status_of(
        db, pods, view(pods, [db], [use("1")], appliedLimits=[], unsupportedLimits=[report])
    )
    for kind in ("Ready", "Applied", "Enforced"):
        assert outcome(status, kind) == ("False", "Unsupported")
        assert (
            "node n1 (Unsupported: UnknownField: limits.0.weight)"
            in condition(status, kind).message
        )


@pytest.mark.rule("H1")
@pytest.mark.parametrize("uid", ["", "uid-n1"])
def test_unreadable_spec_fails_only_unacknowledged_limits(uid: str) -> None:
    known, new, old_pod, new_pod = limit("known"), limit("new"), pod("1"), pod("2")
    report = {"uid": uid, "reason": "InvalidSpec", "message": "mode: unknown"}
    node = view([old_pod], [known], [use("1"), use("2")], unsupportedLimits=[report])
    desired = compile_node(Node("n1"), [old_pod, new_pod], {}, [known, new], LimitSettings())
    node = node.with_desired(desired)
    assert outcome(status_of(known, [old_pod], node), "Enforced") == ("True", "Enforced"), (
        "the last good one stays"
    )
    for db, pods in ((known, [old_pod, new_pod]), (new, [old_pod])):
        status = status_of(db, pods, node)
        assert outcome(status, "Enforced") == ("False", "Unsupported")
        assert (
            "node n1 (Unsupported: InvalidSpec: mode: unknown)"
            in condition(status, "Enforced").message
        )
    assert outcome(status_of(new, [old_pod], node), "Applied") == ("False", "Unsupported")


@pytest.mark.rule("H1")
def test_limit_without_room_on_pod_is_not_applied() -> None:
    many, pods = [limit(f"x{i:03}") for i in range(MAX_POD_LIMITS + 1)], [pod("1")]
    node = view(pods, many, [use("1")])
    assert outcome(status_of(many[0], pods, node), "Enforced") == ("True", "Enforced")
    last = status_of(many[-1], pods, node)
    assert outcome(last, "Enforced") == ("False", "TooManyLimits")
    assert outcome(last, "Applied") == ("False", "TooManyLimits")


@pytest.mark.rule("P13")
def test_audit_limit_is_ready_if_applied_and_never_enforced() -> None:
    db, pods = limit(enforcement="Audit"), [pod("1")]
    status = status_of(db, pods, view(pods, [db], [use("1", 9 * MIB)]))
    assert outcome(status, "Enforced") == ("False", "Audit")
    assert outcome(status, "Ready") == ("True", "Acknowledged")
    assert outcome(status, "WithinLimit") == ("False", "OverLimit")


@pytest.mark.rule("P13")
def test_overridden_limit_is_accepted_with_names_of_stricter_limits() -> None:
    db, pods = limit(), [pod("1")]
    status = status_of(db, pods, view(pods, [db], [use("1")]), overriding={"top", "a/tight"})
    assert outcome(status, "Accepted") == ("True", "Overridden")
    assert "'a/tight', 'top'" in condition(status, "Accepted").message
    assert outcome(status, "Enforced") == ("True", "Enforced")


@pytest.mark.rule("H2")
def test_uncounted_source_makes_figures_lower_bounds() -> None:
    db, pods = limit(sources=["Mlock", "Xdp", "Perf"]), [pod("1"), pod("2", "n2")]
    full = [*SOURCES, *({**SOURCES[0], "source": source} for source in ("Xdp", "Perf"))]
    status = status_of(
        db,
        pods,
        view(pods[:1], [db], [use("1")], sources=full),
        view(pods[1:], [db], [use("2")], sources=full[:2]),
    )
    assert outcome(status, "Complete") == ("False", "SourcesNotCounted")
    assert "Perf" in condition(status, "Complete").message
    assert "Xdp" not in condition(status, "Complete").message
    assert "not counting Perf" in condition(status, "WithinLimit").message
    assert "not counting Perf" in condition(status, "Enforced").message


@pytest.mark.rule("H2")
def test_unreported_figures_are_absent_not_zero() -> None:
    db, pods = limit(), [pod("1")]
    spec = compile_node(Node("n1"), pods, {}, [db], LimitSettings())
    status = status_of(db, pods, NodeView("n1", silent=False).with_desired(spec))
    assert (status.pinned_bytes, status.denials, status.overshoot, status.recommendation) == (
        None,
    ) * 4
    assert status.top_pods == []
    assert outcome(status, "Complete") == ("False", "NotReported")
    assert outcome(status, "WithinLimit") == ("Unknown", "NotReported")
    assert outcome(status, "Enforced") == ("False", "Pending")


@pytest.mark.rule("H2")
def test_truncated_report_is_named_in_complete() -> None:
    db, pods = limit(), [pod("1"), pod("2")]
    status = status_of(db, pods, view(pods, [db], [use("1", MIB)], truncated=True))
    assert outcome(status, "Complete") == ("False", "Truncated")
    assert status.pinned_bytes == MIB


@pytest.mark.rule("P11")
def test_within_limit_names_excess_of_each_pod() -> None:
    db, pods = limit(), [pod("1"), pod("2")]
    status = status_of(db, pods, view(pods, [db], [use("1", 8 * MIB), use("2", 8 * MIB + 4096)]))
    assert outcome(status, "WithinLimit") == ("False", "OverLimit")
    assert (
        "pod a/pod-2 (OverLimit: 8196Ki pinned, 4Ki over)"
        in condition(status, "WithinLimit").message
    )
    assert outcome(status, "Enforced") == ("True", "Enforced"), (
        "enforced all the same: new pins are denied"
    )


def test_node_scope_compares_sum_of_pods() -> None:
    top, pods = ceiling(amount="8Mi", scope="Node"), [pod("1"), pod("2"), pod("3", "n2")]
    other = view(pods[2:], [top], [use("3", 8 * MIB)])
    within = view(pods[:2], [top], [use("1", 4 * MIB), use("2", 4 * MIB)])
    assert outcome(status_of(top, pods, within, other), "WithinLimit") == ("True", "Sampled")
    over = view(pods[:2], [top], [use("1", 4 * MIB), use("2", 5 * MIB)])
    status = status_of(top, pods, over, other)
    assert outcome(status, "WithinLimit") == ("False", "OverLimit")
    assert "node n1" in condition(status, "WithinLimit").message
    assert status.recommendation == "11Mi"


def test_container_scope_compares_each_container() -> None:
    db, pods = limit(amount="8Mi", scope="Container", containers=["main"]), [pod("1")]

    def containers(**pinned: int) -> list[dict[str, Any]]:
        return [{"name": name, "pinned": amount, "peak": amount} for name, amount in pinned.items()]

    def judged(total: int, **pinned: int) -> tuple[str, str]:
        node = view(pods, [db], [use("1", total, containers=containers(**pinned))])
        return outcome(status_of(db, pods, node), "WithinLimit")

    assert judged(10 * MIB, main=2 * MIB, log=8 * MIB) == ("True", "Sampled")
    assert judged(18 * MIB, main=9 * MIB, log=9 * MIB) == ("False", "OverLimit")
    assert judged(8 * MIB) == ("True", "Sampled"), "the sum is within, so each container is"
    assert judged(9 * MIB) == ("Unknown", "ContainerNotReported")


@pytest.mark.rule("H1")
def test_limit_on_missing_containers_is_not_enforced() -> None:
    pods = [pod("1"), pod("2")]
    for names, expected in (
        (["mian"], ("False", "NoSuchContainer")),
        (["mian", "main"], ("True", "Enforced")),
    ):
        db = limit(scope="Container", containers=names)
        status = status_of(db, pods, view(pods, [db], [use("1"), use("2")]))
        assert outcome(status, "Enforced") == expected
    assert (
        "'mian'"
        in condition(
            status_of(limit(scope="Container", containers=["mian"]), pods), "Enforced"
        ).message
    )


@pytest.mark.rule("P14")
@pytest.mark.parametrize(
    ("max_grant", "expected"),
    [
        ("1Gi", ("True", "Granted")),
        ("4Mi", ("False", "BeyondMaxGrant")),
        (None, ("False", "BeyondMaxGrant")),
    ],
)
def test_granted_says_whether_grant_is_allowed(
    max_grant: str | None, expected: tuple[str, str]
) -> None:
    db, pods = limit(grant=True, sources=[]), [pod("1")]
    limits: list[Limit] = [db, *([ceiling(maxGrant=max_grant)] if max_grant else [])]
    status = status_of(db, pods, view(pods, limits, [use("1")]))
    assert outcome(status, "Granted") == expected
    assert outcome(status, "Ready")[0] == expected[0]
    assert outcome(status, "Enforced") == ("True", "Enforced"), "a clipped grant is still a limit"


@pytest.mark.rule("P14")
def test_limit_without_grant_has_no_granted_condition() -> None:
    db, pods = limit(), [pod("1")]
    assert "Granted" not in {
        entry.type for entry in status_of(db, pods, view(pods, [db])).conditions
    }


@pytest.mark.rule("H2")
def test_status_has_worst_overshoot() -> None:
    db, pods = limit(), [pod("1"), pod("2", "n2")]

    def seen(peak: int, seconds: float, uid: str = "uid-db") -> dict[str, Any]:
        return {
            "limit": uid,
            "pod": "1",
            "peak": peak,
            "seconds": seconds,
            "count": 2,
            "lastTime": "2026-11-23T12:00:00Z",
        }

    status = status_of(
        db,
        pods,
        view(pods[:1], [db], [use("1")], overshoots=[seen(10, 0.5), seen(99, 9, "uid-other")]),
        view(pods[1:], [db], [use("2")], overshoots=[seen(20, 0.25)]),
    )
    assert status.overshoot is not None
    assert status.overshoot.model_dump() == {"peak_bytes": 20, "seconds": 0.5, "count": 4}


@pytest.mark.rule("H2", "P13")
def test_denials_count_only_own_limit_and_are_absent_without_gate() -> None:
    db, other, pods = limit(), limit("other"), [pod("1"), pod("2"), pod("3", "n2"), pod("4", "n3")]

    def denied(**counts: int) -> list[dict[str, Any]]:
        return [{"uid": uid.replace("_", "-"), "count": count} for uid, count in counts.items()]

    views = [
        view(
            pods[:2], [db, other], [use("1", denials=denied(uid_db=3, uid_gone=9)), use("2", MIB)]
        ),
        view(
            pods[2:3], [db, other], [use("3", denials=denied(uid_db=4, uid_other=1))], silent=True
        ),
        view(pods[3:], [db, other], [use("4", denials=[])]),
    ]
    status, theirs = status_of(db, pods, *views), status_of(other, pods, *views)
    assert (status.denials, theirs.denials) == (7, 1)
    assert {top.name: top.denials for top in status.top_pods} == {
        "pod-1": 3,
        "pod-2": None,
        "pod-3": 4,
        "pod-4": 0,
    }
    assert status_of(db, pods[3:], views[2]).denials == 0, "where it is seen, none is a number"
    assert status_of(db, pods[:1], view(pods[:1], [db], [use("1")])).denials is None
    assert status_of(db, []).denials is None
    assert PinLimitStatus.model_validate(status.to_wire()) == status


def test_top_pods_are_the_ten_largest() -> None:
    db, pods = limit(), [pod(f"{i:02}", f"n{i % 2}") for i in range(30)]
    views = [
        view(on_node, [db], [use(pod.uid, int(pod.uid) * 4096) for pod in on_node])
        for on_node in (pods[0::2], pods[1::2])
    ]
    status = status_of(db, pods, *views)
    assert [top.pinned_bytes // 4096 for top in status.top_pods] == list(range(29, 19, -1))
    assert status.pinned_bytes == sum(range(30)) * 4096


def test_condition_keeps_transition_time_while_status_is_equal() -> None:
    db, pods = limit(), [pod("1")]
    views = {"n1": view(pods, [db], [use("1")])}
    first = aggregate(db, pods, views, None, NOW)
    assert condition(first, "Ready").last_transition_time == NOW.replace(microsecond=0)
    later = NOW + timedelta(minutes=1)
    assert aggregate(db, pods, views, first, later) == first
    silent = aggregate(db, pods, {"n1": views["n1"].with_silent(True)}, first, later)
    assert condition(silent, "Enforced").last_transition_time == later.replace(microsecond=0)
    assert condition(silent, "Accepted").last_transition_time == NOW.replace(microsecond=0)


STATES = st.fixed_dictionaries(
    {
        "acknowledged": st.booleans(),
        "silent": st.booleans(),
        "level": st.sampled_from(["Deny", "Converge", "Observe", None]),
        "pinned": st.integers(0, 16 * MIB),
        "started": st.booleans(),
    }
)


def cluster(
    limit: Limit, states: Sequence[Mapping[str, Any]]
) -> tuple[list[Pod], dict[str, NodeView]]:
    """One pod on a node for each state."""
    pods = [pod(str(i), f"n{i}", started=state["started"]) for i, state in enumerate(states)]
    views = {}
    for own, state in zip(pods, states, strict=True):
        uses = [use(own.uid, state["pinned"], level=state["level"])] if state["level"] else []
        views[own.node] = view(
            [own], [limit], uses, acknowledged=state["acknowledged"], silent=state["silent"]
        )
    return pods, views


@pytest.mark.rule("H1", "H2")
@given(st.lists(STATES, max_size=4))
def test_status_never_claims_more_than_known(states: list[dict[str, Any]]) -> None:
    db = limit()
    pods, views = cluster(db, states)
    status = aggregate(db, pods, views, None, NOW)
    alive = [state for state in states if not state["silent"]]
    enforced = all(
        state["level"] in {"Deny", "Converge"} and state["acknowledged"]
        if state["level"] or state["started"]
        else True
        for state in alive
    )
    if not enforced:
        assert condition(status, "Enforced").status == "False"
    else:
        known = states and alive == states
        assert condition(status, "Enforced").status == ("True" if known else "Unknown")
    if any(state["silent"] for state in states):
        assert condition(status, "Applied").status == "Unknown"
    if condition(status, "WithinLimit").status == "True":
        assert all(state["level"] is None or state["pinned"] <= 8 * MIB for state in states)
    reported = [state["pinned"] for state in states if state["level"]]
    assert status.pinned_bytes == (sum(reported) if reported else None)
    assert (status.recommendation is None) == (max(reported, default=0) == 0)


@given(st.lists(st.tuples(st.integers(0, 3), STATES), min_size=1, max_size=6), st.booleans())
def test_share_cache_never_changes_the_status(
    changes: list[tuple[int, dict[str, Any]]], shuffle: bool
) -> None:
    db, cache = limit(), ShareCache[LimitOnNode]()
    states: list[dict[str, Any]] = [
        {"acknowledged": True, "silent": False, "level": "Deny", "pinned": 0, "started": True}
    ] * 4
    pods, views = cluster(db, states)
    for index, state in changes:
        states[index] = state
        changed, fresh = cluster(db, states)
        views[f"n{index}"] = fresh[f"n{index}"]
        place = next(place for place, pod in enumerate(pods) if pod.uid == str(index))
        pods[place] = pods[place] if pods[place] == changed[index] else changed[index]
        if shuffle:
            pods.reverse()
        expected = aggregate(db, pods, views, None, NOW)
        assert aggregate(db, pods, views, None, NOW, cache=cache) == expected


def test_many_observations_take_little_memory() -> None:
    db, pods = limit(), [pod(f"{i:03}") for i in range(500)]
    node = view(pods, [db], [use(pod.uid, level="Observe", reason="CapIPCLock") for pod in pods])
    share = summarize_limit(db, pods, node)
    assert share.unenforced.counts == {"CapIPCLock": 500}
    assert len(share.unenforced.named) == 3
    assert condition(status_of(db, pods, node), "Enforced").message.endswith("and 497 more.")


@pytest.mark.rule("H1", "P13")
def test_limit_on_contested_pod_is_not_enforced() -> None:
    db = limit()
    pods = [replace(pod("1"), cgroup_uid="h", contested=True)]
    status = status_of(db, pods, view(pods, [db], [use("h", MIB)]))
    assert outcome(status, "Enforced") == ("False", "CgroupContested")
    assert "pod a/pod-1" in condition(status, "Enforced").message
