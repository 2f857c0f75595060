"""Cgroup names of two drivers and two runtimes, and walks over real directories."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pinwarden.node.linux.cgroupfs import member_pids
from pinwarden.node.pods.cgroups import PodCgroup, container_id, explore, pod_uid
from pinwarden.node.pods.discovery import PodFinder

UID = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123456"
NEAR = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123457"
STATIC = "8b0e1a4c5d6f708192a3b4c5d6e7f809"
ONE, TWO, CONMON = "1a" * 32, "2b" * 32, "3c" * 32

uids = st.uuids().map(str) | st.text("0123456789abcdef", min_size=32, max_size=32)
ids = st.text("0123456789abcdef", min_size=64, max_size=64)
classes = st.sampled_from(["", "burstable", "besteffort"])


def cgroupfs_pod(uid: str, qos: str) -> Path:
    return Path("kubepods", *[qos] * bool(qos), f"pod{uid}")


def systemd_pod(uid: str, qos: str, prefix: str = "") -> Path:
    stem = f"{prefix}kubepods"
    parents = [f"{stem}.slice", *[f"{stem}-{qos}.slice"] * bool(qos)]
    return Path(*parents, f"{parents[-1].removesuffix('.slice')}-pod{uid.replace('-', '_')}.slice")


@pytest.mark.rule("P1")
@given(uids, classes, st.sampled_from(["", "kubelet-", "kubelet-kind-"]))
def test_both_drivers_name_the_same_pod(uid: str, qos: str, prefix: str) -> None:
    assert pod_uid(cgroupfs_pod(uid, qos)) == uid
    assert pod_uid(Path("/sys/fs/cgroup/kubelet") / cgroupfs_pod(uid, qos)) == uid
    assert pod_uid(systemd_pod(uid, qos, prefix)) == uid


@given(uids, classes, st.text("0123456789abcdef-_", min_size=1, max_size=4), st.integers(1, 12))
def test_a_name_with_a_longer_or_shorter_uid_is_no_pod(
    uid: str, qos: str, more: str, fewer: int
) -> None:
    for wrong in (uid + more, more + uid, uid[:-fewer]):
        assert pod_uid(cgroupfs_pod(wrong, qos)) is None
        assert pod_uid(systemd_pod(wrong, qos)) is None


@given(st.text(max_size=90))
def test_only_the_name_of_a_pod_gives_a_uid(name: str) -> None:
    assume("/" not in name and "\0" not in name and name not in ("", ".", ".."))
    for found in (pod_uid(Path("kubepods") / name), pod_uid(Path("kubepods.slice") / name)):
        assert found is None or found in name.replace("_", "-")


@pytest.mark.parametrize(
    "path",
    [
        f"user.slice/pod{UID}",
        f"kubepods/other/pod{UID}",
        f"burstable/pod{UID}",
        f"kubepods/pod{UID.upper()}",
        f"kubepods/pod{UID}\n",
        f"kubepods/pod{UID.replace('-', '_')}",
        f"kubepods.slice/kubepods-pod{UID}.slice",
        f"kubepods.slice/kubepods-guaranteed-pod{UID.replace('-', '_')}.slice",
        f"kubepods.slice/xkubepods-pod{UID.replace('-', '_')}.slice",
        f"kubepods.slice/kubepods-pod{UID.replace('-', '_')}.scope",
        "kubepods.slice/kubepods-burstable.slice",
        "kubepods",
    ],
)
def test_a_similar_name_is_no_pod(path: str) -> None:
    assert pod_uid(Path(path)) is None


@given(ids)
def test_containers_of_all_runtimes_and_drivers_are_found(identity: str) -> None:
    for name in (
        identity,
        f"crio-{identity}",
        f"cri-containerd-{identity}.scope",
        f"crio-{identity}.scope",
    ):
        assert container_id(name) == identity
    for name in (
        f"crio-conmon-{identity}",
        f"crio-conmon-{identity}.scope",
        f"cri-containerd-{identity}",
        f"{identity}.scope",
        f"{identity}0",
        identity[1:],
        f"x{identity}",
        f"crio-{identity}.slice",
        f"crio-{identity}\n",
        identity[:-1] + "g",
    ):
        assert container_id(name) is None


@given(ids, st.sampled_from(["docker", "cri-containerd", "crio", "a-runtime.of_its-own"]))
def test_a_scope_with_any_prefix_is_a_container(identity: str, prefix: str) -> None:
    """cri-dockerd has `docker-<id>.scope`: https://github.com/kinvolk/traceloop/pull/34."""
    assert container_id(f"{prefix}-{identity}.scope") == identity
    for name in (
        f"{prefix}-conmon-{identity}.scope",
        f"conmon-{identity}.scope",
        f"{prefix}{identity}.scope",
    ):
        assert container_id(name) is None


# https://github.com/kubernetes/kubernetes/issues/106514
# https://github.com/hubblo-org/scaphandre/pull/143
@pytest.mark.rule("P1", "H1")
@given(
    uids,
    classes,
    ids,
    st.sampled_from(["", "kubelet-"]),
    st.sampled_from(["cri-containerd", "crio"]),
)
def test_a_container_beside_its_pod_belongs_to_the_pod(
    uid: str, qos: str, identity: str, prefix: str, runtime: str
) -> None:
    name = f"{systemd_pod(uid, qos, prefix).name}:{runtime}:{identity}"
    for parent in ("system.slice/containerd.service", "system.slice", "docker/1a"):
        assert pod_uid(Path(parent) / name) == uid
    for wrong in (f"{name}0", name[:-1], f"{name}:more", name.replace(f":{runtime}", "")):
        assert pod_uid(Path(wrong)) is None
    assert pod_uid(Path(name.replace(f":{runtime}:", ":crio-conmon:"))) is None


@pytest.mark.rule("P1", "H1")
def test_containers_beside_the_empty_cgroup_of_their_pod_are_found(tmp_path: Path) -> None:
    pod = systemd_pod(UID, "burstable")
    service = Path("system.slice", "containerd.service")
    one, two = (service / f"{pod.name}:cri-containerd:{identity}" for identity in (ONE, TWO))
    build(tmp_path, pod, one / "below", two)
    (found,) = find_pods(tmp_path)
    assert set(found.paths) == {tmp_path / each for each in (pod, one, two)}
    assert [(each.id, each.members) for each in found.containers] == [
        (ONE, (tmp_path / one, tmp_path / one / "below")),
        (TWO, (tmp_path / two,)),
    ]
    assert set(found.members) == {tmp_path / each for each in (pod, one, one / "below", two)}
    assert found.strays == (tmp_path / pod,)


@pytest.mark.rule("P1")
def test_a_directory_without_container_or_monitor_is_a_stray(tmp_path: Path) -> None:
    pod = cgroupfs_pod(UID, "")
    build(tmp_path, pod / ONE, pod / "kata_1a" / "vm", pod / f"crio-conmon-{CONMON}")
    (found,) = find_pods(tmp_path)
    assert set(found.strays) == {
        tmp_path / each for each in (pod, pod / "kata_1a", pod / "kata_1a" / "vm")
    }
    assert [each.id for each in found.containers] == [ONE]


def find_pods(root: Path) -> list[PodCgroup]:
    return [explore(uid, paths) for uid, paths in PodFinder(root).find(0.0).items()]


def build(root: Path, *directories: Path) -> None:
    for directory in directories:
        (root / directory).mkdir(parents=True)


@pytest.mark.rule("P1")
def test_a_cgroupfs_tree_with_nested_cgroups_is_explored(tmp_path: Path) -> None:
    pod, static = cgroupfs_pod(UID, "burstable"), cgroupfs_pod(STATIC, "")
    build(
        tmp_path,
        pod / ONE / "init" / "worker",
        pod / TWO,
        static / ONE,
        Path("system.slice/a.service"),
    )
    found = find_pods(tmp_path)
    assert [one.uid for one in found] == [UID, STATIC]
    first = found[0]
    assert first.paths == (tmp_path / pod,)
    assert [one.id for one in first.containers] == [ONE, TWO]
    one = tmp_path / pod / ONE
    assert first.containers[0].path == one
    assert first.containers[0].members == (one, one / "init", one / "init" / "worker")
    assert first.containers[1].members == (tmp_path / pod / TWO,)
    assert first.members == (
        tmp_path / pod,
        *first.containers[0].members,
        *first.containers[1].members,
    )
    assert found[1].members == (tmp_path / static, tmp_path / static / ONE)


def test_a_monitor_in_a_systemd_tree_is_in_no_container(tmp_path: Path) -> None:
    pod = systemd_pod(UID, "besteffort")
    build(tmp_path, pod / f"crio-{ONE}.scope" / "container", pod / f"crio-conmon-{CONMON}.scope")
    (found,) = find_pods(tmp_path)
    scope = tmp_path / pod / f"crio-{ONE}.scope"
    assert [(one.id, one.members) for one in found.containers] == [
        (ONE, (scope, scope / "container"))
    ]
    assert set(found.members) == {
        tmp_path / pod,
        scope,
        scope / "container",
        tmp_path / pod / f"crio-conmon-{CONMON}.scope",
    }


@pytest.mark.rule("P1")
def test_pods_of_a_kubelet_inside_a_pod_belong_to_the_outer_pod(tmp_path: Path) -> None:
    outer, inner = cgroupfs_pod(UID, ""), cgroupfs_pod(NEAR, "burstable")
    build(
        tmp_path,
        outer / ONE / inner / TWO,
        outer / ONE / systemd_pod(NEAR, "", "kubelet-") / f"crio-{TWO}.scope",
    )
    (found,) = find_pods(tmp_path)
    assert (found.uid, [one.id for one in found.containers]) == (UID, [ONE])
    every = {Path(path) for path, _, _ in os.walk(tmp_path / outer)}
    assert set(found.members) == every
    assert set(found.containers[0].members) == every - {tmp_path / outer}


def test_leftovers_of_another_driver_belong_to_the_same_pod(tmp_path: Path) -> None:
    old, new = cgroupfs_pod(UID, ""), systemd_pod(UID, "")
    build(tmp_path, old, new / f"cri-containerd-{ONE}.scope")
    (found,) = find_pods(tmp_path)
    assert set(found.paths) == {tmp_path / old, tmp_path / new}
    assert [one.id for one in found.containers] == [ONE]


@given(st.lists(st.tuples(uids, classes, st.booleans()), unique_by=lambda pod: pod[0], max_size=6))
def test_every_directory_is_in_exactly_one_pod(
    tmp_path_factory: pytest.TempPathFactory, pods: list[tuple[str, str, bool]]
) -> None:
    root = tmp_path_factory.mktemp("cgroup")
    for uid, qos, systemd in pods:
        build(
            root,
            (systemd_pod if systemd else cgroupfs_pod)(uid, qos)
            / (f"crio-{ONE}.scope" if systemd else ONE),
        )
    found = find_pods(root)
    assert [one.uid for one in found] == sorted(uid for uid, _, _ in pods)
    members = [path for one in found for path in one.members]
    assert len(members) == len(set(members)) == 2 * len(pods)
    for one in found:
        assert all(re.sub("_", "-", str(path)).count(one.uid) == 1 for path in one.members)


def test_a_link_is_no_cgroup_and_a_missing_root_has_no_pods(tmp_path: Path) -> None:
    build(tmp_path, cgroupfs_pod(UID, ""))
    (tmp_path / "kubepods" / f"pod{NEAR}").symlink_to(tmp_path / "kubepods" / f"pod{UID}")
    assert [one.uid for one in find_pods(tmp_path)] == [UID]
    assert find_pods(tmp_path / "absent") == []


def test_a_pod_vanishing_during_the_walk_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, stays = cgroupfs_pod(UID, "burstable"), cgroupfs_pod(NEAR, "burstable")
    build(tmp_path, gone, stays / ONE)
    scandir = os.scandir

    def remove_first(path: Path) -> object:
        if path == tmp_path / gone:
            path.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", remove_first)
    found = {one.uid: one for one in find_pods(tmp_path)}
    assert not (tmp_path / gone).exists()
    assert found[UID].containers == ()
    assert [member_pids(path) for path in found[UID].members] == [frozenset()]
    assert [one.id for one in found[NEAR].containers] == [ONE]


def nest(start: Path, name: str, depth: int) -> int:
    """Nest directories deeper than a path can name, by descriptors; return the innermost."""
    inner = os.open(start, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=inner)
        inner = step(inner, name)
    return inner


def step(directory: int, name: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    finally:
        os.close(directory)


@pytest.mark.rule("P1", "H2")
@pytest.mark.parametrize(
    ("name", "depth", "truncated"), [("d", 1500, False), ("d" * 200, 30, True)]
)
def test_a_deep_tree_is_walked_up_to_the_longest_path(
    tmp_path: Path, name: str, depth: int, truncated: bool
) -> None:
    container = tmp_path / cgroupfs_pod(UID, "") / ONE
    container.mkdir(parents=True)
    inner = nest(container, name, depth)
    try:
        (found,) = find_pods(tmp_path)
        assert found.truncated is truncated
        nested = len(found.containers[0].members) - 1
        assert (0 < nested < depth) if truncated else nested == depth
        assert all(member_pids(path) == frozenset() for path in found.members)
    finally:
        for _ in range(depth):
            inner = step(inner, "..")
            os.rmdir(name, dir_fd=inner)
        os.close(inner)
