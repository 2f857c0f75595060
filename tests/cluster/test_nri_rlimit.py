"""RLIMIT_MEMLOCK by NRI on a real node: a container has its pod's limit from its first instruction,
and its inherited limits after the limit is deleted (P14).
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import chart
from cluster.cluster import Cluster
from cluster.image import NAME

from ..waiting import until
from .test_install import Site
from .test_nri import FOREIGN, Gated

NAMESPACE = "rlimits"
MIB = 1 << 20
STATUS = "/run/pinwarden/nri.json"
PROGRAM = """
import itertools, resource, sys, time
last = ()
for number in itertools.count():
    now = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if now != last:
        print("memlock", *now, flush=True)
    if sys.argv[1:] == [str(now[0])] or (sys.argv[1:] and number == 600):
        break
    last = now
    time.sleep(0.1)
"""
PROFILES: dict[str, dict[str, Any]] = {
    "silent": {},
    "privileged": {"privileged": True},
    "foreign": {"seccompProfile": {"type": "Localhost", "localhostProfile": "foreign.json"}},
}
"""The gate's rules cannot be merged with the last profile."""


def limit(name: str, amount: str) -> dict[str, Any]:
    return {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": "PinLimit",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"limit": name}}, "limit": amount},
    }


def pod(name: str, limited_by: str, security: dict[str, Any]) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": NAME,
        "imagePullPolicy": "Never",
        "command": ["python3", "-IS", "-c", PROGRAM],
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"limit": limited_by}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "containers": [container],
        },
    }


class Limited(Gated):
    """The cluster, and pods that print their RLIMIT_MEMLOCK whenever it changes."""

    def limits(self, name: str) -> list[tuple[int, int]]:
        """The limits of the pod's process since its start."""
        phase = self.site.kubectl(
            "-n", NAMESPACE, "get", "pod", name, "-o", "jsonpath={.status.phase}"
        )
        if phase != "Running":
            return []
        text = self.site.kubectl("-n", NAMESPACE, "logs", name)
        found = re.findall(r"^memlock (-?\d+) (-?\d+)$", text, re.MULTILINE)
        return [(int(soft), int(hard)) for soft, hard in found]

    def started(self, name: str) -> tuple[int, int]:
        """The first limits of the pod's process."""
        until(lambda: bool(self.limits(name)), f"the process of {name} prints its limits")
        return self.limits(name)[0]

    def lowered(self) -> dict[str, list[Any]]:
        """The lowered limits in the plugin's file, by container id."""
        content = json.loads(self.node.exec(["cat", STATUS]).stdout)["content"]
        found: dict[str, list[Any]] = content["lowered"]
        return found

    def container(self, name: str) -> str:
        """The id of the pod's container."""
        path = "jsonpath={.status.containerStatuses[0].containerID}"
        identity = self.site.kubectl("-n", NAMESPACE, "get", "pod", name, "-o", path)
        return identity.partition("://")[2]

    def registered(self, times: int = 1) -> bool:
        log = self.site.kubectl("-n", chart.NAMESPACE, "logs", "ds/pinwarden-holder", "-c", "nri")
        return log.count("connected to containerd") >= times


@pytest.fixture(scope="module")
def limited() -> Iterator[Limited]:
    """A cluster with pinwarden, and the limits of 1 MiB and 64 MiB."""
    with Cluster() as cluster:
        made = Limited(Site(cluster))
        made.site.kubectl("create", "namespace", NAMESPACE)
        made.add_profile("foreign", FOREIGN)
        made.install()
        made.apply(limit("small", "1Mi"), limit("large", "64Mi"))
        until(made.registered, "the plugin is registered at containerd")
        yield made


@pytest.mark.rule("P14")
def test_containers_of_any_profile_start_with_the_limit_of_their_pod(limited: Limited) -> None:
    limited.apply(pod("free", "none", {}), pod("large", "large", {}))
    inherited = limited.started("free")
    assert inherited == limited.started("large")
    assert inherited[0] > MIB
    limited.apply(*(pod(name, "small", security) for name, security in PROFILES.items()))
    assert {name: limited.started(name) for name in PROFILES} == dict.fromkeys(PROFILES, (MIB, MIB))
    lowered = limited.lowered()
    for name in PROFILES:
        assert lowered[limited.container(name)][1:] == [*inherited, MIB, MIB]
    assert not {limited.container("free"), limited.container("large")} & lowered.keys()


@pytest.mark.rule("P14", "H3")
def test_deleted_limit_restores_the_inherited_limits_after_restarts(limited: Limited) -> None:
    """The file is removed, so that the restarted plugin reads the annotations of containers."""
    inherited = limited.started("free")
    before = limited.lowered()
    assert limited.node.exec(["rm", STATUS]).returncode == 0
    limited.node.kill("pinwarden", match="nri")
    limited.node.kill("pinwarden", match="agent")
    until(lambda: limited.node.exec(["test", "-e", STATUS]).returncode == 0, "the plugin is back")
    until(lambda: limited.lowered() == before, "the plugin knows the inherited limits again")
    limited.site.kubectl("-n", NAMESPACE, "delete", "pinlimit", "small")
    restored = {name: [(MIB, MIB), inherited] for name in PROFILES}
    until(
        lambda: {name: limited.limits(name) for name in PROFILES} == restored,
        "each process has its inherited limits",
    )
    text = limited.site.kubectl(
        *("-n", NAMESPACE, "exec", "silent", "--"),
        *("python3", "-IS", "-c", PROGRAM, str(inherited[0])),
    )
    assert text.split()[-3:] == ["memlock", *map(str, inherited)]
    assert limited.limits("large") == limited.limits("free") == [inherited]
