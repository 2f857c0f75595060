"""The self-test of the eBPF ledger as a pod, on a node with Debian's own kernel, emulated."""

from collections.abc import Iterator

import pytest

from cluster.cluster import Cluster
from cluster.machine import Kind

from ..waiting import until
from .conftest import Kubectl, kubectl_of


@pytest.fixture(scope="module")
def kubectl() -> Iterator[Kubectl]:
    with Cluster([Kind.QEMU]) as cluster:
        yield kubectl_of(cluster)


def test_self_test_counts_every_operation_in_a_pod(kubectl: Kubectl) -> None:
    kubectl("create", "namespace", "tried")
    kubectl("-n", "tried", "apply", "-f", "examples/ebpf-self-test.yaml")
    phase = ("-n", "tried", "get", "pod", "ebpf-self-test", "-o=jsonpath={.status.phase}")
    until(lambda: kubectl(*phase) in ("Succeeded", "Failed"), "the self-test has ended")
    text, _, left_out = kubectl("-n", "tried", "logs", "ebpf-self-test").partition("\nProgram ")
    kernel, _, head, *rows = text.splitlines()
    assert "this kernel has no do_mas_munmap" in left_out  # of Linux 6.1
    assert kernel.startswith("Kernel: 6.12.")
    assert head.startswith("OPERATION")
    assert len(rows) >= 11
    for row in rows:
        assert row.split("   ", 1)[1].split()[:2] == ["yes", "yes"], row
