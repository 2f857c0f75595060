"""Fixtures for tests against a real kube-apiserver."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import TYPE_CHECKING

import pytest

from cluster.build import binary
from cluster.controlplane import ControlPlane

from ..ordering import put_first

if TYPE_CHECKING:
    from .operators import Cluster

ROOT = Path(__file__).parents[2]
Kubectl = Callable[..., CompletedProcess[str]]


WAITING = (
    "test_monitoring",
    "test_uninstall",
    "test_uninstall_whole",
    "test_rights",
    "test_namespace_end",
)
"""Modules that mostly wait for alerts, Leases and late answers begin first, beside the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the modules that mostly wait first."""
    put_first(items, WAITING)


def run_kubectl(kubeconfig: Path, *arguments: str, stdin: str = "") -> CompletedProcess[str]:
    """Run kubectl with a kubeconfig; output is text and a failure is the caller's to judge."""
    command = [str(binary("kubectl")), "--kubeconfig", str(kubeconfig), *arguments]
    return run(command, input=stdin, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane for all tests, without controller manager; each test has a namespace."""
    with ControlPlane() as running:
        yield running


@pytest.fixture(scope="session")
def crds(control_plane: ControlPlane) -> None:
    """The generated CRDs, applied server-side and established."""
    for arguments in (
        ("apply", "--server-side", "-f", str(ROOT / "crds")),
        ("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds")),
    ):
        done = run_kubectl(control_plane.kubeconfig, *arguments)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def cluster() -> Iterator["Cluster"]:
    """An API server for tests of the operator, which watches every node and kills the server."""
    from .operators import prepared

    with prepared() as made:
        yield made


@pytest.fixture(scope="module")
def own() -> Iterator["Cluster"]:
    """A cluster of one module with the operator's Deployment, for `pinwarden uninstall`."""
    from .operators import prepared

    with prepared() as made:
        made.deployment()
        yield made


@pytest.fixture
def kubectl(control_plane: ControlPlane) -> Kubectl:
    """Runs kubectl as admin: ``kubectl("get", "pods", stdin="", check=True)``; output is text."""

    def as_admin(*arguments: str, stdin: str = "", check: bool = True) -> CompletedProcess[str]:
        done = run_kubectl(control_plane.kubeconfig, *arguments, stdin=stdin)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return as_admin


@pytest.fixture
def namespace(kubectl: Kubectl) -> str:
    """A namespace of this test alone; it goes with the control plane."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    kubectl("create", "namespace", name)
    return name
