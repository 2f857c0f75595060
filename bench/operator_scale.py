"""Measure the operator on a cluster of a given size: time to ready, memory, and writes.

A real etcd and kube-apiserver have real objects (`fleet`), and the operator is a process of its
own, as installed. The API server, etcd, the simulated agents and the operator compete for this
machine's cores, so times are upper bounds for a separate control plane. Extrapolated figures are
labelled.

    PYTHONPATH=operator:tools python bench/operator_scale.py [--nodes 1000] [--pods 20000]
        [--limits 200]
"""

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from fleet import (
    AGENTS_NAMESPACE,
    PODS_PER_NAMESPACE,
    START_SECONDS,
    Agents,
    Api,
    Json,
    agent_pod,
    create,
    limit_objects,
    node_object,
    path_of,
    pod_object,
)
from processes import (
    MIB,
    BenchError,
    apply_crds,
    operator,
    own_child,
    process_cpu,
    process_memory,
    until,
)

from cluster.controlplane import ControlPlane
from cluster.errors import ClusterError

TARGET_NODES, TARGET_PODS = 5_000, 150_000
_SAMPLE = re.compile(r"^apiserver_request_total\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_WRITES = {"POST", "PUT", "PATCH", "APPLY", "DELETE"}


async def writes(api: Api) -> Counter[str]:
    """Return the operator's writes that the API server has answered, by verb and resource.

    The kind of a write identifies the operator: specs of NodePinConfigs, statuses of limits, Events
    and Leases (the API server adds a Lease write every ten seconds).
    """
    found: Counter[str] = Counter()
    for sample in _SAMPLE.finditer(await api.text("/metrics")):
        labels = dict(_LABEL.findall(sample["labels"]))
        resource = "/".join(filter(None, (labels["resource"], labels["subresource"])))
        if labels["verb"] not in _WRITES or resource not in {
            "nodepinconfigs",
            "pinlimits/status",
            "clusterpinlimits/status",
            "leases",
            "events",
        }:
            continue
        outcome = "" if labels["code"].startswith("2") else f" ({labels['code']})"
        found[f"{labels['verb']} {resource}{outcome}"] += int(float(sample["value"]))
    return found


async def judged(api: Api) -> tuple[int, int]:
    """How many limits there are, and how many have a status for their newest spec."""
    items: list[Json] = []
    for plural in ("pinlimits", "clusterpinlimits"):
        items += (await api.send("GET", f"/apis/pinwarden.io/v1alpha1/{plural}"))["items"]
    current = [
        item
        for item in items
        if item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"]
    ]
    applied = [
        item
        for item in current
        if any(
            each["type"] == "Applied" and each["status"] == "True"
            for each in item["status"]["conditions"]
        )
    ]
    return len(items), len(applied)


@dataclass
class Window:
    """Figures of some seconds: writes of the operator, and each process's share of one core."""

    seconds: float
    writes: Counter[str]
    operator_cpu: float
    server_cpu: float
    etcd_cpu: float


async def observe(api: Api, pid: int, work: Awaitable[object]) -> Window:
    """Measure while `work` runs."""
    pids = {"operator": pid, "server": own_child("kube-apiserver"), "etcd": own_child("etcd")}
    before, cpu = await writes(api), {name: process_cpu(each) for name, each in pids.items()}
    started = time.monotonic()
    await work
    seconds = time.monotonic() - started
    after = await writes(api)
    share = {name: (process_cpu(each) - cpu[name]) / seconds for name, each in pids.items()}
    return Window(seconds, after - before, share["operator"], share["server"], share["etcd"])


async def churn(
    api: Api, agents: Agents, pods: list[Json], nodes: int, rate: float, seconds: float
) -> int:
    """Replace pods at `rate` per second, deleting one when its successor runs; return the count."""
    started = time.monotonic()
    replaced = 0
    tasks: set[asyncio.Task[None]] = set()

    async def replace(place: int) -> None:
        old = pods[place]
        (pods[place],) = await create(
            api, [pod_object(random.randrange(len(pods)), nodes)], START_SECONDS
        )
        agents.end(old)
        await api.send("DELETE", path_of(old, named=True) + "?gracePeriodSeconds=0")

    while (elapsed := time.monotonic() - started) < seconds:
        while replaced < elapsed * rate:
            task = asyncio.create_task(replace(replaced % len(pods)))
            tasks.add(task)
            replaced += 1
        done = {task for task in tasks if task.done()}
        for task in done:
            task.result()
        tasks -= done
        await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)
    return replaced


async def fill(api: Api, options: argparse.Namespace) -> list[Json]:
    """Create the cluster; returns its pods but for the agents'."""
    namespaces = -(-options.pods // PODS_PER_NAMESPACE)
    names = [f"team-{i}" for i in range(namespaces)]
    await create(
        api,
        [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names],
    )
    await create(api, limit_objects(options.limits, namespaces))
    await create(api, (node_object(i) for i in range(options.nodes)))
    await create(api, (agent_pod(i) for i in range(options.nodes)))
    return await create(
        api, (pod_object(i, options.nodes) for i in range(options.pods - options.nodes))
    )


def row(name: str, value: str, note: str = "") -> None:
    """One line of the result."""
    print(f"  {name:<44} {value:>16}  {note}".rstrip(), flush=True)


def show_writes(window: Window) -> None:
    """The writes of a window, per second."""
    total = sum(window.writes.values()) / window.seconds
    row("writes of the operator", f"{total:.2f} /s", f"over {window.seconds:.0f} s")
    for name, count in window.writes.most_common():
        row(f"  {name}", f"{count / window.seconds:.2f} /s")
    row("  of one core: operator", f"{window.operator_cpu:.0%}")
    row("  of one core: kube-apiserver, etcd", f"{window.server_cpu:.0%}, {window.etcd_cpu:.0%}")


async def measure(options: argparse.Namespace, control_plane: ControlPlane, log: Path) -> None:
    """Run it all and print the table."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(Api(control_plane))
        system = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": AGENTS_NAMESPACE}}
        await create(api, [system])
        with operator(control_plane, log) as process:
            empty_seconds = await process.ready()
            empty_memory = process_memory(process.pid)
        print(
            f"Filling: {options.nodes} nodes, {options.pods} pods, {options.limits} limits ...",
            flush=True,
        )
        started = time.monotonic()
        pods = await fill(api, options)
        filled = time.monotonic() - started
        sample = await api.send("GET", path_of(pods[0], named=True))
        print(f"Filled in {filled:.0f} s; a pod is {len(str(sample)) / 1000:.1f} kB.\n", flush=True)
        agents = await stack.enter_async_context(Agents(api))

        print(
            f"Operator on {options.nodes} nodes, {options.pods} pods, {options.limits} limits",
            flush=True,
        )
        with operator(control_plane, log) as process:
            ready_seconds = await process.ready()
            row("time to ready", f"{ready_seconds:.1f} s", f"empty cluster: {empty_seconds:.1f} s")

            async def written() -> bool:
                agents.check()
                return len(agents.generations) >= int(options.nodes)

            async def all_applied() -> bool:
                agents.check()
                limits, applied = await judged(api)
                return limits == applied

            await until("every node has a NodePinConfig", written)
            row("start to every node's spec written", f"{time.monotonic() - process.started:.1f} s")
            await until("every limit is applied", all_applied)
            row(
                "start to every limit acknowledged, in status",
                f"{time.monotonic() - process.started:.1f} s",
            )
            memory = process_memory(process.pid)
            row(
                "resident memory",
                f"{memory / MIB:.0f} MiB",
                f"empty cluster: {empty_memory / MIB:.0f} MiB",
            )
            sizes = sorted(agents.sizes.values())
            row(
                "size of a NodePinConfig",
                f"{sizes[len(sizes) // 2] / 1000:.1f} kB",
                "median, compact JSON",
            )

            print("\nIdle (each node's report changes once in five minutes)", flush=True)
            await asyncio.sleep(options.settle)
            idle = await observe(api, process.pid, asyncio.sleep(options.seconds))
            show_writes(idle)

            print(
                f"\nChurn: {options.churn} pods/s replaced (each: one deleted, one created)",
                flush=True,
            )
            replaced = 0

            async def replace() -> None:
                nonlocal replaced
                replaced = await churn(
                    api, agents, pods, options.nodes, options.churn, options.seconds
                )

            busy = await observe(api, process.pid, replace())
            row("pods replaced", f"{replaced / busy.seconds:.1f} /s")
            show_writes(busy)
            row("resident memory", f"{process_memory(process.pid) / MIB:.0f} MiB")

            print("\nEdit of a ClusterPinLimit over every pod", flush=True)
            await asyncio.sleep(options.settle)
            ceiling = limit_objects(1, 1)[0]
            before = dict(agents.generations)

            async def edited() -> bool:
                agents.check()
                return all(
                    agents.generations[name] > generation for name, generation in before.items()
                )

            async def edit() -> None:
                body = {"spec": {"limit": "2Gi"}}
                await api.send("PATCH", path_of(ceiling, named=True), body, "merge-patch+json")
                await until("every node's spec is written", edited)

            window = await observe(api, process.pid, edit())
            row("every node's spec written after", f"{window.seconds:.1f} s")
            row(
                "  of one core: operator, kube-apiserver",
                f"{window.operator_cpu:.0%}, {window.server_cpu:.0%}",
            )
            row(
                "resident memory, the most so far",
                f"{process_memory(process.pid, 'VmHWM') / MIB:.0f} MiB",
            )

            peak = process_memory(process.pid, "VmHWM")
            extrapolate(
                options, ready_seconds, empty_seconds, memory, empty_memory, peak, window, busy
            )


def extrapolate(
    options: argparse.Namespace,
    ready: float,
    empty_ready: float,
    memory: int,
    empty_memory: int,
    peak: int,
    edit: Window,
    busy: Window,
) -> None:
    """What the target would need, in proportion to what was measured beyond the empty cluster."""
    pods, nodes = TARGET_PODS / options.pods, TARGET_NODES / options.nodes
    print(
        f"\n{TARGET_NODES} nodes, {TARGET_PODS} pods: EXTRAPOLATED in proportion, not measured",
        flush=True,
    )
    row(
        "time to ready",
        f"{empty_ready + max(0.0, ready - empty_ready) * pods:.0f} s",
        "by pods; aim: under 60 s",
    )
    row(
        "resident memory",
        f"{(empty_memory + (memory - empty_memory) * pods) / MIB:.0f} MiB",
        "by pods; aim: under 512",
    )
    row(
        "resident memory, the most",
        f"{(empty_memory + (peak - empty_memory) * pods) / MIB:.0f} MiB",
        "by pods",
    )
    row(
        "every node's spec after an edit",
        f"{edit.seconds * nodes:.0f} s",
        "by nodes; aim: under 60 s",
    )
    row(
        "operator's core at the same churn",
        f"{busy.operator_cpu:.0%}",
        "a pod event does not cost more in a larger cluster",
    )
    shares = {
        "operator": edit.operator_cpu,
        "kube-apiserver": edit.server_cpu,
        "etcd": edit.etcd_cpu,
    }
    most = max(shares, key=lambda name: shares[name])
    print(f"\nThe bottleneck of an edit for every node: {most}, at {shares[most]:.0%} of one core.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse options, start the control plane, measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument(
        "--pods", type=int, default=20_000, help="the agents' pods, one per node, included"
    )
    parser.add_argument("--limits", type=int, default=200)
    parser.add_argument("--churn", type=float, default=20.0, help="pods replaced per second")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of the idle and of the churn window"
    )
    parser.add_argument(
        "--settle", type=float, default=10.0, help="seconds of rest before a window"
    )
    options = parser.parse_args(arguments)
    if options.pods <= options.nodes:
        parser.error("--pods must be more than --nodes: each node has the pod of its agent")
    with ControlPlane() as control_plane, tempfile.TemporaryDirectory() as folder:
        apply_crds(control_plane)
        log = Path(folder) / "operator.log"
        try:
            asyncio.run(measure(options, control_plane, log))
        except (BenchError, ClusterError) as error:
            tail = log.read_text(errors="replace")[-4000:] if log.exists() else ""
            print(f"FAILED: {error}\n{tail}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
