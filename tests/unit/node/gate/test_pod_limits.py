"""The gate finds the processes of a pod where agent and accountant find them, over directories that look like cgroups."""

import os
from pathlib import Path

import pytest

from pinwarden.api.nodepinconfig import NodeLimit, NodePinConfigSpec, NodePod
from pinwarden.api.pinlimit import Scope
from pinwarden.node.gate.budgets import Key, Place
from pinwarden.node.gate.container import Identity
from pinwarden.node.gate.pod_limits import Pods
from pinwarden.node.pods.cgroups import explore
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.pods.policy import Plan

UID = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123456"
SLICE = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"
ONE, TWO = "1a" * 32, "2b" * 32
LIMIT = NodeLimit(name="l", uid="uid-l", scope=Scope.POD, limit=4096)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "kubepods.slice" / "kubepods-burstable.slice" / SLICE).mkdir(parents=True)
    return tmp_path


def start(root: Path, container: str, pid: int, service: str) -> Identity:
    """A container as a runtime of another driver than the kubelet's starts it."""
    directory = root / "system.slice" / service / f"{SLICE}:cri-containerd:{container}"
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text(f"{pid}\n")
    return Identity(container, Place(UID, container[:2]), "", b"")


@pytest.mark.rule("P1", "H1")
def test_containers_beside_their_pod_are_the_pods_as_soon_as_a_call_can_come_from_them(root: Path) -> None:
    pods = Pods(root, Path("/proc"), lambda: 0.0)
    pods.configure(Plan(NodePinConfigSpec(limits=[LIMIT], pods=[NodePod(uid=UID, limits=["l"])]), (), 1))
    one = start(root, ONE, os.getpid(), "containerd.service")
    with pytest.raises(FileNotFoundError):
        pods.look(one.place)
    pods.place([one])
    assert pods.look(one.place)[Key("l", UID)].closed
    two = start(root, TWO, os.getppid(), "other.service")
    pods.place([one, two])
    assert pods.look(two.place)[Key("l", UID)].closed
    assert pods.has(UID, os.getpid())
    assert pods.has(UID, os.getppid())
    (paths,) = PodFinder(root).find(0.0).values()
    assert set(pods.folders(UID)) == set(explore(UID, paths).members)
