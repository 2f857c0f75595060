"""What nodes report becomes a status that claims no more than what is known."""

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
from pinwarden.plan.limit_compiler import MAX_POD_LIMITS, Limit, Settings, rejection
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
    """A node whose agent acknowledged everything (or nothing) and reported these uses; the spec with `new` pods is not written yet."""
    name = pods[0].node
    desired = compile_node(Node(name), [*pods, *new], {}, limits, Settings())
    spec = compile_node(Node(name), pods, {}, limits, Settings())
    applied = [{"uid": each.uid, "hash": each.hash} for each in spec.limits] if acknowledged else []
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
    return aggregate(limit, pods, {each.name: each for each in views}, None, NOW, **more)


def condition(status: PinLimitStatus, kind: str) -> Condition:
    (found,) = [each for each in status.conditions if each.type == kind]
    return found


def told(status: PinLimitStatus, kind: str) -> tuple[str, str]:
    found = condition(status, kind)
    return found.status, found.reason


def test_limit_enforced_on_all_pods_is_ready() -> None:
    one, pods = limit(), [pod("1"), pod("2", "n2")]
    status = status_of(
        one,
        pods,
        view(pods[:1], [one], [use("1", MIB)]),
        view(pods[1:], [one], [use("2", 2 * MIB)]),
    )
    assert [(each.type, each.status, each.reason) for each in status.conditions] == [
        ("Ready", "True", "Enforced"),
        ("Accepted", "True", "Accepted"),
        ("Applied", "True", "Acknowledged"),
        ("Enforced", "True", "Enforced"),
        ("Complete", "True", "AllCounted"),
        ("WithinLimit", "True", "Sampled"),
    ]
    assert {each.observed_generation for each in status.conditions} == {3}
    assert status.observed_generation == 3
    assert status.matched_pods == 2
    assert status.nodes is not None
    assert (status.nodes.desired, status.nodes.applied) == (2, 2)
    assert status.pinned_bytes == 3 * MIB
    assert [each.name for each in status.top_pods] == ["pod-2", "pod-1"]
    assert PinLimitStatus.model_validate(status.to_wire()) == status


@pytest.mark.rule("H1")
def test_limit_without_pods_is_ready_with_unknown_enforced() -> None:
    status = status_of(limit(), [])
    assert told(status, "Ready") == ("True", "NoPods")
    assert told(status, "Enforced") == ("Unknown", "NoPods")
    assert [each.type for each in status.conditions if each.status != "True"] == ["Enforced"]
    assert (status.matched_pods, status.pinned_bytes, status.recommendation) == (0, None, None)


@pytest.mark.rule("H1")
def test_rejected_limit_has_only_its_reason() -> None:
    broken = limit(counting="OncePerPod")
    status = status_of(broken, [], rejection=rejection(broken))
    assert [(each.type, each.status, each.reason) for each in status.conditions] == [
        ("Ready", "False", "NotSupported"),
        ("Accepted", "False", "NotSupported"),
    ]
    assert status.matched_pods is None


@pytest.mark.rule("H1")
def test_acknowledgement_of_another_spec_does_not_count() -> None:
    old, new, pods = limit(amount="8Mi"), limit(amount="4Mi"), [pod("1")]
    before = view(pods, [old], [use("1")])
    edited = before.with_desired(compile_node(Node("n1"), pods, {}, [new], Settings()))
    status = status_of(new, pods, edited)
    assert told(status, "Applied") == ("False", "Pending")
    assert told(status, "Enforced") == ("False", "Pending")
    assert told(status, "Ready") == ("False", "Pending")
    assert "n1" in condition(status, "Applied").message
    assert status.nodes is not None
    assert status.nodes.applied == 0


@pytest.mark.rule("H1")
def test_pod_under_known_limit_is_not_enforced_before_acknowledgement() -> None:
    one, other = limit("db", podSelector={"matchLabels": {"app": "db"}}), limit("other")
    old, relabelled = (
        replace(pod("1"), labels={"app": "db"}),
        replace(pod("2"), labels={"app": "db"}),
    )
    before = view([old, pod("2")], [one, other], [use("1"), use("2")])
    assert told(status_of(one, [old], before), "Enforced") == ("True", "Enforced")
    desired = compile_node(Node("n1"), [old, relabelled], {}, [one, other], Settings())
    status = status_of(one, [old, relabelled], before.with_desired(desired))
    assert told(status, "Applied") == ("True", "Acknowledged"), (
        "the limit itself is known to the node"
    )
    assert told(status, "Enforced") == ("False", "Pending")
    assert "pod a/pod-2" in condition(status, "Enforced").message


@pytest.mark.rule("H1")
def test_pod_in_unwritten_spec_is_not_enforced() -> None:
    one, old, new = limit(), pod("1"), pod("2")
    status = status_of(one, [old, new], view([old], [one], [use("1"), use("2")], new=[new]))
    assert told(status, "Enforced") == ("False", "Pending")
    assert "pod a/pod-2" in condition(status, "Enforced").message


def test_unacknowledged_newer_spec_keeps_limits_enforced() -> None:
    one, pods = limit(), [pod("1")]
    before = view(pods, [one], [use("1")])
    config = NodePinConfig.model_validate(
        {
            "metadata": {"name": "n1", "generation": 8},
            "spec": compile_node(Node("n1"), [*pods, pod("9")], {}, [one], Settings()).to_wire(),
            "status": {
                "observedGeneration": 7,
                "appliedLimits": [{"uid": uid, "hash": digest} for uid, digest in before.applied],
                "sources": SOURCES,
                "pods": [use("1")],
            },
        }
    )
    assert told(status_of(one, pods, before.with_object(config)), "Enforced") == (
        "True",
        "Enforced",
    )
    forgotten = before.without_object().with_object(config)
    assert told(status_of(one, pods, forgotten), "Enforced") == ("False", "Pending"), (
        "nobody remembers what it took"
    )


@pytest.mark.rule("H1")
def test_silent_agent_makes_conditions_unknown() -> None:
    one, pods = limit(), [pod("1"), pod("2", "n2")]
    status = status_of(
        one,
        pods,
        view(pods[:1], [one], [use("1", MIB)]),
        view(pods[1:], [one], [use("2", MIB)], silent=True),
    )
    for kind in ("Ready", "Applied", "Enforced", "Complete", "WithinLimit"):
        assert told(status, kind) == ("Unknown", "AgentSilent")
        assert "n2" in condition(status, kind).message
    assert [(each.name, each.level, each.reason) for each in status.top_pods] == [
        ("pod-1", "Converge", None),
        ("pod-2", None, "AgentSilent"),
    ]


@pytest.mark.rule("H1")
def test_node_without_view_is_silent() -> None:
    assert told(status_of(limit(), [pod("1")]), "Enforced") == ("Unknown", "AgentSilent")


@pytest.mark.rule("H1")
def test_enforced_names_weak_pod_even_beside_silent_node() -> None:
    one, pods = limit(), [*(pod(str(i)) for i in range(6)), pod("x", "n2")]
    uses = [
        use(str(i), level="Observe", reason="CapIPCLock", message="holds CAP_IPC_LOCK")
        for i in range(5)
    ]
    status = status_of(
        one, pods, view(pods[:6], [one], [*uses, use("5")]), view(pods[6:], [one], silent=True)
    )
    assert told(status, "Enforced") == ("False", "CapIPCLock")
    message = condition(status, "Enforced").message
    assert "pod a/pod-0 (CapIPCLock: holds CAP_IPC_LOCK)" in message
    assert message.endswith("and 2 more.")
    assert "pod-5" not in message


@pytest.mark.rule("H1")
def test_level_sufficient_for_one_limit_fails_stricter_minimum() -> None:
    lax, strict, pods = limit("lax"), limit("strict", minimumLevel="Deny"), [pod("1")]
    node = view(pods, [lax, strict], [use("1")])
    assert told(status_of(lax, pods, node), "Enforced") == ("True", "Enforced")
    assert told(status_of(strict, pods, node), "Enforced") == ("False", "LevelTooLow")


WEAK = {"source": "IoUring", "counted": True, "level": "Observe", "reason": "SharedUid"}


@pytest.mark.rule("H1")
@pytest.mark.parametrize("uses", [[use("1", level="Observe", reason="CapIPCLock")], []])
def test_weak_counted_source_is_named_if_pod_level_is_unknown(
    uses: list[dict[str, Any]],
) -> None:
    one, pods = limit(sources=["Mlock", "IoUring"]), [pod("1")]
    status = status_of(one, pods, view(pods, [one], uses, sources=[*SOURCES, WEAK]))
    assert told(status, "Enforced")[0] == "False"
    message = condition(status, "Enforced").message
    assert "node n1 (LevelTooLow: IoUring is at Observe: SharedUid)" in message
    assert f"pod a/pod-1 ({'CapIPCLock' if uses else 'NotReported'}" in message


@pytest.mark.rule("H1")
def test_weak_source_does_not_matter_for_pod_with_sufficient_level() -> None:
    one, pods = limit(sources=["Mlock", "IoUring"], minimumLevel="Deny"), [pod("1"), pod("2")]

    def judged(*levels: str) -> PinLimitStatus:
        uses = [
            use(each.uid, level=level, reason="Gated" if level == "Deny" else "NotGated")
            for each, level in zip(pods, levels, strict=True)
        ]
        return status_of(one, pods, view(pods, [one], uses, sources=[*SOURCES, WEAK]))

    good, bad = judged("Deny", "Deny"), judged("Deny", "Converge")
    assert told(good, "Enforced") == ("True", "Enforced")
    assert condition(good, "Enforced").message == "2 pods limited at Deny or better."
    assert told(bad, "Enforced")[0] == "False"
    message = condition(bad, "Enforced").message
    assert "pod a/pod-2 (NotGated: level Converge only)" in message
    assert "Mlock is at Converge: RlimitGate, IoUring is at Observe: SharedUid" in message
    assert "pod-1" not in message


@pytest.mark.rule("H1")
def test_unstarted_pod_on_node_with_weak_source_is_pending() -> None:
    one, pods = limit(minimumLevel="Deny"), [pod("1"), pod("2", started=False)]
    status = status_of(one, pods, view(pods, [one], [use("1", level="Deny")]))
    assert told(status, "Enforced") == ("False", "Pending")
    assert condition(status, "Enforced").message == (
        "Not enforced: pod a/pod-2 (Pending: the pod has not started, "
        "and on its node Mlock is at Converge: RlimitGate)."
    )
    strong = [{**SOURCES[0], "level": "Deny"}]
    status = status_of(one, pods, view(pods, [one], [use("1", level="Deny")], sources=strong))
    assert told(status, "Enforced") == ("True", "Enforced"), (
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
    """Seen with a runtime of another cgroup driver: https://github.com/kubernetes/kubernetes/issues/106514."""
    one, pods = limit(), [replace(pod("1"), running=True)]
    status = status_of(one, pods, view(pods, [one], [use("1", **report)]))
    assert told(status, "Enforced") == ("False", NO_PROCESSES)
    assert told(status, "WithinLimit") == ("Unknown", NO_PROCESSES)
    assert told(status, "Complete") == ("False", "NotReported")
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
    one = limit()
    for started in (True, False):
        pods = [replace(pod("1", started=started), running=running)]
        status = status_of(one, pods, view(pods, [one], [use("1", **report)]))
        assert {each.status for each in status.conditions} == {"True"}


@pytest.mark.rule("H1")
@pytest.mark.parametrize("running", [True, False])
def test_pod_with_unreadable_processes_is_not_enforced(running: bool) -> None:
    one, pods = limit(), [replace(pod("1"), running=running)]
    unread = use("1", processes=0, level="Observe", reason="NotReadable")
    assert told(status_of(one, pods, view(pods, [one], [unread])), "Enforced") == (
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
    one = limit(minimumLevel=minimum, sources=["Mlock", "IoUring", "Vfio"][: len(sources)])
    pods = [pod(str(i)) for i in range(len(levels))]
    table = [
        {"source": source, "counted": True, "level": level, "reason": "r"}
        for source, level in zip(one.spec.sources, sources, strict=True)
    ]
    uses = [use(each.uid, level=level) for each, level in zip(pods, levels, strict=True) if level]
    status = status_of(one, pods, view(pods, [one], uses, sources=table))
    held = all(level is not None and ranks.index(level) <= ranks.index(minimum) for level in levels)
    assert told(status, "Enforced")[0] == str(held)
    if not held:
        weak = [
            each
            for each in pods
            if not (level := levels[int(each.uid)]) or ranks.index(level) > ranks.index(minimum)
        ]
        assert any(each.name in condition(status, "Enforced").message for each in weak)


@pytest.mark.rule("H1")
def test_limit_without_counted_source_is_not_enforced() -> None:
    one, pods = limit(sources=["Xdp"]), [pod("1")]
    status = status_of(one, pods, view(pods, [one], [use("1")]))
    assert told(status, "Enforced") == ("False", "NotCounted")


@pytest.mark.rule("H1")
def test_unreported_running_pod_is_not_enforced_and_unstarted_pod_is_ignored() -> None:
    one, running, waiting = limit(), pod("1"), pod("2", started=False)
    assert told(status_of(one, [running], view([running], [one])), "Enforced") == (
        "False",
        "NotReported",
    )
    assert told(status_of(one, [waiting], view([waiting], [one])), "Enforced") == (
        "True",
        "Enforced",
    )
    not_yet = status_of(one, [waiting], view([waiting], [one], acknowledged=False))
    assert told(not_yet, "Enforced") == ("True", "Enforced"), (
        "a pod that comes has nothing to hold yet"
    )
    assert told(not_yet, "Ready") == ("False", "Pending")


@pytest.mark.rule("H1")
def test_unsupported_limit_is_not_applied_with_agents_reason() -> None:
    one, pods = limit(), [pod("1")]
    report = {"uid": "uid-db", "reason": "UnknownField", "message": "limits.0.weight"}
    status = status_of(
        one, pods, view(pods, [one], [use("1")], appliedLimits=[], unsupportedLimits=[report])
    )
    for kind in ("Ready", "Applied", "Enforced"):
        assert told(status, kind) == ("False", "Unsupported")
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
    desired = compile_node(Node("n1"), [old_pod, new_pod], {}, [known, new], Settings())
    node = node.with_desired(desired)
    assert told(status_of(known, [old_pod], node), "Enforced") == ("True", "Enforced"), (
        "the last good one stays"
    )
    for one, pods in ((known, [old_pod, new_pod]), (new, [old_pod])):
        status = status_of(one, pods, node)
        assert told(status, "Enforced") == ("False", "Unsupported")
        assert (
            "node n1 (Unsupported: InvalidSpec: mode: unknown)"
            in condition(status, "Enforced").message
        )
    assert told(status_of(new, [old_pod], node), "Applied") == ("False", "Unsupported")


@pytest.mark.rule("H1")
def test_limit_without_room_on_pod_is_not_applied() -> None:
    many, pods = [limit(f"x{i:03}") for i in range(MAX_POD_LIMITS + 1)], [pod("1")]
    node = view(pods, many, [use("1")])
    assert told(status_of(many[0], pods, node), "Enforced") == ("True", "Enforced")
    last = status_of(many[-1], pods, node)
    assert told(last, "Enforced") == ("False", "TooManyLimits")
    assert told(last, "Applied") == ("False", "TooManyLimits")


@pytest.mark.rule("P13")
def test_audit_limit_is_ready_if_applied_and_never_enforced() -> None:
    one, pods = limit(enforcement="Audit"), [pod("1")]
    status = status_of(one, pods, view(pods, [one], [use("1", 9 * MIB)]))
    assert told(status, "Enforced") == ("False", "Audit")
    assert told(status, "Ready") == ("True", "Acknowledged")
    assert told(status, "WithinLimit") == ("False", "OverLimit")


@pytest.mark.rule("P13")
def test_overridden_limit_is_accepted_with_names_of_stricter_limits() -> None:
    one, pods = limit(), [pod("1")]
    status = status_of(one, pods, view(pods, [one], [use("1")]), overriding={"top", "a/tight"})
    assert told(status, "Accepted") == ("True", "Overridden")
    assert "'a/tight', 'top'" in condition(status, "Accepted").message
    assert told(status, "Enforced") == ("True", "Enforced")


@pytest.mark.rule("H2")
def test_uncounted_source_makes_figures_lower_bounds() -> None:
    one, pods = limit(sources=["Mlock", "Xdp", "Perf"]), [pod("1"), pod("2", "n2")]
    full = [*SOURCES, *({**SOURCES[0], "source": source} for source in ("Xdp", "Perf"))]
    status = status_of(
        one,
        pods,
        view(pods[:1], [one], [use("1")], sources=full),
        view(pods[1:], [one], [use("2")], sources=full[:2]),
    )
    assert told(status, "Complete") == ("False", "SourcesNotCounted")
    assert "Perf" in condition(status, "Complete").message
    assert "Xdp" not in condition(status, "Complete").message
    assert "not counting Perf" in condition(status, "WithinLimit").message
    assert "not counting Perf" in condition(status, "Enforced").message


@pytest.mark.rule("H2")
def test_unreported_figures_are_absent_not_zero() -> None:
    one, pods = limit(), [pod("1")]
    spec = compile_node(Node("n1"), pods, {}, [one], Settings())
    status = status_of(one, pods, NodeView("n1", silent=False).with_desired(spec))
    assert (status.pinned_bytes, status.denials, status.overshoot, status.recommendation) == (
        None,
    ) * 4
    assert status.top_pods == []
    assert told(status, "Complete") == ("False", "NotReported")
    assert told(status, "WithinLimit") == ("Unknown", "NotReported")
    assert told(status, "Enforced") == ("False", "Pending")


@pytest.mark.rule("H2")
def test_truncated_report_is_named_in_complete() -> None:
    one, pods = limit(), [pod("1"), pod("2")]
    status = status_of(one, pods, view(pods, [one], [use("1", MIB)], truncated=True))
    assert told(status, "Complete") == ("False", "Truncated")
    assert status.pinned_bytes == MIB


@pytest.mark.rule("P11")
def test_within_limit_names_excess_of_each_pod() -> None:
    one, pods = limit(), [pod("1"), pod("2")]
    status = status_of(one, pods, view(pods, [one], [use("1", 8 * MIB), use("2", 8 * MIB + 4096)]))
    assert told(status, "WithinLimit") == ("False", "OverLimit")
    assert (
        "pod a/pod-2 (OverLimit: 8196Ki pinned, 4Ki over)"
        in condition(status, "WithinLimit").message
    )
    assert told(status, "Enforced") == ("True", "Enforced"), (
        "held all the same: nothing new is let in"
    )


def test_node_scope_compares_sum_of_pods() -> None:
    top, pods = ceiling(amount="8Mi", scope="Node"), [pod("1"), pod("2"), pod("3", "n2")]
    other = view(pods[2:], [top], [use("3", 8 * MIB)])
    within = view(pods[:2], [top], [use("1", 4 * MIB), use("2", 4 * MIB)])
    assert told(status_of(top, pods, within, other), "WithinLimit") == ("True", "Sampled")
    over = view(pods[:2], [top], [use("1", 4 * MIB), use("2", 5 * MIB)])
    status = status_of(top, pods, over, other)
    assert told(status, "WithinLimit") == ("False", "OverLimit")
    assert "node n1" in condition(status, "WithinLimit").message
    assert status.recommendation == "11Mi"


def test_container_scope_compares_each_container() -> None:
    one, pods = limit(amount="8Mi", scope="Container", containers=["main"]), [pod("1")]

    def containers(**pinned: int) -> list[dict[str, Any]]:
        return [{"name": name, "pinned": amount, "peak": amount} for name, amount in pinned.items()]

    def judged(total: int, **pinned: int) -> tuple[str, str]:
        node = view(pods, [one], [use("1", total, containers=containers(**pinned))])
        return told(status_of(one, pods, node), "WithinLimit")

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
        one = limit(scope="Container", containers=names)
        status = status_of(one, pods, view(pods, [one], [use("1"), use("2")]))
        assert told(status, "Enforced") == expected
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
    one, pods = limit(grant=True, sources=[]), [pod("1")]
    limits: list[Limit] = [one, *([ceiling(maxGrant=max_grant)] if max_grant else [])]
    status = status_of(one, pods, view(pods, limits, [use("1")]))
    assert told(status, "Granted") == expected
    assert told(status, "Ready")[0] == expected[0]
    assert told(status, "Enforced") == ("True", "Enforced"), "a clipped grant is still a limit"


@pytest.mark.rule("P14")
def test_limit_without_grant_has_no_granted_condition() -> None:
    one, pods = limit(), [pod("1")]
    assert "Granted" not in {
        each.type for each in status_of(one, pods, view(pods, [one])).conditions
    }


@pytest.mark.rule("H2")
def test_status_has_worst_overshoot() -> None:
    one, pods = limit(), [pod("1"), pod("2", "n2")]

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
        one,
        pods,
        view(pods[:1], [one], [use("1")], overshoots=[seen(10, 0.5), seen(99, 9, "uid-other")]),
        view(pods[1:], [one], [use("2")], overshoots=[seen(20, 0.25)]),
    )
    assert status.overshoot is not None
    assert status.overshoot.model_dump() == {"peak_bytes": 20, "seconds": 0.5, "count": 4}


@pytest.mark.rule("H2", "P13")
def test_denials_count_only_own_limit_and_are_absent_without_gate() -> None:
    one, other, pods = limit(), limit("other"), [pod("1"), pod("2"), pod("3", "n2"), pod("4", "n3")]

    def denied(**counts: int) -> list[dict[str, Any]]:
        return [{"uid": uid.replace("_", "-"), "count": count} for uid, count in counts.items()]

    views = [
        view(
            pods[:2], [one, other], [use("1", denials=denied(uid_db=3, uid_gone=9)), use("2", MIB)]
        ),
        view(
            pods[2:3], [one, other], [use("3", denials=denied(uid_db=4, uid_other=1))], silent=True
        ),
        view(pods[3:], [one, other], [use("4", denials=[])]),
    ]
    status, theirs = status_of(one, pods, *views), status_of(other, pods, *views)
    assert (status.denials, theirs.denials) == (7, 1)
    assert {each.name: each.denials for each in status.top_pods} == {
        "pod-1": 3,
        "pod-2": None,
        "pod-3": 4,
        "pod-4": 0,
    }
    assert status_of(one, pods[3:], views[2]).denials == 0, "where it is seen, none is a number"
    assert status_of(one, pods[:1], view(pods[:1], [one], [use("1")])).denials is None
    assert status_of(one, []).denials is None
    assert PinLimitStatus.model_validate(status.to_wire()) == status


def test_top_pods_are_the_ten_largest() -> None:
    one, pods = limit(), [pod(f"{i:02}", f"n{i % 2}") for i in range(30)]
    views = [
        view(on_node, [one], [use(each.uid, int(each.uid) * 4096) for each in on_node])
        for on_node in (pods[0::2], pods[1::2])
    ]
    status = status_of(one, pods, *views)
    assert [each.pinned_bytes // 4096 for each in status.top_pods] == list(range(29, 19, -1))
    assert status.pinned_bytes == sum(range(30)) * 4096


def test_condition_keeps_transition_time_while_status_is_equal() -> None:
    one, pods = limit(), [pod("1")]
    views = {"n1": view(pods, [one], [use("1")])}
    first = aggregate(one, pods, views, None, NOW)
    assert condition(first, "Ready").last_transition_time == NOW.replace(microsecond=0)
    later = NOW + timedelta(minutes=1)
    assert aggregate(one, pods, views, first, later) == first
    silent = aggregate(one, pods, {"n1": views["n1"].with_silent(True)}, first, later)
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
    for each, state in zip(pods, states, strict=True):
        uses = [use(each.uid, state["pinned"], level=state["level"])] if state["level"] else []
        views[each.node] = view(
            [each], [limit], uses, acknowledged=state["acknowledged"], silent=state["silent"]
        )
    return pods, views


@pytest.mark.rule("H1", "H2")
@given(st.lists(STATES, max_size=4))
def test_status_never_claims_more_than_known(states: list[dict[str, Any]]) -> None:
    one = limit()
    pods, views = cluster(one, states)
    status = aggregate(one, pods, views, None, NOW)
    alive = [state for state in states if not state["silent"]]
    held = all(
        state["level"] in {"Deny", "Converge"} and state["acknowledged"]
        if state["level"] or state["started"]
        else True
        for state in alive
    )
    if not held:
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
    one, cache = limit(), ShareCache[LimitOnNode]()
    states: list[dict[str, Any]] = [
        {"acknowledged": True, "silent": False, "level": "Deny", "pinned": 0, "started": True}
    ] * 4
    pods, views = cluster(one, states)
    for index, state in changes:
        states[index] = state
        changed, fresh = cluster(one, states)
        views[f"n{index}"] = fresh[f"n{index}"]
        place = next(place for place, each in enumerate(pods) if each.uid == str(index))
        pods[place] = pods[place] if pods[place] == changed[index] else changed[index]
        if shuffle:
            pods.reverse()
        expected = aggregate(one, pods, views, None, NOW)
        assert aggregate(one, pods, views, None, NOW, cache=cache) == expected


def test_many_observations_take_little_memory() -> None:
    one, pods = limit(), [pod(f"{i:03}") for i in range(500)]
    node = view(pods, [one], [use(each.uid, level="Observe", reason="CapIPCLock") for each in pods])
    share = summarize_limit(one, pods, node)
    assert share.unenforced.counts == {"CapIPCLock": 500}
    assert len(share.unenforced.named) == 3
    assert condition(status_of(one, pods, node), "Enforced").message.endswith("and 497 more.")


@pytest.mark.rule("H1", "P13")
def test_limit_on_contested_pod_is_not_enforced() -> None:
    one = limit()
    pods = [replace(pod("1"), cgroup_uid="h", contested=True)]
    status = status_of(one, pods, view(pods, [one], [use("h", MIB)]))
    assert told(status, "Enforced") == ("False", "CgroupContested")
    assert "pod a/pod-1" in condition(status, "Enforced").message
