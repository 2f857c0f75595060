"""A real kubelet on cgroup v1: the kernel of Debian 12 with its hierarchies of version 1, emulated."""

import json
from collections.abc import Iterator

import pytest

from cluster.cluster import Cluster
from cluster.install import install
from cluster.machine import Kind

from ..waiting import until
from .conftest import kubectl_of
from .test_faults import MIB, NAMESPACE, Held, hold, in_force


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster([Kind.QEMU_V1]) as running:
        install(running.kubeconfig, len(running.nodes))
        yield running


@pytest.fixture(scope="module")
def held(cluster: Cluster) -> Iterator[Held]:
    yield from hold(cluster, kubectl_of(cluster))


@pytest.mark.rule("P5", "P12", "P14", level="Converge")
def test_limit_on_cgroup_v1_is_enforced_raised_and_released(cluster: Cluster, held: Held) -> None:
    kubectl = kubectl_of(cluster)
    assert held.node.exec(["test", "-d", "/sys/fs/cgroup/memory/kubepods"]).returncode == 0
    assert held.node.exec(["test", "-e", "/sys/fs/cgroup/cgroup.controllers"]).returncode != 0
    held.edit(5)
    held.settles_at(5)
    (report,) = json.loads(kubectl("get", "nodepinconfigs", "-o", "json"))["items"]
    assert report["status"]["cgroupVersion"] == "v1"
    kubectl("-n", NAMESPACE, "delete", "pinlimit", "held")
    until(lambda: in_force(held.node) == 8 * MIB, "the process has what the runtime gave it")
