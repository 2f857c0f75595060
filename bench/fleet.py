"""A fleet of objects only: nodes, pods, limits, and agents that answer like real agents.

Nothing runs on these nodes. An agent here sees a change of its node's NodePinConfig, acknowledges
it and reports each governed pod, as fast as the API server allows. As with a real agent, each
node's report changes once in five minutes without another cause. The amounts are invented; all
other objects are those of a cluster of this size.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import ssl
import uuid
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from cluster.controlplane import ControlPlane
from pinwarden.api.nodepinconfig import NodePinConfigSpec

Json = dict[str, Any]

RETRIES = 30
APPS = 20
PODS_PER_NAMESPACE = 400
HEARTBEAT_SECONDS = 285.0
START_SECONDS = 2.0
AGENTS_NAMESPACE = "pinwarden-system"
AGENT_LABELS = {"app.kubernetes.io/name": "pinwarden", "app.kubernetes.io/component": "agent"}
CONFIGS = "/apis/pinwarden.io/v1alpha1/nodepinconfigs"


class Api:
    """A control plane's API over a few dozen connections.

    A failed request raises aiohttp.ClientResponseError.
    """

    def __init__(self, control_plane: ControlPlane, connections: int = 48) -> None:
        self._url = control_plane.url
        self._tls = ssl.create_default_context(cafile=str(control_plane.ca_file))
        self._headers = {"Authorization": f"Bearer {control_plane.admin_token}"}
        self._connections = connections

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self._url,
            headers=self._headers,
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=self._connections + 4),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            raise_for_status=True,
        )
        self._slots = asyncio.Semaphore(self._connections)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def send(
        self, method: str, path: str, body: Json | None = None, content: str = "json"
    ) -> Json:
        """Send a request with a JSON body; `content` is the kind, such as merge-patch+json."""
        headers = {"Content-Type": f"application/{content}"}
        data = None if body is None else json.dumps(body)
        for _ in range(RETRIES):
            try:
                async with (
                    self._slots,
                    self._session.request(method, path, data=data, headers=headers) as response,
                ):
                    answer: Json = await response.json()
                    return answer
            except aiohttp.ClientResponseError as error:
                if error.status != 429:
                    raise
            await asyncio.sleep(1)  # the storage of a new CRD is still being prepared
        raise TimeoutError(f"{method} {path} was answered 429 {RETRIES} times")

    async def text(self, path: str) -> str:
        """The body of a GET that is not JSON."""
        async with self._session.get(path) as response:
            return await response.text()

    async def watch(self, path: str, version: str) -> AsyncIterator[Json]:
        """The events of one watch, until the server ends it."""
        parameters = {"watch": "1", "resourceVersion": version, "timeoutSeconds": "600"}
        async with self._session.get(path, params=parameters) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)


def node_object(number: int) -> Json:
    """A Node with the labels that cloud nodes have."""
    name = node_name(number)
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "topology.kubernetes.io/zone": "abc"[number % 3],
        "node.kubernetes.io/instance-type": f"m{number % 7}",
        "pool": f"pool-{number % 10}",
    }
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def node_name(number: int) -> str:
    """The name of a node of the fleet."""
    return f"node-{number:05}"


def pod_object(number: int, nodes: int) -> Json:
    """A running pod of two containers that is about 9 kB in the API server, bound to a node."""
    namespace = f"team-{number // PODS_PER_NAMESPACE}"
    app = f"app-{number % APPS}"
    template = hashlib.sha256(f"{namespace}{app}".encode()).hexdigest()[:10]
    labels = {
        "app": app,
        "pod-template-hash": template,
        "tier": f"tier-{number % 5}",
        "app.kubernetes.io/instance": f"{app}-{namespace}",
    }
    name = f"{app}-{template}-{uuid.uuid4().hex[:8]}"
    return _pod(namespace, name, node_name(random.randrange(nodes)), labels)


def agent_pod(number: int) -> Json:
    """The agent's pod on a node, as the DaemonSet makes it."""
    return _pod(AGENTS_NAMESPACE, f"pinwarden-agent-{number:05}", node_name(number), AGENT_LABELS)


def _pod(namespace: str, name: str, node: str, labels: Json) -> Json:
    environment = [{"name": f"SETTING_{i}", "value": f"value-{i}-of-{name}"} for i in range(3)]
    container = {
        "image": "registry.example/team/app:1.2.3",
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "256Mi"},
        },
        "env": environment,
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {"team.example/settings": json.dumps(environment) * 12},
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": part, **container} for part in ("main", "proxy")],
        },
    }


def running(pod: Json) -> Json:
    """The status that a kubelet writes once the pod runs."""
    since = "2026-01-01T00:00:00Z"
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "phase": "Running",
        "podIP": "10.1.2.3",
        "hostIP": "10.0.0.9",
        "startTime": since,
        "qosClass": "Burstable",
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": since} for kind in kinds
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "ready": True,
                "restartCount": 0,
                "image": container["image"],
                "imageID": f"sha256:{'0' * 64}",
                "containerID": f"containerd://{uuid.uuid4().hex}{uuid.uuid4().hex}",
                "state": {"running": {"startedAt": since}},
            }
            for container in pod["spec"]["containers"]
        ],
    }


def limit_objects(count: int, namespaces: int) -> list[Json]:
    """Return limits; a tenth are ClusterPinLimits, the first for all pods; others select an app."""
    found: list[Json] = []
    for number in range(count):
        if number % 10 == 0:
            selector = (
                {"podSelector": {"matchLabels": {"tier": f"tier-{number // 10 % 5}"}}}
                if number
                else {}
            )
            metadata: Json = {"name": f"ceiling-{number}"}
            spec: Json = {"limit": "1Gi", **selector}
        else:
            metadata = {"name": f"limit-{number}", "namespace": f"team-{number % namespaces}"}
            app = f"app-{number // namespaces % APPS}"
            spec = {"limit": "64Mi", "podSelector": {"matchLabels": {"app": app}}}
        kind = "PinLimit" if "namespace" in metadata else "ClusterPinLimit"
        found.append(
            {
                "apiVersion": "pinwarden.io/v1alpha1",
                "kind": kind,
                "metadata": metadata,
                "spec": spec,
            }
        )
    return found


def path_of(item: Json, *, named: bool = False) -> str:
    """The path of an object, or of the collection that it is created in."""
    group = "/api/v1" if item["apiVersion"] == "v1" else f"/apis/{item['apiVersion']}"
    namespace = item["metadata"].get("namespace")
    place = f"/namespaces/{namespace}" if namespace else ""
    name = f"/{item['metadata']['name']}" if named else ""
    return f"{group}{place}/{item['kind'].lower()}s{name}"


async def create(api: Api, items: Iterable[Json], start: float = 0.0) -> list[Json]:
    """Create objects, many at once; a pod gets a running status `start` seconds later."""

    async def one(item: Json) -> Json:
        made = await api.send("POST", path_of(item), item)
        if item["kind"] == "Pod":
            await asyncio.sleep(start)
            made["status"] = running(item)
            await api.send("PUT", f"{path_of(item, named=True)}/status", made)
        return {
            "kind": item["kind"],
            "apiVersion": item["apiVersion"],
            "metadata": item["metadata"],
        }

    done: list[Json] = []
    source = iter(items)
    while batch := list(itertools.islice(source, 500)):
        done += await asyncio.gather(*(one(item) for item in batch))
    return done


@dataclass
class Agents:
    """The agents of all nodes.

    `generations` has the newest generation seen of each node's spec, `acknowledged` the newest
    answered.
    """

    api: Api
    generations: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _latest: dict[str, Json] = field(default_factory=dict)
    _due: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        loops = [self._watch(), self._heartbeat(), *(self._answer() for _ in range(8))]
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        failed = [result for result in results if isinstance(result, Exception)]
        if failed and error is None:
            raise failed[0]

    def check(self) -> None:
        """Raise what ended one of the agents' tasks."""
        for task in self._tasks:
            if task.done():
                task.result()

    def end(self, pod: Json) -> None:
        """The pod's processes have ended, as on a node before its object is deleted."""
        self._ended.add(pod["metadata"]["uid"])
        if (node := pod["spec"]["nodeName"]) in self._latest:
            self._due.put_nowait(node)

    async def _watch(self) -> None:
        while True:
            listed = await self.api.send("GET", CONFIGS)
            for config in listed["items"]:
                self._take(config)
            version = listed["metadata"]["resourceVersion"]
            with contextlib.suppress(aiohttp.ClientPayloadError):  # the server ended the watch
                async for event in self.api.watch(CONFIGS, version):
                    if event["type"] == "ERROR":
                        break
                    self._take(event["object"])

    def _take(self, config: Json) -> None:
        name = config["metadata"]["name"]
        self._latest[name] = config
        self.sizes[name] = len(json.dumps(config, separators=(",", ":")))
        if self.generations.get(name) != config["metadata"]["generation"]:
            self.generations[name] = config["metadata"]["generation"]
            self._due.put_nowait(name)

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS / max(1, len(self._latest)))
            if self._latest:
                self._due.put_nowait(random.choice(list(self._latest)))

    async def _answer(self) -> None:
        while True:
            config = self._latest[await self._due.get()]
            generation = config["metadata"]["generation"]
            name = config["metadata"]["name"]
            body = {
                **config,
                "status": report_of(understood(config["spec"]), generation, self._ended),
            }
            try:
                await self.api.send("PUT", f"{CONFIGS}/{name}/status", body)
            except aiohttp.ClientResponseError as error:
                if (
                    error.status == 409
                ):  # changed since: the newer one is in the queue or comes with the watch
                    await asyncio.sleep(0.05)
                    self._due.put_nowait(name)
                elif error.status != 404:
                    raise
            else:
                self.acknowledged[name] = generation


def understood(raw: Json) -> NodePinConfigSpec:
    """A spec as the operator wrote it, which an agent of the same version must understand."""
    spec, unsupported = NodePinConfigSpec.parse(raw)
    if unsupported:
        raise ValueError(f"an agent of this version does not understand {unsupported}")
    return spec


def report_of(spec: NodePinConfigSpec, generation: int, ended: Collection[str] = ()) -> Json:
    """Return the status of a node that acknowledged `spec`; only the ended pods do not run."""
    counted = ("Mlock", "MemfdSecret", "IoUring", "Rdma", "Vfio", "Iommufd", "Vdpa")
    return {
        "observedGeneration": generation,
        "agentVersion": "bench",
        "cgroupVersion": "v2",
        "appliedLimits": [{"uid": limit.uid, "hash": limit.hash} for limit in spec.limits],
        "sources": [
            {"source": source, "counted": True, "level": "Converge", "reason": "RlimitGate"}
            for source in counted
        ],
        "pods": [
            {
                "uid": pod.uid,
                "vmLck": random.randrange(2**10) * 4096,
                "vmPin": 0,
                "peak": 2**22,
                "processes": 4,
                "level": "Converge",
            }
            for pod in spec.pods
            if pod.limits and pod.uid not in ended
        ],
    }
