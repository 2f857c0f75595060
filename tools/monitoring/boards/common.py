"""What several dashboards have in common: legends, caveats, and queries."""

from typing import Final

RATE: Final = "[$__rate_interval]"
LIMIT_LEGEND: Final = "{{kind}} {{resource_namespace}} {{limit}}"
GROUP_LEGEND: Final = "{{resource_namespace}}/{{group}}"
SAMPLED: Final = "Sampled, and as last reported: also by nodes whose agent is silent now."
LOWER: Final = "Sampled: a lower bound."
FAIR: Final = (
    "Pods that are attached to groups (M11): what the kernel charges them with, beside their own anonymous memory and what counts "
    "as theirs of their groups. Where the two differ, the kernel charges one pod for another's pages."
)
SPACE: Final = '{resource_namespace=~"$namespace"}'
NOT_TRUE: Final = '{resource_namespace=~"$namespace",status!="True"}'


def per_limit(metric: str, where: str = "") -> str:
    """A figure of each limit, under its own labels alone."""
    return f"max by (kind, resource_namespace, limit) (pinwarden_operator_limit_{metric}{where})"


def per_group(metric: str, where: str) -> str:
    """A figure of each group, under its own labels alone."""
    return f"max by (resource_namespace, group) (pinwarden_operator_group_{metric}{where})"
