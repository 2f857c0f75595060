"""Fixtures for tests against a real kube-apiserver."""

import subprocess
import uuid
from collections.abc import Callable, Iterator

import pytest

from cluster.build import binary
from cluster.controlplane import ControlPlane

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane without controller manager, shared by all tests: use a namespace of your own."""
    with ControlPlane() as running:
        yield running


@pytest.fixture
def kubectl(control_plane: ControlPlane) -> Kubectl:
    """Runs kubectl as admin: ``kubectl("get", "pods", stdin="", check=True)``; output is text."""
    program = binary("kubectl")

    def run(*arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [program, "--kubeconfig", control_plane.kubeconfig, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of this test alone; nobody finishes its deletion without a controller manager."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
