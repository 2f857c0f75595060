"""The catalogue of metrics: names, types and meanings as the programs' real registries tell them, labels and rules as this module does.

`families` makes the registries as the programs do, so that a metric cannot be missing; a test fails when one of them has labels, or values
of labels, that stand not here. Values that are not closed are described: they are names of things that there are.
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
"""All values that a label may have, or in words which they are."""
Labels = Mapping[str, Values]

_BOOLEAN: Final = ("true", "false")
_BACKINGS: Final = tuple(field.alias or name for name, field in Backing.model_fields.items())
_SPACE: Final = {"resource_namespace": "a namespace"}
_LIMIT: Final[Labels] = {
    "kind": ("PinLimit", "ClusterPinLimit"),
    "resource_namespace": "that of a PinLimit, empty of a ClusterPinLimit",
    "limit": "its name",
}
_GROUP: Final[Labels] = {"resource_namespace": "that of the group", "group": "its name"}
_POD: Final[Labels] = {
    "resource_namespace": "that of the pod",
    "resource_pod": "its name",
    "resource_node": "its node",
}
_UID: Final[Labels] = {"uid": "the UID that the pod's cgroup bears"}
_PART: Final[Labels] = {"part": FAIR_PARTS}
_CONDITION: Final[Labels] = {"condition": CONDITIONS, "status": STATUSES}
_GROUP_CONDITION: Final[Labels] = {"condition": GROUP_CONDITIONS, "status": STATUSES}
_SOURCE: Final[Labels] = {"source": tuple(Source), "level": tuple(Level), "counted": _BOOLEAN}
_HELD: Final[Labels] = {"level": LEVELS, "reason": REASONS}
_VERSION: Final[Labels] = {"version": "that of the program"}

OPERATOR: Final[Mapping[str, Labels]] = {
    "apply_seconds": {},
    "build": _VERSION,
    "census_corrections": {},
    "denials": {},
    "events_dropped": {},
    "governed_pinned_bytes": {},
    "governed_pods": _HELD,
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
    "pod_level": {**_POD, **_HELD},
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
    "pod_level": {**_UID, **_HELD},
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
    """All metrics of the `operator` or the `agent`, by name without prefix, as its own registry has them."""
    found = (_of_operator if program == "operator" else _of_agent)(pods)
    prefix = f"pinwarden_{program}_"
    return {
        each.name.removeprefix(prefix).removesuffix(_SUFFIX.get(each.type, "\n")): each
        for each in found
        if each.name.startswith(prefix)
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
    """What may stand beside a series of this name, such as `pinwarden_operator_apply_seconds_bucket`. Raises KeyError."""
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
    """The text of docs/metrics.md."""
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
        rules = RULES.get(name, "")
        yield f"| `pinwarden_{program}_{name}{suffix}` | {metric.type} | {_unit(name)} | {labels} | {text} | {rules} |"


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

Generated by `make docs` from the programs' own registries (tools/monitoring/catalogue.py); do not edit.

Amounts are in bytes and times in seconds. A figure that is not known is absent, never 0 (H2): no series is no news. Amounts of pinned
and shared memory are samples, peaks are lower bounds. Rules are those of [semantics.md](semantics.md). Dashboards:
[dashboards.md](dashboards.md), alerts: [alerts.md](alerts.md).

**Scraping.** The operator serves `/metrics` at port 8080, the agent at 9464 (`--metrics-port`). Dashboards and alerts tell the two
apart by `job`, `pinwarden-operator` and `pinwarden-agent`, and agents by `node`; the chart's ServiceMonitor and PodMonitor set both
labels. What a metric says of other namespaces, pods and nodes stands in `resource_namespace`, `resource_pod` and `resource_node`, as
Prometheus puts those of the scraped pod into `namespace`, `pod` and `node`.

**Replicas.** Of the cluster only the replica that may write tells: sums need not be cleaned of doubles, and when another one takes
over, its series follow. What a process did itself (watches, writes, queues) each replica tells.

**How many series.** An agent: under 100, whatever runs on the node. The operator: about 250, and for each limit and group about 20, for
each namespace with governed pods up to 9. They are on by default, because without them nobody sees which limit is not enforced, and
because people make limits, not workloads. They are bounded all the same: {MOST_LIMITS} limits and {MOST_GROUPS} groups, those first
that are not Ready; the {MOST_NAMESPACES} namespaces that pin most; {MOST_NODES} nodes of each problem.
`pinwarden_operator_series_omitted` counts what is left out, and counts by condition, level and problem take all in. Series of each pod
are opt-in, `--per-pod-metrics` of operator and agent (`metrics.perPod` of the chart): nothing bounds them but the number of governed
pods.

**Not there.** Kills: this release kills nothing. Drift of the ledger: it is made anew from the kernel's counters at each look, and
there is no second count to compare it with. What drivers pin of a group: nothing counts it yet. Pinned bytes by source: the
kernel has two counters, locked (`VmLck`) and pinned by drivers (`VmPin`), and the agents' metrics have these.

Both programs also serve `process_*`, as Prometheus clients do."""

_TAIL: Final = (
    """
## What label values mean

| label | value | meaning |
| --- | --- | --- |
"""
    + "\n".join(f"| `problem` | `{name}` | {text} |" for name, text in PROBLEMS.items())
    + """
| `level` | `Deny`, `Kill`, `Converge`, `Observe` | what happens to a pin past the limit: [enforcement.md](enforcement.md) |
| `level` | `Unknown` | the agent of the node is silent |
| `reason` | `Other` | a word that this operator does not know, of a newer agent |
| `counted` | `false` | no counter of the kernel has it: figures are lower bounds |
| `result` | `conflict` | another one was quicker; it is tried again |"""
)
