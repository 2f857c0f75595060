"""Processes in each runtime's layout of cgroups are limited, or the pod is at Observe (H1).

The names are those of real runtimes, from public reports:

- drivers and names: https://github.com/cri-o/cri-o/issues/842
- cri-dockerd: https://github.com/kinvolk/traceloop/pull/34
- a runtime with another driver than the kubelet:
  https://github.com/kubernetes/kubernetes/issues/106514,
  https://github.com/Mirantis/cri-dockerd/issues/101
- no sandbox process: https://github.com/cri-o/cri-o/issues/5860
"""

import errno
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pinwarden.api.pinlimit import Level
from pinwarden.api.reasons import ENDED, NO_PROCESSES

from .nodes import CGROUP, MIB, ONE, TWO, Node, Worker, remove

CGROUPFS = "kubepods/burstable/pod{uid}"
SLICE = "kubepods-burstable-pod{slice}.slice"
SYSTEMD = f"kubepods.slice/kubepods-burstable.slice/{SLICE}"
GUARANTEED = "kubepods.slice/kubepods-pod{slice}.slice"
KIND = f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-{SLICE}"

# By name: the pod's cgroup, which the kubelet makes, and a container's, which the runtime makes.
LAYOUTS = {
    "containerd systemd": (SYSTEMD, f"{SYSTEMD}/cri-containerd-{{id}}.scope"),
    "containerd cgroupfs": (CGROUPFS, f"{CGROUPFS}/{{id}}"),
    "CRI-O systemd, crun": (SYSTEMD, f"{SYSTEMD}/crio-{{id}}.scope/container"),
    "CRI-O cgroupfs": (CGROUPFS, f"{CGROUPFS}/crio-{{id}}"),
    "cri-dockerd systemd": (SYSTEMD, f"{SYSTEMD}/docker-{{id}}.scope"),
    "cri-dockerd cgroupfs": (CGROUPFS, f"{CGROUPFS}/{{id}}"),
    "guaranteed pod": (GUARANTEED, f"{GUARANTEED}/crio-{{id}}.scope"),
    "kind systemd": (KIND, f"{KIND}/cri-containerd-{{id}}.scope"),
    "kind cgroupfs": (f"kubelet/{CGROUPFS}", f"kubelet/{CGROUPFS}/{{id}}"),
    "k3d on the host": (f"docker/{'4d' * 32}/{CGROUPFS}", f"docker/{'4d' * 32}/{CGROUPFS}/{{id}}"),
    "a node in a container on the host": (
        f"system.slice/docker-{'4d' * 32}.scope/{KIND}",
        f"system.slice/docker-{'4d' * 32}.scope/{KIND}/cri-containerd-{{id}}.scope",
    ),
    "containerd cgroupfs under a systemd kubelet, v1": (
        SYSTEMD,
        f"system.slice/containerd.service/{SLICE}:cri-containerd:{{id}}",
    ),
    "containerd cgroupfs under a systemd kubelet, v2": (
        SYSTEMD,
        f"system.slice/{SLICE}:cri-containerd:{{id}}",
    ),
    "the same in k3s": (SYSTEMD, f"system.slice/k3s.service/{SLICE}:cri-containerd:{{id}}"),
    "the same in kind": (KIND, f"system.slice/kubelet-{SLICE}:cri-containerd:{{id}}"),
    "dockerd cgroupfs under a systemd kubelet": (SYSTEMD, f"{SLICE}/{{id}}"),
}

# Layouts that no rule knows.
UNKNOWN = {
    "a runtime's own tree": (SYSTEMD, "machine.slice/vm-{id}"),
    "a name without the pod": (CGROUPFS, "system.slice/some-runtime-{id}.scope"),
}


class Pod:
    """A pod in a layout: its cgroup as of the kubelet, two containers as of the runtime."""

    def __init__(self, hierarchy: Path, layout: tuple[str, str]) -> None:
        self._hierarchy = hierarchy
        self.uid = str(uuid.uuid4())
        names = {"uid": self.uid, "slice": self.uid.replace("-", "_")}
        self.directory = hierarchy / layout[0].format(**names)
        self.containers = {id: hierarchy / layout[1].format(id=id, **names) for id in (ONE, TWO)}
        for path in (self.directory, *self.containers.values()):
            path.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """All its cgroups, and those above them that have nothing else."""
        for path in (*self.containers.values(), self.directory):
            remove(path)
            for above in path.parents[: len(path.relative_to(self._hierarchy).parts) - 1]:
                with suppress(OSError):
                    above.rmdir()


@pytest.fixture(params=["v2", "v1"])
def hierarchy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return the hierarchy of processes: v2, or one of several on a node with cgroup v1."""
    if request.param == "v2":
        yield CGROUP
        return
    path = tmp_path / "v1" / "systemd"
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "cgroup", "-o", "none,name=layouts", "cgroup", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def node(hierarchy: Path, tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, hierarchy if hierarchy == CGROUP else hierarchy.parent)
    yield node
    node.close()


@contextmanager
def pod_in(hierarchy: Path, layout: tuple[str, str]) -> Iterator[tuple[Pod, Worker, Worker]]:
    pod = Pod(hierarchy, layout)
    workers = [Worker(path) for path in pod.containers.values()]
    try:
        yield pod, workers[0], workers[1]
    finally:
        for worker in workers:
            worker.end()
        pod.remove()


@pytest.mark.rule("P1", "H1", level="Converge")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_pod_of_each_layout_is_found_and_limited_with_its_containers(
    node: Node, hierarchy: Path, layout: tuple[str, str]
) -> None:
    with pod_in(hierarchy, layout) as (pod, one, two):
        containers = [{"name": "a", "id": ONE}, {"name": "b", "id": TWO}]
        node.configure(
            [
                {"name": "l", "limit": 4 * MIB},
                {"name": "m", "uid": "uid-m", "scope": "Container", "limit": 3 * MIB},
            ],
            [{"uid": pod.uid, "limits": ["l", "m"], "containers": containers}],
        )
        node.until(lambda: one.limits.hard == two.limits.hard == 3 * MIB)
        assert one.lock(16 * MIB) == (3 * MIB, errno.ENOMEM)
        node.until(lambda: two.limits.hard == MIB)
        assert two.lock(16 * MIB) == (MIB, errno.ENOMEM)
        node.until(lambda: node.report(pod.uid).vm_lck == 4 * MIB)
        report = node.report(pod.uid)
        assert (report.level, report.reason, report.processes) == (Level.CONVERGE, "RlimitGate", 2)
        assert {each.name: each.pinned for each in report.containers} == {"a": 3 * MIB, "b": MIB}


@pytest.mark.rule("H1", level="Observe")
@pytest.mark.parametrize("layout", UNKNOWN.values(), ids=UNKNOWN)
def test_pod_of_an_unknown_layout_is_reported_observe_with_its_cause(
    node: Node, hierarchy: Path, layout: tuple[str, str]
) -> None:
    with pod_in(hierarchy, layout) as (pod, one, _):
        node.set_limit(pod.uid, MIB)
        node.settle()
        assert one.lock(2 * MIB) == (2 * MIB, 0), "no limit applies to it"
        report = node.report(pod.uid)
        assert (report.level, report.reason, report.processes) == (Level.OBSERVE, NO_PROCESSES, 0)
        assert str(pod.directory) in report.message


@pytest.mark.rule("H1", level="Converge")
def test_container_of_an_unreported_id_has_its_own_limit_without_a_sandbox_process(
    node: Node, hierarchy: Path
) -> None:
    with pod_in(hierarchy, LAYOUTS["CRI-O cgroupfs"]) as (pod, one, two):
        ended = [{"name": f"init-{number}", "id": f"{number:064x}"} for number in range(3)]
        containers = [*ended, {"name": "main", "id": "ff" * 32}, {"name": "proxy", "id": TWO}]
        node.configure(
            [{"limit": MIB, "scope": "Container"}],
            [{"uid": pod.uid, "limits": ["l"], "containers": containers}],
        )
        node.until(lambda: one.limits.hard == MIB)
        assert one.lock(4 * MIB) == two.lock(4 * MIB) == (MIB, errno.ENOMEM)
        assert node.report(pod.uid).level is Level.CONVERGE


@pytest.mark.rule("H1", level="Observe")
def test_processes_outside_all_containers_are_limited_together_and_reported(
    node: Node, hierarchy: Path
) -> None:
    with pod_in(hierarchy, (SYSTEMD, f"{SYSTEMD}/other-{{id}}")) as (pod, one, two):
        node.configure(
            [{"limit": 2 * MIB, "scope": "Container"}],
            [{"uid": pod.uid, "limits": ["l"], "containers": [{"name": "main", "id": ONE}]}],
        )
        node.until(lambda: one.limits.hard == 2 * MIB)
        assert one.lock(MIB) == (MIB, 0)
        node.until(lambda: two.limits.hard == MIB)
        assert (node.report(pod.uid).level, node.report(pod.uid).reason) == (
            Level.OBSERVE,
            "ContainerUnknown",
        )


@pytest.mark.rule("H1")
def test_pod_whose_last_process_ended_reports_the_end_first(node: Node, hierarchy: Path) -> None:
    with pod_in(hierarchy, LAYOUTS["CRI-O systemd, crun"]) as (pod, one, two):
        node.set_limit(pod.uid, MIB)
        node.until(lambda: node.report(pod.uid).level is Level.CONVERGE)
        one.end()
        two.end()
        node.until(lambda: node.report(pod.uid).processes == 0)
        assert (node.report(pod.uid).level, node.report(pod.uid).reason) == (Level.OBSERVE, ENDED)
        node.until(lambda: node.report(pod.uid).reason == NO_PROCESSES)
