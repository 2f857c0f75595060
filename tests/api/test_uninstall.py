"""`pinwarden uninstall` against a real API server and a real operator: it does all of it, or nothing, and says which.

That it succeeds, and with which rights, is in test_rights.py; what becomes of real nodes in tests/cluster/test_install.py.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest

from .conftest import ROOT
from .operators import LEASE, SYSTEM, Cluster, Operator, config_path, eventually, prepared

SECONDS = 4


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    with prepared() as made:
        made.deployment()
        yield made


@pytest.fixture
def operator(own: Cluster, tmp_path: Path) -> Iterator[Operator]:
    with Operator(own, tmp_path) as running:
        yield running.leads()


def uninstall(cluster: Cluster, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "pinwarden", "uninstall", f"--kubeconfig={cluster.server.kubeconfig}"),
            *(f"--timeout={SECONDS}", *options),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "operator")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def mode(cluster: Cluster, node: str) -> str:
    return str(cluster.config(node).get("spec", {}).get("mode", ""))


def gate(cluster: Cluster, namespace: str, node: str) -> str:
    profile = {"type": "Localhost", "localhostProfile": "pinwarden/runtime-default-v2.json"}
    container = {"name": "main", "image": "main", "securityContext": {"seccompProfile": profile}}
    body = {"metadata": {"name": "gated"}, "spec": {"nodeName": node, "containers": [container]}}
    cluster.send("POST", f"/api/v1/namespaces/{namespace}/pods", body)
    return f"{namespace}/gated"


@pytest.mark.rule("H3")
def test_where_an_agent_runs_and_does_not_answer_all_is_put_back(own: Cluster, operator: Operator) -> None:
    node, namespace = own.node(), own.namespace()
    agent = own.agent(node)
    own.pod(namespace, node)
    own.limit(namespace)
    eventually(lambda: own.held(node), bool)
    own.acknowledge(node)
    before = own.config(node)["spec"]
    run = uninstall(own)
    eventually(lambda: mode(own, node), lambda last: last == "Release")
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert f"though their agents run: {node}" in said
    eventually(lambda: own.config(node)["spec"], lambda last: last == before)
    assert operator.metric("pinwarden_operator_leader") == 1.0
    own.send("DELETE", agent)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", config_path(node))


def test_an_agent_on_a_node_that_is_lost_is_not_waited_for_in_vain(own: Cluster, operator: Operator) -> None:
    """The kubelet of a dead node never takes back that its agent is ready."""
    node, namespace = own.node(), own.namespace()
    agent = own.agent(node)
    own.pod(namespace, node)
    eventually(lambda: own.config(node), bool)
    own.acknowledge(node)
    own.set_lost(node, True)
    run = uninstall(own)
    said, wrong = run.communicate(timeout=60)
    assert run.returncode == 0, wrong
    assert f"no agent runs on these nodes, so what they hold stays until they are rebooted: {node}" in said
    own.send("DELETE", agent)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", LEASE)


@pytest.mark.rule("H1")
def test_where_the_operator_has_no_deployment_it_says_that_one_may_go_on(
    own: Cluster, operator: Operator
) -> None:
    deployment = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/pinwarden-operator"
    own.send("DELETE", deployment)
    node = own.node()
    eventually(lambda: own.config(node), bool)
    said, wrong = uninstall(own).communicate(timeout=60)
    assert "there is no Deployment pinwarden-operator in the namespace pinwarden-system" in said, wrong
    eventually(lambda: own.config(node), bool)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.deployment()


def test_a_node_that_never_had_an_agent_is_not_waited_for(own: Cluster, operator: Operator) -> None:
    node, namespace = own.node(), own.namespace()
    own.pod(namespace, node)
    eventually(lambda: own.config(node), bool)
    run = uninstall(own, "--timeout=60")
    said, wrong = run.communicate(timeout=40)
    assert run.returncode == 0, wrong
    assert "no agent runs" not in said
    assert not own.config(node)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", LEASE)


def test_ended_half_way_it_gives_the_lease_back(own: Cluster, operator: Operator) -> None:
    node, namespace = own.node(), own.namespace()
    agent = own.agent(node)
    own.pod(namespace, node)
    own.limit(namespace)
    eventually(lambda: own.held(node), bool)
    before = own.config(node)["spec"]
    run = uninstall(own, "--timeout=60")
    eventually(lambda: mode(own, node), lambda last: last == "Release")
    run.terminate()
    _, said = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "it was ended before it was done" in said
    eventually(lambda: own.config(node)["spec"], lambda last: last == before)
    own.send("DELETE", agent)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", config_path(node))


def test_a_finalizer_that_another_set_too_goes_and_what_is_gone_fails_nothing(
    own: Cluster, operator: Operator
) -> None:
    node, namespace = own.node(), own.namespace()
    own.pod(namespace, node)
    group, other = own.group(namespace), own.group(namespace)
    for each in (group, other):
        eventually(lambda each=each: own.find(each)["metadata"].get("finalizers"), bool)  # type: ignore[misc]
    own.merge(group, {"metadata": {"finalizers": ["pinwarden.io/shared-memory", "example.org/mine"]}})
    run = uninstall(own)
    eventually(lambda: own.holder(), lambda holder: holder.startswith("pinwarden-uninstall"))
    own.merge(other, {"metadata": {"finalizers": None}})
    own.send("DELETE", other)
    _, wrong = run.communicate(timeout=60)
    assert run.returncode == 0, wrong
    assert own.find(group)["metadata"]["finalizers"] == ["example.org/mine"]
    assert not own.find(other)
    own.merge(group, {"metadata": {"finalizers": None}})
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", LEASE)


def test_a_finalizer_that_was_under_way_when_the_lease_was_taken_goes_too(
    own: Cluster, operator: Operator
) -> None:
    node, namespace = own.node(), own.namespace()
    own.pod(namespace, node)
    group = own.group(namespace)
    finalizers = eventually(lambda: own.find(group)["metadata"].get("finalizers"), bool)
    eventually(lambda: own.held(node), bool)
    own.report_groups(node)
    operator.process.send_signal(signal.SIGSTOP)
    own.merge(group, {"metadata": {"finalizers": None}})
    run = uninstall(own)
    eventually(lambda: mode(own, node), lambda last: last == "Release")
    own.merge(group, {"metadata": {"finalizers": finalizers}})
    _, wrong = run.communicate(timeout=60)
    assert run.returncode == 0, wrong
    assert not own.find(group)["metadata"].get("finalizers")
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", LEASE)


def test_in_the_wrong_namespace_it_does_not_begin(own: Cluster, operator: Operator) -> None:
    node = own.node()
    eventually(lambda: own.config(node), bool)
    said = uninstall(own, "--namespace=elsewhere").communicate(timeout=60)[1]
    assert "no Lease pinwarden-operator in the namespace elsewhere" in said
    assert mode(own, node) == "Active"
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", config_path(node))


def test_gated_pods_keep_it_from_beginning(own: Cluster, operator: Operator) -> None:
    node, namespace = own.node(), own.namespace()
    name = gate(own, namespace, node)
    lease = own.find(LEASE)["spec"]["holderIdentity"]
    eventually(lambda: own.config(node), bool)
    said = uninstall(own).communicate(timeout=60)[1]
    assert (
        f"1 pods have the gate's seccomp profile, and their pinning calls would fail with ENOSYS without the gate: {name}."
        in said
    )
    assert own.find(LEASE)["spec"]["holderIdentity"] == lease
    run = uninstall(own, "--gated-pods=Break")
    out, wrong = run.communicate(timeout=60)
    assert run.returncode == 0, wrong
    assert f"pinning calls of these pods fail with ENOSYS from now on: {name}" in out
    own.send("DELETE", LEASE)


def test_what_is_written_meanwhile_is_written_over(own: Cluster, operator: Operator) -> None:
    """A write of the operator that was under way when the Lease was taken may come after the release."""
    node = own.node()
    own.agent(node)
    eventually(lambda: own.config(node), bool)
    own.acknowledge(node)
    run = uninstall(own, "--timeout=40", "--gated-pods=Break")
    eventually(lambda: mode(own, node), lambda last: last == "Release")
    own.merge(f"/apis/pinwarden.io/v1alpha1/nodepinconfigs/{node}", {"spec": {"mode": "Active"}})
    eventually(lambda: mode(own, node), lambda last: last == "Release")

    def over() -> bool:
        with suppress(HTTPError, KeyError):  # it may be gone by now
            own.acknowledge(node)
        return run.poll() is not None

    eventually(over, bool, 60)
    assert run.returncode == 0, json.dumps(run.communicate())
