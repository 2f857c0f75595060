"""Pods of labelled namespaces get the gate's profiles, and keep all of their own restrictions.

The templates are in the chart's folder gate/.
"""

import json
from typing import Any

import pytest

from cluster import chart

from ..waiting import eventually, until
from .conftest import Kubectl

RUNTIME = {"type": "Localhost", "localhostProfile": "pinwarden/runtime-default-v2.json"}
UNCONFINED = {"type": "Localhost", "localhostProfile": "pinwarden/unconfined-v2.json"}
OWN = {"type": "Localhost", "localhostProfile": "strict.json"}
DEFAULT, NONE = {"type": "RuntimeDefault"}, {"type": "Unconfined"}
STRICT: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}
LOOSE = "does not allow pinwarden/unconfined-v2.json"


def container(name: str, profile: dict[str, str] | None = None, **security: Any) -> dict[str, Any]:
    context = {**security, **({"seccompProfile": profile} if profile else {})}
    return {"name": name, "image": "x", **({"securityContext": context} if context else {})}


def pod(
    *containers: dict[str, Any], profile: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    security = (
        {"securityContext": {"runAsUser": 1000, "seccompProfile": profile}} if profile else {}
    )
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "pod-"},
        "spec": {"containers": list(containers) or [container("main")], **security, **spec},
    }


@pytest.fixture(scope="module")
def _policies(control_plane: Any) -> None:
    from .conftest import run_kubectl

    policies = chart.manifest(only=["gate/admission.yaml", "gate/unconfined.yaml"])
    done = run_kubectl(
        control_plane.kubeconfig, "apply", "--server-side", "-f", "-", stdin=policies
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
        done = self.kubectl(
            "-n", self.name, "create", "-o", "json", "-f", "-", stdin=json.dumps(manifest)
        )
        self.warnings = done.stderr
        created: dict[str, Any] = json.loads(done.stdout)
        return created

    def rejection(self, manifest: dict[str, Any]) -> str:
        """What the server says against it; empty when it takes it. Nothing is stored."""
        dry = ("-n", self.name, "create", "--dry-run=server", "-f", "-")
        done = self.kubectl(*dry, stdin=json.dumps(manifest), check=False)
        return done.stderr if done.returncode else ""

    def add(self, name: str, *containers: dict[str, Any]) -> dict[str, Any]:
        """Add ephemeral containers to a pod; returns those that it has then, by name."""
        patch = json.dumps({"spec": {"ephemeralContainers": containers}})
        where = ("-n", self.name, "patch", "pod", name, "--subresource=ephemeralcontainers")
        done = self.kubectl(*where, "-o", "json", "-p", patch)
        self.warnings = done.stderr
        return {
            each["name"]: each for each in json.loads(done.stdout)["spec"]["ephemeralContainers"]
        }

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
    eventually(lambda: plain.profiles(pod())[0], lambda profile: profile == RUNTIME)
    return plain


def test_pods_of_other_namespaces_are_left_alone(labelled: Namespace, kubectl: Kubectl) -> None:
    other = f"{labelled.name}-other"
    kubectl("create", "namespace", other)
    assert Namespace(kubectl, other).profiles(pod(profile=DEFAULT)) == (DEFAULT, {})


@pytest.mark.parametrize(
    ("said", "becomes"), [(None, RUNTIME), (DEFAULT, RUNTIME), (NONE, UNCONFINED), (OWN, OWN)]
)
def test_profile_of_a_pod_becomes_as_strict_a_gated_profile(
    labelled: Namespace, said: dict[str, str] | None, becomes: dict[str, str]
) -> None:
    assert labelled.profiles(pod(profile=said)) == (becomes, {})


def test_pod_without_a_profile_gets_that_of_the_label(labelled: Namespace) -> None:
    labelled.label("--overwrite", "pinwarden.io/gate=unconfined")
    eventually(lambda: labelled.profiles(pod())[0], lambda profile: profile == UNCONFINED)
    assert labelled.profiles(pod(profile=DEFAULT)) == (RUNTIME, {})


def test_each_container_keeps_its_own_profile(labelled: Namespace) -> None:
    manifest = pod(
        *(
            container("a", DEFAULT, runAsUser=7),
            container("b", NONE),
            container("c", OWN),
            container("d"),
        ),
        initContainers=[container("i", DEFAULT)],
    )
    assert labelled.profiles(manifest) == (
        RUNTIME,
        {"i": RUNTIME, "a": RUNTIME, "b": UNCONFINED, "c": OWN},
    )
    stored = labelled.create(manifest)["spec"]["containers"]
    assert [each["name"] for each in stored] == ["a", "b", "c", "d"]
    assert stored[0]["securityContext"]["runAsUser"] == 7


def test_pod_that_is_gated_already_stays_as_it_is(labelled: Namespace) -> None:
    gated = labelled.create(pod(container("a", NONE), profile=DEFAULT))
    again = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "p-"},
        "spec": gated["spec"],
    }
    assert labelled.create(again)["spec"] == gated["spec"]


def test_ungated_pods_cause_a_warning(labelled: Namespace) -> None:
    labelled.create(
        pod(container("mine", OWN), container("big", privileged=True), container("held"))
    )
    assert "mine (seccompProfile: strict.json)" in labelled.warnings
    assert "big (privileged: runtimes ignore seccomp profiles)" in labelled.warnings
    assert "held" not in labelled.warnings.partition("newer): ")[2]
    assert "mine" in labelled.warnings.partition("newer): ")[2]
    labelled.create(pod())
    assert "Warning" not in labelled.warnings


def test_windows_pods_are_left_alone(labelled: Namespace) -> None:
    assert labelled.profiles(pod(os={"name": "windows"})) == (None, {})
    assert "Warning" not in labelled.warnings


def test_pod_security_restricted_accepts_the_same_pods(labelled: Namespace) -> None:
    labelled.label("pod-security.kubernetes.io/enforce=restricted")
    until(lambda: "PodSecurity" in labelled.rejection(pod()), "Pod Security sees the label")
    assert labelled.profiles(pod(container("main", DEFAULT, **STRICT))) == (
        RUNTIME,
        {"main": RUNTIME},
    )


@pytest.mark.parametrize(
    ("gate", "level", "manifest"),
    [
        ("runtime-default", "restricted", pod(container("main", **STRICT), profile=NONE)),
        ("runtime-default", "restricted", pod(container("main", NONE, **STRICT), profile=DEFAULT)),
        ("unconfined", "restricted", pod(container("main", **STRICT))),
        ("runtime-default", "baseline", pod(profile=NONE)),
        ("runtime-default", "baseline", pod(initContainers=[container("first", NONE)])),
    ],
)
def test_pods_that_pod_security_rejects_are_rejected_with_a_gate(
    plain: Namespace, gate: str, level: str, manifest: dict[str, Any]
) -> None:
    plain.label(f"pod-security.kubernetes.io/enforce={level}")
    until(lambda: "PodSecurity" in plain.rejection(manifest), "Pod Security refuses it without")
    plain.label(f"pinwarden.io/gate={gate}")
    until(lambda: "PodSecurity" not in plain.rejection(manifest), "the gate's label is seen")
    assert f'Pod Security level "{level}" {LOOSE}' in plain.rejection(manifest)


@pytest.mark.parametrize(
    "path",
    [
        "pinwarden/unconfined-v2.json",
        "pinwarden/./unconfined-v2.json",
        "pinwarden//unconfined-v2.json",
    ],
)
def test_unconfined_profile_is_no_way_around_pod_security(plain: Namespace, path: str) -> None:
    manifest = pod(
        container("main", **STRICT), profile={"type": "Localhost", "localhostProfile": path}
    )
    manifest["spec"]["securityContext"]["runAsNonRoot"] = True
    assert not plain.rejection(manifest)
    plain.label("pod-security.kubernetes.io/enforce=restricted")
    until(lambda: LOOSE in plain.rejection(manifest), "it is refused")
    plain.label("--overwrite", "pod-security.kubernetes.io/enforce=privileged")
    until(lambda: not plain.rejection(manifest), "it is taken where all is allowed")


def test_pod_security_baseline_accepts_pods_without_a_profile(labelled: Namespace) -> None:
    labelled.label(
        "--overwrite", "pinwarden.io/gate=unconfined", "pod-security.kubernetes.io/enforce=baseline"
    )
    hostile = pod(hostNetwork=True)
    until(lambda: "PodSecurity" in labelled.rejection(hostile), "Pod Security sees the label")
    until(lambda: labelled.profiles(pod())[0] == UNCONFINED, "the gate's label is seen")


def test_static_pods_mirror_does_not_look_gated(labelled: Namespace) -> None:
    mirror = pod(profile=DEFAULT, nodeName="node")
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    assert labelled.profiles(mirror) == (DEFAULT, {})
    assert "main (seccompProfile: RuntimeDefault)" in labelled.warnings


def test_containers_that_are_added_to_a_pod_get_the_gate_as_well(labelled: Namespace) -> None:
    name = labelled.create(pod(profile=OWN))["metadata"]["name"]
    first = labelled.add(
        name, container("a", NONE, runAsUser=7), container("b", DEFAULT), container("c")
    )
    profiles = [each.get("securityContext", {}).get("seccompProfile") for each in first.values()]
    assert profiles == [UNCONFINED, RUNTIME, None]
    assert first["a"]["securityContext"]["runAsUser"] == 7
    assert "c (seccompProfile: strict.json)" in labelled.warnings
    second = labelled.add(name, container("d", DEFAULT))
    assert {each: second[each] for each in first} == first


def test_containers_that_are_added_to_an_older_pod_get_the_gate(plain: Namespace) -> None:
    old = [plain.create(pod(profile=said))["metadata"]["name"] for said in (None, DEFAULT, NONE)]
    before = plain.add(old[0], container("before", DEFAULT))
    plain.label("pinwarden.io/gate=runtime-default")
    until(lambda: plain.profiles(pod())[0] == RUNTIME, "the policy is in force")
    for name, becomes in zip(old, (RUNTIME, RUNTIME, UNCONFINED), strict=True):
        added = plain.add(name, container("a"))
        assert added["a"]["securityContext"]["seccompProfile"] == becomes
    assert plain.add(old[0], container("b"))["before"] == before["before"]


def test_container_that_a_later_policy_adds_gets_the_gate(
    labelled: Namespace, kubectl: Kubectl
) -> None:
    name = f"test-{labelled.name}"
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    match = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": labelled.name}}}
    sidecar = """Object{spec: Object.spec{containers: [Object.spec.containers{
      name: 'sidecar', image: 'x', securityContext: Object.spec.containers.securityContext{
        seccompProfile: Object.spec.containers.securityContext.seccompProfile{
          type: 'RuntimeDefault'}}}]}}"""
    mutation = {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": sidecar}}
    absent = {
        "name": "absent",
        "expression": "!object.spec.containers.exists(c, c.name == 'sidecar')",
    }
    policy = {
        "matchConstraints": {**match, "resourceRules": [rule]},
        "matchConditions": [absent],
        "reinvocationPolicy": "Never",
        "mutations": [mutation],
    }
    kinds = {
        "MutatingAdmissionPolicy": policy,
        "MutatingAdmissionPolicyBinding": {"policyName": name},
    }
    for kind, spec in kinds.items():
        about = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": name},
        }
        kubectl("create", "-f", "-", stdin=json.dumps({**about, "spec": spec}))
    try:
        until(lambda: "sidecar" in labelled.profiles(pod())[1], "something is added")
        assert labelled.profiles(pod())[1] == {"sidecar": RUNTIME}
    finally:
        kubectl(
            "delete", f"mutatingadmissionpolicybinding/{name}", f"mutatingadmissionpolicy/{name}"
        )


def test_system_namespaces_are_left_alone_whatever_their_label(
    labelled: Namespace, kubectl: Kubectl
) -> None:
    system = Namespace(kubectl, "kube-system")
    system.label("pinwarden.io/gate=runtime-default")
    try:
        labelled.label("--overwrite", "pinwarden.io/gate=unconfined")
        until(lambda: labelled.profiles(pod())[0] == UNCONFINED, "the server sees the labels")
        assert system.profiles(pod(profile=DEFAULT)) == (DEFAULT, {})
    finally:
        system.label("pinwarden.io/gate-")


def test_lists_keep_their_order_and_their_duplicates(labelled: Namespace) -> None:
    first = [container("z", OWN), container("a", NONE), container("m")]
    environment = [
        {"name": name, "value": value} for name, value in (("A", "1"), ("B", "2"), ("A", "3"))
    ]
    stored = labelled.create(
        pod(container("main", DEFAULT) | {"env": environment}, initContainers=first)
    )["spec"]
    assert [each["name"] for each in stored["initContainers"]] == ["z", "a", "m"]
    assert stored["containers"][0]["env"] == environment


def test_existing_pod_can_be_changed(labelled: Namespace, kubectl: Kubectl) -> None:
    name = labelled.create(pod())["metadata"]["name"]
    kubectl("-n", labelled.name, "label", "pod", name, "app=db")
