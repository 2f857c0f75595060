"""Rights of the chart: each right is used, and none is missing, by the API server's audit log.

Each identity has its own API server, and sends every request that it ever sends. So a right without
a request is superfluous, and a forbidden request is a missing right.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cluster import chart
from cluster.controlplane import ControlPlane

from ..waiting import eventually, output
from .conftest import ROOT, run_kubectl
from .operators import LEASE, PINWARDEN, SYSTEM, Cluster, Operator
from .test_agent import Agent, Node
from .uninstalling import mode

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class Right(NamedTuple):
    """`resource` with its subresource; `name` where the right is bound to one."""

    group: str
    resource: str
    verb: str
    name: str = ""


@pytest.fixture
def server() -> Iterator[ControlPlane]:
    with ControlPlane(audit=True) as running:
        everything = chart.manifest(only=["operator/access.yaml", "agent/access.yaml"])
        hooks = yaml.safe_dump_all(hook_rights("uninstall/access.yaml"))
        for arguments, stdin in (
            (("apply", "--server-side", "-f", str(ROOT / "crds")), ""),
            (
                ("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds")),
                "",
            ),
            (("apply", "--server-side", "-f", "-"), everything),
            (("apply", "--server-side", "-f", "-"), hooks),
        ):
            done = run_kubectl(running.kubeconfig, *arguments, stdin=stdin)
            assert done.returncode == 0, done.stderr
        yield running


def hook_rights(template: str) -> list[chart.Object]:
    return chart.render(only=[template])


def granted(template: str) -> set[Right]:
    """By the roles of a template."""
    rules = [
        rule
        for each in chart.render(only=[template])
        if each["kind"].endswith("Role")
        for rule in each["rules"]
    ]
    return {
        Right(group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def requests(server: ControlPlane, user: str) -> Iterable[dict[str, Any]]:
    """What the user asked of objects."""
    for line in server.audit_log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] == user and "objectRef" in event:
            yield event


def used(server: ControlPlane, user: str, rights: set[Right]) -> set[Right]:
    """Those of the `rights` that the user's requests needed; fails where one was forbidden."""
    found: set[Right] = set()
    for event in requests(server, user):
        asked, code = event["objectRef"], event["responseStatus"]["code"]
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        assert code != 403, f"forbidden: {event['requestURI']} {event['responseStatus']}"
        # an apply that made the object needs the right to create it, too
        for verb in {event["verb"], "create" if code == 201 else event["verb"]}:
            for name in {"", asked.get("name", "")}:
                found.add(Right(asked.get("apiGroup", ""), resource, verb, name))
    return found & rights


def identity(name: str) -> str:
    return f"system:serviceaccount:{SYSTEM}:{name}"


def test_rights_of_the_operator_are_the_documented_ones(
    server: ControlPlane, tmp_path: Path
) -> None:
    cluster = Cluster(server)
    with Operator(cluster, tmp_path) as operator:
        operator.ready().leads()
        node, namespace = cluster.node(), cluster.namespace()
        cluster.agent(node)
        cluster.pod(namespace, node)
        limit, ceiling = cluster.limit(namespace, limit="1Mi"), cluster.ceiling()
        group = cluster.group(namespace)

        def applied() -> bool:
            cluster.report_groups(node)
            return all(
                cluster.condition(each, "Applied")[0] == "True" for each in (limit, ceiling, group)
            )

        eventually(lambda: cluster.config(node), bool)
        eventually(applied, bool)
        refused = cluster.limit(namespace, counting="OncePerPod")
        eventually(
            lambda: cluster.condition(refused, "Accepted")[0], lambda status: status == "False"
        )
        cluster.send("DELETE", group)

        def gone() -> bool:
            cluster.report_groups(node, "Released")
            return not cluster.find(group)

        eventually(gone, bool)
        cluster.send("DELETE", LEASE)
        eventually(cluster.holder, bool)
        cluster.merge(
            f"{CRDS}/pinlimits.pinwarden.io", {"metadata": {"annotations": {"seen": "again"}}}
        )
        wanted = granted("operator/access.yaml")
        user = identity("pinwarden-operator")
        eventually(lambda: wanted - used(server, user, wanted), lambda unused: not unused)
    assert used(server, user, wanted) == wanted


def test_rights_of_the_agent_are_the_documented_ones(server: ControlPlane, tmp_path: Path) -> None:
    node = Node(server, tmp_path)
    generation = node.configure()
    with Agent(node):
        node.acknowledged(generation)
        node.acknowledged(node.configure(unknownPods=4096))
    wanted = granted("agent/access.yaml")
    assert used(server, identity("pinwarden-agent"), wanted) == wanted


def test_rights_of_uninstalling_are_the_documented_ones(
    server: ControlPlane, tmp_path: Path
) -> None:
    cluster = Cluster(server)
    with Operator(cluster, tmp_path) as operator:
        operator.leads()
        node, namespace = cluster.node(), cluster.namespace()
        cluster.merge(
            f"/api/v1/namespaces/{namespace}",
            {"metadata": {"annotations": {"pinwarden.io/allow-shared-memory": "create:1Mi"}}},
        )
        cluster.pod(namespace, node)
        group = cluster.group(namespace, backing={"tmpfs": {}}, management="Create", capacity="1Mi")
        eventually(lambda: cluster.find(group)["metadata"].get("finalizers"), bool)
        eventually(lambda: cluster.limits_on(node), bool)
        cluster.report_groups(node)
        cluster.deployment()
        kubeconfig = server.kubeconfig_for(
            identity("pinwarden-uninstall"), ["system:authenticated"]
        )
        run = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pinwarden",
                "uninstall",
                f"--kubeconfig={kubeconfig}",
                "--timeout=20",
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT / "operator")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually(lambda: drains(cluster, node), bool, 60)  # the groups are listed by then
        finalizers = cluster.find(group)["metadata"]["finalizers"]
        cluster.merge(group, {"metadata": {"finalizers": [*finalizers, "example.org/mine"]}})
        eventually(lambda: mode(cluster, node), lambda last: last == "Release", 60)
        said, wrong = output(run, 60)
        assert run.returncode == 0, wrong
        assert (
            "no agent runs on these nodes, so their limits and shared memory stay until a reboot: "
            f"{node}" in said
        )
        assert cluster.find(group)["metadata"]["finalizers"] == ["example.org/mine"]
        assert not cluster.send("GET", f"{PINWARDEN}/nodepinconfigs")["items"]
        (owner,) = cluster.find(LEASE)["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Deployment", "pinwarden-operator")
        assert operator.metric("pinwarden_operator_leader") == 0.0
        assert operator.process.poll() is None
    wanted = granted("uninstall/access.yaml")
    assert used(server, identity("pinwarden-uninstall"), wanted) == wanted


def drains(cluster: Cluster, node: str) -> bool:
    groups = cluster.config(node).get("spec", {}).get("groups", ())
    return any(group.get("draining") for group in groups)
