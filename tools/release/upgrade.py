"""Upgrades a running cluster from an earlier commit and back, and checks that nothing is lost.

Pods under limits of each level, and pods that share memory, run throughout. Their programs try to
lock more than the limits all the time. Checked are the limits in force, the saved originals of
RLIMIT_MEMLOCK, the counts to the byte, and each status that is readable meanwhile.
"""

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.chart import CHART, NAMESPACE
from cluster.cluster import Cluster
from cluster.errors import ClusterError
from cluster.image import NAME, ROOT, image_of
from cluster.install import ONE_NODE, environment
from cluster.patience import Patience
from release import observations as seen
from release.errors import ReleaseError
from release.observations import ProbedProcess, ProcessId
from release.probed_pods import (
    BORROWED,
    GROUP_BYTES,
    PODS,
    TEST,
    ProbedPod,
    manifest,
    shared_memory,
)

REPOSITORY, _, TAG = NAME.partition(":")
EARLIER = "earlier"
WAIT = "--wait --timeout 600s"
SETTLE_SECONDS = 180.0
POLL_SECONDS = 0.5


class UpgradeCheck:
    """A cluster with the probed pods, what is known of them, and the problems found so far."""

    def __init__(self, cluster: Cluster) -> None:
        self.problems: list[str] = []
        self._node = cluster.nodes[0]
        self._environment = os.environ | environment(cluster.kubeconfig)
        self._originals: dict[ProcessId, tuple[int, int]] = {}
        self._limited: dict[ProbedPod, int | None] = dict.fromkeys(PODS)
        self._began = time.monotonic()

    def run(self, command: str, stdin: str = "") -> str:
        """Return the output of a shell command. Raises ReleaseError if the command fails."""
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=ROOT,
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ReleaseError(f"{command}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def say(self, text: str) -> None:
        """Print a line with the seconds since the begin."""
        print(f"{time.monotonic() - self._began:5.0f} s  {text}", flush=True)

    def require(self, *problems: str) -> None:
        """Note and print problems; each text counts once."""
        for problem in problems:
            if problem not in self.problems:
                self.problems.append(problem)
                self.say(f"PROBLEM: {problem}")

    def start_pods(self) -> None:
        """Create the pods, note their original limits, and apply the limits and the group."""
        self.run(f"kubectl create namespace {TEST}")
        self.run(f"kubectl annotate namespace {TEST} pinwarden.io/allow-shared-memory=create:64Mi")
        for name, path in (
            ("prober", "tools/release/prober.py"),
            ("borrower", "examples/demo/borrower.py"),
        ):
            self.run(f"kubectl -n {TEST} create configmap {name} --from-file={path}")
        manifests = "\n---\n".join(
            [*(json.dumps(manifest(pod)) for pod in PODS), *shared_memory(ROOT / "examples/demo")]
        )
        self.run(f"kubectl -n {TEST} apply -f -", manifests)
        self.run(f"kubectl -n {TEST} wait --for=condition=Ready pod --all --timeout=600s")
        expected = sum(1 + pod.processes for pod in PODS)
        self.until(lambda: len(self.processes()) == expected, "all processes run")
        time.sleep(2 * POLL_SECONDS)  # the first child of each pod lowers its own soft limit
        self._originals = {key: process.rlimit for key, process in self.processes().items()}
        for pod in PODS:
            limit = {
                "apiVersion": "pinwarden.io/v1alpha1",
                "kind": "PinLimit",
                "metadata": {"name": pod.name, "namespace": TEST},
                "spec": pod.spec,
            }
            self.run("kubectl apply -f -", json.dumps(limit))
        self.run(f"kubectl -n {TEST} annotate pod reader mebibytes=4")
        self.run(f"kubectl -n {TEST} annotate pod greedy mebibytes=20")
        self.until(self.is_enforced, "all limits are enforced")
        self.say("all limits are enforced")
        for pod in PODS:
            self.next_phase(pod)
            if pod.fills:
                self.next_phase(pod)
                self._wait_full(pod)
                self._limited[pod] = self.board(pod)["now"]

    def _wait_full(self, pod: ProbedPod) -> None:
        self.until(lambda: pod.is_full(self.board(pod)["now"]), f"{pod.name} is full")

    def next_phase(self, pod: ProbedPod) -> None:
        """Let the processes of a pod begin their next phase."""
        self._signal(pod.name, "SIGUSR1")

    def _signal(self, pod: str, name: str) -> None:
        program = f"import os, signal; os.kill(1, signal.{name})"
        self.run(f"kubectl -n {TEST} exec {pod} -- python3 -c '{program}'")

    def fork(self, pod: str) -> None:
        """Let a pod fork an idle process, and note its original: that of its parent."""
        known = self.processes()
        parent = min(key for key, process in known.items() if process.pod == pod)
        self._signal(pod, "SIGUSR2")
        self.until(lambda: len(self.processes()) > len(known), "a process is forked")
        for key in self.processes().keys() - known.keys():
            self._originals[key] = self._originals[parent]

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds. Raises ReleaseError at the end of the patience."""
        patience = Patience(SETTLE_SECONDS)
        while True:
            try:
                if holds():
                    return
            except ClusterError as error:
                self.say(str(error))
            if patience.ended:
                raise ReleaseError(f"after {patience.elapsed:.0f} s still not: {what}")
            time.sleep(POLL_SECONDS)

    def processes(self) -> dict[ProcessId, ProbedProcess]:
        """Return the processes of the probed pods."""
        return seen.processes(self._node.exec(["sh", "-c", seen.PROCESSES]).stdout)

    def state(self, path: str) -> Any:
        """Return the content of a state file on the node."""
        return json.loads(self._node.exec(["cat", path]).stdout)

    def board(self, pod: ProbedPod) -> dict[str, int]:
        """Return the last counts that a pod printed."""
        return dict(json.loads(self.run(f"kubectl -n {TEST} logs {pod.name} --tail=1")))

    def resources(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the limits by name, and the status of the group."""
        kinds = "pinlimits,sharedmemorygroups"
        items = json.loads(self.run(f"kubectl -n {TEST} get {kinds} -o json"))["items"]
        limits = {item["metadata"]["name"]: item for item in items if item["kind"] == "PinLimit"}
        groups = [item.get("status", {}) for item in items if item["kind"] == "SharedMemoryGroup"]
        return limits, groups[0]

    def is_enforced(self) -> bool:
        """Return whether each limit is applied, and is enforced unless it is for audit."""
        limits, _ = self.resources()
        return all(
            seen.condition(limits[pod.name], kind).startswith("True")
            for pod in self._limited
            for kind in ("Applied", "Ready")
        )

    def is_exact(self) -> bool:
        """Return whether all amounts of filled pods and of the group are complete and exact."""
        limits, group = self.resources()
        pinned = {
            name: limit.get("status", {}).get("pinnedBytes") for name, limit in limits.items()
        }
        borrowed = {
            borrower["pod"]: borrower.get("borrowedBytes")
            for borrower in group.get("borrowers", [])
        }
        return (
            all(locked in (None, pinned.get(pod.name)) for pod, locked in self._limited.items())
            and group.get("chargeBytes") == GROUP_BYTES
            and {name: borrowed.get(name) for name in BORROWED} == BORROWED
        )

    def pods(self) -> list[tuple[str, str, int]]:
        """Return the name, UID and restarts of each pod."""
        items = json.loads(self.run(f"kubectl -n {TEST} get pods -o json"))["items"]
        return [
            (
                item["metadata"]["name"],
                item["metadata"]["uid"],
                sum(status["restartCount"] for status in item["status"]["containerStatuses"]),
            )
            for item in items
        ]

    def facts(self) -> dict[str, Any]:
        """Return everything that an upgrade must not change."""
        gate = self.state("/run/pinwarden/gate.json")
        return {
            "pods": self.pods(),
            "rlimits of filled pods": {
                key: process.rlimit
                for key, process in self.processes().items()
                if process.pod in ("filled", "gated", "gated-racing", "audited")
            },
            "gated containers": sorted(gate["containers"]),
            "lost containers": gate["lost"],
            "inexact pods": gate["loosened"],
            "objects of groups": self.state("/run/pinwarden/shared.json")["extents"],
        }

    def sample(self) -> str:
        """Check one moment, and return the conditions of all limits in short."""
        self.require(*seen.excesses(self.processes(), self._limited))
        limits, group = self.resources()
        self.require(*seen.untrue_amounts(limits, self._limited), *seen.untrue_shares(group))
        parts = [
            f"{name}: {seen.condition(limit, 'Enforced')}"
            for name, limit in limits.items()
            if limit["spec"].get("enforcement") != "Audit"
            and not seen.condition(limit, "Enforced").startswith("True")
        ]
        return ", ".join(parts) or "every limit has Enforced=True"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sample during the block, in a thread."""
        ended, samples = threading.Event(), 0

        def watch() -> None:
            nonlocal samples
            before = ""
            while not ended.wait(POLL_SECONDS):
                try:
                    text = self.sample()
                except (ClusterError, ReleaseError) as error:
                    text = f"no sample: {error}"
                else:
                    samples += 1
                if text != before:
                    self.say(text)
                before = text

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.say(f"{samples} samples")

    def replace(self, command: str, tag: str) -> None:
        """Run a helm command while watching, until only pods with the image's tag run."""
        self.until(self.is_exact, "all amounts are exact")
        self.check_boards()
        before = self.facts()

        def images() -> set[str]:
            path = "jsonpath={.items[*].spec.containers[*].image}"
            return set(self.run(f"kubectl -n {NAMESPACE} get pods -o '{path}'").split())

        def is_settled() -> bool:
            return self.is_enforced() and self.is_exact()

        self.say(command)
        with self.watched():
            began = time.monotonic()
            self.run(command)
            self.until(lambda: images() == {f"{REPOSITORY}:{tag}"}, "the earlier pods are gone")
            self.say(f"replaced after {time.monotonic() - began:.0f} s")
            self.until(is_settled, "all limits are enforced, and all amounts are exact")
            self.say(f"settled after {time.monotonic() - began:.0f} s")
        for name, fact in self.facts().items():
            if fact != before[name]:
                self.require(f"{name}: were {before[name]}, are {fact}")
        self.check_originals()
        self.check_boards()

    def check_originals(self) -> None:
        """Check the saved originals of all processes whose RLIMIT_MEMLOCK was changed."""
        saved = seen.originals(self.state("/var/lib/pinwarden/saved.json"))
        changed = {
            key: self._originals[key]
            for key, process in self.processes().items()
            if process.rlimit != self._originals[key]
        }
        self.require(*seen.changed_originals(changed, saved))
        self.say(f"{len(changed)} saved originals are checked")

    def check_boards(self) -> None:
        """Check the counts of the pods' own programs, and that no reported denial is invented."""
        limits, _ = self.resources()
        time.sleep(2)  # a program prints its counts each second
        for pod in self._limited:
            board = self.board(pod)
            self.say(f"{pod.name}: {board}")
            if board["most"] > pod.most:
                self.require(f"{pod.name}: {board['most']} bytes were locked at one moment")
            denials = limits[pod.name].get("status", {}).get("denials") or 0
            if denials > board["denied"]:
                self.require(f"{pod.name}: {denials} denials of {board['denied']} are reported")
            if board["error"]:
                self.require(f"{pod.name}: a call ended with error {board['error']}")
            if (locked := self._limited[pod]) not in (None, board["now"]):
                self.require(f"{pod.name}: {board['now']} bytes are locked, not {locked}")

    def delete_limit(self, name: str) -> None:
        """Delete a limit and wait until each process of its pod has its original RLIMIT_MEMLOCK."""
        self._limited = {pod: locked for pod, locked in self._limited.items() if pod.name != name}
        self.run(f"kubectl -n {TEST} delete pinlimit {name} --timeout=120s")

        def is_restored() -> bool:
            return all(
                process.rlimit == self._originals[key]
                for key, process in self.processes().items()
                if process.pod == name
            )

        self.until(is_restored, f"the processes of {name} have their original limits")
        self.say(f"{name}: every process has its original RLIMIT_MEMLOCK")

    def fill(self) -> None:
        """Let the racing pods lock all the room that their limits leave."""
        racing = [pod for pod in PODS if not pod.fills]
        for pod in racing:
            self.next_phase(pod)
        for pod in racing:
            self._wait_full(pod)


def check_upgrade(reference: str) -> None:
    """Upgrade from a git reference to this tree and back. Raises ReleaseError with all problems."""
    with tempfile.TemporaryDirectory(prefix="pinwarden-tree-") as folder:
        packed = subprocess.run(
            ["git", "archive", reference], cwd=ROOT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "--extract", "--directory", folder], input=packed, check=True)
        archive = image_of(Path(folder), f"{REPOSITORY}:{EARLIER}")
        with Cluster(images=[archive]) as cluster:
            check = UpgradeCheck(cluster)
            try:
                _upgrade(check, Path(folder) / "charts/pinwarden")
            except ReleaseError as error:
                check.require(str(error))
    if check.problems:
        raise ReleaseError("\n".join(["the upgrade is not safe:", *check.problems]))
    check.say(f"from {reference} to this tree and back, nothing was lost")


def _upgrade(check: UpgradeCheck, earlier_chart: Path) -> None:
    check.run(
        f"helm install pinwarden {earlier_chart} --namespace {NAMESPACE} --create-namespace"
        f" --set image.tag={EARLIER}{ONE_NODE} {WAIT}"
    )
    check.start_pods()
    check.replace(
        "kubectl apply --server-side --force-conflicts --field-manager=helm"
        " -f charts/pinwarden/crds && "
        f"helm upgrade pinwarden {CHART} --namespace {NAMESPACE} --reset-then-reuse-values"
        f" --set image.tag={TAG} {WAIT}",
        TAG,
    )
    check.fork("filled")
    time.sleep(5)
    check.delete_limit("filled")
    check.replace(f"helm rollback pinwarden --namespace {NAMESPACE} {WAIT}", EARLIER)
    check.fill()
    check.check_boards()
    for pod in PODS[1:]:
        check.delete_limit(pod.name)
