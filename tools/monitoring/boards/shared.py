"""The dashboard of shared memory: groups, borrowing pods, and unused memory."""

from typing import Final

from monitoring.boards.common import FAIR, GROUP_LEGEND, NOT_TRUE, RATE, SPACE, per_group
from monitoring.grafana import Dashboard, Panel, Query, Row, Variable

SHARED: Final = Dashboard(
    name="shared-memory",
    title="Pinwarden / Shared memory",
    description="Charge, borrows, orphaned memory and denials of groups of shared memory.",
    variables=(
        Variable("namespace", "Namespace", "pinwarden_operator_group_info", "resource_namespace"),
    ),
    rows=(
        Row(
            "Groups",
            (
                Panel(
                    "Groups",
                    "Sampled. A page that two pods borrow counts twice. Empty if unknown (H2).",
                    (
                        Query(per_group("capacity_bytes", SPACE), "capacity per node", "bytes"),
                        Query(per_group("charge_bytes", SPACE), "charge", "bytes"),
                        Query(per_group("borrowed_bytes", SPACE), "borrowed", "bytes"),
                        Query(per_group("orphaned_bytes", SPACE), "orphaned", "bytes"),
                        Query(per_group("dead_cgroup_bytes", SPACE), "on dead cgroups", "bytes"),
                        Query(per_group("pods", SPACE), "members"),
                        Query(per_group("borrowers", SPACE), "borrowers"),
                    ),
                    "table",
                    width=24,
                ),
                Panel(
                    "Charge",
                    "Memory of the objects of a group on all nodes, whichever pod wrote it (M3).",
                    (Query(per_group("charge_bytes", SPACE), GROUP_LEGEND),),
                    unit="bytes",
                    stacked=True,
                ),
                Panel(
                    "Fullest object, share of its capacity",
                    "On the node with the largest charge. Prefaulted objects are always full.",
                    (
                        Query(
                            f"{per_group('fullest_bytes', SPACE)} / "
                            f"{per_group('capacity_bytes', SPACE)}",
                            GROUP_LEGEND,
                        ),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    "Borrowed",
                    "Resident pages that pods have mapped: a page that two pods have mapped counts "
                    "twice.",
                    (Query(per_group("borrowed_bytes", SPACE), GROUP_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "Orphaned",
                    "The charge that no pod has mapped (M9).",
                    (Query(per_group("orphaned_bytes", SPACE), GROUP_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "On dead cgroups",
                    "Charged to cgroups of deleted pods (M9); on cgroup v2, for tmpfs, file and "
                    "posixShm.",
                    (Query(per_group("dead_cgroup_bytes", SPACE), GROUP_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "Denied mappings",
                    "Denied by seccomp gates: to pods that are no members, beyond a borrowLimit, "
                    "or while draining.",
                    (
                        Query(
                            "sum by (resource_namespace, group) "
                            f"(rate(pinwarden_operator_group_denials_total{SPACE}{RATE}))",
                            GROUP_LEGEND,
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Fair view",
                    FAIR,
                    (
                        Query(
                            f"sum by (part) (pinwarden_operator_namespace_fair_bytes{SPACE})",
                            "{{part}}",
                        ),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Groups by phase",
                    "The worst phase of a group's objects.",
                    (
                        Query(
                            f"sum by (phase) (pinwarden_operator_group_phase{SPACE})", "{{phase}}"
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Conditions that are not True",
                    "The message of the condition names pods and reasons.",
                    (
                        Query(
                            "max by (resource_namespace, group, condition, status) "
                            f"(pinwarden_operator_group_condition{NOT_TRUE})"
                        ),
                    ),
                    "table",
                    width=24,
                ),
            ),
        ),
    ),
)
