"""The gate finds the processes of a pod in directories that look like cgroups."""

import os
from pathlib import Path

import pytest

from pinwarden.api.nodepinconfig import Mode, NodeLimit, NodePinConfigSpec, NodePod
from pinwarden.api.pinlimit import Scope
from pinwarden.node.gate.budgets import BudgetKey
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.pods.cgroups import explore
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.pods.policy import NodePolicy

UID = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123456"
SLICE = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"
ONE, TWO = "1a" * 32, "2b" * 32
LIMIT = NodeLimit(name="l", uid="uid-l", scope=Scope.POD, limit=4096)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "kubepods.slice" / "kubepods-burstable.slice" / SLICE).mkdir(parents=True)
    return tmp_path


def start(root: Path, container: str, pid: int, service: str) -> GatedContainer:
    """Start a container as a runtime with another cgroup driver than the kubelet."""
    directory = root / "system.slice" / service / f"{SLICE}:cri-containerd:{container}"
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text(f"{pid}\n")
    return GatedContainer(container, ContainerRef(UID, container[:2]), "", b"")


@pytest.mark.rule("P1", "H1")
def test_container_beside_its_pod_with_a_listener_belongs_to_the_pod(
    root: Path,
) -> None:
    pods = PodLimits(root, Path("/proc"), lambda: 0.0)
    pods.configure(
        NodePolicy(NodePinConfigSpec(limits=[LIMIT], pods=[NodePod(uid=UID, limits=["l"])]), (), 1)
    )
    one = start(root, ONE, os.getpid(), "containerd.service")
    with pytest.raises(FileNotFoundError):
        pods.sample(one.ref)
    pods.set_containers([one])
    assert pods.sample(one.ref)[BudgetKey("l", UID)].all_gated
    two = start(root, TWO, os.getppid(), "other.service")
    pods.set_containers([one, two])
    assert pods.sample(two.ref)[BudgetKey("l", UID)].all_gated
    assert pods.contains(UID, os.getpid())
    assert pods.contains(UID, os.getppid())
    (paths,) = PodFinder(root).find(0.0).values()
    assert set(pods.cgroup_paths(UID)) == set(explore(UID, paths).members)


@pytest.mark.rule("H1")
def test_fingerprints_in_mode_release_are_none(root: Path) -> None:
    pods = PodLimits(root, Path("/proc"), lambda: 0.0)
    pods.set_containers([start(root, ONE, os.getpid(), "containerd.service")])
    spec = NodePinConfigSpec(limits=[LIMIT], pods=[NodePod(uid=UID, limits=["l"])])
    pods.configure(NodePolicy(spec, (), 1))
    assert pods.fingerprints().keys() == {UID}
    pods.configure(NodePolicy(spec.model_copy(update={"mode": Mode.RELEASE}), (), 2))
    assert pods.fingerprints() == {}
