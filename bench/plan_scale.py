"""Measure the rules at the designed size without an API server, in one process.

Loads `pinwarden.plan.cluster.Cluster` with nodes, pods and limits, and times the operator's
requests. `operator_scale` has the rest: the API server, the network and the writes.

    PYTHONPATH=operator:tools python bench/plan_scale.py [--nodes 5000] [--pods 150000]
        [--limits 200]
"""

import argparse
import random
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from fleet import APPS, PODS_PER_NAMESPACE, Json, limit_objects, node_name, node_object, report_of

from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.plan.cluster import Cluster
from pinwarden.plan.limit_compiler import Limit
from pinwarden.plan.limit_on_node import LimitOnNode
from pinwarden.plan.limit_status import aggregate
from pinwarden.plan.node_view import NodeView
from pinwarden.plan.share_cache import ShareCache
from pinwarden.plan.types import Namespace, Node, Pod

MIB = 2**20
EVENTS = 2000


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def timed(name: str, work: Callable[[], str]) -> None:
    """Do `work`, and show how long it took beside the note that it returns."""
    started = time.perf_counter()
    note = work()
    print(f"  {name:<52} {time.perf_counter() - started:>9.2f} s  {note}", flush=True)


def pod(number: int, nodes: int) -> Pod:
    """A running pod of two containers."""
    uid = str(uuid.uuid4())
    namespace, app = f"team-{number // PODS_PER_NAMESPACE}", f"app-{number % APPS}"
    return Pod.of(
        namespace=namespace,
        name=f"{app}-{uid[:8]}",
        uid=uid,
        cgroup_uid=uid,
        node=node_name(random.randrange(nodes)),
        labels={
            "app": app,
            "tier": f"tier-{number % 5}",
            "pod-template-hash": f"{namespace}-{app}",
        },
        containers={part: uuid.uuid4().hex * 2 for part in ("main", "proxy")},
        terminal=False,
    )


def limit(item: Json) -> Limit:
    """The model of a limit object, with what the API server adds."""
    kind = PinLimit if item["kind"] == "PinLimit" else ClusterPinLimit
    metadata = {**item["metadata"], "uid": str(uuid.uuid4()), "generation": 1}
    return kind.model_validate({**item, "metadata": metadata})


def reported(cluster: Cluster, name: str) -> NodeView:
    """A node whose agent acknowledged and reported all that it is asked."""
    spec = cluster.compiled(name)[0]
    config = NodePinConfig.model_validate(
        {
            "metadata": {"name": name, "generation": 1},
            "spec": spec.to_wire(),
            "status": report_of(spec, 1),
        }
    )
    return NodeView(name).with_desired(spec).with_object(config).with_silent(False)


def measure(nodes: int, pods: int, limits: int) -> None:
    """Run it all and print the table."""
    cluster = Cluster()
    namespaces = -(-pods // PODS_PER_NAMESPACE)
    for number in range(namespaces):
        cluster.put_namespace(Namespace(f"team-{number}"))
    for number in range(nodes):
        metadata = node_object(number)["metadata"]
        cluster.put_node(Node(metadata["name"], metadata["labels"]))
    for item in limit_objects(limits, namespaces):
        cluster.put_limit(limit(item))

    def fill() -> str:
        before = resident()
        for number in range(pods):
            cluster.put_pod(pod(number, nodes))
        return f"{(resident() - before) / pods:.0f} bytes per pod"

    def churn() -> str:
        started = time.perf_counter()
        for number in range(EVENTS):
            new = pod(number, nodes)
            cluster.put_pod(new)
            cluster.remove_pod(new.uid)
        return f"{(time.perf_counter() - started) / EVENTS * 1e6:.0f} us each"

    def compile_all() -> str:
        sizes = [len(cluster.compiled(name)[0].pods) for name in cluster.nodes]
        return f"{sum(sizes) / len(sizes):.0f} pods per node"

    views: dict[str, NodeView] = {}

    def report_all() -> str:
        before = resident()
        views.update((name, reported(cluster, name)) for name in cluster.nodes)
        return f"{(resident() - before) / nodes / 1024:.1f} KiB per node kept"

    ceiling = cluster.limits["ceiling-0"]
    cache = ShareCache[LimitOnNode]()

    def edit() -> str:
        edited = limit({**limit_objects(1, 1)[0], "spec": {"limit": "2Gi"}})
        return f"{len(cluster.put_limit(edited).nodes)} nodes are dirty"

    def judge() -> str:
        status = aggregate(
            ceiling, cluster.pods_of("ceiling-0"), views, None, datetime.now(UTC), cache=cache
        )
        return f"{status.matched_pods} pods"

    print(f"{nodes} nodes, {pods} pods, {limits} limits", flush=True)
    timed("every pod comes", fill)
    timed(f"{EVENTS} pods come and go", churn)
    timed("the spec of every node", compile_all)
    timed("every node's report is read (parsing it included)", report_all)
    timed("status of a ceiling over every pod, first", judge)
    timed("status of a ceiling over every pod, again", judge)
    timed("an edit of a ceiling over every pod", edit)
    print(f"  resident in the end: {resident() / MIB:.0f} MiB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse options and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=150_000)
    parser.add_argument("--limits", type=int, default=200)
    options = parser.parse_args(arguments)
    measure(options.nodes, options.pods, options.limits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
