"""Nodes and agents during `pinwarden uninstall`, with a real API server and a real operator.

Success and rights are in test_rights.py, and real nodes in tests/cluster/test_install.py.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest

from ..waiting import eventually, output
from .operators import LEASE, Cluster, Operator, config_path
from .uninstalling import mode, uninstall


@pytest.fixture
def operator(own: Cluster, tmp_path: Path) -> Iterator[Operator]:
    with Operator(own, tmp_path) as running:
        yield running.leads()


@pytest.mark.rule("H3")
def test_uninstall_is_reverted_if_a_running_agent_does_not_answer(
    own: Cluster, operator: Operator
) -> None:
    node, namespace = own.node(), own.namespace()
    agent = own.agent(node)
    own.pod(namespace, node)
    own.limit(namespace)
    eventually(lambda: own.limits_on(node), lambda pods: len(pods) == 2 and any(pods.values()))
    own.acknowledge(node)
    before = own.config(node)["spec"]
    run = uninstall(own)
    eventually(lambda: mode(own, node), lambda last: last == "Release")
    _, said = output(run, 60)
    assert run.returncode == 1
    assert f"though their agents run: {node}" in said
    eventually(lambda: own.config(node)["spec"], lambda last: last == before)
    assert operator.metric("pinwarden_operator_leader") == 1.0
    own.send("DELETE", agent)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", config_path(node))


def test_agent_on_a_node_that_is_lost_is_not_waited_for_in_vain(
    own: Cluster, operator: Operator
) -> None:
    """The kubelet of a dead node never takes back that its agent is ready."""
    node, namespace = own.node(), own.namespace()
    agent = own.agent(node)
    own.pod(namespace, node)
    eventually(lambda: own.config(node), bool)
    own.acknowledge(node)
    own.set_lost(node, True)
    run = uninstall(own)
    said, wrong = output(run, 60)
    assert run.returncode == 0, wrong
    assert (
        "no agent runs on these nodes, so their limits and shared memory stay until a reboot: "
        f"{node}" in said
    )
    own.send("DELETE", agent)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", LEASE)


def test_node_that_never_had_an_agent_is_not_waited_for(own: Cluster, operator: Operator) -> None:
    node, namespace = own.node(), own.namespace()
    own.pod(namespace, node)
    eventually(lambda: own.config(node), bool)
    run = uninstall(own, "--timeout=60")
    said, wrong = output(run, 40)
    assert run.returncode == 0, wrong
    assert "no agent runs" not in said
    assert not own.config(node)
    own.send("DELETE", f"/api/v1/nodes/{node}")
    own.send("DELETE", LEASE)


def test_specs_written_meanwhile_are_overwritten(own: Cluster, operator: Operator) -> None:
    """A write that began before the Lease was taken may end after the release."""
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
