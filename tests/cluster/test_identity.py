"""No pod escapes a ceiling by its identity: real pods want 4 MiB under a ceiling of 1 MiB (P1).

Each pod locks as much as it can, and prints the amount. A pod that got more than 1 MiB unlocks and
tries again. So a pod that was faster than its limit is limited in the end, and an unlimited pod
never is. Ways that the API server alone decides are in `tests/api/test_ceilings.py`.
"""

import json
from collections.abc import Callable, Iterator

import pytest

from cluster.cluster import Cluster
from cluster.image import NAME
from cluster.node import Node

from ..waiting import until

Kubectl = Callable[..., str]
NAMESPACE = "identity"
MIB = 2**20
MIRROR = "kubernetes.io/config.mirror"
HASH = "kubernetes.io/config.hash"
MANIFESTS = "/etc/kubernetes/manifests"
PROGRAM = """
import ctypes, mmap, time
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 4 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
locked = 0
while True:
    while locked < 4 << 20:
        if libc.mlock(ctypes.c_void_p(start + locked), ctypes.c_size_t(4096)):
            break
        locked += 4096
    print("holds", locked, flush=True)
    time.sleep(1)
    if locked > 1 << 20:
        libc.munlock(ctypes.c_void_p(start), ctypes.c_size_t(4 << 20))
        locked = 0
"""


def manifest(name: str, *, static: bool = False, **metadata: object) -> str:
    """A pod that wants 4 MiB."""
    container = {
        "name": "pinner",
        "image": NAME,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", PROGRAM],
        "securityContext": {
            "runAsUser": 1000,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    if not static:
        spec["automountServiceAccountToken"] = False
    meta = {"name": name, "namespace": NAMESPACE, **metadata}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})


class Ceiling:
    """A namespace under a ceiling of 1 MiB."""

    def __init__(self, kubectl: Kubectl, node: Node) -> None:
        self.kubectl, self.node = kubectl, node

    def apply(self, text: str) -> None:
        self.kubectl("create", "-f", "-", stdin=text)

    def uid(self, name: str) -> str:
        return self.kubectl("-n", NAMESPACE, "get", "pod", name, "-o", "jsonpath={.metadata.uid}")

    def exists(self, name: str) -> bool:
        return bool(
            self.kubectl("-n", NAMESPACE, "get", "pod", name, "--ignore-not-found", "-o", "name")
        )

    def said(self, name: str) -> str:
        """The last line of the pod's log, empty while it has none."""
        phase = self.kubectl(
            "-n",
            NAMESPACE,
            "get",
            "pod",
            name,
            "--ignore-not-found",
            "-o",
            "jsonpath={.status.phase}",
        )
        return (
            self.kubectl("-n", NAMESPACE, "logs", name, "--tail=1").strip()
            if phase == "Running"
            else ""
        )

    def assert_limited(self, name: str) -> None:
        """Wait until the pod locked the ceiling and was refused the page after it."""
        until(lambda: self.said(name) == f"holds {MIB}", f"{name} under 1 MiB")

    def locked(self, name: str) -> int:
        """Bytes that the node's agent reports of the pod, by the UID of its cgroup."""
        raw = json.loads(self.kubectl("get", "nodepinconfig", self.node.name, "-o", "json"))
        reports = {each["uid"]: each for each in raw["status"].get("pods", [])}
        return int(reports[name]["vmLck"]) if name in reports else -1


@pytest.fixture(scope="module")
def ceiling(installed: Cluster, kubectl: Kubectl) -> Iterator[Ceiling]:
    kubectl("create", "namespace", NAMESPACE)
    selector = {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
    limit = {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": "ClusterPinLimit",
        "metadata": {"name": NAMESPACE},
        "spec": {"limit": "1Mi", "namespaceSelector": selector},
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(limit))
    yield Ceiling(kubectl, installed.nodes[0])
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    kubectl("delete", "clusterpinlimit", NAMESPACE)


@pytest.mark.rule("P1")
def test_made_up_hash_keeps_no_pod_from_its_ceiling(ceiling: Ceiling) -> None:
    ceiling.apply(manifest("forged", annotations={HASH: "0" * 32}))
    ceiling.assert_limited("forged")
    uid = ceiling.uid("forged")
    until(lambda: ceiling.locked(uid) == MIB, "1 MiB reported of the pod")


@pytest.mark.rule("P1", "P13")
def test_uid_of_an_idle_pod_for_a_hash_keeps_no_pod_from_its_ceiling(ceiling: Ceiling) -> None:
    ceiling.apply(manifest("first"))
    ceiling.assert_limited("first")
    ceiling.apply(manifest("thief", annotations={HASH: ceiling.uid("first")}))
    ceiling.assert_limited("thief")
    ceiling.kubectl("-n", NAMESPACE, "annotate", "pod", "first", f"{HASH}={'f' * 65}")
    uid = ceiling.uid("first")
    until(lambda: ceiling.locked(uid) == MIB, "1 MiB reported of the pod that was annotated")
    ceiling.assert_limited("first")


@pytest.mark.rule("P1")
def test_static_pod_is_limited_by_its_hash_and_a_copy_of_its_mirror_never_runs(
    ceiling: Ceiling,
) -> None:
    """The kubelet reports a container of the real mirror pod, and deletes any other one."""
    ceiling.node.exec(["mkdir", "-p", MANIFESTS])
    path = f"{MANIFESTS}/static.json"
    try:
        ceiling.node.exec(
            ["sh", "-c", f"cat >{path} <<'END'\n{manifest('static', static=True)}\nEND"]
        )
        name = f"static-{ceiling.node.name}"
        until(lambda: ceiling.exists(name), "the mirror pod")
        ceiling.assert_limited(name)
        mirror = json.loads(ceiling.kubectl("-n", NAMESPACE, "get", "pod", name, "-o", "json"))
        hashed = mirror["metadata"]["annotations"][MIRROR]
        until(lambda: ceiling.locked(hashed) == MIB, "1 MiB reported of the static pod")

        copy = json.loads(manifest("copy", annotations={HASH: hashed, MIRROR: hashed}))
        copy["metadata"]["ownerReferences"] = mirror["metadata"]["ownerReferences"]
        copy["spec"]["nodeName"] = ceiling.node.name
        del copy["spec"]["automountServiceAccountToken"]
        copy["spec"]["volumes"] = []
        ceiling.apply(json.dumps(copy))
        until(
            lambda: not ceiling.exists("copy"),
            "the kubelet deletes a mirror pod of no static pod of its",
        )
        ceiling.assert_limited(name)
        assert ceiling.locked(hashed) == MIB
    finally:
        ceiling.node.exec(["rm", "-f", path])
