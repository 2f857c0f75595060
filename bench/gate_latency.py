"""Measure a call that the seccomp gate answers: pairs of `mlock` and `munlock` of a page, gated and
bare.

The gate, its holder and the pods are real processes on this machine. Each pod has its own cgroup
and the profile for unconfined pods; one pod has the profile with the runtime's default rules. Pairs
are a millisecond apart, except in the pod with a tight loop. Only `mlock` is gated, so a pair has
one gated call.

    PYTHONPATH=operator:tools .venv/bin/python bench/gate_latency.py [--pairs 3000]

Needs root and cgroups; no guest.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gate_node.node import MIB, Node, Pod, Process

PAIR = str(Path(__file__).with_name("pair.py"))
PODS = 50
APART = 0.001
LIMIT = 8 * MIB


def gated(pod: Pod, pairs: int, apart: float, profile: str = "unconfined") -> Process:
    """A process of the pod that is ready to begin."""
    return ready(pod.run([PAIR, str(pairs), str(apart)], profile=profile))


def bare(pairs: int, apart: float) -> Process:
    """The same without a gate."""
    return ready(
        subprocess.Popen(
            [sys.executable, PAIR, str(pairs), str(apart)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )


def ready(process: Process) -> Process:
    """The process once it said so."""
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError("a process did not get ready")
    return process


def begin(process: Process) -> None:
    """Lets it go on; a second time ends one in a tight loop."""
    assert process.stdin is not None
    print(file=process.stdin, flush=True)


def result(process: Process) -> list[float]:
    """Microseconds of each pair."""
    assert process.stdout is not None
    return [each / 1000 for each in json.loads(process.stdout.readline())]


def run(process: Process) -> list[float]:
    """From beginning to end."""
    begin(process)
    return result(process)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentiles(spent: list[float]) -> tuple[float, float, float]:
    """p50, p99 and the most."""
    cuts = statistics.quantiles(spent, n=100)
    return cuts[49], cuts[98], max(spent)


def show(name: str, spent: list[float], against: list[float]) -> None:
    """Print a row of the table."""
    p50, p99, most = percentiles(spent)
    base50, base99, _ = percentiles(against)
    print(
        f"| {name} | {p50:.0f} | {p99:.0f} | {most:.0f} | {p50 / base50:.1f} | {p99 / base99:.1f} "
        "|",
        flush=True,
    )


def main() -> None:
    """Run all of it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3000)
    pairs = parser.parse_args().pairs
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder), executed=True)
        try:
            measure(node, pairs)
        finally:
            node.close()


def measure(node: Node, pairs: int) -> None:
    """One node, all situations."""
    pods = [node.pod() for _ in range(PODS)]
    node.set_limits({pod.uid: LIMIT for pod in pods})
    one, other = pods[:2]
    print(
        "| us for mlock + munlock | p50 | p99 | most | p50 ratio | p99 ratio |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    plain = run(bare(pairs, APART))
    show("bare", plain, plain)
    alone = run(gated(one, pairs, APART))
    show("gated, alone, against bare", alone, plain)
    show(
        "gated, the runtime's default rules, against bare",
        run(gated(one, pairs, APART, "runtime-default")),
        plain,
    )
    tight = gated(other, 10**9, 0)
    measured = gated(one, pairs, APART)
    begin(tight)
    before = cpu_seconds(node.gate.pid)
    beside = run(measured)
    used = cpu_seconds(node.gate.pid) - before
    begin(tight)
    looped = result(tight)
    show("gated, beside a pod in a tight loop, against alone", beside, alone)
    show("the pod in the tight loop itself, against bare", looped, plain)
    many = [gated(pod, pairs // 10, APART * 50) for pod in pods[1:]]
    measured = gated(one, pairs, APART)
    for each in many:
        begin(each)
    show(f"gated, with {PODS} pods that call, against alone", run(measured), alone)
    for each in many:
        result(each)
    seconds = sum(beside) / 1e6 + pairs * APART
    print(f"\nThe gate used {used / seconds:.0%} of a core with a pod in a tight loop.")


if __name__ == "__main__":
    main()
