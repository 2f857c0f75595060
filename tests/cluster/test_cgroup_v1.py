"""A real kubelet on cgroup v1: Debian 12's kernel with hierarchies of version 1, emulated."""

import json
from collections.abc import Iterator

import pytest

from cluster.cluster import Cluster
from cluster.install import WITHOUT_NRI, install
from cluster.machine import Kind

from ..waiting import until
from .conftest import kubectl_of
from .test_faults import MIB, NAMESPACE, LimitedPod, in_force, limited_pod


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster([Kind.QEMU_V1]) as running:
        install(running.kubeconfig, len(running.nodes), WITHOUT_NRI)
        yield running


@pytest.fixture(scope="module")
def limited(cluster: Cluster) -> Iterator[LimitedPod]:
    yield from limited_pod(cluster, kubectl_of(cluster))


@pytest.mark.rule("P5", "P12", "P14", level="Converge")
def test_limit_on_cgroup_v1_is_enforced_raised_and_released(
    cluster: Cluster, limited: LimitedPod
) -> None:
    kubectl = kubectl_of(cluster)
    assert limited.node.exec(["test", "-d", "/sys/fs/cgroup/memory/kubepods"]).returncode == 0
    assert limited.node.exec(["test", "-e", "/sys/fs/cgroup/cgroup.controllers"]).returncode != 0
    limited.edit(5)
    limited.settles_at(5)
    (report,) = json.loads(kubectl("get", "nodepinconfigs", "-o", "json"))["items"]
    assert report["status"]["cgroupVersion"] == "v1"
    kubectl("-n", NAMESPACE, "delete", "pinlimit", "limited")
    until(lambda: in_force(limited.node) == 8 * MIB, "the process has what the runtime gave it")
