"""A namespace with limits and draining groups can always be deleted.

The tests cover a dead agent, a stopped operator, and an operator that is back. The API server has
the namespace controller; the test is the kubelet and the agents. Finalizers that never go:
https://github.com/zalando-incubator/kopf/issues/75,
https://github.com/opensearch-project/opensearch-k8s-operator/issues/976.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..waiting import eventually
from .operators import SYSTEM, Cluster, Operator, prepared

LEFT_SECONDS = 120.0
"""How long the operator waits for a node that does not answer."""
Json = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """An API server whose namespaces end."""
    controllers = "namespace-controller,serviceaccount-controller"
    with prepared(controller_manager=True, controllers=controllers) as made:
        _wait_for_service_account(made, SYSTEM)
        yield made


def _wait_for_service_account(cluster: Cluster, namespace: str) -> None:
    """Pods cannot be made before."""
    eventually(
        lambda: cluster.find(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"), bool
    )


class Doomed:
    """A namespace with a limit, and a group that a pod of it uses on a node with an agent."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.name = cluster.namespace()
        self.path = f"/api/v1/namespaces/{self.name}"
        _wait_for_service_account(cluster, self.name)
        self.node = cluster.node()
        self.agent = cluster.agent(self.node)
        self.pod = cluster.pod(self.name, self.node)["metadata"]["name"]
        self.limit = cluster.limit(self.name)
        self.group = cluster.group(self.name)
        eventually(lambda: cluster.config(self.node).get("spec", {}).get("groups"), bool)
        cluster.report_groups(self.node, charge=4096)
        eventually(lambda: cluster.find(self.group)["metadata"].get("finalizers"), bool)
        eventually(
            lambda: cluster.find(self.group).get("status", {}).get("chargeBytes"),
            lambda it: it == 4096,
        )

    def delete(self) -> None:
        """Delete the namespace, and end its pod as the kubelet does."""
        self.cluster.send("DELETE", self.path)
        pod = f"{self.path}/pods/{self.pod}"
        eventually(
            lambda: self.cluster.find(pod).get("metadata", {"deletionTimestamp": 1}), _is_ending
        )
        if self.cluster.find(pod):
            self.cluster.send("DELETE", f"{pod}?gracePeriodSeconds=0")
        eventually(lambda: self.cluster.find(self.group)["metadata"], _is_ending)

    def release(self) -> None:
        """Report that the group is released, as the node's agent does after the last use."""
        eventually(
            lambda: [
                group["draining"] for group in self.cluster.config(self.node)["spec"]["groups"]
            ],
            all,
        )
        self.cluster.report_groups(self.node, "Released")

    def gone(self, seconds: float = 60.0) -> None:
        eventually(lambda: self.cluster.find(self.path), lambda found: not found, seconds)
        assert not self.cluster.find(self.limit)


def _is_ending(metadata: Json) -> bool:
    return "deletionTimestamp" in metadata


@pytest.mark.rule("M10")
def test_namespace_ends_without_an_agent_or_once_the_operator_is_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The node that does not answer is waited for while the other situations are tried."""
    with Operator(cluster, tmp_path) as operator:
        operator.ready().leads()
        deserted, ordinary, meanwhile = (Doomed(cluster) for _ in range(3))
        cluster.set_ready(deserted.agent, False)
        began = time.monotonic()
        deserted.delete()
        ordinary.delete()
        ordinary.release()
        ordinary.gone()

        deserted.gone(2 * LEFT_SECONDS)
        assert time.monotonic() - began >= LEFT_SECONDS - 1
        events = eventually(lambda: _events_on(cluster, deserted.node), bool)
        assert deserted.group.rpartition("/")[2] in events[0]["note"]
        assert operator.process.poll() is None
        assert not [line for line in operator.log if "Event was dropped" in line["message"]]
        assert operator.terminate() == 0

    meanwhile.delete()
    eventually(lambda: _finalizers_remain(cluster, meanwhile.path), bool)
    assert cluster.find(meanwhile.path)["status"]["phase"] == "Terminating"
    with Operator(cluster, tmp_path) as operator:
        operator.ready().leads()
        meanwhile.release()
        meanwhile.gone()


def _finalizers_remain(cluster: Cluster, path: str) -> bool:
    """Whether the namespace controller looked, and only finalizers keep the namespace."""
    conditions = cluster.find(path)["status"].get("conditions", [])
    return any(
        each["type"] == "NamespaceFinalizersRemaining" and each["status"] == "True"
        for each in conditions
    )


def _events_on(cluster: Cluster, node: str) -> list[Json]:
    """The Events of what was left on a node."""
    listed = cluster.send("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    return [
        each
        for each in listed
        if (each["regarding"]["kind"], each["regarding"]["name"], each["reason"])
        == ("Node", node, "LeftOnNode")
    ]


@pytest.mark.rule("M10")
def test_without_an_operator_the_documented_patch_ends_a_namespace(
    cluster: Cluster, tmp_path: Path
) -> None:
    with Operator(cluster, tmp_path) as operator:
        operator.ready().leads()
        doomed = Doomed(cluster)
        assert operator.terminate() == 0
    doomed.delete()
    name = doomed.group.rpartition("/")[2]
    patch = '{"metadata":{"finalizers":null}}'
    cluster.kubectl(
        "-n", doomed.name, "patch", "sharedmemorygroup", name, "--type=merge", "-p", patch
    )
    doomed.gone()
