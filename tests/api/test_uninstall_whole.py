"""`pinwarden uninstall` completes or changes nothing, and reports which of the two.

The API server and the operator are real.
"""

import signal
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ..waiting import eventually, output
from .operators import LEASE, SYSTEM, Cluster, Operator, config_path
from .uninstalling import gate, mode, uninstall


@pytest.fixture
def operator(own: Cluster, tmp_path: Path) -> Iterator[Operator]:
    with Operator(own, tmp_path) as running:
        yield running.leads()


@pytest.mark.rule("H1")
def test_uninstall_without_a_deployment_warns_of_a_running_operator(
    own: Cluster, operator: Operator
) -> None:
    deployment = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/pinwarden-operator"
    own.send("DELETE", deployment)
    node = own.node()
    eventually(lambda: own.config(node), bool)
    said, wrong = output(uninstall(own), 60)
    assert "there is no Deployment pinwarden-operator in the namespace pinwarden-system" in said, (
        wrong
    )
    eventually(lambda: own.config(node), bool)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.deployment()


def test_interrupted_uninstall_releases_the_lease(own: Cluster, operator: Operator) -> None:
    node, namespace = own.node(), own.namespace()
    agent = own.agent(node)
    own.pod(namespace, node)
    own.limit(namespace)
    eventually(lambda: own.limits_on(node), lambda pods: len(pods) == 2 and any(pods.values()))
    before = own.config(node)["spec"]
    run = uninstall(own, "--timeout=60")
    eventually(lambda: mode(own, node), lambda last: last == "Release")
    run.terminate()
    _, said = output(run)
    assert run.returncode == 1
    assert "interrupted before the end" in said
    eventually(lambda: own.config(node)["spec"], lambda last: last == before)
    own.send("DELETE", agent)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", config_path(node))


def test_finalizer_beside_another_one_is_removed_and_gone_objects_are_no_failure(
    own: Cluster, operator: Operator
) -> None:
    node, namespace = own.node(), own.namespace()
    own.pod(namespace, node)
    group, other = own.group(namespace), own.group(namespace)
    for path in (group, other):
        eventually(partial(own.find, path), lambda found: found["metadata"].get("finalizers"))
    own.merge(
        group, {"metadata": {"finalizers": ["pinwarden.io/shared-memory", "example.org/mine"]}}
    )
    run = uninstall(own)
    eventually(lambda: own.holder(), lambda holder: holder.startswith("pinwarden-uninstall"))
    own.merge(other, {"metadata": {"finalizers": None}})
    own.send("DELETE", other)
    _, wrong = output(run, 60)
    assert run.returncode == 0, wrong
    assert own.find(group)["metadata"]["finalizers"] == ["example.org/mine"]
    assert not own.find(other)
    own.merge(group, {"metadata": {"finalizers": None}})
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", LEASE)


def test_finalizer_that_was_under_way_when_the_lease_was_taken_goes_too(
    own: Cluster, operator: Operator
) -> None:
    node, namespace = own.node(), own.namespace()
    own.pod(namespace, node)
    group = own.group(namespace)
    finalizers = eventually(lambda: own.find(group)["metadata"].get("finalizers"), bool)
    eventually(lambda: own.limits_on(node), bool)
    own.report_groups(node)
    operator.process.send_signal(signal.SIGSTOP)
    own.merge(group, {"metadata": {"finalizers": None}})
    run = uninstall(own)
    eventually(lambda: mode(own, node), lambda last: last == "Release")
    own.merge(group, {"metadata": {"finalizers": finalizers}})
    _, wrong = output(run, 60)
    assert run.returncode == 0, wrong
    assert not own.find(group)["metadata"].get("finalizers")
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", LEASE)


def test_uninstall_in_the_wrong_namespace_does_not_begin(own: Cluster, operator: Operator) -> None:
    node = own.node()
    eventually(lambda: own.config(node), bool)
    said = output(uninstall(own, "--namespace=elsewhere"), 60)[1]
    assert "no Lease pinwarden-operator in the namespace elsewhere" in said
    assert mode(own, node) == "Active"
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", config_path(node))


def test_uninstall_with_gated_pods_does_not_begin(own: Cluster, operator: Operator) -> None:
    node, namespace = own.node(), own.namespace()
    name = gate(own, namespace, node)
    lease = own.find(LEASE)["spec"]["holderIdentity"]
    eventually(lambda: own.config(node), bool)
    said = output(uninstall(own), 60)[1]
    assert "1 pod would lose the gate." in said
    assert f"Gated by a profile: {name}." in said
    assert own.find(LEASE)["spec"]["holderIdentity"] == lease
    run = uninstall(own, "--gated-pods=Break")
    out, wrong = output(run, 60)
    assert run.returncode == 0, wrong
    assert f"and kubectl exec into them fails: {name}" in out
    own.send("DELETE", LEASE)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.kubectl("delete", "pod", "gated", f"--namespace={namespace}", "--force")


@pytest.mark.rule("H1")
def test_uninstall_with_pods_that_the_plugin_gated_does_not_begin(
    own: Cluster, operator: Operator
) -> None:
    node, namespace, hashed = own.node(), own.namespace(), uuid.uuid4().hex
    pods = [own.pod(namespace, node), own.static_pod(namespace, node, hashed)]
    later = own.pod(namespace, node)
    eventually(lambda: own.config(node), bool)
    own.acknowledge(node, gatedPods=sorted([pods[0]["metadata"]["uid"], hashed, "of-a-gone-pod"]))
    lease = own.find(LEASE)["spec"]["holderIdentity"]
    said = output(uninstall(own), 60)[1]
    assert "2 pods would lose the gate." in said
    names = sorted(f"{namespace}/{pod['metadata']['name']}" for pod in pods)
    assert f"Gated by the NRI plugin: {', '.join(names)}." in said
    assert "gate.mode=Off" in said
    assert own.find(LEASE)["spec"]["holderIdentity"] == lease
    assert mode(own, node) == "Active"
    own.acknowledge(node, gatedPods=[])
    run = uninstall(own)
    eventually(lambda: mode(own, node), lambda last: last == "Release")
    own.acknowledge(node, gatedPods=[later["metadata"]["uid"]])
    said = output(run, 60)[1]
    assert f"Gated by the NRI plugin: {namespace}/{later['metadata']['name']}." in said
    eventually(lambda: mode(own, node), lambda last: last == "Active")
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", config_path(node))
