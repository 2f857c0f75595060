"""The catalogue of metrics: names, types and meanings come from the programs' real registries.

Labels and rules come from this module. `families` creates the registries as the programs do, so no
metric is missing. A test fails if a metric has a label, or a label has a value, that is missing
here. Labels with an open set of values have a description instead.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import Metric

from pinwarden.api.pinlimit import Contention, Enforcement, Level, Scope, Source
from pinwarden.api.sharedmemorygroup import Accounting, Backing, Management, Phase
from pinwarden.controller import metrics as operator
from pinwarden.controller.items import Items
from pinwarden.controller.metrics_collector import (
    MOST_GROUPS,
    MOST_LIMITS,
    MOST_NAMESPACES,
    ClusterCollector,
)
from pinwarden.controller.metrics_families import CONDITIONS, GROUP_CONDITIONS, MOST_NODES, STATUSES
from pinwarden.controller.metrics_totals import FAIR_PARTS, LEVELS, PROBLEMS, REASONS
from pinwarden.controller.store import Store
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.node.accountant import daemon as accountant_daemon
from pinwarden.node.agent import daemon as agent_daemon
from pinwarden.node.agent import metrics as agent
from pinwarden.node.agent.threads import SnapshotBoard
from pinwarden.node.gate import daemon as gate_daemon
from pinwarden.plan.limit_compiler import LimitSettings

Values = tuple[str, ...] | str
"""All values of a label, or a description of them."""
Labels = Mapping[str, Values]

_BOOLEAN: Final = ("true", "false")
_BACKINGS: Final = tuple(field.alias or name for name, field in Backing.model_fields.items())
_SPACE: Final = {"resource_namespace": "a namespace"}
_LIMIT: Final[Labels] = {
    "kind": ("PinLimit", "ClusterPinLimit"),
    "resource_namespace": "that of a PinLimit, empty for a ClusterPinLimit",
    "limit": "its name",
}
_GROUP: Final[Labels] = {"resource_namespace": "that of the group", "group": "its name"}
_POD: Final[Labels] = {
    "resource_namespace": "that of the pod",
    "resource_pod": "its name",
    "resource_node": "its node",
}
_UID: Final[Labels] = {"uid": "the UID in the name of the pod's cgroup"}
_PART: Final[Labels] = {"part": FAIR_PARTS}
_CONDITION: Final[Labels] = {"condition": CONDITIONS, "status": STATUSES}
_GROUP_CONDITION: Final[Labels] = {"condition": GROUP_CONDITIONS, "status": STATUSES}
_SOURCE: Final[Labels] = {"source": tuple(Source), "level": tuple(Level), "counted": _BOOLEAN}
_LEVEL_AND_REASON: Final[Labels] = {"level": LEVELS, "reason": REASONS}
_VERSION: Final[Labels] = {"version": "that of the program"}

OPERATOR: Final[Mapping[str, Labels]] = {
    "apply_seconds": {},
    "build": _VERSION,
    "census_corrections": {},
    "denials": {},
    "events_dropped": {},
    "governed_pinned_bytes": {},
    "governed_pods": _LEVEL_AND_REASON,
    "group_borrowed_bytes": _GROUP,
    "group_borrowers": _GROUP,
    "group_capacity_bytes": _GROUP,
    "group_charge_bytes": _GROUP,
    "group_condition": {**_GROUP, **_GROUP_CONDITION},
    "group_dead_cgroup_bytes": _GROUP,
    "group_denials": _GROUP,
    "group_fullest_bytes": _GROUP,
    "group_info": {
        **_GROUP,
        "backing": _BACKINGS,
        "management": tuple(Management),
        "accounting": tuple(Accounting),
        "enforcement": tuple(Enforcement),
        "prefault": _BOOLEAN,
    },
    "group_orphaned_bytes": _GROUP,
    "group_phase": {**_GROUP, "phase": tuple(Phase)},
    "group_pods": _GROUP,
    "groups": _GROUP_CONDITION,
    "item_failures": {"loop": operator.LOOPS},
    "items_failing": {"loop": operator.LOOPS},
    "kopf_starts": {},
    "leader": {},
    "limit_bytes": _LIMIT,
    "limit_condition": {**_LIMIT, **_CONDITION},
    "limit_denials": _LIMIT,
    "limit_info": {
        **_LIMIT,
        "scope": tuple(Scope),
        "enforcement": tuple(Enforcement),
        "minimum_level": tuple(Level),
        "contention": tuple(Contention),
        "grant": _BOOLEAN,
    },
    "limit_nodes": {**_LIMIT, "acknowledged": _BOOLEAN},
    "limit_overshoot_peak_bytes": _LIMIT,
    "limit_overshoots": _LIMIT,
    "limit_pinned_bytes": _LIMIT,
    "limit_pods": _LIMIT,
    "limit_recommended_bytes": _LIMIT,
    "limits": _CONDITION,
    "limits_missed": {},
    "namespace_fair_bytes": {**_SPACE, **_PART},
    "namespace_pinned_bytes": _SPACE,
    "namespace_pods": {**_SPACE, "level": LEVELS},
    "node_problem": {"problem": tuple(PROBLEMS), "resource_node": "the node"},
    "nodes": {"agent": ("answering", "silent")},
    "nodes_with_problem": {"problem": tuple(PROBLEMS)},
    "pod_borrowed_bytes": {**_POD, "group": "namespace/name of the group"},
    "pod_denials": _POD,
    "pod_fair_bytes": {**_POD, **_PART},
    "pod_level": {**_POD, **_LEVEL_AND_REASON},
    "pod_mapped_bytes": {**_POD, "group": "namespace/name of the group"},
    "pod_peak_bytes": _POD,
    "pod_pinned_bytes": _POD,
    "queue_length": {"queue": operator.QUEUES},
    "reconcile_seconds": {"stage": ("compile", "aggregate")},
    "series_omitted": {"of": ("limits", "groups", "namespaces")},
    "source_nodes": _SOURCE,
    "synced": {},
    "unreadable": {"resource": ("limits", "groups", "nodepinconfigs")},
    "unreadable_objects": {"resource": ("limits", "groups", "nodepinconfigs")},
    "watch_ends": {"resource": operator.RESOURCES, "reason": operator.ENDS},
    "writes": {"kind": operator.WRITES, "result": operator.RESULTS},
}
_GUARDED: Final = tuple(sorted({*agent_daemon.KINDS, *gate_daemon.KINDS, *accountant_daemon.KINDS}))
AGENT: Final[Mapping[str, Labels]] = {
    "applied_limits": {},
    "build": _VERSION,
    "configuration_generation": {},
    "configuration_problem": {},
    "configured_limits": {},
    "denials": {},
    "failures": {"operation": agent.FAILURES},
    "fair_bytes": _PART,
    "governed_pinned_bytes": {"counter": ("locked", "pinned")},
    "governed_pods": {"level": tuple(Level)},
    "governed_pods_by_reason": {"reason": REASONS},
    "governed_processes": {},
    "heard_timestamp_seconds": {"process": ("gate", "accountant")},
    "item_failures": {"process": ("agent", "gate", "accountant"), "kind": _GUARDED},
    "overshoot_peak_bytes": {},
    "overshoots": {},
    "pod_borrowed_bytes": {**_UID, "group_uid": "the UID of the group"},
    "pod_denials": _UID,
    "pod_fair_bytes": {**_UID, **_PART},
    "pod_level": {**_UID, **_LEVEL_AND_REASON},
    "pod_mapped_bytes": {**_UID, "group_uid": "the UID of the group"},
    "pod_peak_bytes": _UID,
    "pod_pinned_bytes": {**_UID, "counter": ("locked", "pinned")},
    "pod_processes": _UID,
    "sampled_timestamp_seconds": {},
    "shared_borrowed_bytes": {},
    "shared_charge_bytes": {},
    "shared_dead_cgroup_bytes": {},
    "shared_groups": {"phase": tuple(Phase)},
    "shared_orphaned_bytes": {},
    "source_level": _SOURCE,
    "status_writes": {},
    "tick_seconds": {},
    "truncated": {},
    "unsupported_limits": {},
}
RULES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("governed_pods", "namespace_pods", "source_nodes", "source_level", "pod_level"), "H1"
    ),
    **dict.fromkeys(("limit_condition", "limits", "limit_info"), "H1, P13"),
    **dict.fromkeys(
        ("governed_pinned_bytes", "limit_pinned_bytes", "namespace_pinned_bytes"), "P1, P2, H2"
    ),
    **dict.fromkeys(("pod_pinned_bytes", "limit_pods"), "P1, P2, H2"),
    **dict.fromkeys(("denials", "limit_denials", "pod_denials"), "P5, H2"),
    **dict.fromkeys(("limit_overshoots", "limit_overshoot_peak_bytes", "overshoots"), "P11, H2"),
    **dict.fromkeys(
        ("overshoot_peak_bytes", "pod_peak_bytes", "limit_recommended_bytes"), "P11, H2"
    ),
    **dict.fromkeys(("nodes", "nodes_with_problem", "node_problem", "truncated"), "H1, H2"),
    **dict.fromkeys(("group_charge_bytes", "group_fullest_bytes", "shared_charge_bytes"), "M1, M3"),
    **dict.fromkeys(
        ("group_borrowed_bytes", "group_borrowers", "shared_borrowed_bytes"), "M3, M4, M6"
    ),
    **dict.fromkeys(("pod_borrowed_bytes", "pod_mapped_bytes"), "M3, M4, M6"),
    **dict.fromkeys(("group_orphaned_bytes", "shared_orphaned_bytes"), "M9"),
    **dict.fromkeys(("group_dead_cgroup_bytes", "shared_dead_cgroup_bytes"), "M9"),
    **dict.fromkeys(("namespace_fair_bytes", "fair_bytes", "pod_fair_bytes"), "M11"),
    **dict.fromkeys(("group_denials", "group_capacity_bytes"), "M8"),
    **dict.fromkeys(("group_phase", "shared_groups", "group_condition", "groups"), "M10, H1"),
    **dict.fromkeys(("apply_seconds", "limit_nodes"), "P12, H1"),
    **dict.fromkeys(("configuration_problem", "sampled_timestamp_seconds"), "H2, H3"),
    **dict.fromkeys(("heard_timestamp_seconds",), "H3"),
}
_SUFFIX: Final = {"counter": "_total", "info": "_info"}


def families(program: str, *, pods: bool) -> dict[str, Metric]:
    """Return the metrics of the `operator` or the `agent` by name without prefix."""
    metrics = (_of_operator if program == "operator" else _of_agent)(pods)
    prefix = f"pinwarden_{program}_"
    return {
        metric.name.removeprefix(prefix).removesuffix(_SUFFIX.get(metric.type, "\n")): metric
        for metric in metrics
        if metric.name.startswith(prefix)
    }


def _of_operator(pods: bool) -> Iterator[Metric]:
    metrics = operator.Metrics()
    store = Store(LimitSettings(), WorkQueue(), WorkQueue(), metrics)
    metrics.set_leading(lambda: True, lambda: True)
    metrics.set_queue_lengths(lambda _: 0)
    metrics.set_missed(lambda: 0)
    metrics.include(ClusterCollector(store, lambda: True, Items(metrics), pods=pods))
    yield from metrics.families()


def _of_agent(pods: bool) -> Iterator[Metric]:
    yield from agent.Metrics(SnapshotBoard(), pods=pods).families()


def labels_of(sample: str) -> Labels:
    """Return the labels of a series, such as `pinwarden_operator_apply_seconds_bucket`.

    Raises:
        KeyError: the catalogue has no such metric.
    """
    for program, known in (("operator", OPERATOR), ("agent", AGENT)):
        name = sample.removeprefix(f"pinwarden_{program}_")
        if name != sample:
            for suffix in ("_bucket", "_sum", "_count", "_total", "_info", ""):
                if name.endswith(suffix) and (base := name.removesuffix(suffix)) in known:
                    bucket: Labels = (
                        {"le": "an upper bound in seconds"} if suffix == "_bucket" else {}
                    )
                    return {**known[base], **bucket}
    raise KeyError(sample)


def document() -> str:
    """Return the text of docs/metrics.md."""
    return "\n".join([_HEAD, *_tables(), _TAIL]) + "\n"


def _tables() -> Iterator[str]:
    for title, program, known in (
        ("The operator", "operator", OPERATOR),
        ("The agent", "agent", AGENT),
    ):
        default, all_of = families(program, pods=False), families(program, pods=True)
        yield f"\n## {title}\n"
        yield from _table(program, known, {name: all_of[name] for name in sorted(default)})
        yield f"\n### {title}, with `--per-pod-metrics`\n"
        yield from _table(
            program, known, {name: all_of[name] for name in sorted(all_of.keys() - default.keys())}
        )


def _table(
    program: str, known: Mapping[str, Labels], metrics: Mapping[str, Metric]
) -> Iterator[str]:
    yield "| metric | type | unit | labels | meaning | rules |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, metric in metrics.items():
        labels = "<br>".join(
            f"`{label}`: {_values(values)}" for label, values in known[name].items()
        )
        suffix = _SUFFIX.get(metric.type, "") if not name.endswith("_info") else ""
        text = metric.documentation.replace("|", "\\|")
        cells = (metric.type, _unit(name), labels, text, RULES.get(name, ""))
        yield f"| `pinwarden_{program}_{name}{suffix}` | {' | '.join(cells)} |"


def _values(values: Values) -> str:
    return values if isinstance(values, str) else ", ".join(f"`{value}`" for value in values)


def _unit(name: str) -> str:
    units: tuple[tuple[str, str], ...] = (
        ("timestamp_seconds", "Unix time in seconds"),
        ("_seconds", "seconds"),
        ("_bytes", "bytes"),
    )
    return next((unit for suffix, unit in units if name.endswith(suffix)), "")


_HEAD: Final = f"""# Metrics

Generated by `make docs` from the programs' own registries (tools/monitoring/catalogue.py); do not
edit.

Amounts are in bytes and times in seconds. An unknown figure is absent, never 0 (H2): a missing
series says nothing. Amounts of pinned and shared memory are samples; peaks are lower bounds. Rules
are those of [semantics.md](semantics.md). Dashboards: [dashboards.md](dashboards.md), alerts:
[alerts.md](alerts.md).

**Scraping.** The operator serves `/metrics` at port 8080, the agent at 9464 (`--metrics-port`).
Dashboards and alerts distinguish the two by `job` (`pinwarden-operator`, `pinwarden-agent`), and
agents by `node`. The chart's ServiceMonitor and PodMonitor set both labels. The operator's metrics
name other namespaces, pods and nodes in `resource_namespace`, `resource_pod` and `resource_node`.
Prometheus uses `namespace`, `pod` and `node` for the scraped pod.

**Replicas.** Only the replica that may write exposes the figures of the cluster, so sums contain no
duplicates. When another replica takes over, its series continue them. Each replica exposes its own
activity (watches, writes, queues).

**How many series.** An agent has under 100, whatever runs on the node. The operator has about 250,
about 20 for each limit and group, and up to 9 for each namespace with governed pods. They are on by
default, because without them an unenforced limit stays unnoticed. Their number is bounded:
{MOST_LIMITS} limits and {MOST_GROUPS} groups, those not Ready first; the {MOST_NAMESPACES}
namespaces that pin most; {MOST_NODES} nodes of each problem.
`pinwarden_operator_series_omitted` counts the rest, and counts by condition, level and problem
include it. Series of each pod are opt-in: `--per-pod-metrics` of operator and agent
(`metrics.perPod` of the chart). Only the number of governed pods bounds them.

**Not available.** Kills: this release kills nothing. Drift of the ledger: each sample reads the
kernel's counters again, and there is no second count to compare. Memory of a group that drivers
pin: nothing counts it yet. Pinned bytes by source: the kernel has two counters, locked (`VmLck`)
and pinned by drivers (`VmPin`), and so have the agents' metrics.

Both programs also serve `process_*`, as Prometheus clients do."""

_TAIL: Final = (
    """
## What label values mean

| label | value | meaning |
| --- | --- | --- |
"""
    + "\n".join(f"| `problem` | `{name}` | {text} |" for name, text in PROBLEMS.items())
    + """
| `level` | `Deny`, `Kill`, `Converge`, `Observe` | the effect of a limit:
[enforcement.md](enforcement.md) |
| `level` | `Unknown` | the agent of the node is silent |
| `reason` | `Other` | a reason of a newer agent that this operator does not know |
| `counted` | `false` | no counter of the kernel includes the source: figures are lower bounds |
| `result` | `conflict` | another writer was faster; the operator retries |"""
)
