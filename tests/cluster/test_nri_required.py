"""A node whose containerd requires the plugin starts no container ungated, and always comes back.

The configuration of containerd is that of docs/how-to/require-the-gate.md.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from cluster import chart
from cluster.cluster import Cluster
from cluster.install import ROOT

from ..waiting import until
from .test_install import RELEASE, WAIT, Site
from .test_nri import FOREIGN, LIMIT, NAMESPACE, PAGES, Gated, container, pod

KEY = "pinwarden.io/start-ungated"
SYSTEM = "kube-system"
PAGE = (ROOT / "docs/how-to/require-the-gate.md").read_text()
(REQUIRED,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def tolerated(name: str) -> dict[str, Any]:
    """A pod that starts without the plugin."""
    made = pod(name, container("main", {}))
    made["metadata"] |= {"namespace": SYSTEM, "annotations": {KEY: "true"}}
    made["spec"]["containers"][0]["command"] = ["python3", "-c", "import signal; signal.pause()"]
    return made


def running(closed: Gated, name: str) -> bool:
    """Whether a pod of kube-system runs."""
    known = closed.site.kubectl("-n", SYSTEM, "get", "pods", "-o", "json")
    phases = {
        each["metadata"]["name"]: each["status"].get("phase") for each in json.loads(known)["items"]
    }
    return phases.get(name) == "Running"


def reason(closed: Gated, name: str) -> str:
    """Why the container of a pod waits, empty if it does not."""
    (status,) = closed.get("pod", name)["status"].get("containerStatuses", [{"state": {}}])
    return str(status["state"].get("waiting", {}).get("reason", ""))


def events(closed: Gated, name: str) -> str:
    """The messages of a pod's Events."""
    about = (f"--field-selector=involvedObject.name={name}", "-o", "jsonpath={.items[*].message}")
    return closed.site.kubectl("-n", NAMESPACE, "get", "events", *about)


def write(closed: Gated, path: str, text: str, *, append: bool = False) -> None:
    script = f"cat {'>>' if append else '>'} {path} <<'E'\n{text}\nE\nsync"
    assert closed.node.exec(["sh", "-c", f"mkdir -p $(dirname {path}); {script}"]).returncode == 0


@pytest.fixture(scope="module")
def closed() -> Iterator[Gated]:
    """A cluster with pinwarden, whose node requires the plugin since a restart of containerd."""
    with Cluster() as cluster:
        made = Gated(Site(cluster))
        made.site.kubectl("create", "namespace", NAMESPACE)
        made.install(f"--set=gate.nri.tolerationAnnotation={KEY}")
        made.apply(LIMIT)
        write(made, "/etc/containerd/config.toml", REQUIRED, append=True)
        made.node.kill("containerd")
        yield made


@pytest.mark.rule("P1", level="Deny")
def test_container_is_rejected_without_the_plugin_and_starts_gated_with_it(closed: Gated) -> None:
    plugin = ("-n", chart.NAMESPACE, "delete", "ds", "pinwarden-holder")
    closed.site.kubectl(*plugin, "--cascade=foreground")
    write(closed, "/etc/kubernetes/manifests/static.yaml", json.dumps(tolerated("static")))
    closed.apply(pod("waiting", container("main", {}, "stay")), tolerated("tolerated"))
    (said,) = re.findall(r"^Error: .*(required plugin .*)$", PAGE, re.MULTILINE)
    until(lambda: said in events(closed, "waiting"), "the kubelet says why")
    for name in ("tolerated", f"static-{closed.node.name}"):
        until(partial(running, closed, name), f"{name} runs without the plugin")
    until(lambda: reason(closed, "waiting") == "CreateContainerError", "its state says so too")
    closed.site.helm("upgrade", RELEASE[0], str(chart.CHART), *RELEASE[1:], "--reuse-values", *WAIT)
    assert closed.pages("waiting") == PAGES
    until(lambda: closed.levels().get("waiting") == "Deny", "the pod is limited exactly")
    closed.delete("waiting")


@pytest.mark.rule("H1")
def test_container_that_cannot_get_the_gate_is_rejected_and_its_event_says_why(
    closed: Gated,
) -> None:
    write(closed, "/var/lib/kubelet/seccomp/foreign.json", json.dumps(FOREIGN))
    foreign = {"seccompProfile": {"type": "Localhost", "localhostProfile": "foreign.json"}}
    closed.apply(pod("foreign", container("main", foreign)))
    said = "this node requires the gate: its seccomp policy has a default errno"
    until(lambda: said in events(closed, "foreign"), "the kubelet says why")
    closed.delete("foreign")


def test_author_cannot_start_a_pod_ungated(closed: Gated) -> None:
    made = pod("own", container("main", {}))
    made["metadata"]["annotations"] = {KEY: "true"}
    said = closed.site.run("kubectl", "apply", "-f", "-", stdin=json.dumps(made), fails=True)
    assert f"annotation {KEY} lets containers start without the gate" in said


@pytest.mark.rule("P1", level="Deny")
@pytest.mark.parametrize(("program", "match"), [("pinwarden", "nri"), ("containerd", "")])
def test_no_container_starts_ungated_after_a_crash(closed: Gated, program: str, match: str) -> None:
    closed.node.kill(program, match=match)
    names = [f"{program}-{number}" for number in range(3)]
    closed.apply(*(pod(name, container("main", {}, "stay")) for name in names))
    assert {name: closed.pages(name) for name in names} == dict.fromkeys(names, PAGES)
    expected = dict.fromkeys(names, "Deny")
    until(lambda: closed.levels().items() >= expected.items(), "each pod is limited exactly")
    closed.delete(*names)


@pytest.mark.rule("P1", "H3", level="Deny")
def test_node_that_reboots_starts_pinwarden_first_and_then_gated_pods(closed: Gated) -> None:
    made = pod("again", container("main", {}, "stay"))
    made["spec"]["restartPolicy"] = "Always"
    closed.apply(made)
    assert closed.pages("again") == PAGES
    assert closed.node.exec(["sync"]).returncode == 0
    closed.node.power_cut()
    closed.site.cluster.start(closed.node)

    def restarted() -> bool:
        (status,) = closed.get("pod", "again")["status"]["containerStatuses"]
        return status["restartCount"] > 0 and "running" in status["state"]

    until(restarted, "the container runs again")
    assert closed.pages("again") == PAGES
    until(lambda: closed.levels().get("again") == "Deny", "the pod is limited exactly")
    for name in ("ds/pinwarden-holder", "ds/pinwarden-agent", "deploy/pinwarden-operator"):
        wait = ("rollout", "status", name, "--timeout=300s")
        closed.site.kubectl("-n", chart.NAMESPACE, *wait)
    closed.delete("again")


def test_uninstall_fails_while_nodes_may_require_the_plugin(closed: Gated) -> None:
    said = closed.site.helm("uninstall", *RELEASE, *WAIT, fails=True)
    assert "take required_plugins out of containerd's configuration" in said
