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
    description="What an agent holds and sees on its node. Needs a scrape of the agents, and for the last row their flag "
    "--per-pod-metrics.",
    variables=(Variable("node", "Node", "pinwarden_agent_build_info", "node"),),
    rows=(
        Row(
            "Pinned memory",
            (
                Panel(
                    "Locked and pinned by governed pods",
                    "Locked is mlock and the like (VmLck), pinned what drivers hold (VmPin). Sampled.",
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
                    "How each is held over everything that it can use.",
                    (Query(_on_node("governed_pods", "level"), "{{level}}"),),
                    stacked=True,
                ),
                Panel(
                    "Why pods are at no better level",
                    "SeccompGate and RlimitGate are the gates that hold them.",
                    (Query(_on_node("governed_pods_by_reason", "reason"), "{{reason}}"),),
                    stacked=True,
                ),
                Panel(
                    "Processes of governed pods",
                    "That the agent looks at.",
                    (Query(_on_node("governed_processes"), "{{node}}"),),
                ),
                Panel(
                    "Refused calls",
                    "By the seccomp gate; absent without one.",
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
                    f"How often use was seen above a limit, over overshoots still listed. {LOWER}",
                    (Query(_on_node("overshoots"), "{{node}}"),),
                ),
                Panel(
                    "The most that was seen above a limit",
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
                    "What the node reaches for each source",
                    "Counted says whether figures take it in.",
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
                    "Over all groups of the node; what is not known is not in it.",
                    tuple(
                        Query(_on_node(f"shared_{name}_bytes"), f"{{{{node}}}} {name}")
                        for name in ("charge", "borrowed", "orphaned", "dead_cgroup")
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Groups by phase",
                    "Of this node's instances.",
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
                    "In force; dealt to every process that they govern; not possible here.",
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
                    "Of the gate every 2 s; of the accountant every round.",
                    (
                        Query(
                            f"max by (node, process) (time() - pinwarden_agent_heard_timestamp_seconds{_NODE})",
                            "{{node}} {{process}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Age of the figures",
                    "Since the agent last sampled.",
                    (
                        Query(
                            f"max by (node) (time() - pinwarden_agent_sampled_timestamp_seconds{_NODE})",
                            "{{node}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Looking at every process, p99",
                    "And dealing; as long as that takes, nobody is dealt anew.",
                    (
                        Query(
                            f"histogram_quantile(0.99, sum by (node, le) (rate(pinwarden_agent_tick_seconds_bucket{_NODE}{RATE})))",
                            "{{node}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Status writes and failures",
                    "At most one write a second, and one in five minutes where nothing changes.",
                    (
                        Query(
                            f"sum by (node) (rate(pinwarden_agent_status_writes_total{_NODE}{RATE}))",
                            "{{node}} writes",
                        ),
                        Query(
                            f"sum by (node, operation) (rate(pinwarden_agent_failures_total{_NODE}{RATE})) > 0",
                            "{{node}} {{operation}} failed",
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Trouble",
                    "1 while a newer configuration cannot be read, and while a list of the report is cut.",
                    (
                        Query(_on_node("configuration_problem"), "{{node}} configuration"),
                        Query(_on_node("truncated"), "{{node}} truncated"),
                    ),
                ),
                Panel(
                    "Resident memory of the agent",
                    "Of its process.",
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
                    "Names: the operator's pinwarden_operator_pod_pinned_bytes, or kube_pod_info joined by uid.",
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
                    "Resident pages of groups that they have mapped.",
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
