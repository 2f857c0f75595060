"""Measure how long an edited limit takes from `kubectl apply` to a pod's processes: p50 and p99.

The control plane, the operator and the agent are real, and this machine is the node (`machine`).
Its pods are objects of the API server; their containers are cgroups with real processes. No kubelet
or container runtime takes part, because neither is between an edit and its effect. All programs
share this machine's cores, so on separate machines they are faster.

Each edit lowers the limit by a page. The time starts before `kubectl apply`. Every millisecond the
benchmark checks four marks: kubectl has ended; the node's NodePinConfig has the amount, as a watch
reports; every process has this `RLIMIT_MEMLOCK`; and the agent has acknowledged the amount in
`status.appliedLimits`. Edits follow at random intervals, so they meet the periods of operator and
agent at any point.

    PYTHONPATH=operator:tools python bench/apply_latency.py [--edits 200] [--pods 25]
        [--processes 10]
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import quantiles

import aiohttp
from fleet import (
    AGENTS_NAMESPACE,
    CONFIGS,
    Api,
    Json,
    agent_pod,
    create,
    node_name,
    node_object,
    pod_object,
)
from machine import Machine, Pod, machine, pods, stop_on_signals
from processes import apply_crds, operator

from cluster.build import binary
from cluster.controlplane import ControlPlane
from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.node.linux.prlimit import prlimit_memlock

PAGE = 4096
MOST_BYTES = 4 << 20
NAMESPACE = "team-0"
LIMIT = f"{NAMESPACE}/edited"
LOOK_SECONDS = 0.001
DEADLINE_SECONDS = 60.0
MARKS = (
    "kubectl apply ended",
    "the node's spec has it",
    "every process has it",
    "status acknowledges it",
)


class Edits:
    """Edits one limit over every pod of the node, and takes the times of each edit."""

    def __init__(self, control_plane: ControlPlane, api: Api, governed: Sequence[Pod]) -> None:
        cache = control_plane.directory / "kubectl-cache"
        kubectl = [str(binary("kubectl")), "--kubeconfig", str(control_plane.kubeconfig)]
        self._apply = [*kubectl, f"--cache-dir={cache}", "apply", "-f", "-"]
        self._api = api
        self._pids = [pid for pod in governed for pid in pod.pids()]
        self._config: Json = {}

    async def run(self, edits: int) -> list[dict[str, float]]:
        """Return the seconds to each of `MARKS` by edit. Raises TimeoutError."""
        following = asyncio.create_task(self._follow())
        try:
            await self._edit(MOST_BYTES)  # creates it
            taken = []
            for number in range(1, edits + 1):
                await asyncio.sleep(random.uniform(0.3, 0.8))
                taken.append(await self._edit(MOST_BYTES - number * PAGE))
                if following.done():
                    following.result()
        finally:
            following.cancel()
        return taken

    async def _edit(self, amount: int) -> dict[str, float]:
        metadata = {"name": "edited", "namespace": NAMESPACE}
        spec = {"podSelector": {}, "limit": amount}
        body = {
            "apiVersion": "pinwarden.io/v1alpha1",
            "kind": "PinLimit",
            "metadata": metadata,
            "spec": spec,
        }
        started, taken = time.monotonic(), dict[str, float]()
        applying = asyncio.create_task(self._kubectl(json.dumps(body).encode()))
        holds: Sequence[Callable[[], bool]] = (
            applying.done,
            lambda: self._in_spec(amount) is not None,
            lambda: all(prlimit_memlock(pid).hard == amount for pid in self._pids),
            lambda: (
                self._in_spec(amount) in self._config.get("status", {}).get("appliedLimits", [])
            ),
        )
        while len(taken) < len(MARKS):
            now = time.monotonic() - started
            taken |= {
                mark: now
                for mark, held in zip(MARKS, holds, strict=True)
                if mark not in taken and held()
            }
            if now > DEADLINE_SECONDS:
                raise TimeoutError(
                    f"{DEADLINE_SECONDS:.0f} s after an edit there was only: {taken}"
                )
            await asyncio.sleep(LOOK_SECONDS)
        applying.result()
        return taken

    async def _kubectl(self, manifest: bytes) -> None:
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*self._apply, stdin=pipe, stdout=null)
        await process.communicate(manifest)
        if process.returncode != 0:
            raise RuntimeError("kubectl apply failed")

    def _in_spec(self, amount: int) -> Json | None:
        """Return how the agent acknowledges the limit, None if the spec has another amount."""
        limits = self._config.get("spec", {}).get("limits", [])
        found = next(
            (NodeLimit.model_validate(each) for each in limits if each["limit"] == amount), None
        )
        return None if found is None else {"uid": found.uid, "hash": found.hash}

    async def _follow(self) -> None:
        while True:
            listed = await self._api.send("GET", CONFIGS)
            for self._config in listed["items"]:
                pass
            with contextlib.suppress(aiohttp.ClientPayloadError):  # the server ended the watch
                async for event in self._api.watch(CONFIGS, listed["metadata"]["resourceVersion"]):
                    self._config = event["object"]


@contextmanager
def parts(control_plane: ControlPlane, node: Machine) -> Iterator[None]:
    """The operator and the agent of this machine."""
    options = (
        f"--kubeconfig={control_plane.kubeconfig}",
        f"--node={node_name(0)}",
        "--metrics-port=-1",
    )
    log = node.folder / "operator.log"
    try:
        with operator(control_plane, log), node.agent(*options):
            yield
    except BaseException:
        sys.stderr.write(log.read_text()[-2000:])
        raise


async def fill(api: Api, count: int) -> list[str]:
    """Create the node with its agent's pod and `count` others; the UIDs of these."""
    names = (AGENTS_NAMESPACE, NAMESPACE)
    await create(
        api,
        [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names],
    )
    await create(api, [node_object(0), agent_pod(0), *(pod_object(0, 1) for _ in range(count))])
    listed = await api.send("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")
    return [item["metadata"]["uid"] for item in listed["items"]]


def show(edits: Sequence[dict[str, float]]) -> None:
    """The table, in milliseconds."""
    print(f"from before kubectl apply, ms  {'p50':>8} {'p99':>8} {'most':>8}")
    for mark in MARKS:
        seconds = [edit[mark] for edit in edits]
        cuts = quantiles(seconds, n=100, method="inclusive")
        print(
            f"  {mark:<28} {cuts[49] * 1e3:>8.0f} {cuts[98] * 1e3:>8.0f} {max(seconds) * 1e3:>8.0f}"
        )


async def measure(control_plane: ControlPlane, node: Machine, options: argparse.Namespace) -> None:
    """Fill the cluster, run the parts, edit, print."""
    async with Api(control_plane) as api:
        uids = await fill(api, options.pods)
        with pods(node.cgroup_root, uids, options.processes) as made, parts(control_plane, node):
            print(
                f"{options.edits} edits of a limit over {options.pods} pods of {options.processes} "
                f"processes; gate: {node.gate}",
                flush=True,
            )
            show(await Edits(control_plane, api, made).run(options.edits))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--pods", type=int, default=25, help="that the limit governs")
    parser.add_argument("--processes", type=int, default=10, help="of each pod")
    options = parser.parse_args(arguments)
    if not 2 <= options.edits < MOST_BYTES // PAGE:
        parser.error(f"--edits must be between 2 and {MOST_BYTES // PAGE - 1}")
    stop_on_signals()
    with machine() as node, ControlPlane() as control_plane:
        apply_crds(control_plane)
        asyncio.run(measure(control_plane, node, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
