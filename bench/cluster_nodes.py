"""Measure the cost of the project's own cluster nodes on this machine, with pinwarden in them.

    PYTHONPATH=operator:tools .venv/bin/python bench/cluster_nodes.py [KIND ...]

The default is `uml uml`. Prints the time until the nodes are Ready, the time of `helm install
--wait`, and the use of the nodes in the minute after: processor time as a share of one core, and
memory (PSS) on this machine.
"""

import argparse
import time
from collections.abc import Sequence

import psutil

from cluster.cluster import Cluster
from cluster.install import install
from cluster.machine import Kind
from cluster.node import Node

SETTLE_SECONDS = 15.0
IDLE_SECONDS = 45.0
MIB = 2**20


def processes(node: Node) -> list[psutil.Process]:
    """Return the processes of this machine that are a node."""
    first = psutil.Process(node.pid)
    return [first, *first.children(recursive=True)]


def processor_seconds(nodes: Sequence[Node]) -> float:
    """Return what all processes of the nodes have used so far."""
    return sum(sum(each.cpu_times()[:2]) for node in nodes for each in processes(node))


def memory_bytes(node: Node) -> int:
    """Return the proportional set size of a node's processes."""
    return sum(each.memory_full_info().pss for each in processes(node))


def main() -> None:
    """Start a cluster, let it rest, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", type=Kind, metavar="KIND", help=" or ".join(Kind))
    kinds = parser.parse_args().kinds or [Kind.UML] * 2
    with Cluster(kinds, wait=False):  # so that everything is built
        pass
    began = time.monotonic()
    with Cluster(kinds) as cluster:
        ready = time.monotonic() - began
        began = time.monotonic()
        install(cluster.kubeconfig, len(cluster.nodes))
        installed = time.monotonic() - began
        time.sleep(SETTLE_SECONDS)
        before = processor_seconds(cluster.nodes)
        time.sleep(IDLE_SECONDS)
        used = (processor_seconds(cluster.nodes) - before) / IDLE_SECONDS / len(kinds)
        memory = sum(map(memory_bytes, cluster.nodes)) / len(kinds) / MIB
    print(f"{' '.join(kinds)}: Ready after {ready:.1f} s, installed after {installed:.1f} s more")
    print(f"each node, idle: {used:.3f} of a core, {memory:.0f} MiB")


if __name__ == "__main__":
    main()
