"""Next steps as commands that can be pasted into a shell."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.plan.explain.evidence import Evidence
from pinwarden.plan.explain.findings import NextStep
from pinwarden.plan.limit_compiler import Limit, limit_name
from pinwarden.plan.recommendation import recommend
from pinwarden.plan.types import NAME_LABEL, Pod

GATE_LABEL = "pinwarden.io/gate"
PROFILE = "pinwarden/runtime-default-v2.json"


def display_name(limit: Limit) -> str:
    """`PinLimit team-a/db`."""
    return f"{type(limit).__name__} {limit_name(limit)}"


def kubectl(*words: str, namespace: str | None = None) -> str:
    """A kubectl command; the words are quoted as the shell needs it."""
    space = ["-n", namespace] if namespace else []
    return " ".join(["kubectl", *map(shlex.quote, [*space, *words])])


def patch(limit: Limit, spec: Mapping[str, Any]) -> str:
    """The command that changes these fields of a limit."""
    change = json.dumps({"spec": spec}, separators=(",", ":"))
    kind = "pinlimit" if isinstance(limit, PinLimit) else "clusterpinlimit"
    words = ("patch", kind, limit.metadata.name, "--type=merge", "-p", change)
    return kubectl(*words, namespace=limit.metadata.namespace)


def raise_to(limit: Limit, needed: int) -> NextStep:
    """Raise a limit so that `needed` bytes fit, with headroom."""
    least = limit.spec.limit.bytes + 1
    amount = recommend(max(needed, 1)) or recommend(1)
    if amount is None or amount.bytes < least:
        amount = recommend(least)
    who = "an administrator raises" if isinstance(limit, ClusterPinLimit) else "raise"
    text = f"If the pod needs it, {who} {display_name(limit)} to {amount}; running processes get it at once."
    return NextStep(text=text, command=patch(limit, {"limit": str(amount)}))


def gated(evidence: Evidence, why: str) -> NextStep:
    """Have the pod made anew with the seccomp gate's profile; `why` says what for, and ends without a full stop."""
    pod = evidence.pod
    if _is_static(pod):
        show = kubectl(
            "get", "pod", pod.name, "-o", "jsonpath={.spec.securityContext}", namespace=pod.namespace
        )
        text = f"{why}: it is a static pod, so its file on the node must name the profile (seccompProfile, Localhost, {PROFILE})."
        return NextStep(text=text, command=show)
    commands = []
    if GATE_LABEL not in evidence.namespace.labels:
        commands.append(kubectl("label", "namespace", pod.namespace, f"{GATE_LABEL}=runtime-default"))
    text = f"{why}: have the pod made anew with the seccomp gate's profile."
    return NextStep(text=text, command=" && ".join([*commands, _anew(evidence)]))


def replaced(evidence: Evidence, why: str) -> NextStep:
    """Have the pod made anew as it is; `why` says what for, and ends without a full stop."""
    return NextStep(text=f"{why}: have the pod made anew.", command=_anew(evidence))


def _anew(evidence: Evidence) -> str:
    """The command that ends the pod and has one like it made: by what made it, or by hand where nothing did."""
    pod, workload = evidence.pod, evidence.workload
    if workload.startswith(("deployment/", "statefulset/", "daemonset/")):
        return kubectl("rollout", "restart", workload, namespace=pod.namespace)
    if workload or _is_static(pod):
        return kubectl("delete", "pod", pod.name, namespace=pod.namespace)
    get = kubectl("get", "pod", pod.name, "-o", "yaml", namespace=pod.namespace)
    return f"{get} | kubectl replace --force -f -"


def _is_static(pod: Pod) -> bool:
    return pod.cgroup_uid != pod.uid


def agent_log(evidence: Evidence) -> str:
    """The command that shows what the agent of the pod's node has to say."""
    agent = evidence.agent.pod if evidence.agent else "daemonset/pinwarden-agent"
    return kubectl("logs", agent, "-c", "agent", "--tail=20", namespace=evidence.system)


def first_limit(pod: Pod) -> NextStep:
    """Have a first limit made for the pod, which only observes until something is known."""
    command = kubectl("pinwarden", "recommend", pod.name, "-n", pod.namespace, "-o", "yaml")
    return NextStep(
        text="Apply a limit for it; it is an Audit one, which refuses nothing, until there is something observed to go by.",
        command=f"{command} | kubectl apply -f -",
    )


def grant_ceiling(limit: PinLimit, amount: str) -> str:
    """The command that makes a ClusterPinLimit which lets the grant of this very limit through."""
    space = limit.metadata.namespace or ""
    manifest = {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": "ClusterPinLimit",
        "metadata": {"name": f"grant-{space}-{limit.metadata.name}"[:63].rstrip("-.")},
        "spec": {
            "limit": amount,
            "maxGrant": amount,
            "namespaceSelector": {"matchLabels": {NAME_LABEL: space}},
            "podSelector": limit.spec.pod_selector.to_wire(),
        },
    }
    return f"echo {shlex.quote(json.dumps(manifest, separators=(',', ':')))} | kubectl apply -f -"
