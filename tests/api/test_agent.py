"""The agent's process against a real API server, with the token and the policy of its node.

No gate is in place: this machine may lack CAP_SYS_RESOURCE, and tests/kernel has the gate. The
tests show the way of a configuration to the reconciler and of its report to the status, over edits,
deletion, outages and restarts.
"""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from cluster import chart
from cluster.controlplane import API_SERVER, ControlPlane
from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.cli.status import ask

from ..waiting import SECONDS, eventually, exit_status
from .conftest import ROOT, run_kubectl

SYSTEM = "pinwarden-system"
AGENT = "pinwarden-agent"
BACK_SECONDS = 15.0
POD = "0b44a8a1-5a5c-4c5a-9c3f-6f2a4c0d1e2f"
LIMIT = {"name": "ns/a", "uid": "limit-a", "scope": "Pod", "limit": 1 << 20}


@pytest.fixture(scope="module")
def server() -> Iterator[ControlPlane]:
    """An API server that these tests may kill, with a field of limits that the agent lacks."""
    with ControlPlane() as running:
        crd = yaml.safe_load((ROOT / "crds" / "nodepinconfigs.yaml").read_text())
        (version,) = crd["spec"]["versions"]
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        spec["limits"]["items"]["properties"]["burst"] = {"type": "integer"}
        spec["weather"] = {"type": "string"}
        for manifest in (json.dumps(crd), chart.manifest(only=["agent/access.yaml"])):
            done(running.kubeconfig, "apply", "--server-side", "-f", "-", stdin=manifest)
        done(
            running.kubeconfig,
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            f"crd/{crd['metadata']['name']}",
        )
        yield running


def done(kubeconfig: Path, *arguments: str, stdin: str = "") -> str:
    result = run_kubectl(kubeconfig, *arguments, stdin=stdin)
    assert result.returncode == 0, result.stderr
    return result.stdout


class Node:
    """A node with its NodePinConfig, and the credentials and folders of its agent."""

    def __init__(self, server: ControlPlane, folder: Path) -> None:
        self.name = f"agent-{uuid.uuid4().hex[:10]}"
        self.folder = folder
        self.socket = folder / "run" / "agent.sock"
        self.cgroups = folder / "cgroup"
        self._server = server
        self._tls = ssl.create_default_context(cafile=str(server.ca_file))
        self.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name}})
        self.kubeconfig = server.kubeconfig_with(self._bound_token())
        self._make_cgroups()

    def create(self, body: Mapping[str, Any]) -> None:
        done(self._server.kubeconfig, "create", "-f", "-", stdin=json.dumps(body))

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return done(self._server.kubeconfig, *arguments, stdin=stdin)

    def configure(self, *limits: Mapping[str, Any], **fields: Any) -> int:
        """Writes the spec as the operator does, and returns its generation."""
        names = [limit["name"] for limit in limits]
        spec = {"limits": list(limits), "pods": [{"uid": POD, "limits": names}], **fields}
        body = {
            "apiVersion": "pinwarden.io/v1alpha1",
            "kind": "NodePinConfig",
            "metadata": {"name": self.name},
        }
        apply = (
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=pinwarden-operator",
            "-f",
            "-",
        )
        written = self.kubectl(*apply, "-o", "json", stdin=json.dumps({**body, "spec": spec}))
        generation: int = json.loads(written)["metadata"]["generation"]
        return generation

    def delete(self) -> None:
        self.kubectl("delete", "npc", self.name)

    def status(self) -> dict[str, Any]:
        url = f"{self._server.url}/apis/pinwarden.io/v1alpha1/nodepinconfigs/{self.name}"
        headers = {"Authorization": f"Bearer {self._server.admin_token}"}
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, context=self._tls, timeout=10) as response:
            status: dict[str, Any] = json.load(response).get("status", {})
        return status

    def acknowledged(self, generation: int, seconds: float = SECONDS) -> dict[str, Any]:
        """The status once it says that the generation was taken."""
        status: dict[str, Any] = eventually(
            self.status, lambda last: last.get("observedGeneration") == generation, seconds
        )
        return status

    def local(self) -> dict[str, Any]:
        """What the agent's socket says; empty while there is none."""
        try:
            return ask(self.socket)
        except OSError:
            return {}

    def in_force(self, generation: int) -> dict[str, Any]:
        answer: dict[str, Any] = eventually(
            self.local, lambda last: last.get("generation") == generation
        )
        return answer

    def _bound_token(self) -> str:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": SYSTEM},
            "spec": {
                "nodeName": self.name,
                "serviceAccountName": AGENT,
                "containers": [{"name": "agent", "image": "agent"}],
            },
        }
        self.create(pod)
        uid = self.kubectl("get", "pod", self.name, "-n", SYSTEM, "-o", "jsonpath={.metadata.uid}")
        bound = [
            f"--bound-object-name={self.name}",
            f"--bound-object-uid={uid}",
            "--bound-object-kind=Pod",
        ]
        return self.kubectl("create", "token", AGENT, "-n", SYSTEM, *bound).strip()

    def _make_cgroups(self) -> None:
        """A hierarchy as cgroup v2 shows it, with one pod that holds this very process."""
        pod = self.cgroups / "kubepods" / f"pod{POD}"
        pod.mkdir(parents=True)
        (self.cgroups / "cgroup.controllers").write_text("memory pids\n")
        (self.cgroups / "cgroup.procs").write_text("")
        (pod / "cgroup.procs").write_text(f"{os.getpid()}\n")


class Agent:
    """The agent's process for the length of a ``with`` block; ``log`` is what it wrote."""

    def __init__(self, node: Node, *options: str) -> None:
        self._log_path = node.folder / f"agent-{uuid.uuid4().hex[:6]}.log"
        command = [
            sys.executable,
            "-m",
            "pinwarden",
            "agent",
            f"--node={node.name}",
            f"--socket={node.socket}",
        ]
        paths = [f"--cgroup-root={node.cgroups}", f"--state-dir={node.folder / 'state'}"]
        serving = ["--metrics-address=127.0.0.1", "--metrics-port=0", "--log-format=json"]
        origin = (
            []
            if any(one.startswith("--config") for one in options)
            else [f"--kubeconfig={node.kubeconfig}"]
        )
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *paths, "--gates=none", *serving, *origin, *options],
                env=os.environ | {"PYTHONPATH": str(ROOT / "operator")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log_path.read_text().splitlines()]

    def says(self, text: str) -> bool:
        return any(text in line["message"] for line in self.log)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return exit_status(self.process)

    def kill(self) -> None:
        self.process.kill()
        exit_status(self.process)

    def get(self, path: str) -> tuple[int, str]:
        """Of its metrics server, whose port it logs."""
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.kill()
        if kind is not None:
            print(self._log_path.read_text())


@pytest.fixture
def node(server: ControlPlane, tmp_path: Path) -> Node:
    return Node(server, tmp_path)


def limit_hash(limit: Mapping[str, Any]) -> str:
    return NodeLimit.model_validate(limit).hash


def changed(**fields: Any) -> dict[str, Any]:
    return {**LIMIT, **fields}


def test_agent_acknowledges_a_spec_and_each_later_edit(node: Node) -> None:
    generation = node.configure(LIMIT)
    with Agent(node):
        status = node.acknowledged(generation)
        assert status["appliedLimits"] == [{"uid": "limit-a", "hash": limit_hash(LIMIT)}]
        assert [pod["uid"] for pod in status["pods"]] == [POD]
        assert status["cgroupVersion"] == "v2"
        smaller = changed(limit=4096)
        generation = node.configure(smaller)
        status = node.acknowledged(generation)
        assert status["appliedLimits"] == [{"uid": "limit-a", "hash": limit_hash(smaller)}]


def test_agent_applies_an_object_created_after_its_start(node: Node) -> None:
    with Agent(node) as agent:
        eventually(lambda: agent.says("there is no NodePinConfig for this node"), bool)
        node.acknowledged(node.configure(LIMIT))


@pytest.mark.rule("H3")
def test_deleted_object_leaves_the_limits_in_force(node: Node) -> None:
    generation = node.configure(LIMIT)
    with Agent(node) as agent:
        node.acknowledged(generation)
        node.delete()
        eventually(lambda: agent.says("there is no NodePinConfig for this node"), bool)
        answer = node.in_force(generation)
        assert [limit["name"] for limit in answer["configuration"]["limits"]] == ["ns/a"]
        assert answer["limitsOf"] == {POD: ["ns/a"]}
        assert node.acknowledged(node.configure(changed(limit=4096)))["pods"]


@pytest.mark.rule("H1")
def test_limit_of_a_newer_operator_is_reported_and_the_rest_applied(node: Node) -> None:
    newer = {**LIMIT, "name": "ns/b", "uid": "limit-b", "burst": 4096}
    generation = node.configure(LIMIT, newer)
    with Agent(node):
        status = node.acknowledged(generation)
        assert [limit["uid"] for limit in status["appliedLimits"]] == ["limit-a"]
        (unsupported,) = status["unsupportedLimits"]
        assert unsupported["uid"] == "limit-b"
        assert "burst" in unsupported["message"]


@pytest.mark.rule("H3")
def test_unreadable_spec_is_reported_and_the_last_good_one_stays(node: Node) -> None:
    generation = node.configure(LIMIT)
    with Agent(node) as agent:
        node.acknowledged(generation)
        broken = node.configure(changed(limit=4096), weather="fair")
        status = eventually(node.status, lambda last: last["unsupportedLimits"])
        assert status["observedGeneration"] == generation
        assert status["appliedLimits"] == [{"uid": "limit-a", "hash": limit_hash(LIMIT)}]
        (report,) = status["unsupportedLimits"]
        assert report["reason"] == "InvalidSpec"
        assert report["message"].startswith(f"generation {broken}: spec.weather: ")
        assert agent.says("spec.weather")
        assert node.acknowledged(node.configure(LIMIT))["unsupportedLimits"] == []


@pytest.mark.rule("H3")
def test_agent_recovers_within_15_seconds_of_the_api_server(
    node: Node, server: ControlPlane
) -> None:
    generation = node.configure(LIMIT)
    with Agent(node) as agent:
        node.acknowledged(generation)
        server.kill(API_SERVER)
        try:
            eventually(lambda: agent.says("trying again"), bool)
            assert node.local()["generation"] == generation
        finally:
            server.start(API_SERVER)
        node.acknowledged(node.configure(changed(limit=4096)), BACK_SECONDS)
        assert agent.says("the API server answers again")
        _, metrics = agent.get("/metrics")
        failures = [
            line
            for line in metrics.splitlines()
            if line.startswith("pinwarden_agent_failures_total")
        ]
        assert sum(float(line.split()[-1]) for line in failures) > 0


@pytest.mark.rule("H3")
def test_agent_starts_with_the_last_configuration_without_an_api_server(
    node: Node, server: ControlPlane
) -> None:
    generation = node.configure(LIMIT)
    with Agent(node) as agent:
        node.acknowledged(generation)
        agent.kill()
    server.kill(API_SERVER)
    with Agent(node):
        try:
            answer = node.in_force(generation)
            assert answer["report"]["appliedLimits"] == [
                {"uid": "limit-a", "hash": limit_hash(LIMIT)}
            ]
        finally:
            server.start(API_SERVER)
        node.acknowledged(node.configure(changed(limit=4096)), BACK_SECONDS)


@pytest.mark.rule("H3")
def test_corrupt_last_configuration_is_set_aside(node: Node) -> None:
    generation = node.configure(LIMIT)
    stored = node.folder / "state" / "nodepinconfig.json"
    with Agent(node):
        node.acknowledged(generation)
        eventually(stored.exists, bool)
    stored.write_bytes(stored.read_bytes()[:-9])
    generation = node.configure(changed(limit=4096))
    with Agent(node) as agent:
        node.acknowledged(generation)
        assert agent.says("set aside as")
    assert stored.with_name("nodepinconfig.json.corrupt-1").exists()


def test_second_agent_stands_by_and_takes_over_when_sigterm_ends_the_first(node: Node) -> None:
    with Agent(node) as agent:
        node.acknowledged(node.configure(LIMIT))
        with Agent(node) as second:
            eventually(lambda: second.says("stands by"), bool)
            assert second.get("/readyz") == (200, "ok\n")
            assert not second.says("runs, process")
            started = time.monotonic()
            assert agent.terminate() == 0
            assert time.monotonic() - started < 5
            assert agent.says("limits stay in force")
            eventually(lambda: second.says("runs, process"), bool)
            node.acknowledged(node.configure({**LIMIT, "limit": 2 << 20}))


def test_agent_is_healthy_ready_and_measured(node: Node) -> None:
    generation = node.configure(LIMIT)
    with Agent(node) as agent:
        node.acknowledged(generation)
        assert agent.get("/healthz") == (200, "ok\n")
        assert agent.get("/readyz") == (200, "ok\n")
        _, metrics = agent.get("/metrics")
        assert f"pinwarden_agent_configuration_generation {float(generation)}" in metrics
        series = [line for line in metrics.splitlines() if line and not line.startswith("#")]
        assert len(series) < 100


def test_local_files_need_no_api_server(node: Node) -> None:
    folder = node.folder / "limits"
    folder.mkdir()
    path = folder / "a.yaml"
    path.write_text("limits: [{name: a, limit: 1Mi, cgroupPattern: machine.slice/*}]\n")

    def amounts() -> list[int]:
        return [limit["limit"] for limit in node.local().get("configuration", {}).get("limits", [])]

    with Agent(node, f"--config={folder}") as agent:
        eventually(amounts, lambda last: last == [1 << 20])
        path.write_text("limits: [{name: a, limit: 2Mi, cgroupPattern: machine.slice/*}]\n")
        eventually(amounts, lambda last: last == [2 << 20])
        path.write_text("limits: [{name: a, limit: lots}]\n")
        eventually(lambda: node.local().get("problem"), bool)
        assert amounts() == [2 << 20]
        assert agent.says("a.yaml: limits[0].limit: 'lots' is not a quantity")
        assert agent.process.poll() is None
