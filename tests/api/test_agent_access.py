"""Rights of the agent's token on a real API server: read all, write the status of its own node.

The tokens are real, and bound to a pod of a node as by the kubelet. RBAC rejects first. The last
tests widen RBAC: the admission policy alone still confines the agent to the status of its node.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from cluster import chart
from cluster.controlplane import ControlPlane

from ..waiting import eventually
from .conftest import run_kubectl

SYSTEM = "pinwarden-system"
AGENT = "pinwarden-agent"
USER = f"system:serviceaccount:{SYSTEM}:{AGENT}"

NO_NODE = "the agent's token names no node: use the token that is mounted into an agent pod"
ONLY_STATUS = "the agent may write only the status of its NodePinConfig: use the status subresource"

Client = Callable[..., CompletedProcess[str]]


@dataclass(frozen=True)
class World:
    """Two NodePinConfigs, and clients: admin, an agent on `own`, a token without a pod."""

    own: str
    other: str
    admin: Client
    agent: Client
    unbound: Client

    @property
    def other_refused(self) -> str:
        return (
            f'the agent of node "{self.own}" may not write the NodePinConfig "{self.other}": '
            f'write only the one named "{self.own}"'
        )


def client(kubeconfig: Path) -> Client:
    return partial(run_kubectl, kubeconfig)


def done(result: CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(result: CompletedProcess[str], *reasons: str) -> None:
    assert result.returncode != 0, result.stdout
    for reason in reasons:
        assert reason in result.stderr


def nodepinconfig(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": "NodePinConfig",
        "metadata": {"name": name},
        "spec": {"mode": "Active"},
    }


def patch_status(who: Client, name: str, *options: str, **more: Any) -> CompletedProcess[str]:
    """Patch the status by server-side apply: `kubectl patch` would need to read it first."""
    body = nodepinconfig(name) | {"status": {"observedGeneration": 7}} | more
    apply = ("apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-")
    return who(*apply, *options, stdin=json.dumps(body))


def patch_spec(who: Client, name: str) -> CompletedProcess[str]:
    """Server-side apply, as `kubectl patch` reads the object first."""
    body = json.dumps(nodepinconfig(name) | {"spec": {"mode": "Release"}})
    return who("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=body)


def create(who: Client, body: dict[str, Any]) -> CompletedProcess[str]:
    return who("create", "-f", "-", stdin=json.dumps(body))


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane, crds: None) -> Iterator[World]:
    admin = client(control_plane.kubeconfig)
    access = chart.manifest(only=["agent/access.yaml"])
    done(admin("apply", "--server-side", "-f", "-", stdin=access))

    own, other = (f"agent-access-{uuid.uuid4().hex[:10]}" for _ in range(2))
    for name in (own, other):
        done(create(admin, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
        done(create(admin, nodepinconfig(name)))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": own, "namespace": SYSTEM},
        "spec": {
            "nodeName": own,
            "serviceAccountName": AGENT,
            "containers": [{"name": "agent", "image": "agent"}],
        },
    }
    done(create(admin, pod))
    uid = done(admin("get", "pod", own, "-n", SYSTEM, "-o", "jsonpath={.metadata.uid}"))
    token = ["create", "token", AGENT, "-n", SYSTEM]
    bound = [f"--bound-object-name={own}", f"--bound-object-uid={uid}", "--bound-object-kind=Pod"]
    agent = client(control_plane.kubeconfig_with(done(admin(*token, *bound)).strip()))
    unbound = client(control_plane.kubeconfig_with(done(admin(*token)).strip()))
    world = World(own, other, admin, agent, unbound)

    eventually(
        lambda: patch_status(agent, own, "--dry-run=server"), lambda last: last.returncode == 0
    )
    eventually(
        lambda: patch_status(agent, other, "--dry-run=server"),
        lambda last: world.other_refused in last.stderr,
    )
    yield world
    done(admin("delete", "pod", own, "-n", SYSTEM, "--force", "--grace-period=0"))
    for name in (own, other):
        done(admin("delete", f"npc/{name}", f"node/{name}"))


@pytest.fixture
def wide_rbac(world: World) -> Iterator[None]:
    """Every verb on nodepinconfigs and their status for the agent, by RBAC."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    resources = "--resource=nodepinconfigs.pinwarden.io,nodepinconfigs.pinwarden.io/status"
    may = ("auth", "can-i", "delete", "nodepinconfigs.pinwarden.io")
    done(world.admin("create", "clusterrole", name, "--verb=*", resources))
    binding = ("create", "clusterrolebinding", name)
    done(world.admin(*binding, f"--clusterrole={name}", f"--serviceaccount={SYSTEM}:{AGENT}"))
    eventually(lambda: world.agent(*may), lambda last: last.returncode == 0)
    yield
    done(world.admin("delete", f"clusterrolebinding/{name}", f"clusterrole/{name}"))
    eventually(lambda: world.agent(*may), lambda last: last.returncode != 0)


def test_agent_reads_and_writes_its_own_status(world: World) -> None:
    done(patch_status(world.agent, world.own))
    listed = json.loads(done(world.agent("get", "npc", "-o", "json")))["items"]
    generations = {
        each["metadata"]["name"]: each.get("status", {}).get("observedGeneration")
        for each in listed
    }
    assert (generations[world.own], generations[world.other]) == (7, None)


def test_write_of_the_status_changes_no_spec(world: World) -> None:
    done(patch_status(world.agent, world.own, spec={"mode": "Release"}))
    assert done(world.admin("get", "npc", world.own, "-o", "jsonpath={.spec.mode}")) == "Active"


def test_status_of_another_node_is_rejected_by_the_policy(world: World) -> None:
    refused(patch_status(world.agent, world.other), "pinwarden-agent-own-node", world.other_refused)
    assert done(world.admin("get", "npc", world.other, "-o", "jsonpath={.status}")) == ""


def test_token_without_a_pod_is_rejected_by_the_policy(world: World) -> None:
    refused(patch_status(world.unbound, world.own), "pinwarden-agent-own-node", NO_NODE)


def test_agents_name_without_a_token_is_rejected_by_the_policy(world: World) -> None:
    refused(
        patch_status(world.admin, world.own, f"--as={USER}"), "pinwarden-agent-own-node", NO_NODE
    )


def test_rbac_rejects_create_delete_and_spec_of_the_own_object(world: World) -> None:
    refused(
        patch_spec(world.agent, world.own), f'User "{USER}" cannot patch resource "nodepinconfigs"'
    )
    refused(
        world.agent("delete", "npc", world.own),
        f'User "{USER}" cannot delete resource "nodepinconfigs"',
    )
    new = nodepinconfig(f"new-{world.own}")
    refused(create(world.agent, new), f'User "{USER}" cannot create resource "nodepinconfigs"')


@pytest.mark.parametrize("resource", ["pinlimits.pinwarden.io", "pods", "secrets"])
def test_rbac_rejects_reading_or_deleting_anything_else(world: World, resource: str) -> None:
    kind = resource.partition(".")[0]
    inside = ("-n", SYSTEM)
    refused(world.agent("get", resource, *inside), f'User "{USER}" cannot list resource "{kind}"')
    refused(
        world.agent("get", resource, "x", *inside), f'User "{USER}" cannot get resource "{kind}"'
    )
    refused(
        world.agent("delete", resource, "x", *inside),
        f'User "{USER}" cannot delete resource "{kind}"',
    )


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("pinlimits", {"apiVersion": "pinwarden.io/v1alpha1", "kind": "PinLimit"}),
        ("pods", {"apiVersion": "v1", "kind": "Pod"}),
        ("secrets", {"apiVersion": "v1", "kind": "Secret"}),
    ],
)
def test_rbac_rejects_creating_anything_else(world: World, kind: str, body: dict[str, Any]) -> None:
    specs: dict[str, dict[str, Any]] = {
        "pinlimits": {"spec": {"podSelector": {}, "limit": "64Mi"}},
        "pods": {"spec": {"containers": [{"name": "c", "image": "c"}]}},
        "secrets": {},
    }
    new = body | {"metadata": {"name": "x", "namespace": SYSTEM}} | specs[kind]
    refused(create(world.agent, new), f'User "{USER}" cannot create resource "{kind}"')


@pytest.mark.usefixtures("wide_rbac")
def test_policy_alone_rejects_all_but_the_own_status(world: World) -> None:
    refused(patch_spec(world.agent, world.own), ONLY_STATUS)
    refused(world.agent("delete", "npc", world.own), ONLY_STATUS)
    refused(patch_spec(world.agent, world.other), world.other_refused)
    refused(world.agent("delete", "npc", world.other), world.other_refused)
    refused(
        create(world.agent, nodepinconfig(f"new-{world.own}")), "may not write the NodePinConfig"
    )
    for write in (patch_status, patch_spec):
        refused(write(world.unbound, world.own), NO_NODE)
    refused(world.unbound("delete", "npc", world.own), NO_NODE)
    done(patch_status(world.agent, world.own))


@pytest.mark.usefixtures("wide_rbac")
def test_policy_alone_rejects_creating_the_own_object(world: World) -> None:
    done(world.admin("delete", "npc", world.own))
    try:
        refused(create(world.agent, nodepinconfig(world.own)), ONLY_STATUS)
    finally:
        done(create(world.admin, nodepinconfig(world.own)))
