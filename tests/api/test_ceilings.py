"""Ways to escape a ceiling by the identity of a pod, tried with the rights of an author.

The author has the cluster role `edit` in one namespace, and the rights of docs/how-to/ceilings.md.
Each test asserts what the API server allows, and that the node still limits the pod to the ceiling.
"""

import json
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from ..waiting import eventually
from .conftest import ROOT, run_kubectl
from .operators import Cluster, Operator, prepared

MIB = 1 << 20
MIRROR = "kubernetes.io/config.mirror"
HASH = "kubernetes.io/config.hash"
HASHED = "0123456789abcdef" * 2
SAME_KIND = {"apiVersion": "v1", "kind": "Pod"}

Json = dict[str, Any]


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane with a controller manager, which fills the role `edit`, and the operator."""
    with prepared(controller_manager=True) as cluster:
        how_to = yaml.safe_load_all((ROOT / "examples/how-to/ceilings.yaml").read_text())
        roles = [each for each in how_to if each["kind"] == "ClusterRole"]
        assert roles
        for role in roles:
            cluster.send("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
        with Operator(cluster, Path(tmp_path_factory.mktemp("operator"))) as operator:
            operator.ready()
            yield cluster


class Author:
    """An author of a namespace that a ceiling of 1 MiB holds for; `node` has the author's pods."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace()
        self.node = cluster.node()
        self.name = f"author-{uuid.uuid4().hex[:6]}"
        self._kubeconfig = cluster.server.kubeconfig_for(self.name)
        cluster.kubectl(
            *("create", "rolebinding", "author", "--clusterrole=edit"),
            *(f"--user={self.name}", f"--namespace={self.namespace}"),
        )
        label = {"kubernetes.io/metadata.name": self.namespace}
        self.ceiling = cluster.ceiling(limit="1Mi", namespaceSelector={"matchLabels": label})
        self.limits = {self.ceiling.rpartition("/")[2]: MIB}
        eventually(lambda: self.kubectl("get", "pods").returncode, lambda code: code == 0)
        eventually(
            lambda: self.kubectl(
                "auth", "can-i", "delete", "pinlimits.pinwarden.io"
            ).stdout.strip(),
            lambda answer: answer == "yes",
        )

    def kubectl(self, *arguments: str, stdin: str = "") -> CompletedProcess[str]:
        return run_kubectl(self._kubeconfig, "--namespace", self.namespace, *arguments, stdin=stdin)

    def may(self, *arguments: str, stdin: str = "") -> None:
        """The API server takes it."""
        done = self.kubectl(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr

    def may_not(self, why: str, *arguments: str, stdin: str = "") -> None:
        """The API server refuses it, and says this."""
        done = self.kubectl(*arguments, stdin=stdin)
        assert done.returncode != 0, done.stdout
        assert why in done.stderr

    def manifest(
        self, name: str = "escape", *, node: str | None = None, owned: bool = False, **metadata: Any
    ) -> str:
        """Return a pod bound to a node; the author knows the node's UID if the pod is `owned`."""
        node = node or self.node
        if owned:
            uid = self.cluster.find(f"/api/v1/nodes/{node}")["metadata"]["uid"]
            owner = {
                "apiVersion": "v1",
                "kind": "Node",
                "name": node,
                "uid": uid,
                "controller": True,
            }
            metadata["ownerReferences"] = [owner]
        spec = {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": "main"}],
        }
        return json.dumps({**SAME_KIND, "metadata": {"name": name, **metadata}, "spec": spec})

    def patch(self, name: str, patch: Json, *more: str) -> tuple[str, ...]:
        return ("patch", "pod", name, "--type=merge", "--patch", json.dumps(patch), *more)

    def pod(self, name: str) -> Json:
        return self.cluster.find(f"/api/v1/namespaces/{self.namespace}/pods/{name}")

    def assert_limited(self, name: str = "escape", node: str | None = None) -> None:
        """Wait until the node's spec limits the pod by its own UID, and no other cgroup."""
        uid = self.pod(name)["metadata"]["uid"]
        eventually(
            lambda: self.cluster.limits_on(node or self.node),
            lambda pods: pods.get(uid) == self.limits and HASHED not in pods,
        )


@pytest.fixture
def author(governed: Cluster) -> Author:
    return Author(governed)


@pytest.mark.rule("P1")
def test_invented_hash_affects_no_pod(author: Author) -> None:
    author.may("create", "-f", "-", stdin=author.manifest(annotations={HASH: HASHED}))
    author.assert_limited()


@pytest.mark.rule("P1")
def test_hash_added_to_a_running_pod_affects_no_pod(author: Author) -> None:
    """https://github.com/vectordotdev/vector/issues/6001"""
    author.may("create", "-f", "-", stdin=author.manifest())
    author.assert_limited()
    author.cluster.set_started(f"/api/v1/namespaces/{author.namespace}/pods/escape")
    author.may("annotate", "pod", "escape", f"{HASH}={HASHED}")
    author.may(
        "create", "-f", "-", stdin=author.manifest("later")
    )  # what came after the annotation
    author.assert_limited("later")
    author.assert_limited()


@pytest.mark.rule("P1", "P13")
def test_uid_of_another_pod_for_a_hash_takes_nothing_from_it(author: Author) -> None:
    victim = author.cluster.pod(author.cluster.namespace(), author.node)
    uid = victim["metadata"]["uid"]
    theirs = author.cluster.limit(victim["metadata"]["namespace"], limit="2Mi")
    none = author.cluster.limit(author.namespace, limit="0")
    author.limits |= {none.rpartition("/")[2]: 0}
    author.may("create", "-f", "-", stdin=author.manifest(annotations={HASH: uid}))
    author.may(
        *("create", "-f", "-"),
        stdin=author.manifest("mirror", owned=True, annotations={HASH: uid, MIRROR: uid}),
    )
    author.assert_limited()
    author.assert_limited("mirror")
    assert author.cluster.limits_on(author.node)[uid] == {theirs.rpartition("/")[2]: 2 * MIB}


@pytest.mark.rule("P1")
def test_mirror_pod_of_an_author_stays_limited_as_itself(author: Author) -> None:
    """Any author may create the annotation, but only a kubelet reports a container."""
    annotations = {HASH: HASHED, MIRROR: HASHED}
    author.may("create", "-f", "-", stdin=author.manifest(annotations=annotations))
    author.assert_limited()


@pytest.mark.rule("P1")
def test_owner_reference_to_the_node_does_not_help(author: Author) -> None:
    annotations = {HASH: HASHED, MIRROR: HASHED}
    author.may("create", "-f", "-", stdin=author.manifest(owned=True, annotations=annotations))
    author.assert_limited()
    started = {"containerStatuses": [{"name": "main", "containerID": f"containerd://{'a' * 64}"}]}
    author.may(*author.patch("escape", {"status": started}))
    assert "containerStatuses" not in author.pod("escape")["status"]
    author.assert_limited()


@pytest.mark.rule("P1")
def test_no_pod_becomes_a_mirror_pod_after_creation(author: Author) -> None:
    author.may("create", "-f", "-", stdin=author.manifest())
    author.may_not(
        "may not add mirror pod annotation", "annotate", "pod", "escape", f"{MIRROR}={HASHED}"
    )
    author.assert_limited()


@pytest.mark.rule("P1")
def test_mirror_pod_cannot_change_whom_it_names(author: Author) -> None:
    annotations = {HASH: HASHED, MIRROR: HASHED}
    author.may("create", "-f", "-", stdin=author.manifest(owned=True, annotations=annotations))
    for change in (f"{MIRROR}={'f' * 32}", f"{MIRROR}-"):
        author.may_not(
            "may not remove or update mirror pod annotation",
            "annotate",
            "--overwrite",
            "pod",
            "escape",
            change,
        )
    author.may("annotate", "--overwrite", "pod", "escape", f"{HASH}={'f' * 32}")
    author.assert_limited()


@pytest.mark.rule("P1")
def test_subresources_are_not_an_authors(author: Author) -> None:
    author.may("create", "-f", "-", stdin=author.manifest(annotations={HASH: HASHED}))
    status = {"status": {"phase": "Succeeded"}}
    for subresource in ("status", "resize", "ephemeralcontainers"):
        author.may_not("forbidden", *author.patch("escape", status, f"--subresource={subresource}"))
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "escape", "annotations": {MIRROR: HASHED}},
        "target": {"kind": "Node", "name": author.node},
    }
    path = f"/api/v1/namespaces/{author.namespace}/pods/escape/binding"
    author.may_not("forbidden", "create", "--raw", path, "-f", "-", stdin=json.dumps(binding))
    author.assert_limited()


@pytest.mark.rule("P1")
def test_no_subresource_makes_a_mirror_pod_for_those_who_may_use_it(author: Author) -> None:
    author.may("create", "-f", "-", stdin=author.manifest())
    path = f"/api/v1/namespaces/{author.namespace}/pods/escape"
    added = {"metadata": {"annotations": {MIRROR: HASHED}}}
    temporary = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "debug"}]}}
    author.cluster.merge(f"{path}/ephemeralcontainers", added | temporary)
    refused = run_kubectl(
        author.cluster.server.kubeconfig,
        *("--namespace", author.namespace),
        *author.patch("escape", added, "--subresource=status"),
    )
    assert "may not add mirror pod annotation" in refused.stderr
    assert MIRROR not in author.pod("escape")["metadata"].get("annotations", {})
    author.assert_limited()


@pytest.mark.rule("P1")
def test_debug_copy_of_a_mirror_pod_is_limited_as_itself(author: Author) -> None:
    """https://github.com/kubernetes/kubernetes/pull/123149"""
    static = author.cluster.static_pod(author.namespace, author.node, HASHED)
    eventually(
        lambda: author.cluster.limits_on(author.node).get(HASHED),
        lambda limits: limits == author.limits,
    )
    name = static["metadata"]["name"]
    copy = ("debug", name, "--keep-annotations", "--image=debug", "--container=main")
    author.may_not(
        "must set spec.nodeName if mirror pod annotation is set", *copy, "--copy-to=elsewhere"
    )
    author.may(*copy, "--copy-to=here", "--same-node")
    assert author.pod("here")["metadata"]["annotations"][MIRROR] == HASHED
    uid = author.pod("here")["metadata"]["uid"]
    eventually(
        lambda: author.cluster.limits_on(author.node).get(uid),
        lambda limits: limits == author.limits,
    )
    assert author.cluster.limits_on(author.node)[HASHED] == author.limits


@pytest.mark.rule("P1")
def test_neither_uid_nor_node_nor_status_is_an_authors_choice(author: Author) -> None:
    chosen = "11111111-2222-4333-8444-555555555555"
    made = json.loads(author.manifest(uid=chosen)) | {"status": {"phase": "Succeeded"}}
    author.may("create", "-f", "-", stdin=json.dumps(made))
    assert author.pod("escape")["metadata"]["uid"] != chosen
    assert author.pod("escape")["status"]["phase"] == "Pending"
    author.may_not("field is immutable", *author.patch("escape", {"metadata": {"uid": chosen}}))
    other = author.cluster.node()
    author.may_not(
        "pod updates may not change fields", *author.patch("escape", {"spec": {"nodeName": other}})
    )
    author.may_not(
        "pod updates may not change", *author.patch("escape", {"spec": {"os": {"name": "windows"}}})
    )
    author.assert_limited()


@pytest.mark.rule("H1", "P13")
def test_two_mirror_pods_of_one_hash_are_limited_by_both_and_reported(
    author: Author,
) -> None:
    """Only a kubelet, or a user with the right to patch `pods/status`, can do this."""
    other = Author(author.cluster)
    for each in (author, other):
        each.cluster.static_pod(each.namespace, author.node, HASHED)
    both = author.limits | other.limits
    eventually(
        lambda: author.cluster.limits_on(author.node).get(HASHED), lambda limits: limits == both
    )
    author.cluster.agent(author.node)
    for each in (author, other):
        eventually(
            partial(each.cluster.condition, each.ceiling, "Enforced"),
            lambda found: found == ("False", "CgroupContested"),
        )
