"""The test cluster itself: what the other tests take for granted."""

import pytest

from cluster.cluster import Cluster
from cluster.errors import ClusterError

from ..waiting import eventually


def test_node_is_ready_and_runs_commands(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    done = node.exec(["sh", "-c", "hostname; exit 3"])
    assert (done.stdout, done.returncode) == (f"{node.name}\n", 3)


def test_endless_command_times_out(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="did not run sleep"):
        cluster.nodes[0].exec(["sleep", "5"], timeout=0.5)


@pytest.mark.parametrize("program", ["containerd", "kubelet"])
def test_killed_program_of_the_node_is_started_again(cluster: Cluster, program: str) -> None:
    node = cluster.nodes[0]
    before = node.exec(["pidof", program]).stdout
    node.kill(program)
    eventually(lambda: node.exec(["pidof", program]).stdout, lambda now: now not in ("", before))


def test_kill_of_a_missing_program_is_an_error(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="runs no nothing"):
        cluster.nodes[0].kill("nothing")
