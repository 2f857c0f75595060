"""Gated pods on a real node: containerd and runc send the listeners (P1, H3).

The kubelet does not start pods that cannot be gated. Four processes lock and unlock at random, and
print their counts each second. An error that the kernel does not have for a limit fails the test.
Their locked bytes are read on the node.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from cluster.cluster import Cluster
from cluster.image import NAME
from cluster.install import ROOT, WITHOUT_NRI, install
from cluster.node import Node

from ..waiting import until

NAMESPACE = "gated"
LIMIT = 2**20
PROFILE = "pinwarden/runtime-default-v2.json"
Kubectl = Callable[..., str]


def pod(name: str, profile: str = PROFILE) -> str:
    """A manifest: four processes that lock and unlock, unprivileged, under a profile."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "gated"}},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 0,
                "securityContext": {
                    "runAsUser": 1000,
                    "runAsNonRoot": True,
                    "seccompProfile": {"type": "Localhost", "localhostProfile": profile},
                },
                "containers": [
                    {
                        "name": "looper",
                        "image": NAME,
                        "command": ["python3", "/program/looper.py", "4", "1", "0.05"],
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [{"name": "program", "mountPath": "/program"}],
                    }
                ],
                "volumes": [{"name": "program", "configMap": {"name": "looper"}}],
            },
        }
    )


class Loopers:
    """The processes of one pod."""

    def __init__(self, node: Node, kubectl: Kubectl, name: str) -> None:
        self._node = node
        self._kubectl = kubectl
        self._name = name

    @property
    def calls(self) -> int:
        """Return how many calls were made, 0 if unknown; assert that no error was unexpected."""
        text = self._kubectl("-n", NAMESPACE, "logs", self._name, "--tail=1").strip()
        if not re.fullmatch(r"[\d ]+", text):  # the kubelet's own words while containerd is away
            return 0
        number, *strange = text.split()
        assert not strange
        return int(number)

    @property
    def locked(self) -> int:
        """Return locked bytes: none counts twice, those unlocked between two reads are missing."""
        script = (
            "for p in /proc/[0-9]*; do"
            " grep -q [l]ooper.py $p/cmdline && cat $p/status; done 2>/dev/null"
        )
        found = re.findall(
            r"^VmLck:\s*(\d+) kB$", self._node.exec(["sh", "-c", script]).stdout, re.MULTILINE
        )
        return sum(map(int, found)) * 1024

    def go_on(self) -> None:
        """They make progress, and hold no more than the limit whenever all stand still."""
        until(lambda: self.calls > 0, f"{self._name} prints its calls")
        before = self.calls
        until(lambda: self.calls > before + 10, f"{self._name} makes calls")
        self._node.exec(
            [
                "sh",
                "-c",
                "for p in $(pidof python3); do"
                " grep -q [l]ooper.py /proc/$p/cmdline && kill -STOP $p; done",
            ]
        )
        try:
            time.sleep(0.5)
            assert 0 < self.locked <= LIMIT
        finally:
            self._node.exec(
                [
                    "sh",
                    "-c",
                    "for p in $(pidof python3); do"
                    " grep -q [l]ooper.py /proc/$p/cmdline && kill -CONT $p; done",
                ]
            )

    @property
    def ready(self) -> bool:
        found = json.loads(self._kubectl("-n", NAMESPACE, "get", "pod", self._name, "-o", "json"))
        return any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in found["status"].get("conditions", [])
        )


@pytest.fixture(scope="module")
def loopers(installed: Cluster, kubectl: Kubectl) -> Iterator[Loopers]:
    """A gated pod under a limit that asks for Deny, and is called enforced."""
    kubectl("create", "namespace", NAMESPACE)
    kubectl(
        "-n",
        NAMESPACE,
        "create",
        "configmap",
        "looper",
        f"--from-file={ROOT / 'tests/gate/looper.py'}",
    )
    limit = {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": "PinLimit",
        "metadata": {"name": "gated", "namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {"app": "gated"}},
            "limit": "1Mi",
            "minimumLevel": "Deny",
        },
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(limit))
    kubectl("apply", "-f", "-", stdin=pod("loopers"))
    made = Loopers(installed.nodes[0], kubectl, "loopers")
    until(lambda: made.ready, "the gated pod is Ready")
    until(lambda: enforced(kubectl), "the limit is enforced at Deny")
    yield made
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def enforced(kubectl: Kubectl) -> bool:
    found = json.loads(kubectl("-n", NAMESPACE, "get", "pinlimit", "gated", "-o", "json"))
    conditions = {
        one["type"]: one["status"] for one in found.get("status", {}).get("conditions", [])
    }
    return conditions.get("Enforced") == "True"


@pytest.mark.rule("P1", "H3", level="Deny")
def test_gated_pods_run_through_crashes_and_upgrades(
    loopers: Loopers, installed: Cluster, kubectl: Kubectl
) -> None:
    node = installed.nodes[0]
    loopers.go_on()
    for program, match in (
        ("pinwarden", "gate"),
        ("pinwarden", "holder"),
        ("pinwarden", "agent"),
        ("containerd", ""),
    ):
        node.kill(program, match=match)
        loopers.go_on()
    kubectl("-n", "pinwarden-system", "rollout", "status", "ds/pinwarden-holder", "--timeout=300s")
    for daemon in ("ds/pinwarden-agent", "ds/pinwarden-holder"):
        kubectl("-n", "pinwarden-system", "rollout", "restart", daemon)
        kubectl("-n", "pinwarden-system", "rollout", "status", daemon, "--timeout=300s")
        loopers.go_on()
    until(lambda: enforced(kubectl), "the limit is enforced at Deny again")


@pytest.mark.rule("P1", level="Deny")
def test_process_that_is_started_into_a_gated_container_is_gated_too(
    loopers: Loopers, kubectl: Kubectl
) -> None:
    text = kubectl(
        *("-n", NAMESPACE, "exec", "loopers", "--", "python3", "-c"),
        "import ctypes, mmap; c = ctypes.CDLL(None, use_errno=True); a = mmap.mmap(-1, 2 << 20);"
        "b = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(a)));"
        "print(c.mlock(b, ctypes.c_size_t(2 << 20)), ctypes.get_errno())",
    )
    assert text.split() == ["-1", "12"]


@pytest.mark.rule("P1", level="Deny")
def test_pod_that_cannot_be_gated_does_not_start_and_the_event_names_the_cause(
    loopers: Loopers, installed: Cluster, kubectl: Kubectl
) -> None:
    kubectl("apply", "-f", "-", stdin=pod("unknown", "pinwarden/runtime-default-v99.json"))
    kubectl("-n", "pinwarden-system", "delete", "ds", "pinwarden-holder")
    kubectl("apply", "-f", "-", stdin=pod("early"))
    causes = {
        "unknown": "pinwarden/runtime-default-v99.json",
        "early": "/run/pinwarden/seccomp.sock",
    }

    def names_the_cause(name: str) -> bool:
        events = kubectl(
            "-n",
            NAMESPACE,
            "get",
            "events",
            f"--field-selector=involvedObject.name={name}",
            "-o",
            "json",
        )
        return any(
            causes[name] in event.get("message", event.get("note", ""))
            for event in json.loads(events)["items"]
        )

    for name in causes:
        until(partial(names_the_cause, name), f"an Event of {name} names the cause")
    loopers.go_on()
    install(installed.kubeconfig, len(installed.nodes), WITHOUT_NRI)
    early = Loopers(installed.nodes[0], kubectl, "early")
    until(lambda: early.ready, "the early pod starts once the holder is there")
    kubectl("-n", NAMESPACE, "delete", "pod", "early", "unknown")
