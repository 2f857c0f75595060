"""Next steps as shell commands."""

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
    """Return the kind and the name of a limit: `PinLimit team-a/db`."""
    return f"{type(limit).__name__} {limit_name(limit)}"


def kubectl(fixed: str, *words: str, namespace: str | None = None) -> str:
    """Return a kubectl command of `fixed`, and of `words` quoted for the shell."""
    space = ["-n", namespace] if namespace else []
    return " ".join(["kubectl", *map(shlex.quote, [*space, *fixed.split(), *words])])


def kubectl_step(text: str, fixed: str, *words: str, namespace: str | None = None) -> NextStep:
    """Return a step with a kubectl command."""
    return NextStep(text=text, command=kubectl(fixed, *words, namespace=namespace))


def patch(limit: Limit, spec: Mapping[str, Any]) -> str:
    """Return the command to change these fields of a limit."""
    change = json.dumps({"spec": spec}, separators=(",", ":"))
    kind = "pinlimit" if isinstance(limit, PinLimit) else "clusterpinlimit"
    arguments = ("patch", kind, limit.metadata.name, "--type=merge", "-p", change)
    return kubectl(*arguments, namespace=limit.metadata.namespace)


def raise_to(limit: Limit, needed: int) -> NextStep:
    """Return how to raise a limit to `needed` bytes with headroom."""
    least = limit.spec.limit.bytes + 1
    amount = recommend(max(needed, 1)) or recommend(1)
    if amount is None or amount.bytes < least:
        amount = recommend(least)
    actor = "an administrator raises" if isinstance(limit, ClusterPinLimit) else "raise"
    text = (
        f"If the pod needs more, {actor} {display_name(limit)} to {amount}; running processes get "
        "the limit at once."
    )
    return NextStep(text=text, command=patch(limit, {"limit": str(amount)}))


def recreate_gated(evidence: Evidence, why: str) -> NextStep:
    """Return how to recreate the pod with the seccomp gate's profile; `why` has no full stop."""
    pod = evidence.pod
    if _is_static(pod):
        show = kubectl(
            "get pod", pod.name, "-o", "jsonpath={.spec.securityContext}", namespace=pod.namespace
        )
        text = (
            f"{why}, name the profile in the file of the static pod on its node (seccompProfile, "
            f"Localhost, {PROFILE})."
        )
        return NextStep(text=text, command=show)
    commands = []
    if GATE_LABEL not in evidence.namespace.labels:
        commands.append(kubectl("label namespace", pod.namespace, f"{GATE_LABEL}=runtime-default"))
    text = f"{why}, recreate the pod with the seccomp gate's profile."
    return NextStep(text=text, command=" && ".join([*commands, _recreate(evidence)]))


def recreate(evidence: Evidence, why: str) -> NextStep:
    """Return how to recreate the pod unchanged; `why` has no full stop."""
    pod = evidence.pod
    if _is_static(pod):
        text = (
            f"{why}, move the file of the static pod out of the kubelet's folder on its node, and "
            "back once the pod is gone."
        )
        return NextStep(text=text, command=kubectl("get pod", pod.name, namespace=pod.namespace))
    return NextStep(text=f"{why}, recreate the pod.", command=_recreate(evidence))


def _recreate(evidence: Evidence) -> str:
    """Return the command to recreate the pod, through its workload if possible."""
    pod, workload = evidence.pod, evidence.workload
    if workload.startswith(("deployment/", "statefulset/", "daemonset/")):
        return kubectl("rollout restart", workload, namespace=pod.namespace)
    if workload:
        return kubectl("delete pod", pod.name, namespace=pod.namespace)
    get = kubectl("get pod", pod.name, "-o", "yaml", namespace=pod.namespace)
    return f"{get} | kubectl replace --force -f -"


def _is_static(pod: Pod) -> bool:
    return pod.cgroup_uid != pod.uid


def watch(pod: Pod) -> NextStep:
    """Return the step to watch the use."""
    command = kubectl("pinwarden top -n", pod.namespace)
    return NextStep(text="Nothing needs to be done; watch its use.", command=command)


def agent_log(evidence: Evidence) -> str:
    """Return the command for the log of the node's agent."""
    agent = evidence.agent.pod if evidence.agent else "daemonset/pinwarden-agent"
    return kubectl("logs", agent, "-c", "agent", "--tail=20", namespace=evidence.system)


def first_limit(pod: Pod) -> NextStep:
    """Return how to create a first limit for the pod, which only observes."""
    command = kubectl("pinwarden recommend", pod.name, "-n", pod.namespace, "-o", "yaml")
    return NextStep(
        text="Apply a limit: an Audit limit, which denies nothing, until use has been observed.",
        command=f"{command} | kubectl apply -f -",
    )


def grant_ceiling(limit: PinLimit, amount: str) -> str:
    """Return the command for a ClusterPinLimit to allow the grant of exactly this limit."""
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
