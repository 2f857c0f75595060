"""A small cluster under a real Prometheus: operators, agents, a gate and accountants as processes.

There are two nodes. *gated* is this machine itself, with holder, gate and accountant, and with pods
in real cgroups. *plain* has a hierarchy of files that lists real processes, and no gate. In place
of a kubelet, a thread asks each agent whether it is ready, and writes the answer into its pod.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from cluster import chart
from gate_node.node import NOBODY, Process
from gate_node.node import Node as GatedNode
from gate_node.node import Pod as GatedPod
from monitoring.prometheus import HOST, Prometheus, Target

from ..waiting import eventually
from .conftest import ROOT
from .operators import AGENT_LABELS, PINWARDEN, SYSTEM, Cluster, Operator, _resource

Json = dict[str, Any]
PINNER = Path(__file__).with_name("pinner.py")
"""The annotation by which a pod's cgroup bears another UID than the object."""
ACCOUNT = "pinwarden-agent"
PODS = f"/api/v1/namespaces/{SYSTEM}/pods"
_KUBELET_SECONDS = 0.5


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
    return port


def send(process: Process, line: str) -> int:
    """An order to a pinner, and what it answers: errno, 0 where it did it."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(line, file=process.stdin, flush=True)
    return int(process.stdout.readline())


class Agent:
    """An agent's process on a node, its pod object, and its credentials."""

    def __init__(self, cluster: Cluster, node: str, folder: Path, *options: str) -> None:
        self.node = node
        self.address = f"{HOST}:{free_port()}"
        self.pod = f"{PODS}/agent-{node}"
        spec = {
            "nodeName": node,
            "serviceAccountName": ACCOUNT,
            "containers": [{"name": "agent", "image": "agent"}],
        }
        metadata = {"name": f"agent-{node}", "labels": AGENT_LABELS}
        cluster.send("POST", PODS, {"metadata": metadata, "spec": spec})
        self._cluster = cluster
        self._folder = folder
        self._options = options
        self._log = (folder / f"agent-{node}.log").open("wb")
        self.kubeconfig = cluster.server.kubeconfig_with(self._token())
        self.process = self._start()

    def _token(self) -> str:
        """Bound to the pod, which says on which node it is."""
        metadata = self._cluster.find(self.pod)["metadata"]
        bound = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{ACCOUNT}/token"
        answer = self._cluster.send("POST", path, {**body, "spec": {"boundObjectRef": bound}})
        return str(answer["status"]["token"])

    def _start(self) -> "subprocess.Popen[bytes]":
        host, port = self.address.split(":")
        command = [
            *(
                sys.executable,
                "-m",
                "pinwarden",
                "agent",
                f"--node={self.node}",
                f"--kubeconfig={self.kubeconfig}",
            ),
            *(
                f"--socket={self._folder / 'agent.sock'}",
                f"--metrics-address={host}",
                f"--metrics-port={port}",
            ),
            *("--per-pod-metrics", *self._options),
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "operator")}
        return subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=subprocess.STDOUT
        )

    def ready(self) -> bool:
        """As a kubelet would ask."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=1) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


class Kubelet(threading.Thread):
    """Writes into each agent's pod whether it is ready, as long as the API server takes it."""

    def __init__(self, cluster: Cluster, agents: list[Agent]) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._agents = agents
        self._written: dict[str, bool] = {}
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(_KUBELET_SECONDS):
            for agent in self._agents:
                ready = agent.ready()
                if self._written.get(agent.node) != ready:
                    with suppress(OSError):
                        self._cluster.set_ready(agent.pod, ready)
                        self._written[agent.node] = ready

    def close(self) -> None:
        self._end.set()
        self.join()


class PlainNode:
    """A node without a gate: files of cgroup v2 list processes of this machine."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.name = cluster.node()
        self.cgroups, self.state, self.run = (folder / each for each in ("cgroup", "state", "run"))
        self.run.mkdir(parents=True)
        self.cgroups.mkdir()
        (self.cgroups / "cgroup.controllers").write_text("memory pids\n")
        (self.cgroups / "cgroup.procs").write_text("")
        self.agent = Agent(
            cluster,
            self.name,
            folder,
            f"--cgroup-root={self.cgroups}",
            f"--state-dir={self.state}",
            f"--run-dir={self.run}",
        )

    def pod(self, uid: str) -> "subprocess.Popen[str]":
        """A pod's cgroup with a process in it."""
        process = subprocess.Popen(
            [sys.executable, str(PINNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        folder = self.cgroups / "kubepods" / f"pod{uid}"
        folder.mkdir(parents=True)
        (folder / "cgroup.procs").write_text(f"{process.pid}\n")
        return process


NODE_NAME = "__meta_kubernetes_pod_node_name"
_CAPITAL = re.compile(r"(?=[A-Z])")


def jobs() -> dict[str, list[dict[str, Any]]]:
    """Return the relabelling of the chart's PodMonitors, as Prometheus writes it."""
    objects = chart.render(values=[chart.CHART / "ci" / "monitored-values.yaml"])
    return {
        each["metadata"]["name"].removeprefix("pinwarden-"): [
            {_CAPITAL.sub("_", key).lower(): value for key, value in relabeling.items()}
            for endpoint in each["spec"]["podMetricsEndpoints"]
            for relabeling in endpoint["relabelings"]
        ]
        for each in objects
        if each["kind"] == "PodMonitor"
    }


class Stage:
    """All of it, for the length of a ``with`` block."""

    def __init__(self, cluster: Cluster, folder: Path, rules: Mapping[str, Any]) -> None:
        self.cluster = cluster
        self._folder = folder
        self._rules = rules
        self._resources = ExitStack()
        self.operators: list[Operator] = []
        self.third = self.ceiling = ""
        self._addresses: dict[int, str] = {}
        self._processes: list[subprocess.Popen[str]] = []
        self._gated_pods: list[GatedPod] = []

    def __enter__(self) -> "Stage":
        with ExitStack() as resources:
            cluster = self.cluster
            (self._folder / "prometheus").mkdir()
            self.prometheus = resources.enter_context(
                Prometheus(self._folder / "prometheus", self._rules, jobs())
            )
            resources.callback(self.end_operators)
            (self._folder / "gated").mkdir()
            self.gated = GatedNode(self._folder / "gated")
            resources.callback(self.gated.close)
            self.gated_name = cluster.node()
            self.gated_agent = Agent(
                cluster,
                self.gated_name,
                self._folder / "gated",
                *(
                    "--cgroup-root=/sys/fs/cgroup",
                    f"--state-dir={self.gated.state_dir}",
                    f"--run-dir={self.gated.run_dir}",
                ),
            )
            resources.callback(self.gated_agent.close)
            (self._folder / "plain").mkdir()
            self.plain = PlainNode(cluster, self._folder / "plain")
            resources.callback(self.plain.agent.close)
            self.agents = [self.gated_agent, self.plain.agent]
            kubelet = Kubelet(cluster, self.agents)
            kubelet.start()
            resources.callback(kubelet.close)
            resources.callback(self._end_processes)
            self.namespace = cluster.namespace()
            allowed = {
                "metadata": {"annotations": {"pinwarden.io/allow-shared-memory": "create:4Gi"}}
            }
            cluster.merge(f"/api/v1/namespaces/{self.namespace}", allowed)
            self.account(self.gated.state_dir, self.gated.run_dir, Path("/sys/fs/cgroup"))
            self.start_operator()
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def start_operator(self) -> Operator:
        """Another replica, which Prometheus scrapes from now on."""
        port = free_port()
        operator = Operator(
            self.cluster, self._folder, "--per-pod-metrics", f"--metrics-port={port}"
        )
        self.operators.append(operator)
        self._addresses[id(operator)] = f"{HOST}:{port}"
        self._scrape()
        return operator

    def end_operators(self) -> None:
        """All replicas, as a crash would; they stay among the targets."""
        for operator in self.operators:
            operator.process.kill()
            operator.process.wait()
        self.operators.clear()

    def account(self, state: Path, run: Path, cgroups: Path) -> None:
        """An accountant of shared memory, with room for 16 MiB of created objects."""
        command = [
            *(
                sys.executable,
                "-m",
                "pinwarden",
                "accountant",
                f"--state-dir={state}",
                f"--run-dir={run}",
            ),
            *(f"--cgroup-root={cgroups}", "--shared-memory=16Mi"),
        ]
        with (self._folder / f"shared-{uuid.uuid4().hex[:4]}.log").open("wb") as log:
            environment = os.environ | {"PYTHONPATH": str(ROOT / "operator")}
            self._processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
                )
            )

    def gated_pod(self, app: str, *, user: int = NOBODY, profile: bool = True) -> Process:
        """A pod of this machine, with or without the gate's profile, and its object."""
        made = self.cluster.pod(self.namespace, self.gated_name, {"app": app})
        pod = self.gated.pod(made["metadata"]["uid"])
        self._gated_pods.append(pod)
        process: Process
        if profile:
            process = pod.run([str(PINNER)], user=user)
            assert process.stdout.readline() == "ready\n"
        else:
            process = self._bare(pod)
        return process

    def end_gated_pods(self) -> None:
        """Their processes end; their objects stay, as those of pods that are done."""
        for pod in self._gated_pods:
            pod.end()

    def plain_pod(self, app: str) -> "subprocess.Popen[str]":
        """A pod of the plain node, and its object."""
        made = self.cluster.pod(self.namespace, self.plain.name, {"app": app})
        process = self.plain.pod(made["metadata"]["uid"])
        self._processes.append(process)
        return process

    def make(self, kind: str, name: str, **spec: Any) -> str:
        """A PinLimit or SharedMemoryGroup of the namespace; returns its path."""
        plural = {"PinLimit": "pinlimits", "SharedMemoryGroup": "sharedmemorygroups"}[kind]
        body = _resource(kind, spec)
        body["metadata"]["name"] = name
        path = f"{PINWARDEN}/namespaces/{self.namespace}/{plural}"
        self.cluster.send("POST", path, body)
        return f"{path}/{name}"

    def delete(self, path: str) -> None:
        """Delete an object, which may be gone."""
        try:
            self.cluster.send("DELETE", path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise

    def until_fired(self, *alerts: str, since: float, seconds: float) -> None:
        """Wait until each alert fires, or has fired since a time; else raise AssertionError."""
        eventually(
            lambda: set(alerts) - self.prometheus.firing(time.monotonic() - since),
            lambda missing: not missing,
            seconds,
        )

    def until_quiet(self, *alerts: str, seconds: float) -> None:
        """Wait until none of these alerts fires; else raise AssertionError."""
        eventually(
            lambda: self.prometheus.firing() & set(alerts), lambda firing: not firing, seconds
        )

    def _bare(self, pod: GatedPod) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, str(PINNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (pod.directory / pod.container / "cgroup.procs").write_text(str(process.pid))
        pod.processes.append(process)
        return process

    def _scrape(self) -> None:
        operators = [
            Target("operator", self._addresses[id(each)], {NODE_NAME: "of-operators"})
            for each in self.operators
        ]
        agents = [Target("agent", each.address, {NODE_NAME: each.node}) for each in self.agents]
        self.prometheus.scrape([*operators, *agents])

    def _end_processes(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)
            process.kill()
            process.wait()


def labels_in(text: str) -> list[tuple[str, dict[str, str]]]:
    """The series of an exposition: name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    return [
        (each.name, each.labels)
        for family in text_string_to_metric_families(text)
        for each in family.samples
    ]


def scraped(agent: Agent) -> str:
    """What an agent answers a scrape."""
    with urllib.request.urlopen(f"http://{agent.address}/metrics", timeout=5) as response:
        return str(response.read().decode())
