"""Fixtures for tests on a whole cluster: a real control plane, and a real node in a guest."""

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from cluster.cluster import Cluster
from cluster.install import ROOT, WITHOUT_NRI, environment, install

from ..ordering import put_first

Kubectl = Callable[..., str]
LONGEST = (
    "test_values",
    "test_nri_faults",
    "test_nri",
    "test_shared",
    "test_reports",
    "test_install",
    "test_nri_required",
    "test_faults",
    "test_gate",
    "test_leftovers",
)
"""Modules that begin first, so that none of them is left for the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first."""
    put_first(items, LONGEST)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node for all tests: use your own namespace, and leave all running."""
    with Cluster() as running:
        yield running


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The same with pinwarden in it, whose rlimit gate limits the pods without the profile."""
    install(cluster.kubeconfig, len(cluster.nodes), WITHOUT_NRI)
    return cluster


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    """See `kubectl_of`."""
    return kubectl_of(cluster)


def kubectl_of(cluster: Cluster) -> Kubectl:
    """Return a function that runs kubectl as admin and returns its output.

    A call is `kubectl("get", "pods", stdin="")`. A failure fails the test.
    """

    def run(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["kubectl", *arguments],
            cwd=ROOT,
            env=os.environ | environment(cluster.kubeconfig),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
