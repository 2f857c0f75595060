"""The dashboard of a namespace: pinned memory of its pods, and their limits."""

from typing import Final

from monitoring.boards.common import (
    FAIR,
    GROUP_LEGEND,
    LEVELS,
    LIMIT_LEGEND,
    LOWER,
    NOT_TRUE,
    RATE,
    SAMPLED,
    SPACE,
    per_group,
    per_limit,
)
from monitoring.grafana import Dashboard, Panel, Query, Row, Variable

NAMESPACE: Final = Dashboard(
    name="namespace",
    title="Pinwarden / Namespace",
    description="Pinned memory, limits, denials and shared memory of the pods of a namespace.",
    variables=(
        Variable(
            "namespace", "Namespace", "pinwarden_operator_namespace_pods", "resource_namespace"
        ),
    ),
    rows=(
        Row(
            "Pinned memory",
            (
                Panel(
                    "Pinned by governed pods",
                    SAMPLED,
                    (
                        Query(
                            "max by (resource_namespace) "
                            f"(pinwarden_operator_namespace_pinned_bytes{SPACE})",
                            "{{resource_namespace}}",
                        ),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Governed pods by level",
                    LEVELS,
                    (
                        Query(
                            f"sum by (level) (pinwarden_operator_namespace_pods{SPACE})",
                            "{{level}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Limits",
                    "A limit applies to each pod, or to its scope; pinned is the sum of matching "
                    "pods. "
                    f"The recommended limit is enough for the observed use. {LOWER}",
                    (
                        Query(per_limit("bytes", SPACE), "may pin", "bytes"),
                        Query(per_limit("pods", SPACE), "pods"),
                        Query(per_limit("pinned_bytes", SPACE), "pinned", "bytes"),
                        Query(per_limit("recommended_bytes", SPACE), "recommended", "bytes"),
                        Query(per_limit("overshoots_total", SPACE), "overshoots"),
                        Query(per_limit("denials_total", SPACE), "denied"),
                    ),
                    "table",
                    width=24,
                ),
                Panel(
                    "Pinned by limit",
                    f"The sum of all matching pods. {SAMPLED}",
                    (Query(per_limit("pinned_bytes", SPACE), LIMIT_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "Denied by limit",
                    "Denied by seccomp gates; denials by the kernel itself are not counted.",
                    (
                        Query(
                            "sum by (kind, resource_namespace, limit) "
                            f"(rate(pinwarden_operator_limit_denials_total{SPACE}{RATE}))",
                            LIMIT_LEGEND,
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Largest overshoot of a limit",
                    f"Of pods that still exist. {LOWER}",
                    (Query(per_limit("overshoot_peak_bytes", SPACE), LIMIT_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "Conditions that are not True",
                    "Of limits; an audit is always Enforced=False. Enforced=Unknown also if no pod "
                    "matches.",
                    (
                        Query(
                            "max by (kind, resource_namespace, limit, condition, status) "
                            f"(pinwarden_operator_limit_condition{NOT_TRUE})"
                        ),
                    ),
                    "table",
                ),
            ),
        ),
        Row(
            "Shared memory",
            (
                Panel(
                    "Charge of groups",
                    "Memory of their objects on all nodes. Sampled.",
                    (Query(per_group("charge_bytes", SPACE), GROUP_LEGEND),),
                    unit="bytes",
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
            ),
        ),
    ),
)
