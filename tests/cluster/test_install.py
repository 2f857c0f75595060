"""The chart on a real cluster of two nodes: upgraded from the commit before, and uninstalled.

Only objects that docs/uninstall.md names may stay behind, also if a node is dead. Uninstalling
fails while gated pods run.
"""

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import chart, image
from cluster.cluster import Cluster
from cluster.install import ROOT, environment
from cluster.machine import Kind

from ..waiting import until
from .test_faults import in_force

SYSTEM = chart.NAMESPACE
NAMESPACE = "installed"
MIB = 2**20
OBJECT = f"/run/pinwarden-shared/{NAMESPACE}/cache"
LIMIT = {
    "apiVersion": "pinwarden.io/v1alpha1",
    "kind": "PinLimit",
    "metadata": {"name": "limited", "namespace": NAMESPACE},
    "spec": {"podSelector": {"matchLabels": {"app": "one"}}, "limit": "3Mi"},
}
RELEASE = ("pinwarden", "--namespace", SYSTEM)
WAIT = ("--wait", "--timeout", "600s")
NAMES = re.compile(r"(^|/)pinwarden-")
KINDS = (
    "deployments.apps,daemonsets.apps,jobs.batch,pods,serviceaccounts,services,configmaps,"
    "leases.coordination.k8s.io,"
    "roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io,"
    "poddisruptionbudgets.policy,networkpolicies.networking.k8s.io"
)
CLUSTER_KINDS = (
    "clusterroles.rbac.authorization.k8s.io,clusterrolebindings.rbac.authorization.k8s.io,"
    "nodepinconfigs.pinwarden.io,"
    "validatingadmissionpolicies.admissionregistration.k8s.io,"
    "validatingadmissionpolicybindings.admissionregistration.k8s.io,"
    "mutatingadmissionpolicies.admissionregistration.k8s.io,"
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io"
)


class Site:
    """A cluster, with kubectl and helm as its user has them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes = cluster.nodes

    def run(self, *command: str, stdin: str = "", fails: bool = False) -> str:
        """Both outputs of a command that succeeds, or fails."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment(self.cluster.kubeconfig),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.run("kubectl", *arguments, stdin=stdin)

    def helm(self, *arguments: str, fails: bool = False) -> str:
        return self.run("helm", *arguments, fails=fails)

    def install(self, *options: str, source: Path = chart.CHART) -> None:
        """The chart, and a limit for the pods that are there."""
        self.helm(
            "install", RELEASE[0], str(source), *RELEASE[1:], "--create-namespace", *WAIT, *options
        )
        self.kubectl("apply", "-f", "-", stdin=json.dumps(LIMIT))

    def uninstall(self, fails: bool = False) -> str:
        return self.helm("uninstall", *RELEASE, *WAIT, fails=fails)

    def conditions(self) -> dict[str, str]:
        limit = json.loads(
            self.kubectl("-n", NAMESPACE, "get", "pinlimit", "limited", "-o", "json")
        )
        status = limit.get("status", {})
        if status.get("observedGeneration") != limit["metadata"]["generation"]:
            return {}
        return {one["type"]: one["status"] for one in status.get("conditions", [])}

    def enforced(self) -> bool:
        conditions = self.conditions()
        return conditions.get("Applied") == "True" and conditions.get("Enforced") == "True"

    def left(self) -> list[str]:
        """Every object of pinwarden's that is still there."""
        found = self.kubectl("-n", SYSTEM, "get", KINDS, "-o", "name", "--ignore-not-found")
        found += self.kubectl("get", CLUSTER_KINDS, "-o", "name", "--ignore-not-found")
        return [
            name for name in found.split() if NAMES.search(name) or name.startswith("nodepinconfig")
        ]


def with_pods(cluster: Cluster) -> Site:
    """The cluster with a pod on each node that locks 2 MiB."""
    site = Site(cluster)
    site.kubectl("create", "namespace", NAMESPACE)
    site.kubectl("annotate", "namespace", NAMESPACE, "pinwarden.io/allow-shared-memory=create:64Mi")
    site.kubectl(
        "-n", NAMESPACE, "create", "configmap", "pinner", "--from-file=examples/demo/pinner.py"
    )
    pod = (ROOT / "examples/demo/pods.yaml").read_text().split("---\n")[0]
    for node in site.nodes:
        made = pod.replace("name: one", f"name: {node.name}", 1).replace(
            "--wait-for-limit, --mebibytes=32", "--mebibytes=2"
        )
        made = made.replace("spec:\n", f"spec:\n  nodeName: {node.name}\n", 1)
        site.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=made)
    site.kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=240s")
    return site


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the commit before; in a clone without history the commit itself."""
    tree = tmp_path_factory.mktemp("previous")
    known = subprocess.run(
        ["git", "rev-parse", "--verify", "HEAD~1"], cwd=ROOT, capture_output=True, check=False
    )
    commit = "HEAD~1" if known.returncode == 0 else "HEAD"
    subprocess.run(["git", "archive", f"--output={tree}/tree.tar", commit], cwd=ROOT, check=True)
    with tarfile.open(tree / "tree.tar") as packed:
        packed.extractall(tree, filter="data")
    return tree


@pytest.fixture(scope="module")
def two(previous: Path) -> Iterator[Site]:
    """A cluster whose nodes have both images, and a pod on each that locks 2 MiB."""
    archive = image.image_of(previous, f"{image.NAME.partition(':')[0]}:previous")
    with Cluster([Kind.UML] * 2, images=[archive]) as running:
        yield with_pods(running)


def test_upgrade_from_the_commit_before_loses_no_limit(two: Site, previous: Path) -> None:
    given = [in_force(node) for node in two.nodes]
    assert given == [8 * MIB, 8 * MIB]
    two.install("--set=image.tag=previous", source=previous / "charts" / "pinwarden")
    two.kubectl("apply", "-f", "-", stdin=json.dumps(LIMIT))
    until(two.enforced, "the limit is enforced")
    two.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--field-manager=helm"),
        *("-f", "charts/pinwarden/crds"),
    )
    two.helm("upgrade", RELEASE[0], str(chart.CHART), *RELEASE[1:], "--reset-values", *WAIT)

    def images() -> set[str]:
        found = two.kubectl(
            "-n", SYSTEM, "get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}"
        )
        return set(found.split())

    until(lambda: images() == {image.NAME}, "the old pods are gone")
    until(two.enforced, "the limit is enforced by the new version")
    assert [in_force(node) for node in two.nodes] == [3 * MIB, 3 * MIB]


def test_charts_own_test_passes(two: Site) -> None:
    assert "Succeeded" in two.helm("test", *RELEASE, "--timeout", "300s")


def test_uninstall_with_gated_pods_fails_and_changes_nothing(two: Site) -> None:
    two.kubectl("create", "namespace", "gated")
    two.kubectl("label", "namespace", "gated", "pinwarden.io/gate=runtime-default")
    overrides = {"spec": {"terminationGracePeriodSeconds": 0}}
    two.kubectl(
        *("-n", "gated", "run", "db", f"--image={image.NAME}", "--image-pull-policy=IfNotPresent"),
        *(
            f"--overrides={json.dumps(overrides)}",
            "--command",
            "--",
            "python3",
            "-c",
            "import time; time.sleep(1e6)",
        ),
    )
    said = two.uninstall(fails=True)
    assert "gated/db" in said
    assert "pinwarden.io/gate" in said
    two.kubectl(
        "-n",
        NAMESPACE,
        "patch",
        "pinlimit",
        "limited",
        "--type=merge",
        "-p",
        '{"spec": {"limit": "4Mi"}}',
    )
    until(two.enforced, "the operator goes on")
    assert [in_force(node) for node in two.nodes] == [4 * MIB, 4 * MIB]
    two.kubectl("delete", "namespace", "gated", "--timeout=240s")


@pytest.mark.rule("H3", level="Converge")
def test_uninstall_restores_every_limit_and_leaves_nothing(two: Site) -> None:
    node = two.nodes[0]
    manifest = (ROOT / "examples/demo/shared.yaml").read_text()
    pod = (ROOT / "examples/demo/borrowers.yaml").read_text().split("---\n")[1]
    whole = f"{manifest}\n---\n{pod}".replace("pinwarden-demo", NAMESPACE).replace(
        "demo-shared", NAMESPACE
    )
    two.kubectl(
        "-n", NAMESPACE, "create", "configmap", "borrower", "--from-file=examples/demo/borrower.py"
    )
    two.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=whole)
    two.kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/reader", "--timeout=240s")
    two.kubectl("-n", NAMESPACE, "delete", "pod", "reader", "--timeout=240s")
    said = two.uninstall()
    assert "released: 2 NodePinConfigs" in said
    assert [in_force(each) for each in two.nodes] == [8 * MIB, 8 * MIB]
    until(lambda: two.left() == [], f"nothing is left; {two.left()}")
    group = json.loads(two.kubectl("-n", NAMESPACE, "get", "smg", "cache", "-o", "json"))
    assert not group["metadata"].get("finalizers")
    for each in two.nodes:
        assert OBJECT not in each.exec(["cat", "/proc/mounts"]).stdout
    kept = node.exec(
        ["sh", "-c", "ls -d /var/lib/pinwarden /run/pinwarden* /var/lib/kubelet/seccomp/pinwarden"]
    )
    assert set(kept.stdout.split()) <= {
        *(
            "/var/lib/pinwarden",
            "/run/pinwarden",
            "/run/pinwarden-shared",
            "/var/lib/kubelet/seccomp/pinwarden",
        )
    }
    assert len(json.loads(two.kubectl("get", "crd", "-o", "json"))["items"]) == 4
    two.kubectl("-n", NAMESPACE, "delete", "smg", "cache", "--timeout=60s")


def test_uninstall_names_a_dead_node_and_ends(two: Site) -> None:
    two.install("--set=uninstall.timeoutSeconds=30")
    until(two.enforced, "the limit is enforced")
    dead = two.nodes[1]
    dead.power_cut()
    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    until(
        lambda: two.kubectl("get", "node", dead.name, "-o", ready) != "True",
        "its death is seen",
    )
    said = two.uninstall()
    assert re.search(rf"no agent runs on these nodes.*{dead.name}", said)
    assert in_force(two.nodes[0]) == 8 * MIB
    two.kubectl("delete", "node", dead.name)
    until(lambda: two.left() == [], "nothing is left")
