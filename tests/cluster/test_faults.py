"""Crashes during changes on a real cluster: limits stay in force, no edit is lost (H3).

Each test edits the limit of a running pod, kills a process, and edits again. Then the process must
have the last edit, and the status must acknowledge it. The limit in force is read from the process
on its node, so the API server may be away.

The waits only end a test. tests/api shows that everything is consistent within 15 seconds.
"""

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.cluster import Cluster
from cluster.install import ROOT
from cluster.node import Node

from ..waiting import until

NAMESPACE = "faults"
MIB = 2**20
LIMIT = {
    "apiVersion": "pinwarden.io/v1alpha1",
    "kind": "PinLimit",
    "metadata": {"name": "limited"},
    "spec": {"podSelector": {"matchLabels": {"app": "limited"}}, "limit": "4Mi"},
}
Kubectl = Callable[..., str]


def in_force(node: Node) -> int | None:
    """The soft RLIMIT_MEMLOCK of the pod's process in bytes, None when there is no such process."""
    script = (
        "for p in /proc/[0-9]*; do"
        " grep -q [p]inner.py $p/cmdline && cat $p/limits; done 2>/dev/null"
    )
    found = re.search(r"Max locked memory\s+(\d+)", node.exec(["sh", "-c", script]).stdout)
    return int(found[1]) if found else None


class LimitedPod:
    """The limit under test and the pod that it holds."""

    def __init__(self, node: Node, kubectl: Kubectl, namespace: str) -> None:
        self.node = node
        self.namespace = namespace
        self._kubectl = kubectl

    def edit(self, mebibytes: int) -> None:
        patch = json.dumps({"spec": {"limit": f"{mebibytes}Mi"}})
        self._kubectl(
            "-n", self.namespace, "patch", "pinlimit", "limited", "--type=merge", "-p", patch
        )

    def acknowledged(self) -> bool:
        limit = json.loads(
            self._kubectl("-n", self.namespace, "get", "pinlimit", "limited", "-o", "json")
        )
        status = limit.get("status", {})
        conditions = {one["type"]: one["status"] for one in status.get("conditions", [])}
        return (
            status.get("observedGeneration") == limit["metadata"]["generation"]
            and conditions.get("Applied") == "True"
            and conditions.get("Enforced") == "True"
        )

    def settles_at(self, mebibytes: int) -> None:
        """Both the process and the status come to say `mebibytes`."""
        taken = until(lambda: in_force(self.node) == mebibytes * MIB, f"{mebibytes} MiB in force")
        taken += until(self.acknowledged, "the edit is acknowledged")
        print(f"{mebibytes} MiB in force and acknowledged after {taken:.1f} s")


@pytest.fixture(scope="module")
def limited(installed: Cluster, kubectl: Kubectl) -> Iterator[LimitedPod]:
    """See `limited_pod`."""
    yield from limited_pod(installed, kubectl)


def limited_pod(
    installed: Cluster, kubectl: Kubectl, namespace: str = NAMESPACE
) -> Iterator[LimitedPod]:
    """A running pod under a limit of 4 MiB, on a cluster that has pinwarden installed."""
    kubectl("create", "namespace", namespace)
    kubectl(
        "-n",
        namespace,
        "create",
        "configmap",
        "pinner",
        f"--from-file={ROOT / 'examples/demo/pinner.py'}",
    )
    pod = (ROOT / "examples/demo/pods.yaml").read_text().split("---\n")[0]
    pod = pod.replace("name: one", "name: limited").replace("app: one", "app: limited")
    # It holds less than every limit here, else a lowered one would stop at what it holds.
    pod = re.sub(r"--mebibytes=\d+", "--mebibytes=1", pod)
    kubectl("-n", namespace, "apply", "-f", "-", stdin=pod)
    kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/limited", "--timeout=600s")
    kubectl("apply", "-f", "-", "-n", namespace, stdin=json.dumps(LIMIT))
    ready = LimitedPod(installed.nodes[0], kubectl, namespace)
    ready.settles_at(4)
    yield ready
    kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.mark.rule("H3", "P12", level="Converge")
@pytest.mark.parametrize("part", ["operator", "agent"])
def test_killed_process_of_pinwarden_applies_the_last_edit_after_its_restart(
    limited: LimitedPod, part: str
) -> None:
    limited.edit(5)
    limited.settles_at(5)
    limited.edit(3)
    limited.node.kill("pinwarden", match=f"pinwarden {part}")
    limited.edit(4)
    assert (in_force(limited.node) or 0) <= 5 * MIB
    limited.settles_at(4)


@pytest.mark.rule("H3", level="Converge")
@pytest.mark.parametrize("part", ["kube-apiserver", "etcd"])
def test_limits_stay_in_force_while_the_control_plane_is_down(
    limited: LimitedPod, installed: Cluster, part: str
) -> None:
    limited.edit(5)
    limited.settles_at(5)
    limited.edit(4)
    installed.control_plane.kill(part)
    time.sleep(
        3
    )  # during this time the API server cannot answer: one of the two limits must be in force
    assert in_force(limited.node) in (5 * MIB, 4 * MIB)
    installed.control_plane.start(part)
    limited.settles_at(4)
    limited.edit(6)
    limited.settles_at(6)


@pytest.mark.rule("H3", level="Converge")
@pytest.mark.parametrize("program", ["containerd", "kubelet"])
def test_edit_is_applied_while_a_program_of_the_node_restarts(
    limited: LimitedPod, program: str
) -> None:
    limited.edit(5)
    limited.settles_at(5)
    limited.node.kill(program)
    limited.edit(4)
    limited.settles_at(4)


@pytest.mark.rule("H3", level="Converge")
def test_node_applies_the_last_edit_after_a_power_cut(
    limited: LimitedPod, installed: Cluster
) -> None:
    limited.edit(5)
    limited.settles_at(5)
    limited.node.power_cut()
    limited.edit(4)
    installed.start(limited.node)
    limited.settles_at(4)


def test_damaged_configuration_on_the_node_is_set_aside(limited: LimitedPod) -> None:
    damage = "for file in /var/lib/pinwarden/*; do echo '{\"half' >$file; done"
    assert limited.node.exec(["sh", "-c", f"ls /var/lib/pinwarden/* && {damage}"]).returncode == 0
    limited.node.kill("pinwarden", match="pinwarden agent")
    limited.edit(3)
    limited.settles_at(3)
    assert ".corrupt-" in limited.node.exec(["ls", "/var/lib/pinwarden"]).stdout
