"""The dashboard of the cluster: limited pods, and the health of the operator."""

from typing import Final

from monitoring.boards.common import LEVELS, LOWER, RATE, SAMPLED, per_limit
from monitoring.grafana import Dashboard, Panel, Query, Row, Unit


def _stat(title: str, description: str, expr: str, unit: Unit = "short") -> Panel:
    return Panel(title, description, (Query(expr),), "stat", unit, width=4, height=4)


def _summed(by: str, metric: str) -> str:
    return f"sum by ({by}) ({metric})"


_CEILINGS: Final = '{kind="ClusterPinLimit"}'
CLUSTER: Final = Dashboard(
    name="cluster",
    title="Pinwarden / Cluster",
    description="Governed pods and their levels, denials, and the health of the operator.",
    rows=(
        Row(
            "State",
            (
                _stat(
                    "Leading replicas",
                    "Replicas of the operator that may write; 1 is right.",
                    "sum(pinwarden_operator_leader)",
                ),
                _stat(
                    "Nodes answering",
                    "Nodes with a ready agent.",
                    'sum(pinwarden_operator_nodes{agent="answering"})',
                ),
                _stat(
                    "Nodes silent",
                    "Nodes without a ready agent.",
                    'sum(pinwarden_operator_nodes{agent="silent"})',
                ),
                _stat(
                    "Governed pods",
                    "Pods with a limit.",
                    "sum(pinwarden_operator_governed_pods)",
                ),
                _stat("Pinned", SAMPLED, "sum(pinwarden_operator_governed_pinned_bytes)", "bytes"),
                _stat(
                    "Limits not ready",
                    "PinLimits and ClusterPinLimits whose condition Ready is not True.",
                    'sum(pinwarden_operator_limits{condition="Ready",status!="True"})',
                ),
            ),
        ),
        Row(
            "Pinned memory",
            (
                Panel(
                    "Governed pods by level",
                    LEVELS,
                    (Query(_summed("level", "pinwarden_operator_governed_pods"), "{{level}}"),),
                    stacked=True,
                ),
                Panel(
                    "Why pods are at no better level",
                    "SeccompGate and RlimitGate are working gates; all other values say why there "
                    "is no gate.",
                    (Query(_summed("reason", "pinwarden_operator_governed_pods"), "{{reason}}"),),
                    stacked=True,
                ),
                Panel(
                    "Pinned by namespace, the ten largest",
                    SAMPLED,
                    (
                        Query(
                            "topk(10, max by (resource_namespace) "
                            "(pinwarden_operator_namespace_pinned_bytes))",
                            "{{resource_namespace}}",
                        ),
                    ),
                    unit="bytes",
                    stacked=True,
                ),
                Panel(
                    "Denied calls",
                    "Denied by seccomp gates on all nodes; denials by the kernel itself are not "
                    "counted.",
                    (Query(f"sum(rate(pinwarden_operator_denials_total{RATE}))", "all"),),
                    unit="ops",
                ),
                Panel(
                    "Limits by condition that is not True",
                    "An audit is always Enforced=False. Enforced=Unknown: an agent is silent, or "
                    "no pod matches.",
                    (
                        Query(
                            "sum by (condition, status) "
                            '(pinwarden_operator_limits{status!="True"})',
                            "{{condition}}={{status}}",
                        ),
                    ),
                ),
                Panel(
                    "Groups by condition that is not True",
                    "The same for SharedMemoryGroups.",
                    (
                        Query(
                            "sum by (condition, status) "
                            '(pinwarden_operator_groups{status!="True"})',
                            "{{condition}}={{status}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Ceilings",
            (
                Panel(
                    "ClusterPinLimits",
                    "A limit applies to each pod, or to its scope; pinned is the sum of matching "
                    f"pods. {LOWER}",
                    (
                        Query(per_limit("bytes", _CEILINGS), "may pin", "bytes"),
                        Query(per_limit("pods", _CEILINGS), "pods"),
                        Query(per_limit("pinned_bytes", _CEILINGS), "pinned", "bytes"),
                        Query(per_limit("overshoots_total", _CEILINGS), "overshoots"),
                        Query(per_limit("denials_total", _CEILINGS), "denied"),
                    ),
                    "table",
                    width=24,
                ),
            ),
        ),
        Row(
            "Nodes",
            (
                Panel(
                    "Nodes by problem",
                    "See the alerts of the same names.",
                    (
                        Query(
                            _summed("problem", "pinwarden_operator_nodes_with_problem"),
                            "{{problem}}",
                        ),
                    ),
                ),
                Panel(
                    "Nodes with a problem",
                    "The first 50 of each problem by name.",
                    (Query(_summed("problem, resource_node", "pinwarden_operator_node_problem")),),
                    "table",
                ),
                Panel(
                    "Nodes by source, level and whether it is counted",
                    "Sources that are not counted make figures lower bounds (H2).",
                    (
                        Query(
                            _summed("source, level, counted", "pinwarden_operator_source_nodes"),
                            "nodes",
                        ),
                    ),
                    "table",
                ),
                Panel(
                    "Left out of the series",
                    "Limits, groups and namespaces without series of their own. Those not Ready "
                    "have series first.",
                    (Query(_summed("of", "pinwarden_operator_series_omitted"), "{{of}}"),),
                ),
            ),
        ),
        Row(
            "Operator",
            (
                Panel(
                    "Time until applied",
                    "From the first sight of a generation until the status says that all of its "
                    "nodes have it.",
                    tuple(
                        Query(
                            f"histogram_quantile({quantile}, sum by (le) "
                            f"(rate(pinwarden_operator_apply_seconds_bucket{RATE})))",
                            f"p{int(quantile * 100)}",
                        )
                        for quantile in (0.5, 0.9, 0.99)
                    ),
                    unit="s",
                ),
                Panel(
                    "Time to reconcile one node or limit, p99",
                    "Compiling a node's spec, or aggregating a status, without the write.",
                    (
                        Query(
                            "histogram_quantile(0.99, sum by (stage, le) "
                            f"(rate(pinwarden_operator_reconcile_seconds_bucket{RATE})))",
                            "{{stage}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Length of queues",
                    "Of the leading replica: the others compile and wait.",
                    (
                        Query(
                            "max by (queue) "
                            "(pinwarden_operator_queue_length "
                            "* on (job, instance) group_left pinwarden_operator_leader)",
                            "{{queue}}",
                        ),
                    ),
                ),
                Panel(
                    "Writes",
                    "Write requests by kind and result.",
                    (
                        Query(
                            f"sum by (kind, result) (rate(pinwarden_operator_writes_total{RATE})) "
                            "> 0",
                            "{{kind}} {{result}}",
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Restarted watches",
                    "A timeout is normal.",
                    (
                        Query(
                            "sum by (resource, reason) "
                            f"(rate(pinwarden_operator_watch_ends_total{RATE})) > 0",
                            "{{resource}} {{reason}}",
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Resident memory",
                    "Memory of each replica.",
                    (
                        Query(
                            'process_resident_memory_bytes{job="pinwarden-operator"}',
                            "{{instance}}",
                        ),
                    ),
                    unit="bytes",
                ),
            ),
        ),
    ),
)
