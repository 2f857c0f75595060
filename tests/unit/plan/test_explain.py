"""Each situation has its cause and its next step; the operator's own code compiles the specs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import Mode, NodePinConfig
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit, PinLimitStatus
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.plan.explain import Cause, DeniedCall, Evidence, Explanation, NodeAgent, explain
from pinwarden.plan.group_compiler import Group
from pinwarden.plan.limit_compiler import Limit, LimitSettings
from pinwarden.plan.node_spec import MAX_NODE_LIMITS, compile_node
from pinwarden.plan.types import Namespace, Node, Pod
from pinwarden.plan.usage import STALE

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
MIB = 1 << 20
NODE = "n1"
POD = Pod("team-a", "db-0", "u1", "u1", NODE, {"app": "db"}, {"main": "c1"})
SOURCES = [
    {"source": "Mlock", "counted": True, "level": "Converge", "reason": "RlimitGate"},
    {"source": "Xdp", "counted": False, "level": "Observe", "reason": "NotCounted"},
]


def limit(name: str = "db", amount: str = "64Mi", **spec: Any) -> PinLimit:
    return PinLimit.model_validate(
        {
            "metadata": {
                "name": name,
                "namespace": "team-a",
                "uid": f"uid-{name}",
                "generation": 1,
            },
            "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "limit": amount, **spec},
        }
    )


def ceiling(name: str = "top", amount: str = "1Gi", **spec: Any) -> ClusterPinLimit:
    return ClusterPinLimit.model_validate(
        {
            "metadata": {"name": name, "uid": f"uid-{name}", "generation": 1},
            "spec": {"limit": amount, **spec},
        }
    )


def use(
    pinned: int = MIB, level: str = "Converge", reason: str = "RlimitGate", **more: Any
) -> dict[str, Any]:
    counters = {"vmLck": pinned, "vmPin": 0, "peak": pinned, "processes": 2}
    return {"uid": "u1", **counters, "level": level, "reason": reason, **more}


def denial(limit: Limit, used: int, asked: int, **more: Any) -> dict[str, Any]:
    who = {"pod": "u1", "container": "main", "process": "db", "pid": 42, "source": "Mlock"}
    why = {"used": used, "asked": asked, "limit": limit.spec.limit.bytes}
    named = {"name": f"team-a/{limit.metadata.name}", "uid": limit.metadata.uid}
    return {"number": 1, "time": "2026-11-24T11:59:00Z", **who, **why, **named, **more}


def config(
    limits: Sequence[Limit], pod: Pod, *, taken: bool = True, **status: Any
) -> NodePinConfig:
    """A NodePinConfig as the operator writes it; `taken`: its agent acknowledged the spec."""
    spec = compile_node(Node(NODE), [pod], {}, limits, LimitSettings())
    applied = [{"uid": row.uid, "hash": row.hash} for row in spec.limits] if taken else []
    reported = {
        "observedGeneration": 7 if taken else 6,
        "appliedLimits": applied,
        "sources": SOURCES,
    }
    return NodePinConfig.model_validate(
        {
            "metadata": {"name": NODE, "uid": "uid-n1", "generation": 7},
            "spec": spec.to_wire(),
            "status": {"sampledAt": "2026-11-24T11:59:58Z", **reported, **status},
        }
    )


def evidence(
    *limits: Limit,
    pod: Pod = POD,
    uses: Sequence[Mapping[str, Any]] | None = None,
    taken: bool = True,
    **more: Any,
) -> Evidence:
    status = more.pop("status", {})
    node_config = config(limits, pod, taken=taken, pods=[use()] if uses is None else uses, **status)
    parts: dict[str, Any] = {
        "pod": pod,
        "now": NOW,
        "namespace": Namespace(pod.namespace),
        "node": Node(NODE),
        "config": node_config,
        "agent": NodeAgent("pinwarden-agent-x", ready=True),
        "limits": limits,
        "workload": "deployment/db",
    }
    return Evidence(**(parts | more))


def first(explanation: Explanation) -> tuple[Cause, bool, str, str]:
    finding = explanation.findings[0]
    return finding.cause, finding.problem, finding.message, finding.next.command


def causes(explanation: Explanation) -> list[Cause]:
    return [finding.cause for finding in explanation.findings]


@pytest.mark.rule("H1")
def test_running_pod_without_processes_points_to_cgroup_driver() -> None:
    nothing = use(0, "Observe", "NoProcesses", processes=0, message="no process is in its cgroup")
    running = replace(POD, running=True)
    explanation = explain(evidence(limit(), pod=running, uses=[nothing]))
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.NOT_ENFORCEABLE, True)
    assert "no process is in its cgroup" in message
    assert command == "kubectl get --raw /api/v1/nodes/n1/proxy/configz"
    for pod, report in ((POD, nothing), (running, {**nothing, "reason": "ProcessesEnded"})):
        assert first(explain(evidence(limit(), pod=pod, uses=[report])))[:2] == (
            Cause.NOT_STARTED,
            False,
        )


RESTART = (
    "kubectl label namespace team-a pinwarden.io/gate=runtime-default && "
    "kubectl -n team-a rollout restart deployment/db"
)


def test_denied_call_at_limit_advises_to_raise_it() -> None:
    db = limit()
    explanation = explain(
        evidence(
            db,
            uses=[use(64 * MIB, "Deny", "SeccompGate", denials=[{"uid": "uid-db", "count": 3}])],
            status={"recentDenials": [denial(db, 64 * MIB, 4096)]},
        )
    )
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.DENIED_BY_GATE, True)
    assert "denied 3 calls for PinLimit team-a/db (64Mi)" in message
    assert 'mlock of 4Ki by process "db" (pid 42) in container main denied' in message
    assert (
        command
        == 'kubectl -n team-a patch pinlimit db --type=merge -p \'{"spec":{"limit":"80Mi"}}\''
    )
    assert Cause.HELD_EXACTLY in causes(explanation)
    assert [call.text for call in explanation.refused] == [
        message.partition("the last call: ")[2].rstrip(".")
    ]
    assert explanation.limits[0].denials == 3


def test_denied_call_that_fits_now_is_no_problem() -> None:
    old = limit(amount="64Mi")
    explanation = explain(
        evidence(
            limit(amount="128Mi"),
            uses=[use(64 * MIB, "Deny", "SeccompGate", denials=[{"uid": "uid-db", "count": 1}])],
            status={"recentDenials": [denial(old, 64 * MIB, 4096)]},
        )
    )
    finding = next(
        finding for finding in explanation.findings if finding.cause is Cause.DENIED_BY_GATE
    )
    assert not finding.problem
    assert "would fit now" in finding.message


def test_denied_call_is_not_said_to_fit_if_use_has_grown() -> None:
    old = limit(amount="4Mi")
    explanation = explain(
        evidence(
            limit(amount="8Mi"),
            uses=[
                use(7 * MIB + 4096, "Deny", "SeccompGate", denials=[{"uid": "uid-db", "count": 1}])
            ],
            status={"recentDenials": [denial(old, 4 * MIB, MIB)]},
        )
    )
    finding = next(
        finding for finding in explanation.findings if finding.cause is Cause.DENIED_BY_GATE
    )
    assert not finding.problem
    assert finding.message.endswith("The limit was raised since, above what was needed then.")


@pytest.mark.rule("P11")
def test_denied_call_with_limit_lowered_again_is_a_problem() -> None:
    refused = denial(limit(amount="4Mi"), 4 * MIB, MIB)
    counts = use(6 * MIB, "Deny", "SeccompGate", denials=[{"uid": "uid-db", "count": 1}])
    explanation = explain(
        evidence(limit(amount="5Mi"), uses=[counts], status={"recentDenials": [refused]})
    )
    assert causes(explanation)[:2] == [Cause.OVER_LIMIT, Cause.DENIED_BY_GATE]
    assert "since" not in explanation.findings[1].message
    assert explanation.findings[1].problem


def test_denied_loosening_call_names_the_field_to_change() -> None:
    db = limit(minimumLevel="Deny")
    unnamed = {"used", "asked", "limit", "name", "uid"}
    denied = {key: value for key, value in denial(db, 0, 0).items() if key not in unnamed}
    denied["message"] = "it would loosen the pod"
    explanation = explain(
        evidence(
            db,
            uses=[use(0, "Deny", "SeccompGate", denials=[])],
            status={"recentDenials": [denied]},
        )
    )
    cause, _, message, command = first(explanation)
    assert cause is Cause.DENIED_BY_GATE
    assert "it would loosen the pod" in message
    assert command.endswith(
        'patch pinlimit db --type=merge -p \'{"spec":{"minimumLevel":"Converge"}}\''
    )


def test_rlimit_pod_near_its_limit_was_likely_denied_by_kernel() -> None:
    explanation = explain(evidence(limit(), uses=[use(62 * MIB)]))
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.AT_LIMIT, True)
    assert "reached 62Mi of 64Mi (PinLimit team-a/db); 2Mi are left now" in message
    assert "these denials are not counted" in message
    assert (
        command
        == 'kubectl -n team-a patch pinlimit db --type=merge -p \'{"spec":{"limit":"80Mi"}}\''
    )
    assert explanation.limits[0].denials is None


def test_rlimit_pod_with_room_says_that_only_a_grant_raises() -> None:
    cause, problem, message, command = first(explain(evidence(limit())))
    assert (cause, problem, command) == (Cause.HELD_BY_RLIMIT, False, RESTART)
    assert "Only a grant raises the runtime's own limit (often 8Mi)" in message


@pytest.mark.parametrize("pinned", [0, MIB])
def test_pod_with_vm_pin_says_that_its_uid_shares_the_allowance(pinned: int) -> None:
    """https://github.com/axboe/liburing/issues/93: denied for another pod's pins."""
    message = first(explain(evidence(limit(), uses=[{**use(), "vmPin": pinned}])))[2]
    assert ("pods with the same uid share one allowance" in message) is bool(pinned)


def test_stricter_ceiling_makes_limit_overridden() -> None:
    explanation = explain(evidence(limit(), ceiling(amount="32Mi")))
    finding = next(finding for finding in explanation.findings if finding.cause is Cause.OVERRIDDEN)
    assert (
        finding.message
        == "PinLimit team-a/db (64Mi) is redundant: ClusterPinLimit top (32Mi) is reached first."
    )
    assert (
        finding.next.command
        == 'kubectl patch clusterpinlimit top --type=merge -p \'{"spec":{"limit":"64Mi"}}\''
    )
    assert [(row.name, row.standing) for row in explanation.limits] == [
        ("top", "Strictest"),
        ("team-a/db", "Overridden"),
    ]
    assert first(explain(evidence(limit(), ceiling(amount="32Mi"), uses=[use(31 * MIB)])))[
        3
    ].startswith("kubectl patch clusterpinlimit top")


def test_ceiling_above_limit_is_no_finding() -> None:
    explanation = explain(evidence(limit(), ceiling()))
    assert causes(explanation) == [Cause.HELD_BY_RLIMIT]
    assert explanation.limits[1].standing == "Overridden"


def test_grant_allowed_by_ceiling_is_granted() -> None:
    explanation = explain(evidence(limit(grant=True), ceiling(maxGrant="64Mi")))
    finding = next(finding for finding in explanation.findings if finding.cause is Cause.GRANTED)
    assert "raised up to 64Mi" in finding.message
    assert finding.next.command == "kubectl -n team-a exec db-0 -- sh -c 'ulimit -l'"
    assert {row.name: row.grant for row in explanation.limits} == {
        "team-a/db": 64 * MIB,
        "top": None,
    }


def test_grant_without_ceiling_advises_a_ceiling() -> None:
    cause, problem, message, command = first(explain(evidence(limit(grant=True))))
    assert (cause, problem) == (Cause.GRANT_LIMITED, True)
    assert "allows nothing" in message
    manifest = json.loads(command.partition("'")[2].rpartition("'")[0])
    node_config = ClusterPinLimit.model_validate(manifest)
    assert (node_config.spec.limit, node_config.spec.max_grant) == ("64Mi", "64Mi")
    again = explain(
        evidence(limit(grant=True), node_config.model_copy(update={"metadata": ceiling().metadata}))
    )
    assert Cause.GRANTED in causes(again)
    assert Cause.GRANT_LIMITED not in causes(again)


def test_grant_above_max_grant_names_the_ceiling() -> None:
    cause, _, message, command = first(
        explain(evidence(limit(grant=True), ceiling(maxGrant="16Mi")))
    )
    assert cause is Cause.GRANT_LIMITED
    assert "allows 16Mi" in message
    assert (
        command
        == 'kubectl patch clusterpinlimit top --type=merge -p \'{"spec":{"maxGrant":"64Mi"}}\''
    )


def test_audit_limits_only_advise_to_enforce() -> None:
    explanation = explain(
        evidence(limit(enforcement="Audit"), uses=[use(level="Observe", reason="Audit")])
    )
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.AUDIT, False)
    assert "Only Audit limits match (PinLimit team-a/db)" in message
    assert command == (
        'kubectl -n team-a patch pinlimit db --type=merge -p \'{"spec":{"enforcement":"Enforce"}}\''
    )
    assert explanation.limits[0].standing == "Audit"


def test_pod_with_cap_ipc_lock_without_gate_is_not_enforceable() -> None:
    sample = use(level="Observe", reason="CapIPCLock", message="process 7 has it or can gain it")
    cause, problem, message, command = first(explain(evidence(limit(), uses=[sample])))
    assert (cause, problem, command) == (Cause.NOT_ENFORCEABLE, True, RESTART)
    assert "CapIPCLock: process 7" in message
    assert "does not apply RLIMIT_MEMLOCK to a process that can have CAP_IPC_LOCK" in message


@pytest.mark.rule("H1")
@pytest.mark.parametrize("reason", ["ProcessStarting", "ThreadsUnread"])
def test_starting_pod_is_neither_enforced_nor_a_problem(reason: str) -> None:
    sample = use(level="Observe", reason=reason, message="process 7 has CapIPCLock or can gain it")
    explanation = explain(evidence(limit(), uses=[sample]))
    assert causes(explanation) == [Cause.NOT_STARTED]
    assert "level is not known yet: process 7 has CapIPCLock" in explanation.findings[0].message
    assert not explanation.findings[0].problem


@pytest.mark.rule("P13")
def test_audit_limit_does_not_override() -> None:
    explanation = explain(evidence(limit(), limit("watch", "128Mi", enforcement="Audit")))
    assert Cause.OVERRIDDEN not in causes(explanation)


@pytest.mark.rule("P11")
@pytest.mark.parametrize(
    ("level", "rest"),
    [("Deny", [Cause.HELD_EXACTLY]), ("Converge", [Cause.AT_LIMIT, Cause.OVERSHOT])],
)
def test_limit_lowered_below_use_has_one_amount_in_all_advice(
    level: str, rest: list[Cause]
) -> None:
    before, lowered = limit(amount="4Mi"), limit(amount="2Mi")
    counts = use(6 * MIB, level, "", denials=[{"uid": "uid-db", "count": 12}])
    shot = {
        "limit": "uid-db",
        "pod": "u1",
        "peak": 4 * MIB,
        "seconds": 1,
        "count": 1,
        "lastTime": "2026-11-24T11:59:00Z",
    }
    status = {"recentDenials": [denial(before, 4 * MIB, MIB)], "overshoots": [shot]}
    explanation = explain(evidence(lowered, uses=[counts], status=status))
    assert causes(explanation) == [Cause.OVER_LIMIT, Cause.DENIED_BY_GATE, *rest]
    assert len({finding.next.command for finding in explanation.findings[:2]}) == 1
    assert "(2Mi now)" in explanation.findings[1].message


def test_denied_call_comes_before_rejected_limit() -> None:
    counts = use(64 * MIB, "Deny", "SeccompGate", denials=[{"uid": "uid-db", "count": 1}])
    explanation = explain(evidence(limit(), limit("other", counting="OncePerPod"), uses=[counts]))
    assert causes(explanation)[:2] == [Cause.DENIED_BY_GATE, Cause.LIMIT_REJECTED]


def test_gated_namespace_needs_only_a_new_pod() -> None:
    sample = use(level="Observe", reason="CapIPCLock")
    labelled = Namespace("team-a", {"pinwarden.io/gate": "runtime-default"})
    explanation = explain(evidence(limit(), uses=[sample], namespace=labelled))
    assert first(explanation)[3] == "kubectl -n team-a rollout restart deployment/db"


@pytest.mark.parametrize(
    ("workload", "command"),
    [
        ("", "kubectl -n team-a get pod db-0 -o yaml | kubectl replace --force -f -"),
        ("job/db", "kubectl -n team-a delete pod db-0"),
        ("statefulset/db", "kubectl -n team-a rollout restart statefulset/db"),
    ],
)
def test_pod_is_recreated_through_its_workload(workload: str, command: str) -> None:
    lost = use(level="Observe", reason="GateLost")
    assert first(explain(evidence(limit(), uses=[lost], workload=workload)))[3] == command


@pytest.mark.parametrize(
    ("workload", "command"),
    [
        ("deployment/db", "kubectl -n team-a rollout restart deployment/db"),
        ("job/db", "kubectl -n team-a delete pod db-0"),
        ("", "kubectl -n team-a get pod db-0 -o yaml | kubectl replace --force -f -"),
    ],
)
@pytest.mark.parametrize(
    "sample",
    [
        use(message="not exactly: created without the gate; a restart gates it"),
        use(message="not exactly: a container lacks it; a restart gates it", denials=[]),
        use(level="Observe", reason="CapIPCLock", message="process 7; a restart gates it"),
    ],
)
def test_pod_from_before_the_gate_needs_only_a_restart(
    sample: dict[str, Any], workload: str, command: str
) -> None:
    """No profile and no label: the node gates the next containers by itself."""
    finding = explain(evidence(limit(), uses=[sample], workload=workload)).findings[0]
    assert finding.next.command == command
    assert "The node gates new containers" in finding.next.text


def test_static_pod_from_before_the_gate_is_restarted_through_its_file() -> None:
    pod = Pod("team-a", "db-0", "api", "u1", NODE, {"app": "db"}, {"main": "c1"})
    sample = use(message="not exactly: created without the gate; a restart gates it")
    finding = explain(evidence(limit(), pod=pod, uses=[sample], workload="")).findings[0]
    assert "move the file of the static pod" in finding.next.text
    assert finding.next.command == "kubectl -n team-a get pod db-0"


def test_static_pod_gets_profile_in_its_file() -> None:
    pod = Pod("team-a", "db-0", "api", "u1", NODE, {"app": "db"}, {"main": "c1"})
    sample = use(level="Observe", reason="CapIPCLock")
    finding = explain(evidence(limit(), pod=pod, uses=[sample], workload="")).findings[0]
    assert "static pod" in finding.next.text
    assert (
        finding.next.command
        == "kubectl -n team-a get pod db-0 -o 'jsonpath={.spec.securityContext}'"
    )


def test_loosened_gated_pod_advises_deny_or_a_new_pod() -> None:
    loosened = use(message="not exactly: mlockall(MCL_FUTURE)", denials=[])
    cause, _, _, command = first(explain(evidence(limit(), uses=[loosened])))
    assert cause is Cause.HELD_BY_RLIMIT
    assert command.endswith(
        'patch pinlimit db --type=merge -p \'{"spec":{"minimumLevel":"Deny"}}\''
    )
    cause, _, _, command = first(explain(evidence(limit(minimumLevel="Deny"), uses=[loosened])))
    assert (cause, command) == (
        Cause.LEVEL_TOO_LOW,
        "kubectl -n team-a rollout restart deployment/db",
    )


def test_node_without_gate_advises_probe() -> None:
    sample = use(level="Observe", reason="GateUnavailable", message="no CAP_SYS_RESOURCE")
    cause, _, message, command = first(explain(evidence(limit(), uses=[sample])))
    assert (cause, command) == (Cause.NOT_ENFORCEABLE, "kubectl pinwarden probe n1 -o wide")
    assert "no CAP_SYS_RESOURCE" in message


def test_inseparable_sources_advise_to_remove_sources() -> None:
    report = {
        "uid": "uid-db",
        "reason": "SourceNotSeparable",
        "message": "sources: the counters do not tell",
    }
    explanation = explain(
        evidence(
            limit(sources=["Mlock"]),
            uses=[use(level="Observe", reason="SourceNotSeparable")],
            status={"unsupportedLimits": [report], "appliedLimits": []},
        )
    )
    cause, _, message, command = first(explanation)
    assert cause is Cause.UNSUPPORTED
    assert "Node n1 cannot enforce PinLimit team-a/db: SourceNotSeparable" in message
    assert command.endswith('patch pinlimit db --type=merge -p \'{"spec":{"sources":null}}\'')


def test_deny_limit_without_profile_advises_the_gate() -> None:
    sample = use(message="not exactly: created without the gate's profile")
    cause, problem, message, command = first(
        explain(evidence(limit(minimumLevel="Deny"), uses=[sample]))
    )
    assert (cause, problem, command) == (Cause.LEVEL_TOO_LOW, True, RESTART)
    assert "created without the gate's profile" in message


@pytest.mark.parametrize("uses", [[], [use()]])
def test_missing_node_pin_config_points_to_operator(uses: list[dict[str, Any]]) -> None:
    cause, _, message, command = first(explain(evidence(limit(), uses=uses, config=None)))
    assert cause is Cause.NO_CONFIG
    assert "Node n1 has no NodePinConfig" in message
    assert command == "kubectl -n pinwarden-system get deployment pinwarden-operator"


def test_unknown_node_is_named() -> None:
    cause, _, message, command = first(explain(evidence(limit(), node=None, config=None)))
    assert (cause, command) == (Cause.NODE_UNKNOWN, "kubectl get nodes")
    assert "bound to node n1, but this Node does not exist" in message


def test_silent_agent_makes_level_and_use_unknown() -> None:
    explanation = explain(
        evidence(limit(), uses=[use(70 * MIB)], agent=NodeAgent("pinwarden-agent-x", ready=False))
    )
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.AGENT_SILENT, True)
    assert "agent of node n1 (pinwarden-agent-x) is not ready" in message
    assert command == "kubectl -n pinwarden-system describe pod pinwarden-agent-x"
    assert causes(explanation) == [Cause.AGENT_SILENT]
    assert explanation.use is not None
    assert (explanation.use.level, explanation.use.reason) == (None, "AgentSilent")
    assert explanation.sources == []


def test_missing_agent_points_to_daemonset() -> None:
    cause, _, _, command = first(explain(evidence(limit(), agent=None)))
    assert cause is Cause.AGENT_MISSING
    assert "--field-selector spec.nodeName=n1" in command


def test_unacknowledged_limit_points_to_agent_log() -> None:
    explanation = explain(evidence(limit(), uses=[], taken=False))
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.NOT_ACKNOWLEDGED, True)
    assert "generation 7 is written, 6 is acknowledged" in message
    assert command == "kubectl -n pinwarden-system logs pinwarden-agent-x -c agent --tail=20"
    assert explanation.limits[0].acknowledged is False


def test_unwritten_limit_points_to_operator_log() -> None:
    changed = evidence(limit(amount="32Mi"), config=config([limit()], POD, pods=[use()]))
    cause, _, message, command = first(explain(changed))
    assert cause is Cause.NOT_WRITTEN
    assert "the operator has not updated the NodePinConfig" in message
    assert command == "kubectl -n pinwarden-system logs deployment/pinwarden-operator --tail=20"


HELD = {Cause.HELD_EXACTLY, Cause.HELD_BY_RLIMIT}
EXACT = use(MIB, "Deny", "SeccompGate", denials=[])


def relabelled(first_limit: Limit, new: Limit, pinned: dict[str, Any], **more: Any) -> Evidence:
    """`new` matches the pod by a recent label; the node enforces `new` on another pod only."""
    pod = replace(POD, labels={"app": "db", "tier": "gold"})
    other = Pod("team-a", "x", "u2", "u2", NODE, {"tier": "gold"}, {"main": "c2"})
    spec = compile_node(Node(NODE), [POD, other], {}, [first_limit, new], LimitSettings())
    assert {pod.uid: pod.limits for pod in spec.pods} == {
        "u1": ["team-a/db"],
        "u2": ["team-a/new"],
    }
    node_config = config([first_limit, new], pod, pods=[pinned])
    assert node_config.status is not None
    applied = {limit.uid for limit in node_config.status.applied_limits}
    assert applied == {"uid-db", "uid-new"}
    node_config = node_config.model_copy(update={"spec": spec})
    return evidence(first_limit, new, pod=pod, config=node_config, **more)


def new_limit(**spec: Any) -> PinLimit:
    return limit("new", "1Mi", **{"podSelector": {"matchLabels": {"tier": "gold"}}, **spec})


@pytest.mark.rule("H1")
@pytest.mark.parametrize("level", ["Deny", "Converge"])
def test_limit_acknowledged_for_another_pod_is_not_enforced_on_this_pod(
    level: str,
) -> None:
    explanation = explain(relabelled(limit(), new_limit(), use(2 * MIB, level)))
    assert causes(explanation) == [Cause.NOT_WRITTEN, Cause.OVER_LIMIT, Cause.HELD_IN_PART]
    missing, over, part = explanation.findings
    assert "PinLimit team-a/new: the operator has not updated the NodePinConfig" in missing.message
    assert "team-a/db" not in missing.message
    assert "nothing is known to deny new pins for the limit" in over.message
    assert part.message.endswith(
        "but only for PinLimit team-a/db. Not known to be enforced: PinLimit team-a/new."
    )
    assert [(row.name, row.standing, row.acknowledged) for row in explanation.limits] == [
        ("team-a/db", "Strictest", True),
        ("team-a/new", "Pending", False),
    ]


@pytest.mark.rule("H1")
def test_pod_near_enforced_limit_is_found_beside_pending_limit() -> None:
    finding = causes(explain(relabelled(limit(), new_limit(), use(63 * MIB))))
    assert Cause.AT_LIMIT in finding
    assert Cause.HELD_IN_PART in finding


@pytest.mark.rule("H1")
@pytest.mark.parametrize("level", ["Deny", "Converge"])
def test_unwritten_limit_is_not_enforced(level: str) -> None:
    old = [limit()]
    explanation = explain(
        evidence(limit(), new_limit(podSelector={}), config=config(old, POD, pods=[use(0, level)]))
    )
    assert causes(explanation) == [Cause.NOT_WRITTEN, Cause.HELD_IN_PART]
    changed = explain(evidence(limit(amount="32Mi"), config=config(old, POD, pods=[use(0, level)])))
    assert causes(changed) == [Cause.NOT_WRITTEN]
    assert (changed.limits[0].standing, changed.limits[0].acknowledged) == ("Pending", False)


@pytest.mark.rule("H1", "P13")
def test_limits_without_room_on_full_node_are_found_once() -> None:
    """The operator never writes them; limits with room apply."""
    others = [f"a-{number:04}" for number in range(MAX_NODE_LIMITS - 1)]
    node_config = config([limit()], POD, pods=[EXACT])
    rest = [
        node_config.spec.limits[0].model_copy(update={"name": name, "uid": name}) for name in others
    ]
    spec = node_config.spec.model_copy(update={"limits": [*rest, *node_config.spec.limits]})
    full = node_config.model_copy(update={"spec": spec})
    late = [limit(name, amount, podSelector={}) for name, amount in (("x", "32Mi"), ("y", "16Mi"))]
    explanation = explain(evidence(limit(), *late, config=full))
    assert causes(explanation) == [Cause.NO_ROOM, Cause.HELD_IN_PART]
    assert [(row.name, row.acknowledged) for row in explanation.limits] == [
        ("team-a/db", True),
        ("team-a/x", False),
        ("team-a/y", False),
    ]


@pytest.mark.rule("H1")
def test_limits_waiting_for_different_causes_have_own_findings() -> None:
    node_config = config([limit()], POD, taken=False, pods=[EXACT])
    explanation = explain(evidence(limit(), new_limit(podSelector={}), config=node_config))
    assert causes(explanation) == [Cause.NOT_WRITTEN, Cause.NOT_ACKNOWLEDGED]
    assert [finding.message.partition(":")[0] for finding in explanation.findings] == [
        "PinLimit team-a/new",
        "PinLimit team-a/db",
    ]


@pytest.mark.rule("H1")
def test_only_acknowledged_limit_overrides() -> None:
    strict = ceiling(amount="32Mi")
    explanation = explain(evidence(limit(), strict, config=config([limit()], POD, pods=[EXACT])))
    assert Cause.OVERRIDDEN not in causes(explanation)
    assert [(row.name, row.standing) for row in explanation.limits] == [
        ("team-a/db", "Strictest"),
        ("top", "Pending"),
    ]


@pytest.mark.rule("H1")
def test_unacknowledged_raise_does_not_allow_the_call_yet() -> None:
    old, raised = limit(), limit(amount="128Mi")
    counts = use(64 * MIB, "Deny", "SeccompGate", denials=[{"uid": "uid-db", "count": 1}])
    node_config = config([old], POD, pods=[counts], recentDenials=[denial(old, 64 * MIB, 4096)])
    explanation = explain(evidence(raised, config=node_config))
    finding = next(
        finding for finding in explanation.findings if finding.cause is Cause.DENIED_BY_GATE
    )
    assert finding.problem
    assert "will fit once the node's agent acknowledges the new limit" in finding.message
    assert "patch" not in finding.next.command


@pytest.mark.rule("H1")
def test_unacknowledged_grant_raises_nothing_yet() -> None:
    limits = limit(grant=True), ceiling(maxGrant="64Mi")
    assert Cause.GRANTED not in causes(explain(evidence(*limits, taken=False)))


@pytest.mark.rule("H1")
def test_use_above_limit_without_enforcement_is_not_said_to_be_denied() -> None:
    explanation = explain(evidence(limit(), uses=[use(70 * MIB, "Observe", "CapIPCLock")]))
    finding = next(finding for finding in explanation.findings if finding.cause is Cause.OVER_LIMIT)
    assert "nothing is known to deny new pins" in finding.message


@pytest.mark.rule("H1", "H2")
@pytest.mark.parametrize(
    "sampled", [NOW - timedelta(days=1), NOW - STALE - timedelta(seconds=1), None]
)
def test_stale_report_is_like_a_silent_agent(sampled: datetime | None) -> None:
    status = {"sampledAt": sampled and sampled.isoformat()}
    explanation = explain(evidence(limit(), uses=[EXACT], status=status))
    assert causes(explanation) == [Cause.AGENT_SILENT]
    _, problem, message, command = first(explanation)
    assert problem
    assert (
        f"reported last at {sampled:%Y-%m-%dT%H:%M:%SZ}" if sampled else "does not say when"
    ) in message
    assert command.endswith("logs pinwarden-agent-x -c agent --tail=20")
    assert explanation.use is not None
    assert (explanation.use.level, explanation.use.reason, explanation.use.stale) == (
        None,
        "AgentSilent",
        True,
    )
    assert (explanation.sources, explanation.limits[0].acknowledged) == ([], None)


def test_report_of_maximum_age_is_trusted() -> None:
    explanation = explain(
        evidence(limit(), uses=[EXACT], status={"sampledAt": (NOW - STALE).isoformat()})
    )
    assert causes(explanation) == [Cause.HELD_EXACTLY]


@pytest.mark.rule("H1")
def test_released_node_enforces_nothing() -> None:
    node_config = config([limit()], POD, pods=[EXACT])
    spec = node_config.spec.model_copy(update={"mode": Mode.RELEASE})
    explanation = explain(evidence(limit(), config=node_config.model_copy(update={"spec": spec})))
    assert causes(explanation) == [Cause.RELEASED]
    assert (explanation.limits[0].standing, explanation.limits[0].acknowledged) == (
        "Pending",
        False,
    )


def test_unscheduled_pod_points_to_scheduler() -> None:
    pod = Pod("team-a", "db-0", "u1", "u1", "", {"app": "db"})
    explanation = explain(evidence(limit(), pod=pod, node=None, config=None, agent=None))
    cause, _, _, command = first(explanation)
    assert (cause, command) == (Cause.NOT_SCHEDULED, "kubectl -n team-a describe pod db-0")
    assert [row.name for row in explanation.limits] == ["team-a/db"]
    assert explanation.node is None


def test_ended_pod_has_one_finding() -> None:
    pod = Pod("team-a", "db-0", "u1", "u1", NODE, {"app": "db"}, {"main": "c1"}, terminal=True)
    assert causes(explain(evidence(limit(), pod=pod, uses=[]))) == [Cause.POD_ENDED]


@pytest.mark.parametrize(
    "said",
    [
        {"pod": replace(POD, windows=True)},
        {"node": Node(NODE, {"kubernetes.io/os": "windows"})},
    ],
    ids=["by the pod", "by its node"],
)
def test_windows_pod_has_one_finding(said: dict[str, Any]) -> None:
    explanation = explain(evidence(limit(), uses=[], agent=None, **said))
    assert causes(explanation) == [Cause.ON_WINDOWS]
    assert explanation.limits == []


def test_use_above_lowered_limit_advises_to_raise_it() -> None:
    explanation = explain(
        evidence(limit(amount="32Mi"), uses=[use(48 * MIB, "Deny", "SeccompGate", denials=[])])
    )
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.OVER_LIMIT, True)
    assert (
        "48Mi is above PinLimit team-a/db (32Mi): "
        "the limit was lowered below its use, or came later" in message
    )
    assert "Nothing is evicted" in message
    assert command.endswith('{"spec":{"limit":"60Mi"}}\'')


@pytest.mark.parametrize(
    ("spec", "reason", "mend"),
    [
        ({"counting": "OncePerPod"}, "NotSupported", '"counting":"EveryPin"'),
        ({"onOvershoot": "Kill"}, "NotSupported", '"onOvershoot":"Report"'),
        ({"grant": True, "sources": ["Mlock"]}, "NotSupported", '"sources":null'),
        ({"limit": "-1"}, "Invalid", "edit pinlimit db"),
    ],
)
def test_rejected_limit_names_field_and_fix(spec: dict[str, Any], reason: str, mend: str) -> None:
    explanation = explain(evidence(limit(amount=spec.pop("limit", "64Mi"), **spec), uses=[]))
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.LIMIT_REJECTED, True)
    assert f"is rejected ({reason})" in message
    assert mend in command
    assert (explanation.limits[0].standing, explanation.limits[0].limit) == ("Refused", None)


def test_pod_without_limit_names_nearest_limit_and_label() -> None:
    other = limit("web", podSelector={"matchLabels": {"app": "web", "tier": "front"}})
    explanation = explain(
        evidence(limit(podSelector={"matchLabels": {"app": "cache"}}), other, uses=[])
    )
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.NO_LIMIT, True)
    assert message == (
        "No limit matches the pod. The nearest is PinLimit team-a/db: "
        "the pod's label app is 'db', and the limit wants 'cache'."
    )
    assert command == "kubectl pinwarden recommend db-0 -n team-a -o yaml | kubectl apply -f -"
    assert causes(explanation) == [Cause.NO_LIMIT]


def test_missing_label_is_advised() -> None:
    explanation = explain(
        evidence(limit(podSelector={"matchLabels": {"app": "db", "tier": "x"}}), uses=[])
    )
    assert first(explanation)[3] == "kubectl -n team-a label pod db-0 tier=x"


def test_limit_without_any_pod_may_have_wrong_selector() -> None:
    mistaken = limit(podSelector={"matchLabels": {"app": "bd"}})
    mistaken = mistaken.model_copy(update={"status": PinLimitStatus(matched_pods=0)})
    _, _, message, command = first(explain(evidence(mistaken, uses=[])))
    assert "app is 'db', and the limit wants 'bd'" in message
    assert command.endswith('{"spec":{"podSelector":{"matchLabels":{"app":"db"}}}}\'')


def test_differing_expressions_namespaces_and_nodes_are_named() -> None:
    top = ceiling(
        podSelector={"matchExpressions": [{"key": "tier", "operator": "Exists"}]},
        namespaceSelector={"matchLabels": {"team": "a"}},
        nodeSelector={"matchExpressions": [{"key": "pool", "operator": "In", "values": ["rdma"]}]},
    )
    _, _, message, command = first(explain(evidence(top, uses=[])))
    assert "the pod's label tier is absent, and the limit wants any value" in message
    assert "the namespace's label team is absent, and the limit wants 'a'" in message
    assert "the label of node n1 pool is absent, and the limit wants one of 'rdma'" in message
    assert command == "kubectl pinwarden recommend db-0 -n team-a -o yaml | kubectl apply -f -"


def test_namespace_without_any_limit_advises_a_first_limit() -> None:
    cause, _, message, command = first(explain(evidence(uses=[])))
    assert (cause, message) == (
        Cause.NO_LIMIT,
        "No limit applies to the pod.",
    )
    assert command.startswith("kubectl pinwarden recommend db-0")


def test_pod_lost_by_gate_advises_a_new_pod() -> None:
    lost = use(level="Observe", reason="GateLost", message="the descriptors of its gate are lost")
    cause, problem, message, command = first(explain(evidence(limit(), uses=[lost])))
    assert (cause, problem) == (Cause.GATE_LOST, True)
    assert "descriptors of its gate are lost" in message
    assert command == "kubectl -n team-a rollout restart deployment/db"


@pytest.mark.parametrize("system", ["kube-system", "elsewhere"])
def test_exempt_namespace_is_named(system: str) -> None:
    pod = Pod(system, "dns", "u1", "u1", NODE, {"app": "db"}, {"main": "c1"})
    explanation = explain(evidence(ceiling(), pod=pod, uses=[], system="elsewhere"))
    cause, problem, message, command = first(explanation)
    assert (cause, problem) == (Cause.EXEMPT_NAMESPACE, False)
    assert "ClusterPinLimit top would match otherwise" in message
    assert f"recommend dns -n {system}" in command
    named = ceiling(namespaceSelector={"matchLabels": {"kubernetes.io/metadata.name": system}})
    assert Cause.EXEMPT_NAMESPACE not in causes(
        explain(evidence(named, pod=pod, uses=[], system="elsewhere"))
    )


def test_overshoot_advises_reserve() -> None:
    shot = {
        "limit": "uid-db",
        "pod": "u1",
        "peak": MIB,
        "seconds": 0.02,
        "count": 2,
        "lastTime": "2026-11-24T11:00:00Z",
    }
    strange = {**shot, "pod": "other"}
    explanation = explain(evidence(limit(), status={"overshoots": [shot, strange]}))
    (finding,) = [finding for finding in explanation.findings if finding.cause is Cause.OVERSHOT]
    assert (
        "2 time(s), last at 2026-11-24T11:00:00Z: 1Mi over for 0.02 s at worst (a lower bound)"
        in finding.message
    )
    assert finding.next.command.endswith('{"spec":{"contention":"Reserve"}}\'')
    assert len(explanation.overshoots) == 1


def test_unstarted_pod_and_unreported_pod_have_different_causes() -> None:
    waiting = Pod("team-a", "db-0", "u1", "u1", NODE, {"app": "db"}, {"main": None})
    assert first(explain(evidence(limit(), pod=waiting, uses=[])))[0] is Cause.NOT_STARTED
    assert first(explain(evidence(limit(), uses=[])))[0] is Cause.NOT_REPORTED


def test_limit_of_another_version_is_named() -> None:
    explanation = explain(
        evidence(limit(), unreadable={"PinLimit team-a/new": "spec.burst: Extra inputs"})
    )
    (finding,) = [
        finding for finding in explanation.findings if finding.cause is Cause.LIMIT_NOT_UNDERSTOOD
    ]
    assert "PinLimit team-a/new is of another version" in finding.message


def group(**spec: Any) -> Group:
    member = {"podSelector": {"matchLabels": {"app": "db"}}, "borrowLimit": "4Mi"}
    body = {
        "backing": {"memfd": {"name": "ring"}},
        "accounting": "Borrow",
        "members": [member],
        **spec,
    }
    metadata = {"name": "cache", "namespace": "team-a", "uid": "uid-cache"}
    return Group(SharedMemoryGroup.model_validate({"metadata": metadata, "spec": body}))


def shared(**borrow: Any) -> dict[str, Any]:
    pair = {"pod": "u1", "member": True, "level": "Converge", **borrow}
    return {"groups": [{"uid": "uid-cache", "phase": "Active", "objects": 1, "borrowers": [pair]}]}


def test_denied_and_exceeding_borrow_have_findings() -> None:
    explanation = explain(
        evidence(limit(), groups=[group()], status=shared(borrowed=MIB, mapped=8 * MIB, denials=2))
    )
    assert causes(explanation)[:2] == [Cause.BORROW_DENIED, Cause.BORROW_OVER]
    assert explanation.findings[0].next.command == "kubectl -n team-a edit sharedmemorygroup cache"
    assert "8Mi Mapped, its borrowLimit 4Mi" in explanation.findings[1].message
    assert [
        (group.name, group.borrowed, group.mapped, group.limit) for group in explanation.groups
    ] == [("team-a/cache", MIB, 8 * MIB, 4 * MIB)]


def test_rejected_group_and_missing_membership_have_findings() -> None:
    host = group(backing={"posixShm": {"name": "x", "ipcNamespace": "Host"}})
    explanation = explain(evidence(limit(), groups=[host]))
    assert explanation.findings[0].cause is Cause.GROUP_REJECTED
    assert "pinwarden.io/allow-shared-memory" in explanation.findings[0].message
    assert explanation.groups[0].borrowed is None
    others = group(members=[{"podSelector": {"matchLabels": {"app": "web"}}}])
    explanation = explain(
        evidence(limit(), groups=[others], status=shared(member=False, mapped=MIB))
    )
    assert explanation.findings[0].cause is Cause.NOT_MEMBER


@pytest.mark.rule("H1")
@pytest.mark.parametrize(("age", "level"), [(timedelta(0), "Converge"), (timedelta(hours=1), None)])
def test_borrow_level_is_unknown_if_accountants_sample_is_stale(
    age: timedelta, level: str | None
) -> None:
    status = shared(borrowed=MIB, mapped=MIB)
    status["groups"][0]["sampledAt"] = (NOW - age).isoformat()
    explanation = explain(evidence(limit(), groups=[group()], status=status))
    assert explanation.groups[0].level == level


def test_earlier_denials_come_from_events() -> None:
    db = limit()
    earlier = DeniedCall(time=NOW - timedelta(hours=1), text="earlier")
    known = DeniedCall(time=NOW, text="the same as listed")
    explanation = explain(
        evidence(db, status={"recentDenials": [denial(db, 0, 1)]}, events=[earlier, known])
    )
    assert [call.text for call in explanation.refused][1:] == ["earlier"]
    assert len(explanation.refused) == 2


@pytest.mark.rule("H1")
@pytest.mark.parametrize(
    ("level", "reason", "expected"),
    [
        ("Deny", "SeccompGate", {"Mlock": "Deny", "IoUring": "Converge", "Xdp": "Observe"}),
        ("Converge", "RlimitGate", {"Mlock": "Converge", "IoUring": "Converge", "Xdp": "Observe"}),
        ("Observe", "CapIPCLock", {"Mlock": "Observe", "IoUring": "Observe", "Xdp": "Observe"}),
    ],
)
def test_source_has_weaker_level_of_node_and_pod(
    level: str, reason: str, expected: dict[str, str]
) -> None:
    ring = {
        "source": "IoUring",
        "counted": True,
        "level": "Converge",
        "reason": "RlimitGate",
        "message": "m",
    }
    explanation = explain(
        evidence(limit(), uses=[use(0, level, reason)], status={"sources": [*SOURCES, ring]})
    )
    assert {str(level.source): str(level.level) for level in explanation.sources} == expected
    mlock = next(level for level in explanation.sources if level.source == "Mlock")
    assert mlock.reason == reason


def test_every_cause_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "kubectl-plugin.md").read_text()
    assert [cause for cause in Cause if f"`{cause}`" not in text] == []


@given(
    pinned=st.integers(0, 200 * MIB),
    level=st.sampled_from(["Deny", "Kill", "Converge", "Observe"]),
    reason=st.sampled_from(["", "RlimitGate", "SeccompGate", "CapIPCLock", "GateLost", "Audit"]),
    ready=st.booleans(),
    taken=st.booleans(),
    spec=st.sampled_from(
        [{}, {"grant": True}, {"enforcement": "Audit"}, {"scope": "Container"}, {"amount": "0"}]
    ),
)
@pytest.mark.rule("H1")
def test_every_pod_has_a_finding_and_no_unknown_level(
    pinned: int, level: str, reason: str, ready: bool, taken: bool, spec: dict[str, Any]
) -> None:
    explanation = explain(
        evidence(
            limit(**spec),
            ceiling(),
            uses=[use(pinned, level, reason)],
            taken=taken,
            agent=NodeAgent("x", ready),
        )
    )
    assert explanation.findings
    assert all(
        finding.next.command.startswith(("kubectl ", "echo ")) for finding in explanation.findings
    )
    if not ready:
        assert explanation.use is not None
        assert explanation.use.level is None
        assert not HELD & set(causes(explanation))
    if not taken:
        assert not HELD & set(causes(explanation))
        assert not any(row.acknowledged for row in explanation.limits)
    if level != "Deny":
        assert Cause.HELD_EXACTLY not in causes(explanation)
    assert Explanation.model_validate(explanation.to_wire()) == explanation
