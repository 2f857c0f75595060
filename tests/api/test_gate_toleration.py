"""The annotation that lets a pod start without the gate: only listed namespaces may use it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import chart
from cluster.controlplane import ControlPlane

from ..waiting import until
from .conftest import Kubectl, run_kubectl

KEY = "start-ungated.example.org"
"""Without a slash, so that the runtime's forms `KEY/pod` and `KEY/container.NAME` are valid."""
FORMS = (KEY, f"{KEY}/pod", f"{KEY}/container.main")
VALUES = {
    "gate": {
        "mode": "Governed",
        "nri": {"tolerationAnnotation": KEY, "tolerationNamespaces": ["kube-system", "csi"]},
    }
}
REJECTED = "gate.nri.tolerationNamespaces of the pinwarden chart"
KUBELET = ("--as=kubelet", "--as-group=system:nodes", "--as-group=system:masters")


def pod(name: str, key: str = "", value: str = "true", **annotations: str) -> dict[str, Any]:
    annotations |= {key: value} if key else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"nodeSelector": {"none": ""}, "containers": [{"name": "main", "image": "x"}]},
    }


class Author:
    """A namespace that is not listed, with one pod from before the policy: `older`."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    def run(self, *arguments: str, stdin: Any = "") -> str:
        """Run kubectl in the namespace, and return the error, empty on success."""
        text = stdin if isinstance(stdin, str) else json.dumps(stdin)
        done = run_kubectl(self.kubeconfig, "-n", self.namespace, *arguments, stdin=text)
        return done.stderr if done.returncode else ""

    def create(self, manifest: dict[str, Any], *options: str) -> str:
        return self.run("create", "-f", "-", *options, stdin=manifest)


@pytest.fixture(scope="module")
def author(control_plane: ControlPlane) -> Iterator[Author]:
    """The author, in a cluster with the policy."""
    author = Author(control_plane.kubeconfig, "toleration")
    for namespace in (author.namespace, "csi", chart.NAMESPACE):
        run_kubectl(author.kubeconfig, "create", "namespace", namespace)
    assert not author.create(pod("older", KEY, "false"))
    assert not author.create(pod("plain"))
    policy = yaml.safe_dump_all(chart.render(given=VALUES, only=["gate/toleration.yaml"]))
    assert not author.run("apply", "--server-side", "-f", "-", stdin=policy)
    dry = "--dry-run=server"
    until(lambda: REJECTED in author.create(pod("x", KEY), dry), "the policy is in force")
    yield author
    author.run("delete", "-f", "-", stdin=policy)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", ["true", "false", "1", ""])
def test_pod_with_the_annotation_is_rejected_with_its_key_and_the_namespaces(
    author: Author, form: str, value: str
) -> None:
    rejection = author.create(pod("new", form, value))
    assert f"annotation {form} lets containers start without the gate" in rejection
    assert f"kube-system, csi, {chart.NAMESPACE}; remove the annotation" in rejection
    assert REJECTED in rejection


@pytest.mark.parametrize("subresource", ["", "status"])
@pytest.mark.parametrize("form", FORMS)
def test_annotation_that_is_added_to_a_pod_is_rejected(
    author: Author, form: str, subresource: str
) -> None:
    patch = json.dumps({"metadata": {"annotations": {form: "true"}}})
    options = [f"--subresource={subresource}"] if subresource else []
    assert REJECTED in author.run("patch", "pod", "plain", "--type=merge", "-p", patch, *options)


@pytest.mark.parametrize("path", ["pods/plain/binding", "bindings"])
def test_annotation_of_a_binding_is_rejected(author: Author, path: str) -> None:
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "plain", "annotations": {KEY: "true"}},
        "target": {"kind": "Node", "name": "node"},
    }
    url = f"/api/v1/namespaces/{author.namespace}/{path}"
    assert REJECTED in author.run("create", "--raw", url, "-f", "-", stdin=binding)


def test_pod_from_before_the_policy_can_be_changed_and_its_annotation_removed(
    author: Author,
) -> None:
    assert not author.run("label", "pod", "older", "app=db")
    assert REJECTED in author.run("annotate", "--overwrite", "pod", "older", f"{KEY}=true")
    assert not author.run("annotate", "pod", "older", f"{KEY}-")
    assert REJECTED in author.run("annotate", "pod", "older", f"{KEY}=false")


@pytest.mark.parametrize("namespace", ["kube-system", "csi", chart.NAMESPACE])
def test_pod_of_a_listed_namespace_may_have_the_annotation(
    kubectl: Kubectl, author: Author, namespace: str
) -> None:
    assert REJECTED in author.create(pod("tolerated", KEY))
    kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(pod("tolerated", KEY)))
    kubectl("-n", namespace, "annotate", "--overwrite", "pod", "tolerated", f"{KEY}=1")
    kubectl("-n", namespace, "delete", "pod", "tolerated", "--now")


def test_other_annotations_are_accepted(author: Author) -> None:
    others = {f"x-{KEY}": "true", f"{KEY}.x": "true", f"{KEY}x/pod": "true"}
    assert not author.create(pod("others", **others))


def test_mirror_of_a_static_pod_is_accepted_from_a_kubelet_alone(author: Author) -> None:
    mirror = pod("mirror", KEY, **{"kubernetes.io/config.mirror": "x"})
    mirror["spec"]["nodeName"] = "node"
    assert REJECTED in author.create(mirror)
    assert not author.create(mirror, *KUBELET)
