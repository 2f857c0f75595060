"""A pod that the API server forgets keeps its limit until its processes end (H3, P6).

Operators delete pods by force if they stay in Terminating:
https://github.com/kubernetes/kubernetes/issues/51835. The test stops the container's shim, so that
nothing ends the process. That stands for a process in uninterruptible sleep.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.cluster import Cluster
from cluster.node import Node

from ..waiting import until
from .test_faults import MIB, LimitedPod, in_force, limited_pod

Kubectl = Callable[..., str]
NUMBERS = itertools.count(1)


def signal(node: Node, name: str) -> None:
    """Send a signal to the shim of the pod's container, the parent of its first process."""
    parents = (
        "for p in /proc/[0-9]*; do"
        " grep -qs [p]inner.py $p/cmdline && sed -n 's/^PPid://p' $p/status; done"
    )
    shim = (
        f"for p in $({parents}); do grep -q containerd-shim /proc/$p/comm && kill -{name} $p; done"
    )
    node.exec(["sh", "-c", shim])


@pytest.fixture
def limited(installed: Cluster, kubectl: Kubectl) -> Iterator[LimitedPod]:
    """A pod under a limit of 4 MiB, whose container's shim runs again afterwards."""
    made = limited_pod(installed, kubectl, f"gone-{next(NUMBERS)}")
    limited = next(made)
    yield limited
    signal(limited.node, "CONT")
    next(made, None)
    until(lambda: in_force(limited.node) is None, "its processes have ended")


@pytest.mark.rule("H3", "P6", level="Converge")
@pytest.mark.parametrize("how", ["deleted by force", "Failed"])
def test_limit_stays_on_a_pod_that_is_gone_until_its_processes_end(
    limited: LimitedPod, kubectl: Kubectl, how: str
) -> None:
    def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            kubectl("get", "pinlimit", "limited", "-n", limited.namespace, "-o", "json")
        )["status"]
        return found

    signal(limited.node, "STOP")
    if how == "Failed":
        patch = json.dumps({"status": {"phase": "Failed"}})
        kubectl(
            "-n",
            limited.namespace,
            "patch",
            "pod",
            "limited",
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        )
    else:
        kubectl("-n", limited.namespace, "delete", "pod", "limited", "--force", "--grace-period=0")
    until(
        lambda: [each["reason"] for each in status().get("topPods", [])] == ["PodGone"],
        "it is named as gone",
    )
    limited.edit(3)
    limited.settles_at(3)
    limited.node.kill("pinwarden", match="pinwarden agent")
    limited.edit(2)
    limited.settles_at(2)
    assert status()["pinnedBytes"] >= MIB
    signal(limited.node, "CONT")
    if how == "Failed":
        kubectl("-n", limited.namespace, "delete", "pod", "limited", "--force", "--grace-period=0")
    until(lambda: in_force(limited.node) is None, "its processes have ended")
    until(lambda: status()["matchedPods"] == 0, "nothing of it is left in the status")


@pytest.mark.rule("H3", "P14", level="Converge")
def test_deleting_its_limit_releases_a_pod_that_is_gone(
    limited: LimitedPod, kubectl: Kubectl
) -> None:
    signal(limited.node, "STOP")
    kubectl("-n", limited.namespace, "delete", "pod", "limited", "--force", "--grace-period=0")
    kubectl("-n", limited.namespace, "delete", "pinlimit", "limited")
    until(
        lambda: (in_force(limited.node) or 0) > 4 * MIB, "its process has what the runtime gave it"
    )


@pytest.mark.rule("H3", "P6", level="Converge")
def test_limit_stays_on_a_pod_that_no_operator_ever_knew(
    limited: LimitedPod, kubectl: Kubectl
) -> None:
    uid = kubectl(
        "-n", limited.namespace, "get", "pod", "limited", "-o", "jsonpath={.metadata.uid}"
    )
    signal(limited.node, "STOP")
    kubectl("-n", limited.namespace, "delete", "pod", "limited", "--force", "--grace-period=0")
    system = ("-n", "pinwarden-system")
    kubectl(*system, "rollout", "restart", "deployment/pinwarden-operator")
    kubectl(*system, "rollout", "status", "deployment/pinwarden-operator", "--timeout=600s")

    def config() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            kubectl("get", "nodepinconfig", limited.node.name, "-o", "json")
        )
        return found

    def reported() -> bool:
        now = config()
        reasons = {each["uid"]: each["reason"] for each in now["status"]["pods"]}
        listed = any(each["uid"] == uid for each in now["spec"].get("pods", ()))
        taken = now["status"].get("observedGeneration") == now["metadata"]["generation"]
        return not listed and taken and reasons.get(uid) == "PodGone"

    until(reported, "the node reports it, and the new operator does not list it")
    assert in_force(limited.node) == 4 * MIB
    before = config()["status"]["sampledAt"]
    limited.node.kill("pinwarden", match="pinwarden agent")
    until(
        lambda: config()["status"]["sampledAt"] != before and reported(),
        "the next agent reports it too",
    )
    assert in_force(limited.node) == 4 * MIB
