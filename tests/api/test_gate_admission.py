"""Pods of labelled namespaces get the gate's profiles, and nothing that they say is loosened (deploy/admission/gate.yaml)."""

import json
import time
from typing import Any

import pytest

from .conftest import ROOT, Kubectl

RUNTIME = {"type": "Localhost", "localhostProfile": "pinwarden/runtime-default-v1.json"}
UNCONFINED = {"type": "Localhost", "localhostProfile": "pinwarden/unconfined-v1.json"}
OWN = {"type": "Localhost", "localhostProfile": "strict.json"}
DEFAULT, NONE = {"type": "RuntimeDefault"}, {"type": "Unconfined"}
ACCOUNT = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}


def container(name: str, profile: dict[str, str] | None = None, **security: Any) -> dict[str, Any]:
    context = {**security, **({"seccompProfile": profile} if profile else {})}
    return {"name": name, "image": "x", **({"securityContext": context} if context else {})}


def pod(*containers: dict[str, Any], profile: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    security = {"securityContext": {"runAsUser": 1000, "seccompProfile": profile}} if profile else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "pod-"},
        "spec": {"containers": list(containers) or [container("main")], **security, **spec},
    }


@pytest.fixture(scope="module")
def _policies(control_plane: Any) -> None:
    from .conftest import run_kubectl

    done = run_kubectl(
        control_plane.kubeconfig,
        "apply",
        "--server-side",
        "-f",
        str(ROOT / "deploy" / "admission" / "gate.yaml"),
    )
    assert done.returncode == 0, done.stderr


class Namespace:
    """A namespace, and what becomes of pods in it."""

    def __init__(self, kubectl: Kubectl, name: str) -> None:
        self.kubectl = kubectl
        self.name = name
        self.warnings = ""

    def label(self, *labels: str) -> None:
        self.kubectl("label", "namespace", self.name, *labels)

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        done = self.kubectl("-n", self.name, "create", "-o", "json", "-f", "-", stdin=json.dumps(manifest))
        self.warnings = done.stderr
        created: dict[str, Any] = json.loads(done.stdout)
        return created

    def profiles(self, manifest: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """That of the pod, and those that containers have of their own."""
        spec = self.create(manifest)["spec"]
        own = {
            each["name"]: each["securityContext"]["seccompProfile"]
            for each in [*spec.get("initContainers", []), *spec["containers"]]
            if "seccompProfile" in each.get("securityContext", {})
        }
        return spec.get("securityContext", {}).get("seccompProfile"), own


@pytest.fixture
def plain(kubectl: Kubectl, namespace: str, _policies: None) -> Namespace:
    return Namespace(kubectl, namespace)


@pytest.fixture
def labelled(plain: Namespace) -> Namespace:
    """One whose label the server has seen: policies are in force a moment after they are made."""
    plain.label("pinwarden.io/gate=runtime-default")
    deadline = time.monotonic() + 30
    while plain.profiles(pod())[0] != RUNTIME:
        assert time.monotonic() < deadline, "the policy does not come into force"
        time.sleep(0.2)
    return plain


def test_pods_of_other_namespaces_are_left_alone(labelled: Namespace, kubectl: Kubectl) -> None:
    other = f"{labelled.name}-other"
    kubectl("create", "namespace", other)
    assert Namespace(kubectl, other).profiles(pod(profile=DEFAULT)) == (DEFAULT, {})


@pytest.mark.parametrize(
    ("said", "becomes"), [(None, RUNTIME), (DEFAULT, RUNTIME), (NONE, UNCONFINED), (OWN, OWN)]
)
def test_what_a_pod_says_becomes_as_strict_a_profile(
    labelled: Namespace, said: dict[str, str] | None, becomes: dict[str, str]
) -> None:
    assert labelled.profiles(pod(profile=said)) == (becomes, {})


def test_a_pod_that_says_nothing_gets_what_the_label_says(labelled: Namespace) -> None:
    labelled.label("--overwrite", "pinwarden.io/gate=unconfined")
    deadline = time.monotonic() + 30
    while labelled.profiles(pod())[0] != UNCONFINED:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert labelled.profiles(pod(profile=DEFAULT)) == (RUNTIME, {})


def test_each_container_keeps_what_it_says(labelled: Namespace) -> None:
    manifest = pod(
        *(container("a", DEFAULT, runAsUser=7), container("b", NONE), container("c", OWN), container("d")),
        initContainers=[container("i", DEFAULT)],
    )
    assert labelled.profiles(manifest) == (RUNTIME, {"i": RUNTIME, "a": RUNTIME, "b": UNCONFINED, "c": OWN})
    stored = labelled.create(manifest)["spec"]["containers"]
    assert [each["name"] for each in stored] == ["a", "b", "c", "d"]
    assert stored[0]["securityContext"]["runAsUser"] == 7


def test_a_pod_that_is_gated_already_stays_as_it_is(labelled: Namespace) -> None:
    gated = labelled.create(pod(container("a", NONE), profile=DEFAULT))
    again = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-"}, "spec": gated["spec"]}
    assert labelled.create(again)["spec"] == gated["spec"]


def test_who_is_not_held_is_warned_about(labelled: Namespace) -> None:
    labelled.create(pod(container("mine", OWN), container("big", privileged=True), container("held")))
    assert "mine (seccompProfile: strict.json)" in labelled.warnings
    assert "big (privileged: runtimes ignore seccomp profiles)" in labelled.warnings
    assert "held" not in labelled.warnings.partition("exactly: ")[2]
    labelled.create(pod())
    assert "Warning" not in labelled.warnings


def test_windows_pods_are_left_alone(labelled: Namespace) -> None:
    assert labelled.profiles(pod(os={"name": "windows"})) == (None, {})
    assert "Warning" not in labelled.warnings


def test_pod_security_restricted_takes_it(labelled: Namespace) -> None:
    labelled.label("pod-security.kubernetes.io/enforce=restricted")
    strict = {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
    assert labelled.profiles(pod(container("main", DEFAULT, **strict))) == (RUNTIME, {"main": RUNTIME})


def test_an_existing_pod_can_be_changed(labelled: Namespace, kubectl: Kubectl) -> None:
    name = labelled.create(pod())["metadata"]["name"]
    kubectl("-n", labelled.name, "label", "pod", name, "app=db")
