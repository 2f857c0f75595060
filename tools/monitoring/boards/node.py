"""The dashboard of a node, the only one that needs the metrics of the agents."""

from typing import Final

from monitoring.boards.common import FAIR, LOWER, RATE
from monitoring.grafana import Dashboard, Panel, Query, Row, Variable

_NODE: Final = '{node=~"$node"}'


def _on_node(metric: str, by: str = "node") -> str:
    return f"sum by ({by}) (pinwarden_agent_{metric}{_NODE})"


NODE: Final = Dashboard(
    name="node",
    title="Pinwarden / Node",
    description="Limits and samples of the agent of a node. Needs a scrape of the agents; the last "
    "row also needs their flag --per-pod-metrics.",
    variables=(Variable("node", "Node", "pinwarden_agent_build_info", "node"),),
    rows=(
        Row(
            "Pinned memory",
            (
                Panel(
                    "Locked and pinned by governed pods",
                    "Locked: by mlock and similar calls (VmLck). Pinned: by drivers (VmPin). "
                    "Sampled.",
                    (
                        Query(
                            _on_node("governed_pinned_bytes", "node, counter"),
                            "{{node}} {{counter}}",
                        ),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Governed pods by level",
                    "The level of each pod over all sources that it can use.",
                    (Query(_on_node("governed_pods", "level"), "{{level}}"),),
                    stacked=True,
                ),
                Panel(
                    "Why pods are at no better level",
                    "SeccompGate and RlimitGate are working gates.",
                    (Query(_on_node("governed_pods_by_reason", "reason"), "{{reason}}"),),
                    stacked=True,
                ),
                Panel(
                    "Processes of governed pods",
                    "All processes that the agent samples.",
                    (Query(_on_node("governed_processes"), "{{node}}"),),
                ),
                Panel(
                    "Denied calls",
                    "By the seccomp gate; absent without a gate.",
                    (
                        Query(
                            f"sum by (node) (rate(pinwarden_agent_denials_total{_NODE}{RATE}))",
                            "{{node}}",
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Overshoots",
                    f"How often use exceeded a limit, of overshoots still listed. {LOWER}",
                    (Query(_on_node("overshoots"), "{{node}}"),),
                ),
                Panel(
                    "Largest overshoot of a limit",
                    LOWER,
                    (
                        Query(
                            f"max by (node) (pinwarden_agent_overshoot_peak_bytes{_NODE})",
                            "{{node}}",
                        ),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Level of each source",
                    "Counted says whether figures include the source.",
                    (Query(_on_node("source_level", "node, source, level, counted")),),
                    "table",
                ),
            ),
        ),
        Row(
            "Shared memory",
            (
                Panel(
                    "Charge, borrowed, orphaned, on dead cgroups",
                    "The sum of all groups of the node, without unknown figures.",
                    tuple(
                        Query(_on_node(f"shared_{name}_bytes"), f"{{{{node}}}} {name}")
                        for name in ("charge", "borrowed", "orphaned", "dead_cgroup")
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Groups by phase",
                    "The objects on this node.",
                    (Query(_on_node("shared_groups", "phase"), "{{phase}}"),),
                    stacked=True,
                ),
                Panel(
                    "Fair view",
                    FAIR,
                    (Query(_on_node("fair_bytes", "part"), "{{part}}"),),
                    unit="bytes",
                ),
                Panel(
                    "Limits",
                    "In force; applied to all of their processes; unsupported on this node.",
                    (
                        Query(_on_node("configured_limits"), "{{node}} in force"),
                        Query(_on_node("applied_limits"), "{{node}} applied"),
                        Query(_on_node("unsupported_limits"), "{{node}} unsupported"),
                    ),
                ),
            ),
        ),
        Row(
            "Agent, gate and accountant",
            (
                Panel(
                    "Last sign of life",
                    "The gate writes every 2 s, the accountant in each round.",
                    (
                        Query(
                            "max by (node, process) "
                            f"(time() - pinwarden_agent_heard_timestamp_seconds{_NODE})",
                            "{{node}} {{process}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Age of the figures",
                    "Time since the agent's last sample.",
                    (
                        Query(
                            "max by (node) (time() - "
                            f"pinwarden_agent_sampled_timestamp_seconds{_NODE})",
                            "{{node}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Time to sample all processes, p99",
                    "With the allocation of limits; until then, processes keep their allowances.",
                    (
                        Query(
                            "histogram_quantile(0.99, sum by (node, le) "
                            f"(rate(pinwarden_agent_tick_seconds_bucket{_NODE}{RATE})))",
                            "{{node}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Status writes and failures",
                    "At most one write a second, and one in five minutes without a change.",
                    (
                        Query(
                            "sum by (node) "
                            f"(rate(pinwarden_agent_status_writes_total{_NODE}{RATE}))",
                            "{{node}} writes",
                        ),
                        Query(
                            "sum by (node, operation) "
                            f"(rate(pinwarden_agent_failures_total{_NODE}{RATE})) > 0",
                            "{{node}} {{operation}} failed",
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Problems",
                    "1 while a newer configuration cannot be read, or a list of the report is "
                    "truncated.",
                    (
                        Query(_on_node("configuration_problem"), "{{node}} configuration"),
                        Query(_on_node("truncated"), "{{node}} truncated"),
                    ),
                ),
                Panel(
                    "Resident memory of the agent",
                    "Memory of its process.",
                    (
                        Query(
                            'process_resident_memory_bytes{job="pinwarden-agent",node=~"$node"}',
                            "{{node}}",
                        ),
                    ),
                    unit="bytes",
                ),
            ),
        ),
        Row(
            "Pods, with --per-pod-metrics",
            (
                Panel(
                    "The ten that pin most, by UID",
                    "For names: pinwarden_operator_pod_pinned_bytes, or join kube_pod_info by uid.",
                    (
                        Query(
                            f"topk(10, sum by (uid) (pinwarden_agent_pod_pinned_bytes{_NODE}))",
                            "{{uid}}",
                        ),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "The ten that borrow most, by UID",
                    "Resident pages of groups that the pods have mapped.",
                    (
                        Query(
                            f"topk(10, sum by (uid) (pinwarden_agent_pod_borrowed_bytes{_NODE}))",
                            "{{uid}}",
                        ),
                    ),
                    unit="bytes",
                ),
            ),
        ),
    ),
)
