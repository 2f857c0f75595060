"""The volume at a pod's /dev/shm while no process shows the volume."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pinwarden.node.accountant.finder.pod_volumes import PodVolumes

UID, OTHER = "7d0c2a3e-8e4b-4d0f-9a53-0123456789ab", "7d0c2a3e-8e4b-4d0f-9a53-0123456789ac"
SANDBOX, CONTAINER, STARTING = 5, 7, 8
SHM, CACHE, RUNTIMES = 40, 41, 42


def at(uid: str, name: str) -> str:
    return f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/{name}"


class Node:
    """A folder like /proc: one pod's processes, and the node's mounts by device."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for pid, name in ((SANDBOX, "pause"), (CONTAINER, "python3"), (STARTING, "runc:[2:INIT]")):
            (root / str(pid)).mkdir()
            (root / str(pid) / "comm").write_text(f"{name}\n")
        (root / "1").mkdir()
        self.mounts({SHM: at(UID, "shm")})
        self.volumes = PodVolumes(root, root / "1")

    def mounts(self, points: Mapping[int, str], kind: str = "tmpfs", folder: str = "/") -> None:
        lines = [
            f"{device} 1 0:{device} {folder} {point} rw - {kind} tmpfs rw\n"
            for device, point in points.items()
        ]
        (self.root / "1" / "mountinfo").write_text("".join(lines))

    def left(self, pids: Sequence[int], shown: Mapping[int, int]) -> list[str]:
        self.volumes.begin([UID])
        return self.volumes.left(UID, pids, shown)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.rule("M9")
def test_volume_seen_before_is_found_again(node: Node) -> None:
    node.mounts({SHM: at(UID, "shm"), CACHE: at(UID, "cache")})
    assert node.left([SANDBOX, CONTAINER], {SANDBOX: RUNTIMES, CONTAINER: SHM}) == []
    assert node.left([SANDBOX], {SANDBOX: RUNTIMES}) == [at(UID, "shm")]
    assert node.left([SANDBOX, STARTING], {SANDBOX: RUNTIMES}) == [at(UID, "shm")]
    node.mounts({CACHE: at(UID, "cache")})
    assert node.left([SANDBOX], {SANDBOX: RUNTIMES}) == [], "the volume is gone"


@pytest.mark.rule("M9")
@pytest.mark.parametrize("pids", [[SANDBOX], [], [SANDBOX, STARTING], [99]])
def test_only_volume_is_used_before_any_container_is_seen(node: Node, pids: list[int]) -> None:
    assert node.left(pids, {}) == [at(UID, "shm")]


def test_guess_ends_with_a_container_with_another_volume(node: Node) -> None:
    assert node.left([SANDBOX, CONTAINER], {SANDBOX: RUNTIMES, CONTAINER: RUNTIMES}) == []
    assert node.left([SANDBOX], {SANDBOX: RUNTIMES}) == []


def test_guess_ends_with_a_container_without_a_volume(node: Node) -> None:
    assert node.left([SANDBOX, CONTAINER], {SANDBOX: RUNTIMES}) == []


@pytest.mark.parametrize(
    ("points", "more"),
    [
        ({SHM: at(UID, "shm"), CACHE: at(UID, "cache")}, {}),
        ({SHM: at(OTHER, "shm")}, {}),
        ({SHM: f"{at(UID, 'shm')}/below"}, {}),
        ({SHM: at(UID, "shm").replace("empty-dir", "projected")}, {}),
        ({SHM: at(UID, "shm")}, {"kind": "ext4"}),
        ({SHM: at(UID, "shm")}, {"folder": "/part"}),
    ],
)
def test_several_volumes_or_another_kind_are_no_guess(
    node: Node, points: dict[int, str], more: dict[str, str]
) -> None:
    node.mounts(points, **more)
    assert node.left([SANDBOX], {}) == []


def test_former_member_is_forgotten(node: Node) -> None:
    node.mounts({SHM: at(UID, "shm"), CACHE: at(UID, "cache")})
    node.left([CONTAINER], {CONTAINER: SHM})
    node.volumes.begin([OTHER])
    assert node.left([SANDBOX], {}) == []
