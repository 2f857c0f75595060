"""The dashboard of shared memory: groups, who borrows, and what nobody uses."""

from typing import Final

from monitoring.boards.common import FAIR, GROUP_LEGEND, NOT_TRUE, RATE, SPACE, per_group
from monitoring.grafana import Dashboard, Panel, Query, Row, Variable

SHARED: Final = Dashboard(
    name="shared-memory",
    title="Pinwarden / Shared memory",
    description="What groups of shared memory hold, who borrows, what nobody uses, and what is refused.",
    variables=(
        Variable("namespace", "Namespace", "pinwarden_operator_group_info", "resource_namespace"),
    ),
    rows=(
        Row(
            "Groups",
            (
                Panel(
                    "Groups",
                    "Figures are sampled. A borrow of a page by two pods counts twice. Empty where it is not known (H2).",
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
                    "What the objects of a group hold, over all nodes, whoever wrote it (M3).",
                    (Query(per_group("charge_bytes", SPACE), GROUP_LEGEND),),
                    unit="bytes",
                    stacked=True,
                ),
                Panel(
                    "Fullest instance, of its capacity",
                    "On the node where the object holds most. Objects of which pinwarden takes all pages at once are always full.",
                    (
                        Query(
                            f"{per_group('fullest_bytes', SPACE)} / {per_group('capacity_bytes', SPACE)}",
                            GROUP_LEGEND,
                        ),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    "Borrowed",
                    "Resident pages that pods have mapped, added up over pods: a page that two pods have mapped counts twice.",
                    (Query(per_group("borrowed_bytes", SPACE), GROUP_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "Orphaned",
                    "What no pod has mapped of the charge (M9).",
                    (Query(per_group("orphaned_bytes", SPACE), GROUP_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "On dead cgroups",
                    "What the kernel charges to pods that are gone (M9); told on cgroup v2 for tmpfs, file and posixShm.",
                    (Query(per_group("dead_cgroup_bytes", SPACE), GROUP_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "Refused mappings",
                    "Refused by seccomp gates to strangers, past a borrowLimit, or while the group drains.",
                    (
                        Query(
                            f"sum by (resource_namespace, group) (rate(pinwarden_operator_group_denials_total{SPACE}{RATE}))",
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
                    "The worst phase of a group's instances.",
                    (
                        Query(
                            f"sum by (phase) (pinwarden_operator_group_phase{SPACE})", "{{phase}}"
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Conditions that are not True",
                    "The message of the condition says who and why.",
                    (
                        Query(
                            f"max by (resource_namespace, group, condition, status) (pinwarden_operator_group_condition{NOT_TRUE})"
                        ),
                    ),
                    "table",
                    width=24,
                ),
            ),
        ),
    ),
)
