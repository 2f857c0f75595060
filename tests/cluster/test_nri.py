"""The gate by NRI on a real node: containers of any profile are gated from their first call, and no
manifest says so (P1).

Each pod's first act is to lock all it can, in four processes at once. The limit counts to the page.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from cluster import chart
from cluster.cluster import Cluster
from cluster.image import NAME
from cluster.install import ROOT
from cluster.node import Node

from ..waiting import until
from .test_install import RELEASE, WAIT, Site

NAMESPACE = "ungated"
PAGES = 256
PROGRAM = (ROOT / "tests/cluster/programs/locks.py").read_text()
LIMIT = {
    "apiVersion": "pinwarden.io/v1alpha1",
    "kind": "PinLimit",
    "metadata": {"name": "all", "namespace": NAMESPACE},
    "spec": {"podSelector": {}, "limit": "1Mi", "minimumLevel": "Deny"},
}
CUSTOM = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
        {"names": ["mlock2"], "action": "SCMP_ACT_ERRNO"},
    ],
}
FOREIGN = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "defaultErrnoRet": 38,
    "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}],
}
PROFILES: dict[str, dict[str, Any]] = {
    "silent": {},
    "runtime-default": {"seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 1000},
    "unconfined": {"seccompProfile": {"type": "Unconfined"}, "runAsUser": 1000},
    "custom": {"seccompProfile": {"type": "Localhost", "localhostProfile": "custom.json"}},
    "privileged": {"privileged": True},
    "privileged-default": {"privileged": True, "seccompProfile": {"type": "RuntimeDefault"}},
}


def container(name: str, security: dict[str, Any], *words: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": NAME,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", PROGRAM, *words],
        "securityContext": security,
        **fields,
    }


def pod(name: str, *containers: dict[str, Any], init: Any = ()) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "initContainers": list(init),
            "containers": list(containers),
        },
    }


class Gated:
    """The cluster, and pods in a namespace."""

    def __init__(self, site: Site, namespace: str = NAMESPACE) -> None:
        self.site = site
        self.namespace = namespace

    @property
    def node(self) -> Node:
        return self.site.nodes[0]

    def add_profile(self, name: str, profile: Mapping[str, object]) -> None:
        """Write a seccomp profile that pods of the node can name."""
        folder = "/var/lib/kubelet/seccomp"
        script = f"mkdir -p {folder} && cat > {folder}/{name}.json <<'E'\n{json.dumps(profile)}\nE"
        assert self.node.exec(["sh", "-c", script]).returncode == 0

    def install(self, *options: str) -> None:
        """Install pinwarden, whose plugin may not be registered yet."""
        fixed = ("--create-namespace", *WAIT, "--set=operator.replicas=1")
        self.site.helm("install", RELEASE[0], str(chart.CHART), *RELEASE[1:], *fixed, *options)

    def apply(self, *objects: dict[str, Any]) -> None:
        whole = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.site.kubectl("apply", "-f", "-", stdin=json.dumps(whole))
        for made in objects:
            if made["kind"] == "PinLimit":
                self._wait_limited(made["metadata"]["namespace"])

    def _wait_limited(self, namespace: str) -> None:
        """Wait until the plugin can know that new pods of the namespace may be limited."""

        def names() -> list[str]:
            text = self.node.exec(["cat", "/var/lib/pinwarden/nodepinconfig.json"]).stdout
            known: list[str] = json.loads(text)["content"]["spec"]["limitedNamespaces"]
            return known

        until(lambda: namespace in names(), f"the node knows that {namespace} is limited")

    def pages(self, name: str, container: str = "main") -> int:
        """The pages that a container's processes locked together, once it says so."""

        def said() -> list[str]:
            status = self.get("pod", name)["status"]
            known = [
                each
                for kind in (
                    "containerStatuses",
                    "initContainerStatuses",
                    "ephemeralContainerStatuses",
                )
                for each in status.get(kind, [])
            ]
            if not any(
                each["name"] == container and "waiting" not in each["state"] for each in known
            ):
                return []
            text = self.site.kubectl("-n", self.namespace, "logs", name, "-c", container)
            return re.findall(r"^pages (\d+)$", text, re.MULTILINE)

        until(lambda: bool(said()), f"container {container} of {name} says what it locked")
        return int(said()[-1])

    def get(self, kind: str, name: str, namespace: str = "") -> Any:
        space = namespace or self.namespace
        return json.loads(self.site.kubectl("-n", space, "get", kind, name, "-o", "json"))

    def delete(self, *names: str) -> None:
        self.site.kubectl("-n", self.namespace, "delete", "pod", *names, "--now", "--wait=true")

    def levels(self) -> dict[str, str]:
        """The reported level of each pod of the namespace that its node reports."""
        found = json.loads(self.site.kubectl("-n", self.namespace, "get", "pods", "-o", "json"))
        names = {each["metadata"]["uid"]: each["metadata"]["name"] for each in found["items"]}
        status = self.get("nodepinconfig", self.node.name).get("status", {})
        return {
            names[each["uid"]]: each["level"]
            for each in status.get("pods", [])
            if each["uid"] in names
        }

    def message(self, prefix: str) -> str:
        """The reported message of the pod whose name begins so."""
        found = json.loads(self.site.kubectl("-n", self.namespace, "get", "pods", "-o", "json"))
        uids = {
            each["metadata"]["uid"]
            for each in found["items"]
            if each["metadata"]["name"].startswith(prefix)
        }
        status = self.get("nodepinconfig", self.node.name).get("status", {})
        return " ".join(
            each.get("message", "") for each in status.get("pods", []) if each["uid"] in uids
        )

    def reports(self, name: str, *, exact: bool) -> Callable[[], bool]:
        """Whether a pod is reported, and called exact only if it is."""
        return lambda: self.levels().get(name) in (("Deny", "Converge") if exact else ("Converge",))

    def logged(self, text: str) -> bool:
        log = self.site.kubectl("-n", chart.NAMESPACE, "logs", "ds/pinwarden-holder", "-c", "nri")
        return text in log

    def registered(self) -> bool:
        return self.logged("connected to containerd")


@pytest.fixture(scope="module")
def gated() -> Iterator[Gated]:
    """A cluster with pods from before pinwarden, and then pinwarden with the gate by NRI."""
    with Cluster() as cluster:
        made = Gated(Site(cluster))
        made.site.kubectl("create", "namespace", NAMESPACE)
        made.add_profile("custom", CUSTOM)
        made.add_profile("foreign", FOREIGN)
        sleeper = container("main", {})
        sleeper["command"] = ["python3", "-c", "import signal; signal.pause()"]
        before = pod("before", sleeper)
        labels = {"app": "before"}
        template = {
            "metadata": {"labels": labels},
            "spec": before["spec"] | {"restartPolicy": "Always"},
        }
        made.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "before", "namespace": NAMESPACE},
                "spec": {"selector": {"matchLabels": labels}, "template": template},
            }
        )
        made.site.kubectl("-n", NAMESPACE, "rollout", "status", "deploy/before", "--timeout=300s")
        made.install()
        made.apply(LIMIT)
        until(made.registered, "the plugin is registered at containerd")
        yield made


@pytest.mark.rule("P1", level="Deny")
def test_container_of_any_profile_is_gated_from_its_first_call(gated: Gated) -> None:
    gated.apply(*(pod(name, container("main", one, "stay")) for name, one in PROFILES.items()))
    assert {name: gated.pages(name) for name in PROFILES} == dict.fromkeys(PROFILES, PAGES)
    expected = dict.fromkeys(PROFILES, "Deny")
    until(lambda: gated.levels().items() >= expected.items(), "each pod is limited exactly")
    gated.delete(*PROFILES)


@pytest.mark.rule("P1", level="Deny")
def test_containers_of_one_pod_share_its_limit_whatever_their_kind(gated: Gated) -> None:
    sidecar = container("sidecar", {}, "stay", restartPolicy="Always")
    gated.apply(
        pod(
            "kinds",
            container("main", {}, "stay"),
            init=[container("init", {"privileged": True}, "once"), sidecar],
        )
    )
    assert gated.pages("kinds", "init") == PAGES
    assert gated.pages("kinds", "sidecar") + gated.pages("kinds", "main") == PAGES
    gated.site.kubectl(
        *("-n", NAMESPACE, "debug", "kinds", "--image", NAME, "--image-pull-policy=Never"),
        *("-c", "debugger", "--profile=general", "--", "python3", "-c", PROGRAM, "stay"),
    )
    assert gated.pages("kinds", "debugger") == 0
    text = gated.site.kubectl(
        "-n", NAMESPACE, "exec", "kinds", "-c", "main", "--", "python3", "-c", PROGRAM
    )
    assert text.split() == ["pages", "0"]
    gated.delete("kinds")


@pytest.mark.rule("H1")
def test_container_that_runs_since_before_is_reported_and_a_restart_gates_it(gated: Gated) -> None:
    def level() -> str:
        return next(
            (level for name, level in gated.levels().items() if name.startswith("before")), ""
        )

    assert gated.logged("container main of pod ungated/before")
    until(
        lambda: "a restart gates it" in gated.message("before"), "the pod's report says what to do"
    )
    until(lambda: level() == "Converge", "the pod of before is not called exact")
    gated.site.kubectl("-n", NAMESPACE, "rollout", "restart", "deploy/before")
    gated.site.kubectl("-n", NAMESPACE, "rollout", "status", "deploy/before", "--timeout=300s")
    until(lambda: level() == "Deny", "the restarted pod is limited exactly")


@pytest.mark.rule("H1")
def test_fresh_pod_is_changed_only_in_a_namespace_with_limits(gated: Gated) -> None:
    """A limit that comes later reports the pod of before as created without the gate."""
    other = Gated(gated.site, "unlimited")
    run = partial(other.site.kubectl, "-n", other.namespace)
    run("create", "namespace", other.namespace)

    def filters(name: str) -> int:
        """Start a pod, and return the seccomp filters of its first process."""
        made = pod(name, container("main", {}, "stay"))
        made["metadata"]["namespace"] = other.namespace
        other.apply(made)
        other.pages(name)
        script = "print(open('/proc/1/status').read())"
        status = run("exec", name, "--", "python3", "-c", script)
        return int(status.partition("Seccomp_filters:")[2].split()[0])

    assert filters("early") == 0
    other.apply({**LIMIT, "metadata": {"name": "all", "namespace": other.namespace}})
    assert filters("late") > 0
    assert other.pages("late") == PAGES
    until(lambda: other.levels() == {"early": "Converge", "late": "Deny"}, "both are reported")
    assert "created without the gate; a restart gates it" in other.message("early")
    run("delete", "namespace", other.namespace, "--wait=true", "--timeout=300s")


@pytest.mark.rule("H1")
def test_policy_that_cannot_be_merged_stays_and_its_pod_is_not_called_exact(gated: Gated) -> None:
    foreign = {"seccompProfile": {"type": "Localhost", "localhostProfile": "foreign.json"}}
    gated.apply(pod("foreign", container("main", foreign, "stay")))
    gated.pages("foreign")
    until(lambda: gated.levels().get("foreign") == "Converge", "the pod is not called exact")
    assert gated.logged("runs ungated: its seccomp policy has a default errno")
    gated.delete("foreign")


def test_pod_of_pinwarden_is_never_gated(gated: Gated) -> None:
    """Its gate could not wait for its own answer."""
    run = partial(gated.site.kubectl, "-n", chart.NAMESPACE)
    run("rollout", "restart", "ds/pinwarden-agent")
    run("rollout", "status", "ds/pinwarden-agent", "--timeout=300s")
    pods = json.loads(run("get", "pods", "-o", "json"))["items"]
    own = {
        each["containerID"].partition("://")[2]
        for one in pods
        for each in one["status"]["containerStatuses"]
    }
    gated.apply(pod("other", container("main", {}, "stay")))
    gated.pages("other")
    gate = json.loads(gated.node.exec(["cat", "/run/pinwarden/gate.json"]).stdout)
    assert len(own) > 4
    assert gate["containers"]
    assert not own & gate["containers"].keys()
    gated.delete("other")


@pytest.mark.rule("H1", "H3")
def test_plugin_and_runtime_that_are_killed_come_back_and_gate_again(gated: Gated) -> None:
    for number, (program, match) in enumerate([("pinwarden", "nri"), ("containerd", "")]):
        gated.node.kill(program, match=match)
        names = [f"killed-{number}-{each}" for each in range(2)]
        gated.apply(*(pod(name, container("main", {}, "stay")) for name in names))
        for name in names:
            exact = gated.pages(name) == PAGES
            until(gated.reports(name, exact=exact), f"{name} is called exact only if it is")
        gated.delete(*names)
        last = f"after-{number}"

        def is_gated(last: str = last) -> bool:
            gated.apply(pod(last, container("main", {}, "stay")))
            exact = gated.pages(last) == PAGES
            gated.delete(last)
            return exact

        until(is_gated, "a new pod is gated again")


@pytest.mark.rule("H1")
def test_uninstall_fails_until_no_pod_runs_that_the_plugin_gated(gated: Gated) -> None:
    """The last test of the module, because it uninstalls pinwarden."""
    restart = ("-n", NAMESPACE, "rollout", "restart", "deploy/before")
    status = ("-n", NAMESPACE, "rollout", "status", "deploy/before", "--timeout=300s")

    def reported() -> list[str]:
        """The names of the existing pods that their node reports as gated."""
        pods = json.loads(gated.site.kubectl("-n", NAMESPACE, "get", "pods", "-o", "json"))
        uids = gated.get("nodepinconfig", gated.node.name)["status"].get("gatedPods", [])
        return [pod["metadata"]["name"] for pod in pods["items"] if pod["metadata"]["uid"] in uids]

    until(lambda: "before" in str(gated.levels()), "the node has the limit of the namespace")
    gated.site.kubectl(*restart)
    gated.site.kubectl(*status)
    until(lambda: len(reported()) == 1, "the restarted pod is reported as gated")
    (name,) = reported()
    said = gated.site.uninstall(fails=True)
    assert f"Gated by the NRI plugin: {NAMESPACE}/{name}." in said
    assert "gate.mode=Off" in said
    gated.site.helm("rollback", RELEASE[0], "1", *RELEASE[1:], *WAIT)
    gated.site.helm(
        *("upgrade", RELEASE[0], str(chart.CHART), *RELEASE[1:], *WAIT),
        *("--reset-then-reuse-values", "--set-string=gate.mode=Off"),
    )
    assert reported() == [name], "a running pod keeps its gate"
    gated.site.kubectl(*restart)
    gated.site.kubectl(*status)
    until(lambda: reported() == [], "no gated pod is left")
    assert "released: 1 NodePinConfig" in gated.site.uninstall()
