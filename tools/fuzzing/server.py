"""Fuzz the operator with objects that a real API server accepts.

After each batch, the operator must be the same process. A canary limit that was just changed must
be compiled for its node, and be Applied and Enforced after its agent's report. Each limit and group
must have conditions. Objects that the server rejects are counted apart.
"""

import logging
import random
import time
import urllib.error
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import yaml

from cluster.patience import Patience
from fuzzing.schemas import Values
from fuzzing.tally import Tally
from fuzzing.text import label, words

SPARE_SECONDS = 60.0
AMOUNTS = (1 << 20, 2 << 20)
KINDS = {
    "pods": 4,
    "pod_statuses": 3,
    "nodes": 1,
    "namespaces": 1,
    "limits": 2,
    "groups": 1,
    "reports": 3,
}
"""The kinds of objects, and their weights in a long run."""
_CRDS = Path(__file__).parents[2] / "crds"
_API = "/apis/pinwarden.io/v1alpha1"
_PLACES = 8
_MOST_PODS = 400
_KEPT = 60
_ANNOTATIONS = (
    "kubernetes.io/config.hash",
    "kubernetes.io/config.source",
    "pinwarden.io/shared-memory",
)
_log = logging.getLogger(__name__)

Json = dict[str, Any]


class Api(Protocol):
    """Requests to the API server as an administrator."""

    def send(self, method: str, path: str, body: Json | None = None, content: str = "json") -> Json:
        """Send a request. Raises urllib.error.HTTPError."""
        ...

    def find(self, path: str) -> Json:
        """Return the object, empty if it does not exist."""
        ...

    def merge(self, path: str, patch: Json) -> Json:
        """Send a merge patch."""
        ...

    def limits_on(self, node: str) -> Mapping[str, Mapping[str, int]]:
        """Return the limits in the node's spec by pod UID and last part of the limit's name."""
        ...

    def acknowledge(self, node: str) -> None:
        """Acknowledge the whole spec, as the node's agent does."""
        ...


class Process(Protocol):
    """The operator."""

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        ...


class Canary(Protocol):
    """A pod on a node with an agent, under a limit."""

    node: str
    uid: str
    limit: str
    name: str


class Server:
    """A run of one seed in namespaces and on nodes of its own."""

    def __init__(self, api: Api, operator: Process, canary: Canary, seed: int) -> None:
        self.tally = Tally(seed)
        self._api, self._operator, self._canary = api, operator, canary
        self._rng = random.Random(seed)
        self._amount = AMOUNTS[0]
        self._mark = f"fuzz-{uuid.uuid4().hex[:8]}"
        self._pods: list[str] = []
        self._limits: list[str] = []
        self._schemas = {path.stem: _schema(path) for path in _CRDS.glob("*.yaml")}
        self._namespaces = [self._mark, *(f"{self._mark}-{number}" for number in range(_PLACES))]
        self._nodes = [f"{self._mark}-{number}" for number in range(_PLACES)]
        for name in self._namespaces:
            namespace = {"metadata": {"name": name, "labels": {"fuzz": "yes"}}}
            api.send("POST", "/api/v1/namespaces", namespace)
        for name in self._nodes:
            api.send("POST", "/api/v1/nodes", {"metadata": {"name": name}})

    def run(self, objects: int, batch: int = 100) -> Tally:
        """Send batches until the server has accepted this many objects; check after each batch."""
        while self.tally.inputs < objects and self._operator.poll() is None:
            (kind,) = self._rng.choices(list(KINDS), list(KINDS.values()))
            self.send(kind, min(batch, objects - self.tally.inputs))
        return self.tally

    def send(self, kind: str, count: int) -> None:
        """Send a batch of one kind and check."""
        began = time.monotonic()
        for _ in range(count):
            try:
                getattr(self, f"_send_{kind}")()
            except urllib.error.HTTPError as error:
                _log.debug("%s rejected: %s", kind, error.read().decode(errors="replace"))
                self.tally.rejected[kind] += 1
            else:
                self.tally.sent[kind] += 1
        sent = time.monotonic()
        self.check(kind)
        _log.info(
            "%d %s: %.1f s, checked in %.1f s", count, kind, sent - began, time.monotonic() - sent
        )

    def check(self, after: str) -> None:
        """Change the canary's limit and note each failed condition."""
        self._amount = AMOUNTS[self._amount == AMOUNTS[0]]
        self._api.merge(self._canary.limit, {"spec": {"limit": str(self._amount)}})
        self._expect(self._compiled, f"the canary is not compiled after {after}")
        for kind in ("Applied", "Enforced"):
            condition = partial(self._is_true, kind)
            self._expect(condition, f"the canary's limit is not {kind} after {after}")
        for path in self._limits:
            self._expect(
                partial(self._has_conditions, path), f"a {path.split('/')[-2]} has no conditions"
            )
        for path in self._limits[:-_KEPT]:
            self._delete(path)
        self._limits = self._limits[-_KEPT:]
        while len(self._pods) > _MOST_PODS:
            self._delete(f"{self._pods.pop(0)}?gracePeriodSeconds=0")

    def _compiled(self) -> bool:
        return self._api.limits_on(self._canary.node).get(self._canary.uid) == {
            self._canary.name: self._amount
        }

    def _is_true(self, kind: str) -> bool:
        """Acknowledge the spec; return whether this condition of the canary's limit is True."""
        self._api.acknowledge(self._canary.node)
        limit = self._api.find(self._canary.limit)
        status = limit.get("status", {})
        current = status.get("observedGeneration") == limit["metadata"]["generation"]
        return current and (kind, "True") in (
            (condition["type"], condition["status"]) for condition in status["conditions"]
        )

    def _has_conditions(self, path: str) -> bool:
        resource = self._api.find(path)
        return not resource or bool(resource.get("status", {}).get("conditions"))

    def _send_pods(self) -> None:
        rng = self._rng
        containers = [{"name": label(rng), "image": "x"} for _ in range(rng.choice([1, 1, 2, 20]))]
        body: Json = {
            "metadata": self._metadata(owners=True),
            "spec": {
                "containers": containers,
                "nodeName": rng.choice([*self._nodes, self._canary.node]),
            },
        }
        if rng.random() < 0.3:
            body["spec"]["initContainers"] = [
                {"name": label(rng), "image": "x", **rng.choice([{}, {"restartPolicy": "Always"}])}
            ]
        path = f"/api/v1/namespaces/{rng.choice(self._namespaces)}/pods"
        made = self._api.send("POST", path, body)
        self._pods.append(f"{path}/{made['metadata']['name']}")

    def _send_pod_statuses(self) -> None:
        rng = self._rng
        if not self._pods:
            self._send_pods()
        path = rng.choice(self._pods)
        change = rng.choice(["metadata", "status", "status"])
        if change == "metadata":
            metadata = self._metadata()
            self._api.merge(
                path, {"metadata": {key: metadata[key] for key in ("labels", "annotations")}}
            )
            return
        containers = self._api.find(path).get("spec", {}).get("containers", [])
        names = [container["name"] for container in containers]
        statuses = [
            {
                "name": rng.choice([*names, label(rng)]),
                "containerID": rng.choice(
                    ["", "x", f"containerd://{rng.randbytes(32).hex()}", words(rng, 300)]
                ),
                "image": words(rng, 20),
                "imageID": "",
                "ready": rng.random() < 0.5,
                "restartCount": rng.choice([0, 2**31 - 1]),
                "state": rng.choice(
                    [{}, {"running": {}}, {"terminated": {"exitCode": 1}}, {"waiting": {}}]
                ),
            }
            for _ in range(rng.choice([0, 1, 5]))
        ]
        status = {
            "phase": rng.choice(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
            "containerStatuses": statuses,
            "conditions": [
                {
                    "type": rng.choice(["Ready", label(rng)]),
                    "status": rng.choice(["True", "Unknown"]),
                }
            ],
            "reason": words(rng, 100),
        }
        self._api.merge(f"{path}/status", {"status": status})

    def _send_nodes(self) -> None:
        metadata = self._metadata()
        path = f"/api/v1/nodes/{self._rng.choice(self._nodes)}"
        self._api.merge(
            path, {"metadata": {key: metadata[key] for key in ("labels", "annotations")}}
        )

    def _send_namespaces(self) -> None:
        metadata = self._metadata()
        path = f"/api/v1/namespaces/{self._rng.choice(self._namespaces)}"
        self._api.merge(
            path,
            {"metadata": {"annotations": metadata["annotations"], "labels": metadata["labels"]}},
        )

    def _send_limits(self) -> None:
        cluster = self._rng.random() < 0.4
        plural = "clusterpinlimits" if cluster else "pinlimits"
        spec = self._spec(plural)
        if cluster:  # leaves out the canary's namespace
            spec["namespaceSelector"] = {"matchLabels": {"fuzz": "yes"}}
        self._make(plural, spec, cluster=cluster)

    def _send_groups(self) -> None:
        self._make("sharedmemorygroups", self._spec("sharedmemorygroups"), cluster=False)

    def _send_reports(self) -> None:
        rng = self._rng
        uids = [uuid.UUID(bytes=rng.randbytes(16)), *self._uids()]
        hints: Mapping[str, Callable[[random.Random], Any]] = {
            "uid": lambda rng: str(rng.choice(uids)),
            "pod": lambda rng: str(rng.choice(uids)),
        }
        status = Values(rng, hints).value(self._schemas["nodepinconfigs"]["status"])
        self._api.merge(
            f"{_API}/nodepinconfigs/{rng.choice(self._nodes)}/status", {"status": status}
        )

    def _uids(self) -> list[str]:
        config = self._api.find(f"{_API}/nodepinconfigs/{self._rng.choice(self._nodes)}")
        spec = config.get("spec", {})
        return [item["uid"] for part in ("pods", "limits", "groups") for item in spec.get(part, [])]

    def _spec(self, plural: str) -> Json:
        hints: Mapping[str, Callable[[random.Random], Any]] = {
            "podSelector": lambda rng: rng.choice([{}, {"matchLabels": {"a": "b"}}]),
            "nodeSelector": lambda rng: rng.choice([{}, {"matchLabels": {"a": "b"}}]),
            "limit": lambda rng: rng.choice(["0", "4096", "1Mi", "4Pi", 4096]),
            "borrowLimit": lambda rng: rng.choice(["0", "4096", "1Mi"]),
            "pinLimit": lambda rng: rng.choice(["0", "4096", "1Mi"]),
            "capacity": lambda rng: rng.choice(["4096", "1Mi", "1Gi"]),
            "backing": _backing,
        }
        spec: Json = Values(self._rng, hints).value(self._schemas[plural]["spec"])
        if self._rng.random() < 0.9:  # else CEL rejects these
            spec.pop("maxGrant", None)
            if "backing" in spec:
                spec |= {
                    "backing": _backing(self._rng),
                    "management": "Adopt",
                    "accounting": "Borrow",
                }
                spec["members"] = spec.get("members", [])[:1]
                spec.pop("owner", None)
            for key in ("containers",) if spec.get("scope") != "Container" else ():
                spec.pop(key, None)
            for key in ("grant", "onOvershoot") if spec.get("enforcement") == "Audit" else ():
                spec.pop(key, None)
        return spec

    def _make(self, plural: str, spec: Json, *, cluster: bool) -> None:
        place = "" if cluster else f"/namespaces/{self._rng.choice(self._namespaces)}"
        kind = {
            "clusterpinlimits": "ClusterPinLimit",
            "pinlimits": "PinLimit",
            "sharedmemorygroups": "SharedMemoryGroup",
        }[plural]
        metadata = self._metadata()
        body = {
            "apiVersion": "pinwarden.io/v1alpha1",
            "kind": kind,
            "metadata": metadata,
            "spec": spec,
        }
        made = self._api.send("POST", f"{_API}{place}/{plural}", body)
        self._limits.append(f"{_API}{place}/{plural}/{made['metadata']['name']}")

    def _metadata(self, *, owners: bool = False) -> Json:
        rng = self._rng
        name = rng.choice(
            [f"x{rng.getrandbits(64):x}", ".".join([label(rng)] * 3) + f"{rng.getrandbits(40):x}"]
        )
        labels = {
            rng.choice(["a", "app", label(rng)]): rng.choice(["b", "", label(rng)])
            for _ in range(3)
        }
        annotations = {
            rng.choice([*_ANNOTATIONS, label(rng)]): rng.choice(
                [words(rng, 65), words(rng, 5000), rng.randbytes(16).hex(), "tmpfs:/run/*", "{", ""]
            )
            for _ in range(2)
        }
        metadata: Json = {"name": name[:253], "labels": labels, "annotations": annotations}
        if owners and rng.random() < 0.5:
            owner = {
                "apiVersion": rng.choice(["v1", "apps/v1", words(rng, 30, 1)]),
                "uid": words(rng, 80, 1),
            }
            metadata["ownerReferences"] = [
                {
                    **owner,
                    "kind": rng.choice(["Node", "ReplicaSet", words(rng, 70, 1)]),
                    "name": words(rng, 300, 1),
                }
            ]
        return metadata

    def _delete(self, path: str) -> None:
        try:
            self._api.send("DELETE", path)
        except urllib.error.HTTPError as error:
            error.read()

    def _expect(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait for a condition; note `otherwise` if it stays false or the operator ends."""
        patience = Patience(SPARE_SECONDS)
        while not condition():
            if (code := self._operator.poll()) is not None:
                self.tally.found(f"the operator ended with {code}: {otherwise}")
                return
            if patience.ended:
                self.tally.found(otherwise)
                return
            time.sleep(0.02)


def _backing(rng: random.Random) -> Json:
    return rng.choice(
        [
            {"memfd": {"name": words(rng, 50, 1)}},
            {"posixShm": {"name": rng.choice(["x", "名*", words(rng, 50, 1)])}},
            {"sysvShm": {"key": rng.randrange(1, 2**31)}},
            {"tmpfs": {"path": "/run/x"}},
            {"file": {"path": f"/srv/{label(rng)}*"}},
            {"dmabuf": {"exporter": label(rng)}},
        ]
    )


def _schema(path: Path) -> Mapping[str, Any]:
    """Return the properties of a CRD's object."""
    crd = yaml.safe_load(path.read_text())
    properties: Mapping[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"][
        "properties"
    ]
    return properties
