"""Legends, caveats and queries that several dashboards share."""

from typing import Final

RATE: Final = "[$__rate_interval]"
LIMIT_LEGEND: Final = "{{kind}} {{resource_namespace}} {{limit}}"
GROUP_LEGEND: Final = "{{resource_namespace}}/{{group}}"
SAMPLED: Final = "Sampled, as last reported; nodes with a silent agent are included."
LOWER: Final = "Sampled: a lower bound."
LEVELS: Final = (
    "Deny is exact, Converge may overshoot for a moment, Observe only counts; "
    "Unknown if the agent is silent (H1)."
)
FAIR: Final = (
    "Members of groups (M11): the kernel's charge, beside their own anonymous memory and their "
    "share of the groups. If the two differ, the kernel charges one pod for pages of another."
)
SPACE: Final = '{resource_namespace=~"$namespace"}'
NOT_TRUE: Final = '{resource_namespace=~"$namespace",status!="True"}'


def per_limit(metric: str, where: str = "") -> str:
    """Return the PromQL for a figure of each limit, with the limit's labels only."""
    return f"max by (kind, resource_namespace, limit) (pinwarden_operator_limit_{metric}{where})"


def per_group(metric: str, where: str) -> str:
    """Return the PromQL for a figure of each group, with the group's labels only."""
    return f"max by (resource_namespace, group) (pinwarden_operator_group_{metric}{where})"
