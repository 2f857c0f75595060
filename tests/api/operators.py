"""A cluster of objects for the operator's process.

Nodes, pods and limits are real objects, and the test writes the reports of agents. The operator
runs as its service account with the roles of the chart, so a missing right fails a test.
"""

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from cluster import chart
from cluster.controlplane import ControlPlane
from pinwarden.api.nodepinconfig import NodePinConfigSpec

from ..waiting import eventually, exit_status
from .conftest import ROOT, run_kubectl

SYSTEM = "pinwarden-system"
USER = f"system:serviceaccount:{SYSTEM}:pinwarden-operator"
GROUPS = ["system:serviceaccounts", f"system:serviceaccounts:{SYSTEM}", "system:authenticated"]
PINWARDEN = "/apis/pinwarden.io/v1alpha1"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/pinwarden-operator"
BACK_SECONDS = 15.0
AGENT_LABELS = {"app.kubernetes.io/name": "pinwarden", "app.kubernetes.io/component": "agent"}

Json = dict[str, Any]
T = TypeVar("T")


@contextmanager
def prepared(**options: Any) -> Iterator["Cluster"]:
    """An API server with CRDs, the operator's roles, and a field `burst` of a newer CRD.

    `options` are those of the control plane.
    """
    with ControlPlane(**options) as server:
        access = chart.manifest(only=["agent/access.yaml", "operator/access.yaml"])
        for arguments in (
            ("apply", "--server-side", "-f", str(ROOT / "crds")),
            ("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds")),
            ("apply", "--server-side", "-f", "-"),
        ):
            done = run_kubectl(server.kubeconfig, *arguments, stdin=access)
            assert done.returncode == 0, done.stderr
        cluster = Cluster(server)
        _add_burst(cluster)
        yield cluster


def _add_burst(cluster: "Cluster") -> None:
    """Add a field to the spec of PinLimit, and wait until the server stores it."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/pinlimits.pinwarden.io"
    crd = cluster.find(path)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["burst"] = {"type": "integer"}
    cluster.merge(path, {"spec": crd["spec"]})
    collection = f"{PINWARDEN}/namespaces/default/pinlimits?dryRun=All"
    body = _resource("PinLimit", {"limit": "1Mi", "podSelector": {}, "burst": 1})
    eventually(lambda: cluster.send("POST", collection, body)["spec"], lambda spec: "burst" in spec)


class Cluster:
    """The API server for its admin. Names are new in each test, because objects stay."""

    def __init__(self, server: ControlPlane) -> None:
        self.server = server
        self.kubeconfig = server.kubeconfig_for(USER, GROUPS)
        self._tls = ssl.create_default_context(cafile=str(server.ca_file))

    def send(self, method: str, path: str, body: Json | None = None, content: str = "json") -> Json:
        """One request; an error status is raised as urllib.error.HTTPError."""
        headers = {
            "Authorization": f"Bearer {self.server.admin_token}",
            "Content-Type": f"application/{content}",
        }
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.server.url}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, context=self._tls, timeout=10) as response:
            answer: Json = json.load(response)
        return answer

    def find(self, path: str) -> Json:
        """The object, empty where there is none."""
        try:
            return self.send("GET", path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return {}

    def merge(self, path: str, patch: Json) -> Json:
        return self.send("PATCH", path, patch, "merge-patch+json")

    def namespace(self, **labels: str) -> str:
        name = f"team-{uuid.uuid4().hex[:8]}"
        self.send("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        return name

    def node(self, **labels: str) -> str:
        name = f"node-{uuid.uuid4().hex[:8]}"
        self.send("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
        return name

    def kubectl(self, *arguments: str) -> str:
        """What kubectl prints to an admin."""
        done = run_kubectl(self.server.kubeconfig, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pod(
        self,
        namespace: str,
        node: str,
        labels: Json | None = None,
        owners: list[Json] | None = None,
        **annotations: str,
    ) -> Json:
        metadata = {
            "name": f"pod-{uuid.uuid4().hex[:8]}",
            "labels": labels or {},
            "annotations": annotations,
            "ownerReferences": owners or [],
        }
        spec = {"nodeName": node, "containers": [{"name": "main", "image": "main"}]}
        return self.send(
            "POST", f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": spec}
        )

    def static_pod(
        self, namespace: str, node: str, hashed: str, labels: Json | None = None
    ) -> Json:
        """The mirror of a static pod that its kubelet runs; returns the object."""
        made = self.mirror(namespace, node, hashed, labels)
        self.set_started(f"/api/v1/namespaces/{namespace}/pods/{made['metadata']['name']}")
        return made

    def mirror(self, namespace: str, node: str, hashed: str, labels: Json | None = None) -> Json:
        """A mirror pod as a kubelet creates it, and as any author may create one."""
        uid = self.find(f"/api/v1/nodes/{node}")["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid, "controller": True}
        annotations = {"kubernetes.io/config.hash": hashed, "kubernetes.io/config.mirror": hashed}
        return self.pod(namespace, node, labels, [owner], **annotations)

    def set_started(self, path: str) -> None:
        """As the kubelet reports a pod whose container was created."""
        container = {
            "name": "main",
            "image": "main",
            "imageID": "",
            "ready": True,
            "restartCount": 0,
        }
        status = {
            "phase": "Running",
            "containerStatuses": [container | {"containerID": f"containerd://{'a' * 64}"}],
        }
        self.merge(f"{path}/status", {"status": status})

    def agent(self, node: str, *, ready: bool = True) -> str:
        """The agent's pod on a node; returns its path."""
        pod = self.pod(SYSTEM, node, AGENT_LABELS)
        path = f"/api/v1/namespaces/{SYSTEM}/pods/{pod['metadata']['name']}"
        self.set_ready(path, ready)
        return path

    def set_ready(self, path: str, ready: bool) -> None:
        condition = {"type": "Ready", "status": str(ready)}
        self.merge(f"{path}/status", {"status": {"phase": "Running", "conditions": [condition]}})

    def set_lost(self, node: str, lost: bool) -> None:
        """As the node controller says it of a node that it does not hear of."""
        condition = {"type": "Ready", "status": "Unknown" if lost else "True"}
        self.merge(f"/api/v1/nodes/{node}/status", {"status": {"conditions": [condition]}})

    def deployment(self) -> None:
        """Create the operator's Deployment, without a controller for it."""
        selector = {"matchLabels": {"a": "b"}}
        template = {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "a", "image": "a"}]},
        }
        body = {
            "metadata": {"name": "pinwarden-operator"},
            "spec": {"selector": selector, "template": template},
        }
        self.send("POST", f"/apis/apps/v1/namespaces/{SYSTEM}/deployments", body)

    def limit(self, namespace: str, **spec: Any) -> str:
        """A PinLimit over every pod of a namespace; returns its path."""
        body = _resource("PinLimit", {"limit": "1Mi", "podSelector": {}, **spec})
        self.send("POST", f"{PINWARDEN}/namespaces/{namespace}/pinlimits", body)
        return f"{PINWARDEN}/namespaces/{namespace}/pinlimits/{body['metadata']['name']}"

    def group(self, namespace: str, **spec: Any) -> str:
        """Create a SharedMemoryGroup over all pods of a namespace; return its path.

        The default is a memfd.
        """
        body = _resource(
            "SharedMemoryGroup",
            {"backing": {"memfd": {"name": "ring"}}, "members": [{"podSelector": {}}], **spec},
        )
        self.send("POST", f"{PINWARDEN}/namespaces/{namespace}/sharedmemorygroups", body)
        return f"{PINWARDEN}/namespaces/{namespace}/sharedmemorygroups/{body['metadata']['name']}"

    def ceiling(self, **spec: Any) -> str:
        """A ClusterPinLimit; returns its path."""
        body = _resource("ClusterPinLimit", {"limit": "1Mi", **spec})
        self.send("POST", f"{PINWARDEN}/clusterpinlimits", body)
        return f"{PINWARDEN}/clusterpinlimits/{body['metadata']['name']}"

    def config(self, node: str) -> Json:
        """The node's NodePinConfig."""
        return self.find(config_path(node))

    def limits_on(self, node: str) -> Mapping[str, dict[str, int]]:
        """Return, by pod UID, the limits in the node's spec: last part of the name, and bytes."""
        spec = self.config(node).get("spec", {})
        amounts = {limit["name"]: limit["limit"] for limit in spec.get("limits", [])}
        return {
            pod["uid"]: {name.rpartition("/")[2]: amounts[name] for name in pod["limits"]}
            for pod in spec.get("pods", [])
        }

    def acknowledge(
        self,
        node: str,
        pinned: int = 4096,
        *,
        levels: Mapping[str, str] | None = None,
        denials: Mapping[str, list[Json]] | None = None,
        **status: Any,
    ) -> None:
        """Report as the node's agent would: all of the spec taken, each governed pod at Converge.

        `levels` are pods at another level, `denials` are pods with known denials, by UID.
        """
        config = self.config(node)
        spec, _ = NodePinConfigSpec.parse(config["spec"])
        sources = ("Mlock", "MemfdSecret", "IoUring", "Rdma", "Vfio", "Iommufd", "Vdpa")
        level = {"level": "Converge", "reason": "RlimitGate"}

        def use(uid: str) -> Json:
            pod_level = {"level": (levels or {}).get(uid, "Converge"), "reason": "RlimitGate"}
            seen = {"denials": denials[uid]} if denials and uid in denials else {}
            return {
                "uid": uid,
                "vmLck": pinned,
                "vmPin": 0,
                "peak": pinned,
                "processes": 1,
                **pod_level,
                **seen,
            }

        report = {
            "observedGeneration": config["metadata"]["generation"],
            "appliedLimits": [{"uid": limit.uid, "hash": limit.hash} for limit in spec.limits],
            "sources": [{"source": source, "counted": True, **level} for source in sources],
            "pods": [use(pod.uid) for pod in spec.pods if pod.limits],
        }
        self.merge(f"{config_path(node)}/status", {"status": report | status})

    def report_groups(self, node: str, phase: str = "Active", **fields: Any) -> None:
        """Report all groups of the spec as an agent, each in this phase and with these fields."""
        spec, _ = NodePinConfigSpec.parse(self.config(node)["spec"])
        groups = [
            {
                "uid": group.uid,
                "hash": group.hash,
                "phase": phase,
                "objects": int(phase != "Released"),
                **fields,
            }
            for group in spec.groups
        ]
        self.acknowledge(node, groups=groups)

    def condition(self, path: str, kind: str) -> tuple[str, str]:
        """Status and reason of a limit's condition, empty without it."""
        for each in self.find(path).get("status", {}).get("conditions", []):
            if each["type"] == kind:
                return each["status"], each["reason"]
        return "", ""

    def holder(self) -> str:
        """Who holds the Lease."""
        return str(self.find(LEASE).get("spec", {}).get("holderIdentity") or "")


class Operator:
    """The operator's process for the length of a ``with`` block; ``log`` is what it wrote."""

    def __init__(self, cluster: Cluster, folder: Path, *options: str) -> None:
        self._log_path = folder / f"operator-{uuid.uuid4().hex[:6]}.log"
        command = [
            sys.executable,
            "-m",
            "pinwarden",
            "operator",
            f"--kubeconfig={cluster.kubeconfig}",
        ]
        serving = ["--metrics-address=127.0.0.1", "--metrics-port=0", "--log-format=json"]
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *serving, *options],
                env=os.environ | {"PYTHONPATH": str(ROOT / "operator")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> list[Json]:
        return [json.loads(line) for line in self._log_path.read_text().splitlines()]

    def get(self, path: str) -> tuple[int, str]:
        """Of its metrics server, whose port it logs; status 0 while it does not answer."""
        prefix = "metrics are at "
        lines = eventually(
            lambda: [line["message"] for line in self.log if line["message"].startswith(prefix)],
            bool,
        )
        url = lines[0].removeprefix(prefix).removesuffix("/metrics")
        try:
            with urllib.request.urlopen(f"{url}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, sample: str) -> float:
        """The value of a sample by its name and labels, as they are written."""
        for line in self.get("/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        raise AssertionError(f"there is no {sample}")

    def ready(self) -> Self:
        eventually(lambda: self.get("/readyz")[0], lambda status: status == 200)
        return self

    def leads(self) -> Self:
        eventually(lambda: self.metric("pinwarden_operator_leader"), lambda value: value == 1.0)
        return self

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return exit_status(self.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it in the way that gives the Lease away, for the next one."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        try:
            exit_status(self.process)
        finally:
            self.process.kill()


def config_path(node: str) -> str:
    return f"{PINWARDEN}/nodepinconfigs/{node}"


def _resource(kind: str, spec: Json) -> Json:
    name = f"limit-{uuid.uuid4().hex[:8]}"
    return {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }
