"""Finding pods cheaply, over directories that look like cgroups."""

from pathlib import Path

import pytest

from pinwarden.node.pods.discovery import BETWEEN_WALKS_SECONDS, PodFinder

UID = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123456"
OTHER = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123457"
SLICE = f"kubepods-besteffort-pod{OTHER.replace('-', '_')}.slice"


def test_pods_of_both_drivers_are_found_and_not_entered(tmp_path: Path) -> None:
    one = tmp_path / "kubepods" / "burstable" / f"pod{UID}"
    two = tmp_path / "kubelet.slice" / "kubepods.slice" / "kubepods-besteffort.slice" / SLICE
    (one / "kubepods" / f"pod{OTHER}").mkdir(parents=True)
    two.mkdir(parents=True)
    assert PodFinder(tmp_path).find(0.0) == {UID: (one,), OTHER: (two,)}


def test_a_new_pod_and_a_new_qos_class_are_found_between_walks(tmp_path: Path) -> None:
    kubepods = tmp_path / "kubepods"
    kubepods.mkdir()
    finder = PodFinder(tmp_path)
    assert finder.find(0.0) == {}
    path = kubepods / "besteffort" / f"pod{UID}"
    path.mkdir(parents=True)
    assert finder.find(0.5) == {UID: (path,)}
    path.rmdir()
    assert finder.find(1.0) == {}


def test_a_new_hierarchy_of_pods_is_found_by_the_next_walk(tmp_path: Path) -> None:
    finder = PodFinder(tmp_path)
    assert finder.find(0.0) == {}
    path = tmp_path / "kubepods" / f"pod{UID}"
    path.mkdir(parents=True)
    assert finder.find(1.0) == {}
    assert finder.find(BETWEEN_WALKS_SECONDS) == {UID: (path,)}


def test_a_pod_with_two_directories_is_found_once(tmp_path: Path) -> None:
    paths = [tmp_path / "kubepods" / qos / f"pod{UID}" for qos in ("besteffort", "burstable")]
    for path in paths:
        path.mkdir(parents=True)
    assert PodFinder(tmp_path).find(0.0) == {UID: tuple(paths)}


@pytest.mark.parametrize("deep_tree", ["d", "e" * 200], indirect=True)
def test_a_too_deep_directory_hides_no_pod(deep_tree: Path) -> None:
    pod = deep_tree / "kubepods" / f"pod{UID}"
    pod.mkdir(parents=True)
    assert PodFinder(deep_tree).find(0.0) == {UID: (pod,)}
