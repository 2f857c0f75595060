"""Measure how containers start on a node with the gate by NRI, and on a node without pinwarden.

The nodes are of the project's own cluster: a real kubelet, containerd and runc in user-mode Linux.

- `starts`: what the gate adds to a container's start: p50 and p99 of 200 containers each, started
  one after the other, in turn in a namespace with a limit, in a namespace without one, and on a
  node without pinwarden. A start is what containerd logs for CreateContainer and StartContainer.
- `fresh`: 100 new pods whose first act is to lock 32 MiB in four processes under a limit of 1 MiB
  (`tests/cluster/programs/locks.py`). No process unlocks a page, so the sum that each pod prints at
  its end is the most that it held at any moment.
- `many`: 500 containers in 50 pods, created at once. Each has the gate if its configuration for
  runc has the listener. Then the plugin is killed, and has to be there again for all of them.

    PYTHONPATH=operator:tools .venv/bin/python bench/nri_start.py [starts] [fresh] [many]

Needs root, and a machine with nothing else to do: a runtime that waits for 2 s notices.
"""

import argparse
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

from cluster.cluster import Cluster
from cluster.image import NAME, PAUSE
from cluster.install import environment, install
from cluster.machine import Kind
from cluster.node import Node

MODES = ("starts", "fresh", "many")
LIMITED, FREE = "limited", "free"
STARTS, PER_POD = 200, 10
FRESH, AT_ONCE = 100, 10
MANY = 500
PAGES = 256
DEADLINE_SECONDS = 1800.0
NODES = (Kind.UML, Kind.UML)
PROGRAM = (Path(__file__).parents[1] / "tests/cluster/programs/locks.py").read_text()
LIMIT = {
    "apiVersion": "pinwarden.io/v1alpha1",
    "kind": "PinLimit",
    "metadata": {"name": "all", "namespace": LIMITED},
    "spec": {"podSelector": {}, "limit": PAGES * 4096, "minimumLevel": "Deny"},
}
TASKS = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"
CREATE = re.compile(
    r'time="(?P<time>[^"]+)".*"CreateContainer within sandbox \\"(?P<sandbox>\w+)\\" for '
    r'(container )?name:\\"(?P<name>[^"\\]+)\\"( returns container id \\"(?P<id>\w+)\\")?'
)
STARTED = re.compile(
    r'time="(?P<time>[^"]+)".*"StartContainer for \\"(?P<id>\w+)\\" returns successfully"'
)


class Site:
    """The cluster, with pods of these benchmarks."""

    def __init__(self, cluster: Cluster) -> None:
        self.node, self.bare = cluster.nodes
        self._environment = os.environ | environment(cluster.kubeconfig)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Return the output of kubectl. Raises CalledProcessError."""
        done = subprocess.run(
            ["kubectl", *arguments],
            env=self._environment,
            input=stdin,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create objects."""
        whole = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(whole))

    def pods(self, namespace: str) -> list[Any]:
        """Return the pods of a namespace."""
        found: list[Any] = json.loads(self.kubectl("-n", namespace, "get", "pods", "-o=json"))[
            "items"
        ]
        return found

    def running(self, namespace: str) -> int:
        """Return how many containers of a namespace run."""
        return sum(
            "running" in each["state"]
            for pod in self.pods(namespace)
            for each in pod["status"].get("containerStatuses", [])
        )

    def wait_running(self, namespace: str, containers: int) -> float:
        """Wait until so many containers of a namespace run, and return the seconds."""
        return until(lambda: self.running(namespace) == containers, f"{containers} containers run")

    def delete(self, namespace: str) -> None:
        """Delete the pods of a namespace, and wait until they are gone."""
        self.kubectl("-n", namespace, "delete", "pods", "--all", "--now", "--wait=true")

    def levels(self) -> dict[str, str]:
        """Return the reported level of each pod of the limited namespace, by uid."""
        path = "-o=jsonpath={.status.pods}"
        text = self.kubectl("get", "nodepinconfig", self.node.name, path)
        uids = {pod["metadata"]["uid"] for pod in self.pods(LIMITED)}
        return {
            each["uid"]: each["level"] for each in json.loads(text or "[]") if each["uid"] in uids
        }

    def shell(self, script: str, node: Node | None = None) -> str:
        """Return the output of a script on the node with pinwarden, or on another node."""
        return (node or self.node).exec(["sh", "-c", script], timeout=120).stdout

    def plugin(self) -> str:
        """Return the process id of the plugin, empty if it does not run."""
        script = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null |"
        script += " grep -q '^[^ ]*python[^ ]* .*pinwarden nri' && echo ${p#/proc/}; done"
        return self.shell(script).strip()

    def connections(self) -> int:
        """Return how often a plugin was connected to the runtime."""
        return int(self.shell("grep -c 'connected and synchronized' /var/log/containerd.log"))


def until(holds: Callable[[], bool], what: str) -> float:
    """Wait until `holds`, and return the seconds. Raises TimeoutError."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > DEADLINE_SECONDS:
            raise TimeoutError(f"after {DEADLINE_SECONDS:.0f} s still not: {what}")
        time.sleep(0.5)
    return time.monotonic() - began


def pod(
    name: str, namespace: str, node: Node, containers: int, command: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a pod of some containers, which sleep without a command."""
    container: dict[str, Any] = {"image": PAUSE, "imagePullPolicy": "Never"}
    if command:
        container |= {"image": NAME, "command": list(command)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": node.name,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "containers": [container | {"name": f"c{number}"} for number in range(containers)],
        },
    }


def start_seconds(log: str) -> list[float]:
    """Return the seconds from CreateContainer to the end of StartContainer of each container."""
    asked: dict[tuple[str, str], datetime] = {}
    began: dict[str, datetime] = {}
    spent: list[float] = []
    for line in log.splitlines():
        if found := CREATE.match(line):
            key = (found["sandbox"], found["name"])
            if found["id"]:
                began[found["id"]] = asked[key]
            else:
                asked[key] = logged_at(found["time"])
        elif found := STARTED.match(line):
            spent.append((logged_at(found["time"]) - began[found["id"]]).total_seconds())
    return spent


def logged_at(text: str) -> datetime:
    """Return a time of containerd's log, to the microsecond."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text))


def measure_starts(site: Site) -> None:
    """Start the same pods in turn in three places."""
    places = {
        "a namespace with a limit": (LIMITED, site.node),
        "a namespace without a limit": (FREE, site.node),
        "a node without pinwarden": (FREE, site.bare),
    }
    spent: dict[str, list[float]] = {place: [] for place in places}
    for number in range(STARTS // PER_POD):
        for place, (namespace, node) in places.items():
            lines = int(site.shell("wc -l < /var/log/containerd.log", node))
            site.apply(pod(f"start-{number}", namespace, node, PER_POD))
            site.wait_running(namespace, PER_POD)
            log = site.shell(f"tail -n +{lines + 1} /var/log/containerd.log", node)
            spent[place] += start_seconds(log)
            site.delete(namespace)
    print(
        "| ms to create and start a container | starts | p50 | p99 | most | p50 ratio | p99 ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    *_, bare = spent.values()
    base = quantiles(bare, n=100)
    for place, seconds in spent.items():
        cut = quantiles(seconds, n=100)
        print(
            f"| {place} | {len(seconds)} | {cut[49] * 1000:.0f} | {cut[98] * 1000:.0f} "
            f"| {max(seconds) * 1000:.0f} | {cut[49] / base[49]:.2f} | {cut[98] / base[98]:.2f} |",
            flush=True,
        )
    print_memory(site)


def measure_fresh(site: Site) -> None:
    """Start pods that lock too much at once, some at a time."""
    held: list[int] = []
    began = time.monotonic()
    for batch in range(FRESH // AT_ONCE):
        names = [f"fresh-{batch}-{number}" for number in range(AT_ONCE)]
        command = ["python3", "-c", PROGRAM]
        site.apply(*(pod(name, LIMITED, site.node, 1, command) for name in names))
        until(
            lambda: all(
                each["status"]["phase"] in ("Succeeded", "Failed") for each in site.pods(LIMITED)
            ),
            "the pods have ended",
        )
        for name in names:
            said = site.kubectl("-n", LIMITED, "logs", name).split()
            held.append(int(said[1]) if said[:1] == ["pages"] else -1)
        site.delete(LIMITED)
    over = sum(pages > PAGES for pages in held)
    exact = sum(pages == PAGES for pages in held)
    print(
        f"{len(held)} fresh pods of four processes in {time.monotonic() - began:.0f} s: {exact}"
        f" held exactly {PAGES} pages, {over} more, {len(held) - exact - over} fewer or unknown;"
        f" the most in a pod was {max(held)} pages",
        flush=True,
    )


def measure_many(site: Site) -> None:
    """Create many containers at once, and kill the plugin when they run."""
    pods = [pod(f"many-{n}", LIMITED, site.node, PER_POD) for n in range(MANY // PER_POD)]
    began = time.monotonic()
    site.apply(*pods)
    site.wait_running(LIMITED, MANY)
    took = time.monotonic() - began
    gated = site.shell(f"grep -l listenerPath {TASKS}/*/config.json | wc -l").strip()
    failed = site.kubectl("get", "events", "-n", LIMITED, "-o=jsonpath={.items[*].message}")
    print(
        f"{MANY} containers created at once ran after {took:.0f} s, {gated} of them with the gate;"
        f" {failed.count('Error')} Events of an error",
        flush=True,
    )
    print_memory(site)
    exact = until(
        lambda: list(site.levels().values()).count("Deny") == len(pods), "all pods are at Deny"
    )
    print(f"all pods were reported at Deny {exact:.0f} s later", flush=True)
    connections = site.connections()
    site.shell(f"kill -9 {site.plugin()}")
    back = until(lambda: site.connections() > connections, "the plugin is connected again")
    levels = list(site.levels().values())
    print(
        f"{back:.0f} s after kill -9 a plugin was connected again;"
        f" {levels.count('Deny')} of {len(levels)} pods at Deny",
        flush=True,
    )
    print_memory(site)
    site.delete(LIMITED)


def print_memory(site: Site) -> None:
    """Print what the plugin uses."""
    found = site.shell(f"grep -E 'VmRSS|VmHWM' /proc/{site.plugin()}/status").split()
    now, most = (int(found[found.index(name) + 1]) / 1024 for name in ("VmRSS:", "VmHWM:"))
    print(f"the plugin: {now:.0f} MiB resident, {most:.0f} MiB at most", flush=True)


def main() -> None:
    """Start a cluster of two nodes, one of them without pinwarden, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modes", nargs="*", metavar="MODE", help=", ".join(MODES))
    modes = parser.parse_args().modes or list(MODES)
    with Cluster(NODES) as cluster:
        site = Site(cluster)
        for namespace in (LIMITED, FREE):
            site.kubectl("create", "namespace", namespace)
        only = "".join(
            f" --set {part}.nodeSelector.kubernetes\\\\.io/hostname={site.node.name}"
            for part in ("agent", "operator")
        )
        install(cluster.kubeconfig, 1, only)
        site.apply(LIMIT)
        known = "grep -c limitedNamespaces..*" + LIMITED + " /var/lib/pinwarden/nodepinconfig.json"
        until(lambda: site.shell(known).strip() == "1", "the node knows the limit")
        until(lambda: site.connections() > 0, "the plugin is connected")
        if "starts" in modes:
            measure_starts(site)
        if "fresh" in modes:
            measure_fresh(site)
        if "many" in modes:
            measure_many(site)


if __name__ == "__main__":
    main()
