"""A created object on a real node, while processes of pinwarden crash and nodes go (M1, M10, H3).

The pod gets the object by a claim, in a namespace at the level "restricted" of Pod Security.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.cluster import Cluster
from cluster.install import ROOT
from cluster.node import Node

from ..waiting import until
from .conftest import Kubectl

NAMESPACE = "shares"
MIB = 2**20
OBJECT = f"/run/pinwarden-shared/{NAMESPACE}/cache"


class Shares:
    """A group with one pod that borrows from it."""

    def __init__(self, node: Node, kubectl: Kubectl) -> None:
        self.node = node
        self._kubectl = kubectl

    def make(self) -> None:
        """The group, its volume, and a pod, which is waited for."""
        manifest = (ROOT / "examples/demo/shared.yaml").read_text()
        pod = (ROOT / "examples/demo/borrowers.yaml").read_text().split("---\n")[1]
        whole = f"{manifest}\n---\n{pod}".replace("pinwarden-demo", NAMESPACE).replace(
            "demo-shared", "shares"
        )
        self._kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=whole)
        self._kubectl(
            "-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/reader", "--timeout=240s"
        )

    def borrow(self, mebibytes: int) -> None:
        """Tell the pod, and wait until the group's status says so."""
        self._kubectl(
            "-n", NAMESPACE, "annotate", "pod", "reader", f"mebibytes={mebibytes}", "--overwrite"
        )
        self.settles_at(mebibytes)

    def settles_at(self, mebibytes: int) -> None:
        def holds() -> bool:
            status = self.status()
            borrowed = {
                each["pod"]: each.get("borrowedBytes") for each in status.get("borrowers", [])
            }
            return status.get("chargeBytes") == 32 * MIB and borrowed == {"reader": mebibytes * MIB}

        until(holds, f"a borrow of {mebibytes} MiB")

    def status(self) -> dict[str, Any]:
        text = self._kubectl(
            "-n", NAMESPACE, "get", "sharedmemorygroup", "cache", "--ignore-not-found", "-o", "json"
        )
        return dict(json.loads(text).get("status", {})) if text else {}

    @property
    def inode(self) -> str:
        return self.node.exec(["stat", "-c", "%d %i", f"{OBJECT}/shared/memory"]).stdout

    def restarts(self) -> int:
        path = "jsonpath={.status.containerStatuses[0].restartCount}"
        return int(self._kubectl("-n", NAMESPACE, "get", "pod", "reader", "-o", path) or 0)

    def delete(self) -> None:
        self._kubectl("-n", NAMESPACE, "delete", "sharedmemorygroup", "cache", "--wait=false")

    def is_gone(self) -> bool:
        return not self._kubectl(
            "-n", NAMESPACE, "get", "sharedmemorygroup", "cache", "--ignore-not-found", "-o", "name"
        )

    def is_draining(self) -> bool:
        return self.status().get("phase") == "Draining"

    def end(self) -> None:
        """The pod and its claim go."""
        self._kubectl("-n", NAMESPACE, "delete", "pod", "reader", "--ignore-not-found")
        self._kubectl("-n", NAMESPACE, "delete", "pvc", "shared", "--ignore-not-found")
        self._kubectl("delete", "pv", "shares", "--ignore-not-found")


@pytest.fixture(scope="module")
def namespace(installed: Cluster, kubectl: Kubectl) -> Iterator[Shares]:
    kubectl("create", "namespace", NAMESPACE)
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    kubectl("annotate", "namespace", NAMESPACE, "pinwarden.io/allow-shared-memory=create:64Mi")
    program = ROOT / "examples/demo/borrower.py"
    kubectl("-n", NAMESPACE, "create", "configmap", "borrower", f"--from-file={program}")
    yield Shares(installed.nodes[0], kubectl)
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture
def shares(namespace: Shares) -> Iterator[Shares]:
    namespace.make()
    namespace.borrow(4)
    yield namespace
    namespace.end()
    if not namespace.is_gone():
        namespace.delete()
        until(namespace.is_gone, "the group is gone")


@pytest.mark.rule("H3", "M1")
@pytest.mark.parametrize("part", ["accountant", "agent", "gate", "operator"])
def test_killed_process_finds_the_same_object_after_its_restart(shares: Shares, part: str) -> None:
    before = shares.inode
    shares.node.kill("pinwarden", match=f"pinwarden {part}")
    shares.borrow(6)
    assert shares.inode == before
    assert shares.status()["nodes"][0]["phase"] == "Active"


@pytest.mark.rule("M10", "H3")
@pytest.mark.parametrize("part", ["accountant", "agent", "operator"])
def test_group_drains_though_a_process_is_killed(shares: Shares, part: str) -> None:
    shares.delete()
    until(shares.is_draining, "it drains")
    shares.node.kill("pinwarden", match=f"pinwarden {part}")
    time.sleep(3)
    assert not shares.is_gone(), "the pod has it mapped"
    shares.end()
    until(shares.is_gone, "the group is gone")
    assert shares.node.exec(["test", "-e", OBJECT]).returncode, "what was created is removed"


@pytest.mark.rule("M10", "H3")
def test_node_removed_during_a_drain_blocks_no_group(
    shares: Shares, installed: Cluster, kubectl: Kubectl
) -> None:
    """The operator dies with the only node, and finds another one of its name when it is back."""
    shares.delete()
    until(shares.is_draining, "it drains")
    shares.node.power_cut()
    kubectl("delete", "node", shares.node.name)
    kubectl("-n", NAMESPACE, "delete", "pod", "reader", "--force", "--grace-period=0")
    installed.start(shares.node)
    until(shares.is_gone, "the group is gone")


@pytest.mark.rule("M1", "H3")
def test_object_is_recreated_after_a_power_cut(
    shares: Shares, installed: Cluster, kubectl: Kubectl
) -> None:
    restarts = shares.restarts()
    shares.node.power_cut()
    installed.start(shares.node)
    until(lambda: shares.restarts() > restarts, "the pod's container is started again")
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/reader", "--timeout=240s")
    shares.borrow(2)
