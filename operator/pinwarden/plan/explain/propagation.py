"""Findings about propagation: whether a limit is written for the node and acknowledged there."""

from collections.abc import Iterator
from typing import Final

from pinwarden.plan.decode import AGENT_SELECTOR
from pinwarden.plan.explain.advice import agent_log, display_name, kubectl_step, patch
from pinwarden.plan.explain.evidence import Case
from pinwarden.plan.explain.findings import Cause, Finding, NextStep, problem
from pinwarden.plan.limit_compiler import Limit, limit_name
from pinwarden.plan.limit_on_node import TOO_MANY_LIMITS

_IN_FORCE: Final = "Limits in force stay in force."


def reaching(case: Case) -> Iterator[Finding]:
    """Yield why the node is unknown, has no NodePinConfig, or has no live agent."""
    evidence, node = case.evidence, case.pod.node
    if evidence.node is None:
        yield problem(
            Cause.NODE_UNKNOWN,
            f"The pod is bound to node {node}, but this Node does not exist: no agent "
            "limits the pod.",
            kubectl_step("See the existing nodes.", "get nodes"),
        )
        return
    if evidence.config is None:
        yield problem(
            Cause.NO_CONFIG,
            f"Node {node} has no NodePinConfig: the operator has not written its limits yet.",
            kubectl_step(
                "See whether the operator runs.",
                "get deployment pinwarden-operator",
                namespace=evidence.system,
            ),
        )
    elif case.released:
        yield problem(
            Cause.RELEASED,
            f"Node {node} is in mode Release: every process there has its original limit.",
            kubectl_step(
                "See whether the operator runs; a running operator sets mode Active again.",
                "get deployment pinwarden-operator",
                namespace=evidence.system,
            ),
        )
    if evidence.agent is None:
        where = ("-l", AGENT_SELECTOR, "--field-selector", f"spec.nodeName={node}", "-o", "wide")
        yield problem(
            Cause.AGENT_MISSING,
            f"No agent runs on node {node}, so the level of the pod is unknown. {_IN_FORCE}",
            kubectl_step(
                "See why the DaemonSet has no pod there (taints, node selector, quota).",
                "get pods",
                *where,
                namespace=evidence.system,
            ),
        )
    elif not evidence.agent.ready:
        yield problem(
            Cause.AGENT_SILENT,
            f"The agent of node {node} ({evidence.agent.pod}) is not ready, or the node is "
            f"lost: level and use of the pod are unknown. {_IN_FORCE}",
            kubectl_step(
                "See why the agent is not ready.",
                "describe pod",
                evidence.agent.pod,
                namespace=evidence.system,
            ),
        )
    elif case.stale:
        yield _stale(case, evidence.agent.pod)


def _stale(case: Case, agent: str) -> Finding:
    status = case.evidence.config.status if case.evidence.config else None
    sampled = status.sampled_at if status else None
    last = (
        f"reported last at {sampled:%Y-%m-%dT%H:%M:%SZ}"
        if sampled
        else "does not say when it reported"
    )
    return problem(
        Cause.AGENT_SILENT,
        f"The agent of node {case.pod.node} ({agent}) {last}, but a healthy agent reports "
        f"every five minutes: level and use of the pod are unknown. {_IN_FORCE}",
        NextStep(text="See the log of the agent.", command=agent_log(case.evidence)),
    )


def acknowledging(case: Case) -> Iterator[Finding]:
    """Yield unwritten, unacknowledged and unsupported limits of the pod.

    Yield nothing for a node with a silent agent or with mode Release.
    """
    if case.view.silent or case.evidence.config is None or case.released:
        return
    late, room = [], ""
    for limit in case.matching:
        share = case.shares[limit_name(limit)]
        if case.acknowledges(limit):
            continue
        if share.rejected is None:
            late.append(limit)
        elif share.rejected.reason == TOO_MANY_LIMITS:
            room = share.rejected.detail
        else:
            yield _unsupported(case, limit, share.rejected.detail)
    if room:
        yield _no_room(case, room)
    stored = {(limit.uid, limit.hash) for limit in case.stored.values()}
    written = {
        limit.uid for limit in case.limit_set.limits.values() if (limit.uid, limit.hash) in stored
    }
    if unwritten := [limit for limit in late if limit.metadata.uid not in written]:
        yield _unwritten(case, unwritten)
    if unacknowledged := [limit for limit in late if limit.metadata.uid in written]:
        yield _unacknowledged(case, unacknowledged)


def _no_room(case: Case, room: str) -> Finding:
    return problem(
        Cause.NO_ROOM,
        f"Some limits of the pod have no room on its node: {room}.",
        kubectl_step(
            "Remove redundant limits; their status has the reason Overridden.",
            "get pinlimits -o wide",
            namespace=case.pod.namespace,
        ),
    )


def _unsupported(case: Case, limit: Limit, detail: str) -> Finding:
    node = case.pod.node
    step = kubectl_step(
        "See the levels of the node and their reasons.", "pinwarden probe", node, "-o", "wide"
    )
    if detail.startswith("SourceNotSeparable"):
        step = NextStep(
            text="Remove spec.sources, so the limit covers all sources together.",
            command=patch(limit, {"sources": None}),
        )
    return problem(
        Cause.UNSUPPORTED, f"Node {node} cannot enforce {display_name(limit)}: {detail}.", step
    )


def _unwritten(case: Case, limits: list[Limit]) -> Finding:
    return problem(
        Cause.NOT_WRITTEN,
        f"{', '.join(map(display_name, limits))}: the operator has not updated the "
        f"NodePinConfig of node {case.pod.node} for the pod yet.",
        kubectl_step(
            "Wait a moment. If nothing changes, see the log of the operator.",
            "logs deployment/pinwarden-operator --tail=20",
            namespace=case.evidence.system,
        ),
    )


def _unacknowledged(case: Case, limits: list[Limit]) -> Finding:
    names, config = ", ".join(map(display_name, limits)), case.evidence.config
    status = config.status if config else None
    acknowledged = "none" if status is None else status.observed_generation
    is_at = config.metadata.generation if config else None
    return problem(
        Cause.NOT_ACKNOWLEDGED,
        f"{names}: the agent of node {case.pod.node} has not acknowledged the spec yet "
        f"(generation {is_at} is written, {acknowledged} is acknowledged).",
        NextStep(
            text="Wait a moment. If nothing changes, see the log of the agent.",
            command=agent_log(case.evidence),
        ),
    )
