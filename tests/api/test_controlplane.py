"""The test cluster's control plane does what the tests that use it rely on."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cluster
from cluster.build import binary
from cluster.cache import cached
from cluster.controlplane import API_SERVER, ETCD, ControlPlane
from cluster.errors import ClusterError
from cluster.process import Child

from ..waiting import eventually
from .conftest import Kubectl, run_kubectl


@pytest.fixture(scope="module")
def second() -> Iterator[ControlPlane]:
    with ControlPlane(controller_manager=True) as running:
        yield running


def test_is_ready_and_reports_its_version(kubectl: Kubectl) -> None:
    assert kubectl("get", "--raw", "/readyz").stdout == "ok"
    assert json.loads(kubectl("version", "-o", "json").stdout)["serverVersion"][
        "gitVersion"
    ].startswith("v1.37.")


def test_namespace_accepts_a_pod_without_service_accounts(kubectl: Kubectl, namespace: str) -> None:
    kubectl("-n", namespace, "run", "one", "--image=none")
    assert kubectl("-n", namespace, "get", "pods", "-o", "name").stdout == "pod/one\n"


def test_users_are_those_of_their_kubeconfig_and_subject_to_rbac(
    control_plane: ControlPlane,
) -> None:
    nobody = control_plane.kubeconfig_for("jane/doe", ["team:a", "team+b"])
    who = json.loads(run_kubectl(nobody, "auth", "whoami", "-o", "json").stdout)["status"][
        "userInfo"
    ]
    assert who["username"] == "jane/doe"
    assert set(who["groups"]) == {"team:a", "team+b", "system:authenticated"}
    assert "Forbidden" in run_kubectl(nobody, "get", "nodes").stderr
    master = control_plane.kubeconfig_for("root", ["system:masters"])
    assert run_kubectl(master, "get", "nodes").returncode == 0


def test_node_authorizer_and_node_restriction_confine_a_node_to_itself(
    control_plane: ControlPlane, kubectl: Kubectl
) -> None:
    for name in ("node-a", "node-b"):
        kubectl(
            "create",
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}),
        )
    node = control_plane.kubeconfig_for("system:node:node-a", ["system:nodes"])
    assert run_kubectl(node, "annotate", "node", "node-a", "x=y").returncode == 0
    assert (
        "only its own Node object" in run_kubectl(node, "annotate", "node", "node-b", "x=y").stderr
    )
    restricted = run_kubectl(node, "label", "node", "node-a", "node-restriction.kubernetes.io/x=y")
    assert "is not allowed to modify labels" in restricted.stderr


def test_client_without_the_authority_rejects_the_server(control_plane: ControlPlane) -> None:
    done = run_kubectl(
        Path(os.devnull), "--server", control_plane.url, "--token=none", "get", "--raw", "/readyz"
    )
    assert "certificate signed by unknown authority" in done.stderr


def test_two_at_once_do_not_share_anything(
    control_plane: ControlPlane, second: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    assert control_plane.url != second.url
    assert "NotFound" in run_kubectl(second.kubeconfig, "get", "namespace", namespace).stderr
    stranger = run_kubectl(second.kubeconfig, "--server", control_plane.url, "get", "namespaces")
    assert "certificate signed by unknown authority" in stranger.stderr


def test_controller_manager_finishes_the_deletion_of_a_namespace(second: ControlPlane) -> None:
    assert run_kubectl(second.kubeconfig, "create", "namespace", "gone").returncode == 0
    done = run_kubectl(second.kubeconfig, "delete", "namespace", "gone", "--timeout=60s")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("killed", [[API_SERVER], [ETCD], [ETCD, API_SERVER]])
def test_killed_parts_come_back_with_the_same_data(second: ControlPlane, killed: list[str]) -> None:
    name = f"kept-{'-'.join(killed)}"
    assert (
        run_kubectl(second.kubeconfig, "create", "configmap", name, "--from-literal=a=1").returncode
        == 0
    )
    before = json.loads(
        run_kubectl(second.kubeconfig, "get", "configmap", name, "-o", "json").stdout
    )
    for part in killed:
        second.kill(part)
    assert (
        run_kubectl(second.kubeconfig, "get", "configmap", name, "--request-timeout=3s").returncode
        != 0
    )
    for part in killed:
        second.start(part)
    assert (
        json.loads(run_kubectl(second.kubeconfig, "get", "configmap", name, "-o", "json").stdout)
        == before
    )


def test_unknown_or_running_part_is_rejected(control_plane: ControlPlane) -> None:
    with pytest.raises(ClusterError, match="has no kube-scheduler, only etcd, kube-apiserver"):
        control_plane.kill("kube-scheduler")
    with pytest.raises(ClusterError, match="etcd is running already"):
        control_plane.start(ETCD)


def test_everything_ends_with_the_block() -> None:
    with ControlPlane() as running:
        pids = [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if _uses(path, running.directory)
        ]
        assert len(pids) == 2
        directory = running.directory
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not directory.exists()


def _uses(process: Path, directory: Path) -> bool:
    try:
        return str(directory).encode() in (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_part_that_ends_by_itself_is_reported_with_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "etcd"
    broken.write_text("#!/bin/sh\necho the reason\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("cluster.controlplane.binary", lambda name: broken)
    with pytest.raises(ClusterError, match="etcd ended by itself; the end of its log:\nthe reason"):
        ControlPlane().__enter__()


def test_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    program = """
import sys, pathlib, cluster.process
child = cluster.process.Child("sleep", ["sleep", "600"], pathlib.Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "log"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(cluster.__path__[0]).parent)},
    )
    with parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        assert select.select([child], [], [], 0)[0] == []
        parent.kill()
        assert select.select([child], [], [], 10)[0] == [child]
    os.close(child)


def test_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = Child(
        "deaf", ["sh", "-c", "trap '' TERM; echo deaf; while :; do read x; done"], tmp_path / "log"
    )
    child.start()
    eventually(child.tail, lambda tail: tail == "deaf\n")
    child.stop()
    assert not child.running


def test_missing_go_is_one_line_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PINWARDEN_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ClusterError, match=r"\A\S+/go is missing: run `make venv`, and start .*\Z"):
        binary("kubectl")


def test_cache_builds_once_for_all_and_keeps_no_half_piece(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PINWARDEN_CACHE", str(tmp_path))
    builds: list[Path] = []

    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "file").write_text("whole")

    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise ClusterError("broken")

    with pytest.raises(ClusterError, match="broken"):
        cached("piece", [b"1"], fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(lambda _: cached("piece", [b"1"], build), range(8)))
    assert len(builds) == 1
    assert [(place / "file").read_text() for place in places] == ["whole"]
    assert cached("piece", [b"2"], build) not in places


def test_name_longer_than_a_certificate_allows_is_rejected(control_plane: ControlPlane) -> None:
    with pytest.raises(ClusterError, match="string too long"):
        control_plane.kubeconfig_for("x" * 65)
