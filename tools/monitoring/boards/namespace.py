"""The dashboard of a namespace: what its pods pin, and what they are held to."""

from typing import Final

from monitoring.boards.common import (
    FAIR,
    GROUP_LEGEND,
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
    description="What the pods of a namespace pin, what they are held to, what they are refused, and what they share.",
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
                            f"max by (resource_namespace) (pinwarden_operator_namespace_pinned_bytes{SPACE})",
                            "{{resource_namespace}}",
                        ),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Governed pods by level",
                    "Deny refuses exactly, Converge may overshoot for a moment, Observe only counts; Unknown where the agent is "
                    "silent (H1).",
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
                    "A limit holds for each pod, or in its scope; pinned is over all pods that match. The recommended limit is what "
                    "the observed use "
                    f"would have fitted in. {LOWER}",
                    (
                        Query(per_limit("bytes", SPACE), "may pin", "bytes"),
                        Query(per_limit("pods", SPACE), "pods"),
                        Query(per_limit("pinned_bytes", SPACE), "pinned", "bytes"),
                        Query(per_limit("recommended_bytes", SPACE), "recommended", "bytes"),
                        Query(per_limit("overshoots_total", SPACE), "overshoots"),
                        Query(per_limit("denials_total", SPACE), "refused"),
                    ),
                    "table",
                    width=24,
                ),
                Panel(
                    "Pinned by limit",
                    f"Over all pods that match it. {SAMPLED}",
                    (Query(per_limit("pinned_bytes", SPACE), LIMIT_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "Refused by limit",
                    "Refused by seccomp gates; what the kernel itself refuses is not seen.",
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
                    "The most that was seen above a limit",
                    f"Over overshoots of pods that are there. {LOWER}",
                    (Query(per_limit("overshoot_peak_bytes", SPACE), LIMIT_LEGEND),),
                    unit="bytes",
                ),
                Panel(
                    "Conditions that are not True",
                    "Of limits; an audit is Enforced=False by intent. Enforced=Unknown also where no pod matches.",
                    (
                        Query(
                            f"max by (kind, resource_namespace, limit, condition, status) (pinwarden_operator_limit_condition{NOT_TRUE})"
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
                    "What their objects hold, over all nodes. Sampled.",
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
