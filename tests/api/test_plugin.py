"""`kubectl pinwarden` as users run it: through kubectl, against a real API server and operator.

Each test follows the printed advice in a shell, and then the output must differ.
"""

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import chart
from cluster.build import binary
from cluster.controlplane import ControlPlane

from ..waiting import eventually
from .conftest import ROOT
from .operators import PINWARDEN, Cluster, Operator, config_path

MIB = 1 << 20


@dataclass(frozen=True)
class Shell:
    """A user's shell: kubectl and the plugin on the PATH, and a kubeconfig."""

    environment: Mapping[str, str]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def __call__(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def fails(self, command: str) -> str:
        """The message with which it fails."""
        done = self.run(command)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "Traceback" not in done.stderr
        return done.stderr

    def as_user(self, kubeconfig: Path) -> "Shell":
        return Shell({**self.environment, "KUBECONFIG": str(kubeconfig)})


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What installing the package puts on the PATH, and kubectl."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("kubectl-pinwarden", "main"), ("kubectl_complete-pinwarden", "complete")):
        script = folder / name
        script.write_text(
            f"#!{sys.executable}\nfrom pinwarden.plugin.{module} import main\nmain()\n"
        )
        script.chmod(0o755)
    (folder / "kubectl").symlink_to(binary("kubectl"))
    return folder


@pytest.fixture(scope="module")
def shell(cluster: Cluster, programs: Path) -> Shell:
    return Shell(environment(programs, cluster.server.kubeconfig))


def environment(programs: Path, kubeconfig: Path) -> dict[str, str]:
    path = f"{programs}:{os.environ['PATH']}"
    unset = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    return unset | {
        "PATH": path,
        "PYTHONPATH": str(ROOT / "operator"),
        "KUBECONFIG": str(kubeconfig),
    }


@pytest.fixture(scope="module", autouse=True)
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with Operator(cluster, Path(tmp_path_factory.mktemp("operator"))) as process:
        yield process.ready()


class Case:
    """A namespace with a running pod of a Deployment on a node with an agent."""

    def __init__(self, cluster: Cluster, shell: Shell, **pod: Any) -> None:
        self.cluster, self.shell = cluster, shell
        self.namespace = cluster.namespace()
        self.node = cluster.node()
        self.agent = cluster.agent(self.node)
        self.pod = self.new_pod(**pod)
        self.uid = self.pod["metadata"]["uid"]
        self.name = self.pod["metadata"]["name"]

    def new_pod(
        self, app: str = "db", labels: Mapping[str, str] | None = None, **more: Any
    ) -> dict[str, Any]:
        owner = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": f"{app}-5d8f",
            "uid": str(uuid.uuid4()),
            "controller": True,
        }
        metadata = {
            "name": f"{app}-5d8f-{uuid.uuid4().hex[:5]}",
            "labels": {"app": app, "pod-template-hash": "5d8f", **(labels or {})},
            "ownerReferences": [owner],
        }
        spec = {"nodeName": self.node, "containers": [{"name": "main", "image": "main"}], **more}
        collection = f"/api/v1/namespaces/{self.namespace}/pods"
        pod = self.cluster.send("POST", collection, {"metadata": metadata, "spec": spec})
        started = {"name": "main", "containerID": "containerd://id", "image": "main", "imageID": ""}
        status = [started | {"ready": True, "restartCount": 0, "state": {"running": {}}}]
        path = f"{collection}/{pod['metadata']['name']}/status"
        self.cluster.merge(path, {"status": {"phase": "Running", "containerStatuses": status}})
        return pod

    def limit(self, **spec: Any) -> str:
        """Create a limit over the pod's label; return its name once the node's spec has it."""
        selector = {"matchLabels": {"app": "db"}}
        path = self.cluster.limit(
            self.namespace, **{"limit": "64Mi", "podSelector": selector, **spec}
        )
        name = path.rpartition("/")[2]
        eventually(self.limits, lambda limits: name in limits)
        return name

    def limits(self) -> dict[str, int]:
        """Return the bytes of the pod's limits in the node's spec, by name without grant."""
        return {
            name.partition("@")[0]: amount
            for name, amount in self.cluster.limits_on(self.node).get(self.uid, {}).items()
        }

    def uid_of(self, limit: str) -> str:
        path = f"{PINWARDEN}/namespaces/{self.namespace}/pinlimits/{limit}"
        return str(self.cluster.find(path)["metadata"]["uid"])

    def report(
        self, pinned: int, level: str = "Converge", reason: str = "RlimitGate", **more: Any
    ) -> None:
        """Report as the agent would: all taken, and the pod's use."""
        use = {"uid": self.uid, "vmLck": pinned, "vmPin": 0, "peak": pinned, "processes": 2}
        status = more.pop("status", {})
        now = datetime.now(UTC).isoformat()
        self.cluster.acknowledge(
            self.node,
            sampledAt=now,
            **{"pods": [use | {"level": level, "reason": reason} | more], **status},
        )

    def explain(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.shell(f"kubectl pinwarden explain {self.name} -n {self.namespace} -o json")
        )
        return found

    def first(self) -> tuple[str, str]:
        """The cause and the next step's command of the first finding."""
        finding = self.explain()["findings"][0]
        return finding["cause"], finding["next"]["command"]

    def explained(self, cause: str) -> str:
        """Wait until this is the first cause; returns what to do."""
        return eventually(self.first, lambda last: last[0] == cause)[1]

    def done(self, command: str) -> None:
        """Do what it said."""
        self.shell(command)


@pytest.fixture
def case(cluster: Cluster, shell: Shell) -> Case:
    return Case(cluster, shell)


def denial(case: Case, limit: str, number: int = 1) -> dict[str, Any]:
    who = {"pod": case.uid, "container": "main", "process": "db", "pid": 42, "source": "Mlock"}
    why = {"used": 64 * MIB, "asked": MIB, "limit": 64 * MIB, "name": f"{case.namespace}/{limit}"}
    return {
        "number": number,
        "time": datetime.now(UTC).isoformat(),
        "uid": case.uid_of(limit),
        **who,
        **why,
    }


# -- explain, and what it says to do --


def test_denial_by_the_gate_is_explained_and_ends_with_a_raised_limit(case: Case) -> None:
    name = case.limit()
    counts = [{"uid": case.uid_of(name), "count": 2}]
    refused = {"recentDenials": [denial(case, name)], "denialsDropped": 0}

    def report() -> None:
        case.report(64 * MIB, "Deny", "SeccompGate", denials=counts, status=refused)

    report()
    command = case.explained("RefusedByGate")
    text = case.shell(f"kubectl pinwarden explain {case.name} -n {case.namespace}")
    assert f"The gate denied 2 calls for PinLimit {case.namespace}/{name} (64Mi)" in " ".join(
        text.split()
    )
    assert command in text
    assert "\033" not in text
    case.done(command)
    eventually(
        lambda: case.cluster.limits_on(case.node)[case.uid], lambda limits: limits[name] == 80 * MIB
    )
    report()
    findings = {each["cause"]: each["problem"] for each in case.explain()["findings"]}
    assert findings == {"RefusedByGate": False, "HeldExactly": False}
    denials = case.explain()["refused"]
    assert "mlock of 1Mi" in denials[0]["text"]


def test_events_show_denials_that_the_node_no_longer_lists(case: Case) -> None:
    name = case.limit()
    case.report(MIB, "Deny", "SeccompGate", denials=[])
    refused = {"recentDenials": [denial(case, name)], "denialsDropped": 0}
    case.report(MIB, "Deny", "SeccompGate", denials=[], status=refused)
    path = f"/apis/events.k8s.io/v1/namespaces/{case.namespace}/events"
    eventually(
        lambda: [each["reason"] for each in case.cluster.send("GET", path)["items"]],
        lambda reasons: "PinRefused" in reasons,
    )
    case.report(MIB, "Deny", "SeccompGate", denials=[])
    (listed,) = case.explain()["refused"]
    assert "mlock of 1Mi" in listed["text"]


def test_pod_at_its_limit_under_rlimit(case: Case) -> None:
    case.limit()
    case.report(63 * MIB)
    command = case.explained("LikelyRefusedByKernel")
    case.done(command)
    eventually(
        lambda: case.cluster.limits_on(case.node)[case.uid].values(),
        lambda limits: list(limits) == [80 * MIB],
    )
    case.report(63 * MIB)
    case.explained("HeldByRlimit")


def test_pod_that_cannot_be_limited(case: Case) -> None:
    case.limit()
    case.report(MIB, "Observe", "CapIPCLock", message="process 7 has it or can gain it")
    command = case.explained("NotEnforceable")
    assert command.endswith(f"kubectl -n {case.namespace} rollout restart deployment/db")
    case.done(command.partition(" && ")[0])
    labels = case.cluster.find(f"/api/v1/namespaces/{case.namespace}")["metadata"]["labels"]
    assert labels["pinwarden.io/gate"] == "runtime-default"
    assert case.first()[1] == f"kubectl -n {case.namespace} rollout restart deployment/db"


def test_ceiling_that_overrides_and_a_grant_that_it_lets_through(case: Case) -> None:
    name = case.limit(grant=True)
    case.report(MIB)
    command = case.explained("GrantBeyondMaxGrant")
    case.done(command)
    eventually(lambda: len(case.cluster.limits_on(case.node)[case.uid]), lambda count: count == 2)
    case.report(MIB)
    case.explained("Granted")
    (grant,) = [each for each in case.explain()["limits"] if each["kind"] == "PinLimit"]
    assert grant["grant"] == 64 * MIB
    selector = {"matchLabels": {"kubernetes.io/metadata.name": case.namespace}}
    case.cluster.merge(
        f"{PINWARDEN}/namespaces/{case.namespace}/pinlimits/{name}", {"spec": {"grant": False}}
    )
    path = case.cluster.ceiling(limit="32Mi", namespaceSelector=selector)
    eventually(lambda: len(case.cluster.limits_on(case.node)[case.uid]), lambda count: count == 3)
    case.report(MIB)
    case.explained("Overridden")
    (found,) = [each for each in case.explain()["limits"] if each["kind"] == "PinLimit"]
    assert found["standing"] == "Overridden"
    assert path.rpartition("/")[2] in found["because"]


def test_audit_only_until_it_is_enforced(case: Case) -> None:
    case.limit(enforcement="Audit")
    case.report(MIB, "Observe", "Audit")
    case.done(case.explained("Audit"))
    case.explained("NotAcknowledged")
    case.report(MIB)
    case.explained("HeldByRlimit")


def test_agent_that_is_silent(case: Case) -> None:
    case.limit()
    case.report(MIB)
    case.explained("HeldByRlimit")
    case.cluster.set_ready(case.agent, False)
    command = case.explained("AgentSilent")
    assert case.agent.rpartition("/")[2] in case.shell(command)
    text = case.shell(f"kubectl pinwarden explain {case.name} -n {case.namespace}")
    assert "Level:       <unknown> (AgentSilent)" in text


@pytest.mark.rule("H1")
def test_agent_on_a_node_that_is_lost(case: Case) -> None:
    """Its pod is as ready as the kubelet last said."""
    case.limit()
    case.report(MIB)
    case.explained("HeldByRlimit")
    case.cluster.set_lost(case.node, True)
    case.explained("AgentSilent")
    assert rows(case.shell(f"kubectl pinwarden top -n {case.namespace}"))[0]["LEVEL"] == "<unknown>"
    done = case.shell.run(f"kubectl pinwarden probe {case.node}")
    assert f"Node {case.node}: its agent is silent" in done.stderr


def test_limit_that_is_on_its_way_and_a_node_that_is_not_there(case: Case) -> None:
    case.limit()
    assert "pinwarden-agent" not in case.explained("NotAcknowledged")  # the pod of the test's agent
    pod = case.cluster.pod(case.namespace, "nowhere", {"app": "db"})["metadata"]["name"]
    lost = json.loads(case.shell(f"kubectl pinwarden explain {pod} -n {case.namespace} -o json"))
    assert lost["findings"][0]["cause"] == "NodeUnknown"


def test_pod_that_is_not_scheduled(case: Case) -> None:
    case.limit()
    body = {
        "metadata": {"name": "waiting", "labels": {"app": "db"}},
        "spec": {"containers": [{"name": "main", "image": "main"}]},
    }
    case.cluster.send("POST", f"/api/v1/namespaces/{case.namespace}/pods", body)
    text = case.shell(f"kubectl pinwarden explain pod/waiting -n {case.namespace} -o yaml")
    finding = yaml.safe_load(text)["findings"][0]
    assert finding["cause"] == "NotScheduled"
    assert "waiting" in case.shell(finding["next"]["command"])


def test_use_above_a_limit_that_was_lowered(case: Case) -> None:
    name = case.limit()
    path = f"{PINWARDEN}/namespaces/{case.namespace}/pinlimits/{name}"
    case.cluster.merge(path, {"spec": {"limit": "32Mi"}})
    eventually(
        lambda: case.cluster.limits_on(case.node)[case.uid], lambda limits: limits[name] == 32 * MIB
    )
    case.report(48 * MIB, "Deny", "SeccompGate", denials=[])
    case.done(case.explained("OverLimit"))
    eventually(
        lambda: case.cluster.limits_on(case.node)[case.uid], lambda limits: limits[name] == 60 * MIB
    )
    case.report(48 * MIB, "Deny", "SeccompGate", denials=[])
    case.explained("HeldExactly")


def test_rejected_limit_and_its_correction(case: Case) -> None:
    selector = {"matchLabels": {"app": "db"}}
    case.cluster.limit(case.namespace, podSelector=selector, counting="OncePerPod")
    case.done(case.explained("LimitRefused"))
    eventually(lambda: case.cluster.limits_on(case.node).get(case.uid), bool)
    case.report(0)
    case.explained("HeldByRlimit")


def test_no_limit_matches_until_the_pod_has_the_label(case: Case) -> None:
    case.cluster.limit(case.namespace, podSelector={"matchLabels": {"app": "db", "tier": "gold"}})
    case.done(case.explained("NoLimitMatches"))
    eventually(case.limits, bool)
    case.report(0)
    case.explained("HeldByRlimit")


def test_no_limit_matches_until_a_mistaken_selector_is_corrected(case: Case) -> None:
    path = case.cluster.limit(case.namespace, podSelector={"matchLabels": {"app": "bd"}})
    eventually(
        lambda: case.cluster.find(path).get("status", {}).get("matchedPods"),
        lambda count: count == 0,
    )
    command = case.explained("NoLimitMatches")
    assert " patch pinlimit " in command
    case.done(command)
    eventually(case.limits, bool)


def test_pod_without_any_limit_gets_one_that_observes(case: Case) -> None:
    command = case.explained("NoLimitMatches")
    assert "recommend" in command
    case.done(command)
    case.explained("NotAcknowledged")
    case.report(0, "Observe", "Audit")
    case.explained("Audit")


def test_pod_that_its_gate_has_lost(case: Case) -> None:
    case.limit()
    case.report(0, "Observe", "GateLost", message="the descriptors of its gate are lost")
    assert case.explained("GateLost").endswith("rollout restart deployment/db")


def test_exempt_namespace(cluster: Cluster, shell: Shell) -> None:
    label = uuid.uuid4().hex[:8]
    ceiling = cluster.ceiling(podSelector={"matchLabels": {"of": label}})
    pod = cluster.pod("kube-system", cluster.node(), {"of": label, "app": "db"})["metadata"]["name"]
    explained = json.loads(shell(f"kubectl pinwarden explain {pod} -n kube-system -o json"))
    finding = explained["findings"][0]
    assert finding["cause"] == "ExemptNamespace"
    assert ceiling.rpartition("/")[2] in finding["message"]
    shell(f"{finding['next']['command']}; kubectl -n kube-system delete pinlimit {pod}")


# -- top, probe, recommend --


def rows(text: str) -> list[dict[str, str]]:
    """A table whose cells are without spaces, or of two words at most."""
    head, *lines = text.splitlines()
    names = [name.strip() for name in head.split("   ") if name.strip()]
    found = []
    for line in lines:
        cells = [cell.strip() for cell in line.split("   ") if cell.strip()]
        found.append(dict(zip(names, cells, strict=True)))
    return found


@pytest.mark.rule("H2")
def test_top_sorts_by_pinned_bytes_and_shows_unknown_amounts(case: Case) -> None:
    name = case.limit()
    other = case.new_pod()["metadata"]
    mute = case.new_pod()["metadata"]
    static = "f00d" * 8
    mirror = case.cluster.static_pod(case.namespace, case.node, static, {"app": "db"})["metadata"]
    eventually(lambda: len(case.cluster.limits_on(case.node)), lambda count: count == 6)
    counters = {"vmPin": MIB // 2, "processes": 1, "level": "Deny", "reason": "SeccompGate"}
    uses = [
        {"uid": uid, "vmLck": locked, "peak": locked + MIB // 2, **counters, **more}
        for uid, locked, more in (
            (case.uid, MIB, {}),
            (other["uid"], 2 * MIB, {"denials": [{"uid": case.uid_of(name), "count": 3}]}),
            (static, 3 * MIB, {"denials": []}),
        )
    ]
    now = datetime.now(UTC)
    case.cluster.acknowledge(case.node, pods=uses, sampledAt=now.isoformat())
    found = rows(case.shell(f"kubectl pinwarden top -n {case.namespace}"))
    assert [(each["POD"], each["PINNED"], each["DENIALS"], each["LEVEL"]) for each in found] == [
        (mirror["name"], "3.5Mi", "0", "Deny"),
        (other["name"], "2.5Mi", "3", "Deny"),
        (case.name, "1.5Mi", "-", "Deny"),
        (mute["name"], "<unknown>", "-", "<unknown>"),
    ]
    assert {each["LIMIT"] for each in found} == {"64Mi"}
    wide = rows(case.shell(f"kubectl pinwarden top -n {case.namespace} -o wide"))
    assert (wide[0]["VMLCK"], wide[0]["VMPIN"], wide[0]["REASON"]) == (
        "3Mi",
        "512Ki",
        "SeccompGate",
    )
    by_source = case.shell(
        f"kubectl pinwarden top -n {case.namespace} --by source --no-headers"
    ).splitlines()
    assert by_source[0].split()[2:5] == ["VmLck", "Mlock,MemfdSecret,Vfio", "3Mi"]
    everywhere = rows(case.shell("kubectl pinwarden top -A -l app=db"))
    assert (case.namespace, mirror["name"]) in [
        (each["NAMESPACE"], each["POD"]) for each in everywhere
    ]
    raw = json.loads(case.shell(f"kubectl pinwarden top -n {case.namespace} -o json"))["items"]
    assert [each.get("total") for each in raw] == [7 * MIB // 2, 5 * MIB // 2, 3 * MIB // 2, None]
    case.cluster.set_ready(case.agent, False)
    silent = rows(case.shell(f"kubectl pinwarden top -n {case.namespace}"))[0]
    assert (silent["PINNED"], silent["LEVEL"]) == ("3.5Mi", "<unknown>")
    case.cluster.set_ready(case.agent, True)
    case.cluster.acknowledge(
        case.node, pods=uses, sampledAt=(now - timedelta(minutes=17)).isoformat()
    )
    stale = rows(case.shell(f"kubectl pinwarden top -n {case.namespace}"))[0]
    assert (stale["AGE"], stale["LEVEL"]) == ("17m (stale)", "<unknown>")


def test_top_of_a_namespace_without_limits_shows_the_first_step(case: Case) -> None:
    done = case.shell.run(f"kubectl pinwarden top -n {case.namespace}")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"No pod in namespace {case.namespace} has a limit" in done.stderr
    assert "kubectl pinwarden recommend" in done.stderr


@pytest.mark.rule("M3", "M11")
def test_top_shared_has_groups_borrows_and_the_fair_view(case: Case) -> None:
    member = {"podSelector": {}, "borrowLimit": "8Mi"}
    path = case.cluster.group(case.namespace, accounting="Borrow", members=[member])
    name = f"{case.namespace}/{path.rpartition('/')[2]}"
    uid = case.cluster.find(path)["metadata"]["uid"]
    eventually(
        lambda: [
            each["uid"] for each in case.cluster.config(case.node).get("spec", {}).get("groups", [])
        ],
        lambda uids: uid in uids,
    )
    pair = {
        "pod": case.uid,
        "member": True,
        "borrowed": MIB,
        "mapped": 2 * MIB,
        "level": "Converge",
    }
    now = datetime.now(UTC).isoformat()
    case.cluster.report_groups(
        case.node, charge=4 * MIB, orphaned=MIB, borrowers=[{**pair, "denials": 1}], sampledAt=now
    )
    view = {"pod": case.uid, "current": 9 * MIB, "anonymous": 5 * MIB, "shared": MIB}
    case.cluster.merge(
        f"{config_path(case.node)}/status", {"status": {"fairView": [view], "sampledAt": now}}
    )
    groups, borrows, fair = map(
        rows, case.shell(f"kubectl pinwarden top --shared -n {case.namespace}").split("\n\n")
    )
    assert [(each["GROUP"], each["CHARGE"], each["ORPHANED"], each["DEAD"]) for each in groups] == [
        (name, "4Mi", "1Mi", "-")
    ]
    assert [
        (each["POD"], each["BORROWED"], each["MAPPED"], each["LIMIT"], each["DENIALS"])
        for each in borrows
    ] == [(f"{case.namespace}/{case.name}", "1Mi", "2Mi", "8Mi", "1")]
    assert borrows[0]["AGE"].endswith("s")
    assert [
        (each["FAIR"], each["ANONYMOUS"], each["SHARED"], each["CURRENT"]) for each in fair
    ] == [("6Mi", "5Mi", "1Mi", "9Mi")]
    old = (datetime.now(UTC) - timedelta(minutes=17)).isoformat()
    case.cluster.report_groups(case.node, charge=4 * MIB, borrowers=[pair], sampledAt=old)
    parts = map(
        rows, case.shell(f"kubectl pinwarden top --shared -n {case.namespace}").split("\n\n")
    )
    assert [part[0]["AGE"] for part in parts] == ["17m (stale)"] * 3


def test_probe_shows_levels_and_names_nodes_without_a_report(case: Case) -> None:
    case.limit()
    case.report(0)
    found = rows(case.shell(f"kubectl pinwarden probe {case.node}"))
    assert {(each["NODE"], each["SOURCE"], each["COUNTED"], each["LEVEL"]) for each in found} >= {
        (case.node, "Mlock", "yes", "Converge")
    }
    assert "RlimitGate" in case.shell(f"kubectl pinwarden probe {case.node} -o wide")
    case.shell(f"kubectl pinwarden probe {case.node} --strict")
    mute = case.cluster.node()
    eventually(lambda: case.cluster.config(mute), bool)
    case.cluster.set_ready(case.agent, False)
    done = case.shell.run("kubectl pinwarden probe")
    assert f"Node {case.node}: its agent is silent" in done.stderr
    assert done.returncode == 0
    assert next(line for line in done.stdout.splitlines() if mute in line).split() == [
        mute,
        *["<unknown>"] * 3,
    ]
    assert f"Node {mute}: no report" in done.stderr
    assert "there is no node" in case.shell.fails("kubectl pinwarden probe nowhere")
    for node, why in (
        (case.node, f"not every agent reports: see {case.node}"),
        (mute, "no agent runs on these nodes"),
    ):
        strict = case.shell.run(f"kubectl pinwarden probe {node} --strict")
        assert strict.returncode == 1
        assert why in strict.stderr


def test_recommend_turns_an_audit_limit_into_one_above_the_observed_use(
    case: Case,
) -> None:
    recommend = f"kubectl pinwarden recommend -n {case.namespace}"
    (row,) = rows(case.shell(recommend))
    assert (row["WORKLOAD"], row["PODS"], row["OBSERVED"], row["PEAK"]) == (
        "deployment/db",
        "1",
        "0",
        "<unknown>",
    )
    assert row["RECOMMENDED"] == "audit first"
    case.done(f"{recommend} -o yaml | kubectl apply -f -")
    audit = case.cluster.find(f"{PINWARDEN}/namespaces/{case.namespace}/pinlimits/db")["spec"]
    assert (audit["enforcement"], audit["limit"]) == ("Audit", "8Mi")
    assert audit["podSelector"] == {"matchLabels": {"app": "db"}}
    eventually(lambda: case.cluster.limits_on(case.node).get(case.uid), bool)
    assert "no agent has reported the pods yet" in case.shell.run(recommend).stderr
    case.report(50 * MIB, "Observe", "Audit")
    (row,) = rows(case.shell(f"kubectl pinwarden recommend {case.name} -n {case.namespace}"))
    assert (row["PEAK"], row["CURRENT"], row["RECOMMENDED"]) == ("50Mi", "db 8Mi (Audit)", "60Mi")
    for form in ("yaml", "json"):
        case.done(f"{recommend} -l app=db -o {form} | kubectl apply -f -")
        spec = case.cluster.find(f"{PINWARDEN}/namespaces/{case.namespace}/pinlimits/db")["spec"]
        assert (spec["enforcement"], spec["limit"]) == ("Enforce", "60Mi")
    status = f"{PINWARDEN}/namespaces/{case.namespace}/pinlimits/db"
    eventually(
        lambda: case.cluster.find(status).get("status", {}).get("recommendation"),
        lambda text: text == "60Mi",
    )
    for target in (f"{case.namespace}/db", f"pinlimit/db -n {case.namespace}"):
        (row,) = rows(case.shell(f"kubectl pinwarden recommend {target}"))
        assert (row["WORKLOAD"], row["CURRENT"], row["RECOMMENDED"]) == (
            "pinlimit/db",
            "db 60Mi",
            "60Mi",
        )
    assert "there is no pod" in case.shell.fails(
        f"kubectl pinwarden recommend gone -n {case.namespace}"
    )
    assert "there is no PinLimit" in case.shell.fails(
        f"kubectl pinwarden recommend {case.namespace}/gone"
    )


def deployment(case: Case, labels: Mapping[str, str]) -> None:
    """A Deployment that selects by these labels; nothing makes its pods, as no controller runs."""
    spec = {
        "selector": {"matchLabels": dict(labels)},
        "template": {
            "metadata": {"labels": dict(labels)},
            "spec": {"containers": [{"name": "main", "image": "main"}]},
        },
    }
    path = f"/apis/apps/v1/namespaces/{case.namespace}/deployments"
    case.cluster.send("POST", path, {"metadata": {"name": "db"}, "spec": spec})


def test_recommended_limit_selects_the_pods_of_the_next_release(
    cluster: Cluster, shell: Shell
) -> None:
    """See https://github.com/helm/charts/issues/7680,
    https://github.com/jetstack/version-checker/issues/140."""
    case = Case(
        cluster,
        shell,
        labels={
            "helm.sh/chart": "db-18.1.0",
            "app.kubernetes.io/version": "7.2.4",
            "track": "7.2.4",
        },
    )
    recommend = f"kubectl pinwarden recommend -n {case.namespace}"
    done = shell.run(f"{recommend} -o yaml")
    warning = (
        "left out of the selector, because the next release may change: "
        "track=7.2.4 looks like a version"
    )
    assert f"# warning: {warning}\n" in done.stdout
    assert warning in done.stderr
    shell(f"{recommend} -o yaml | kubectl apply -f -")
    limit = f"{PINWARDEN}/namespaces/{case.namespace}/pinlimits/db"
    assert case.cluster.find(limit)["spec"]["podSelector"] == {"matchLabels": {"app": "db"}}
    newer = case.new_pod(
        labels={
            "helm.sh/chart": "db-18.1.1",
            "app.kubernetes.io/version": "7.2.5",
            "track": "7.2.5",
        }
    )
    eventually(lambda: cluster.limits_on(case.node).get(newer["metadata"]["uid"]), bool)


def test_workload_is_asked_about_by_its_kind_and_name(case: Case) -> None:
    case.new_pod(app="web")
    for kind in ("deployment", "deploy", "deployments.apps"):
        (row,) = rows(case.shell(f"kubectl pinwarden recommend {kind}/db -n {case.namespace}"))
        assert row["WORKLOAD"] == "deployment/db"
    message = case.shell.fails(f"kubectl pinwarden recommend sts/db -n {case.namespace}")
    assert f"there is no pod of statefulset/db in namespace {case.namespace}" in message


def test_selector_of_the_deployment_is_taken(cluster: Cluster, shell: Shell) -> None:
    case = Case(cluster, shell, labels={"stage": "red"})
    deployment(case, {"app": "db"})
    shell(f"kubectl pinwarden recommend -n {case.namespace} -o yaml | kubectl apply -f -")
    limit = f"{PINWARDEN}/namespaces/{case.namespace}/pinlimits/db"
    assert case.cluster.find(limit)["spec"]["podSelector"] == {"matchLabels": {"app": "db"}}


def test_workload_without_a_lasting_label_gets_no_limit(cluster: Cluster, shell: Shell) -> None:
    case = Case(cluster, shell, app="6c7f8d9b5")
    done = shell.run(f"kubectl pinwarden recommend -n {case.namespace} -o yaml")
    assert "no limit is possible" in done.stdout
    assert "no limit is possible" in done.stderr
    assert "kind:" not in done.stdout


# -- what can go wrong --


def test_missing_object_is_reported_with_exit_code_1(case: Case) -> None:
    assert case.shell.fails(f"kubectl pinwarden explain gone -n {case.namespace}") == (
        f'error: pods "gone" not found in namespace {case.namespace}\n'
    )
    assert case.shell.fails("kubectl pinwarden top -l '=='").startswith(
        "error: --selector '==': found '=='"
    )
    assert "--nope" in case.shell.fails("kubectl pinwarden top --nope")
    assert "POD" in case.shell.fails("kubectl pinwarden explain")
    assert "elsewhere" in case.shell.fails("kubectl pinwarden top --context elsewhere")
    assert "/nope" in case.shell.fails("kubectl pinwarden top --kubeconfig /nope")


@pytest.mark.parametrize(
    ("command", "lacking"),
    [
        ("top -n default", ["list pods in namespace default", "list nodepinconfigs.pinwarden.io"]),
        ("top -A", ["list pods", "list nodes", "list nodepinconfigs.pinwarden.io"]),
        (
            "probe",
            [
                "list nodes",
                "list nodepinconfigs.pinwarden.io",
                "list pods in namespace pinwarden-system",
            ],
        ),
        (
            "explain x -n default",
            [
                "get pods in namespace default",
                "get namespaces",
                "list clusterpinlimits.pinwarden.io",
            ],
        ),
        ("recommend -n default", ["list pinlimits.pinwarden.io in namespace default"]),
    ],
)
def test_all_rights_that_are_missing_are_named(
    cluster: Cluster, shell: Shell, command: str, lacking: list[str]
) -> None:
    nobody = shell.as_user(cluster.server.kubeconfig_for("nobody", ["system:authenticated"]))
    message = nobody.fails(f"kubectl pinwarden {command}")
    assert message.startswith("error: your user lacks the right to ")
    for right in lacking:
        assert right in message


def test_role_that_the_chart_brings_suffices(case: Case) -> None:
    (role,) = chart.render(only=["viewer.yaml"])
    name = role["metadata"]["name"]
    case.cluster.send("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
    case.shell(f"kubectl create clusterrolebinding {name} --clusterrole={name} --user=viewer")
    case.limit()
    case.report(0)
    viewer = case.shell.as_user(
        case.cluster.server.kubeconfig_for("viewer", ["system:authenticated"])
    )
    for command in (
        f"top -n {case.namespace}",
        "top -A --shared",
        f"explain {case.name} -n {case.namespace}",
        "probe",
        f"recommend -n {case.namespace}",
    ):
        viewer(f"kubectl pinwarden {command}")
    role["rules"] = [rule for rule in role["rules"] if rule["apiGroups"] != ["apps"]]
    case.cluster.merge(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}", role)
    done = eventually(
        lambda: viewer.run(f"kubectl pinwarden recommend -n {case.namespace}"),
        lambda done: "Your user may not list deployments" in done.stderr,
    )
    assert done.returncode == 0


def test_no_server_and_no_credentials(case: Case, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = yaml.safe_load(case.cluster.server.kubeconfig.read_text())
    config["clusters"][0]["cluster"] = {"server": f"https://127.0.0.1:{port}"}
    gone = tmp_path / "gone"
    gone.write_text(yaml.safe_dump(config))
    message = case.shell.fails(f"kubectl pinwarden top --kubeconfig {gone}")
    assert f"no API server answers at https://127.0.0.1:{port}: Connection refused" in message
    stranger = case.cluster.server.kubeconfig_with("not a token")
    assert "log in again" in case.shell.fails(f"kubectl pinwarden top --kubeconfig {stranger}")


def test_cluster_without_pinwarden(programs: Path) -> None:
    with ControlPlane() as bare:
        message = Shell(environment(programs, bare.kubeconfig)).fails("kubectl pinwarden top")
    assert "this cluster has no nodepinconfigs.pinwarden.io: pinwarden is not installed" in message


def test_closed_pipe_and_ctrl_c_end_the_plugin_quietly(case: Case, tmp_path: Path) -> None:
    done = case.shell.run(
        "set -o pipefail; kubectl pinwarden probe -o json | head -c 1; exit ${PIPESTATUS[0]}"
    )
    assert (done.stdout, done.stderr) == ("{", "")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        config = yaml.safe_load(case.cluster.server.kubeconfig.read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{mute.getsockname()[1]}"}
        silent = tmp_path / "silent"
        silent.write_text(yaml.safe_dump(config))
        command = ["kubectl", "pinwarden", "top", "--kubeconfig", str(silent)]
        process = subprocess.Popen(
            command,
            env=dict(case.shell.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        connection, _ = mute.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=10) == (b"", b"")
    assert process.returncode == -signal.SIGINT


def on_terminal(shell: Shell, command: str, columns: int, **more: str) -> str:
    """What the command prints on a terminal of this width."""
    pid, master = pty.fork()
    if pid == 0:
        os.execvpe("bash", ["bash", "-c", command], {**shell.environment, "TERM": "xterm", **more})
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    chunks = []
    try:
        while chunk := os.read(master, 65536):
            chunks.append(chunk)
    except OSError:  # the terminal ended
        pass
    os.close(master)
    assert os.waitpid(pid, 0)[1] == 0
    return b"".join(chunks).decode().replace("\r\n", "\n")


def test_on_a_terminal_lines_fit_and_levels_have_colour(case: Case) -> None:
    case.limit()
    case.report(MIB, "Observe", "CapIPCLock")
    command = f"sleep 0.2; kubectl pinwarden top -n {case.namespace}"
    text = on_terminal(case.shell, command, 66)
    assert "\033[31mObserve\033[0m" in text
    plain = on_terminal(case.shell, command, 66, NO_COLOR="1")
    assert "\033" not in plain
    assert "…" in plain
    assert max(map(len, plain.splitlines())) <= 66
    wide = on_terminal(case.shell, f"{command} -o wide", 66, NO_COLOR="1")
    assert case.name in wide


def test_kubectl_completes_the_plugin(case: Case) -> None:
    def complete(words: str) -> list[str]:
        started = time.monotonic()
        lines = case.shell(f"kubectl __complete {words}").splitlines()
        assert time.monotonic() - started < 20
        return [line.partition("\t")[0] for line in lines]

    assert complete("pinwarden ''")[:-1] == ["top", "explain", "probe", "recommend", "completion"]
    assert complete("pinwarden top --sh") == ["--shared", ":4"]
    assert complete(f"pinwarden explain -n {case.namespace} db") == [case.name, ":4"]
    assert complete("pinwarden top -o ''") == ["wide", "json", "yaml", ":4"]
    assert complete(f"pinwarden probe {case.node[:-1]}") == [case.node, ":4"]
    script = case.shell("kubectl pinwarden completion bash")
    line = f"kubectl-pinwarden explain -n {case.namespace} db"
    words = " ".join(line.split())
    said = case.shell(
        f"{script}\nCOMP_WORDS=({words}); COMP_CWORD=4; compopt() {{ :; }}; "
        '_kubectl_pinwarden; echo "${COMPREPLY[@]}"'
    )
    assert said.split() == [case.name]
