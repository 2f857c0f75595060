"""Measure the cost of the gate by NRI at the start of containers, and try it on many fresh pods.

    PYTHONPATH=operator:tools .venv/bin/python bench/nri_start.py [--containers N] [--pods N]

Starts a cluster of one node, and creates containers one after the other, in turns with and without
the gate. Prints how long the container runtime took to create and to start each, from its own log,
and the memory of the plugin. Then pods start all at once. The first act of each is to lock all it
can, in four processes, under a limit of 1 MiB. Prints how many pods locked exactly the limit.
"""

import argparse
import json
import os
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from statistics import quantiles
from typing import Any

from cluster import chart
from cluster.cluster import Cluster
from cluster.image import NAME
from cluster.install import COMMAND, ONE_NODE, ROOT, WAIT, environment

NAMESPACE = "nri-start"
LIMIT_PAGES = 256
PER_POD = 25
PROGRAM = (ROOT / "tests/cluster/programs/locks.py").read_text()
LIMIT = {
    "apiVersion": "pinwarden.io/v1alpha1",
    "kind": "PinLimit",
    "metadata": {"name": "all", "namespace": NAMESPACE},
    "spec": {"podSelector": {}, "limit": "1Mi", "minimumLevel": "Deny"},
}
_LINE = re.compile(r'time="(?P<time>[^"]+)".*?msg="(?P<call>Create|Start)Container (?P<rest>.*)"')
_NAME = re.compile(r"ContainerMetadata\{Name:(bench-[\w-]+),")
_ID = re.compile(r"[0-9a-f]{64}")


class Bench:
    """A cluster with pinwarden, and what runs in it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._environment = os.environ | environment(cluster.kubeconfig)

    def run(self, command: str, stdin: str = "") -> str:
        """Return the output of a shell command. Raises CalledProcessError."""
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=ROOT,
            env=self._environment,
            input=stdin,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    def install(self, mode: str) -> None:
        """Install or upgrade pinwarden with a mode of the gate by NRI."""
        self.run(f"{COMMAND}{ONE_NODE} --set-string gate.mode={mode}{WAIT}")
        ready = "connected to containerd"
        while mode != "Off" and ready not in self.run(
            f"kubectl -n {chart.NAMESPACE} logs ds/pinwarden-holder -c nri"
        ):
            time.sleep(0.2)

    def apply(self, objects: Iterable[dict[str, Any]]) -> None:
        """Apply some objects."""
        whole = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.run("kubectl apply -f -", json.dumps(whole))

    def pods(self) -> list[dict[str, Any]]:
        """Return the pods of the namespace."""
        found = json.loads(self.run(f"kubectl -n {NAMESPACE} get pods -o json"))
        return list(found["items"])

    def wait(self, phase: str) -> None:
        """Wait until all pods of the namespace are in a phase."""
        while any(pod["status"].get("phase") != phase for pod in self.pods()):
            time.sleep(0.5)

    def clear(self) -> None:
        """Delete the pods of the namespace."""
        self.run(f"kubectl -n {NAMESPACE} delete pods --all --now --wait=true")

    def runtime_log(self) -> str:
        """Return the log of the container runtime."""
        return self._cluster.nodes[0].exec(["cat", "/var/log/containerd.log"]).stdout

    def plugin_memory(self) -> str:
        """Return the resident memory of the plugin."""
        script = "for p in $(pidof node python3); do grep -q nri /proc/$p/cmdline"
        found = self._cluster.nodes[0].exec(
            ["sh", "-c", f"{script} && grep -E 'VmRSS|RssAnon' /proc/$p/status; done"]
        )
        return " ".join(found.stdout.split())


def pod(name: str, *containers: dict[str, Any], init: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a pod's manifest."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "initContainers": init,
            "containers": list(containers),
        },
    }


def container(name: str, *command: str) -> dict[str, Any]:
    """Return a container of a manifest."""
    return {"name": name, "image": NAME, "imagePullPolicy": "Never", "command": list(command)}


def ends(name: str) -> dict[str, Any]:
    """Return a container that ends at once."""
    return container(name, "python3", "-S", "-c", "")


def durations(log: str, prefix: str) -> dict[str, list[float]]:
    """Return the milliseconds of each call for the containers whose names begin so."""
    began: dict[tuple[str, str], datetime] = {}
    names: dict[str, str] = {}
    found: dict[str, list[float]] = defaultdict(list)
    for line in _LINE.finditer(log):
        at = datetime.fromisoformat(line["time"][:26].rstrip("Z") + "+00:00")
        call, rest = line["call"], line["rest"]
        name = _NAME.search(rest)
        identities = _ID.findall(rest)
        if call == "Create" and name is not None:
            if "returns container id" in rest:
                names[identities[-1]] = name[1]
            key = name[1]
        elif call == "Start" and identities:
            key = names.get(identities[0], "")
        else:
            continue
        if not key.startswith(prefix):
            continue
        if "returns" in rest:
            found[call].append((at - began.pop((call, key))).total_seconds() * 1000)
        else:
            began[call, key] = at
    return found


def describe(values: list[float]) -> str:
    """Return median and 99th percentile."""
    cut = quantiles(values, n=100)
    return f"p50 {cut[49]:6.1f} ms  p99 {cut[98]:6.1f} ms  ({len(values)} containers)"


def measure_starts(bench: Bench, containers: int) -> None:
    """Create containers in turns with and without the gate, and print the times."""
    turns = 2
    for turn in range(turns):
        for mode in ("Off", "Governed"):
            bench.install(mode)
            for first in range(0, containers // turns, PER_POD):
                names = [f"bench-{mode.lower()}-{turn}-{first + each}" for each in range(PER_POD)]
                bench.apply(
                    [pod(names[0], ends(names[0]), init=[ends(name) for name in names[1:]])]
                )
                bench.wait("Succeeded")
                bench.clear()
    print(f"plugin: {bench.plugin_memory()}")
    for mode in ("off", "governed"):
        for call, values in durations(bench.runtime_log(), f"bench-{mode}-").items():
            print(f"gate {mode:9} {call:6} {describe(values)}")


def try_fresh_pods(bench: Bench, count: int) -> None:
    """Start pods all at once, and print how many locked exactly the limit."""
    bench.apply([LIMIT])
    names = [f"fresh-{number}" for number in range(count)]
    command = ("python3", "-S", "-c", PROGRAM, "stay")
    began = time.monotonic()
    bench.apply(pod(name, container("main", *command), init=[]) for name in names)
    bench.wait("Running")
    pages: dict[str, list[str]] = {}
    while len(pages) < count:
        for name in names:
            text = bench.run(f"kubectl -n {NAMESPACE} logs {name}")
            if found := re.findall(r"^pages (\d+)$", text, re.MULTILINE):
                pages[name] = found
    exact = sum(found == [str(LIMIT_PAGES)] for found in pages.values())
    print(
        f"{count} fresh pods: {exact} locked exactly {LIMIT_PAGES} pages,"
        f" {time.monotonic() - began:.0f} s"
    )
    bench.clear()


def main() -> None:
    """Start a cluster and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--containers", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument("--pods", type=int, default=100, metavar="N", help="default: 100")
    options = parser.parse_args()
    with Cluster() as cluster:
        bench = Bench(cluster)
        bench.install("Off")
        bench.run(f"kubectl create namespace {NAMESPACE}")
        measure_starts(bench, options.containers)
        try_fresh_pods(bench, options.pods)


if __name__ == "__main__":
    main()
