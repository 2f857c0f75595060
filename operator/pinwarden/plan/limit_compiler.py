"""Compile limits into the constraints that a node enforces on a pod.

Every matching limit is a constraint on a pod, and all constraints apply at once (P13). No
limit is left out because another limit looks stricter.

A grant is bounded by its own limit, and by the largest `maxGrant` of the ClusterPinLimits that
match the same pod. Without such a `maxGrant`, the grant of a namespace raises nothing (P14). The
grant of a ClusterPinLimit needs no `maxGrant`. The granted amount depends on the pod. So the spec
has a limit once for each amount, which is a suffix of the name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pinwarden import SYSTEM_NAMESPACE
from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.api.pinlimit import ClusterPinLimit, Counting, OnOvershoot, PinLimit, Scope, Source
from pinwarden.api.quantity import MAX_BYTES
from pinwarden.plan.conditions import Rejection, selects_nothing
from pinwarden.plan.selectors import named_values, selects
from pinwarden.plan.types import NAME_LABEL, Namespace, Node, Pod

Limit = PinLimit | ClusterPinLimit

MAX_POD_LIMITS = 32


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """LimitSettings of the operator.

    A ClusterPinLimit reaches an `exempt` namespace only by name. `unknown_pods` is the limit in
    bytes for pods unknown to their node, None for no limit. `watched` are the only namespaces whose
    pods the operator sees, None for all.
    """

    exempt: frozenset[str] = frozenset({"kube-system", SYSTEM_NAMESPACE})
    unknown_pods: int | None = None
    watched: frozenset[str] | None = None


def rejection(limit: Limit) -> Rejection | None:
    """Return an invalid or unsupported field of `limit`, None if there is none."""
    if limit.spec.counting is Counting.ONCE_PER_POD:
        return Rejection(
            "NotSupported", "spec.counting: OncePerPod needs a ledger per page; use EveryPin"
        )
    if limit.spec.on_overshoot is OnOvershoot.KILL:
        return Rejection(
            "NotSupported", "spec.onOvershoot: Kill needs a gate in the kernel; use Report"
        )
    if limit.spec.grant and limit.spec.sources and set(limit.spec.sources) != set(Source):
        return Rejection(
            "NotSupported",
            "spec.sources: RLIMIT_MEMLOCK covers all sources, so a grant for some would raise all; "
            "remove sources",
        )
    if problem := _selects_nothing(limit):
        return problem
    amounts = {"limit": limit.spec.limit}
    if isinstance(limit, ClusterPinLimit) and limit.spec.max_grant is not None:
        amounts["maxGrant"] = limit.spec.max_grant
    for field, amount in amounts.items():
        try:
            if amount.bytes > MAX_BYTES:
                return Rejection("Invalid", f"spec.{field}: {amount} is above the maximum of 4Pi")
        except ValueError as error:
            return Rejection("Invalid", f"spec.{field}: {error}")
    return None


def _selects_nothing(limit: Limit) -> Rejection | None:
    selectors = {"podSelector": limit.spec.pod_selector}
    if isinstance(limit, ClusterPinLimit):
        selectors |= {
            "namespaceSelector": limit.spec.namespace_selector,
            "nodeSelector": limit.spec.node_selector,
        }
    problems = (selects_nothing(field, selector) for field, selector in selectors.items())
    return next((problem for problem in problems if problem), None)


def limit_name(limit: Limit) -> str:
    """Return `namespace/name` of a PinLimit, or `name` of a ClusterPinLimit."""
    if isinstance(limit, PinLimit):
        return f"{limit.metadata.namespace}/{limit.metadata.name}"
    return limit.metadata.name


def matches(
    limit: Limit, pod: Pod, namespace: Namespace, node: Node, settings: LimitSettings
) -> bool:
    """Return whether `limit` applies to `pod` in `namespace` on `node`."""
    return (
        not (pod.windows or node.windows)
        and selects(limit.spec.pod_selector, pod.labels)
        and reaches_namespace(limit, namespace, settings)
        and reaches_node(limit, node)
    )


def reaches_namespace(limit: Limit, namespace: Namespace, settings: LimitSettings) -> bool:
    """Return whether `limit` can apply to pods of `namespace`.

    A ClusterPinLimit reaches an exempt namespace only by name.
    """
    if isinstance(limit, PinLimit):
        return limit.metadata.namespace == namespace.name
    selector = limit.spec.namespace_selector
    if namespace.name in settings.exempt and named_values(selector, NAME_LABEL) is None:
        return False
    return selects(selector, {**namespace.labels, NAME_LABEL: namespace.name})


def reaches_node(limit: Limit, node: Node) -> bool:
    """Return whether `limit` can apply to pods of `node`."""
    return isinstance(limit, PinLimit) or selects(limit.spec.node_selector, node.labels)


@dataclass(frozen=True)
class LimitSet:
    """The constraints of a pod by name. `by_container`: a limit has scope Container."""

    limits: Mapping[str, NodeLimit]
    by_container: bool

    @cached_property
    def size(self) -> int:
        """The approximate bytes of the limits' names as JSON in the entry of a pod."""
        return sum(len(name) + 3 for name in self.limits)

    @classmethod
    def of(cls, matching: Sequence[Limit]) -> "LimitSet":
        """Compile the `matching` limits; the amount of a grant depends on all of them (P14)."""
        first = sorted(matching, key=lambda limit: (isinstance(limit, PinLimit), limit_name(limit)))
        limits = [
            node_limit(limit, effective_grant(limit, matching)) for limit in first[:MAX_POD_LIMITS]
        ]
        return cls(
            {limit.name: limit for limit in sorted(limits, key=lambda limit: limit.name)},
            any(limit.scope is Scope.CONTAINER for limit in limits),
        )

    @classmethod
    def union(cls, limit_sets: Iterable["LimitSet"]) -> "LimitSet":
        """Return the limits of a contested cgroup: the limits of all its pods, without grants."""
        limit_sets = list(limit_sets)
        limits = {
            limit.name: limit
            for limit_set in limit_sets
            for limit in map(_without_grant, limit_set.limits.values())
        }
        first = sorted(limits, key=lambda name: ("/" in name, name))[:MAX_POD_LIMITS]
        by_container = any(limit_set.by_container for limit_set in limit_sets)
        return cls({name: limits[name] for name in sorted(first)}, by_container)


def _without_grant(limit: NodeLimit) -> NodeLimit:
    """Return the same constraint with a grant of 0, and with the name of such a constraint."""
    if limit.grant in (None, 0):
        return limit
    return NodeLimit(**dict(limit) | {"name": f"{limit.name.partition('@')[0]}@0", "grant": 0})


def effective_grant(limit: Limit, matching: Sequence[Limit]) -> int | None:
    """Return the bytes granted to a pod of the `matching` limits, None if `limit` is no grant."""
    if not limit.spec.grant:
        return None
    if isinstance(limit, ClusterPinLimit):
        return limit.spec.limit.bytes
    ceilings = [
        other.spec.max_grant.bytes
        for other in matching
        if isinstance(other, ClusterPinLimit) and other.spec.max_grant is not None
    ]
    return min(limit.spec.limit.bytes, max(ceilings, default=0))


def node_limit(limit: Limit, grant: int | None) -> NodeLimit:
    """Return `limit` in the agent's form, with the granted amount."""
    spec = limit.spec
    name = limit_name(limit)
    return NodeLimit(
        name=name if grant is None or grant == spec.limit.bytes else f"{name}@{grant}",
        uid=limit.metadata.uid or "",
        scope=spec.scope,
        limit=spec.limit.bytes,
        containers=sorted(spec.containers),
        counting=spec.counting,
        sources=sorted(spec.sources),
        enforcement=spec.enforcement,
        minimum_level=spec.minimum_level,
        contention=spec.contention,
        grant=grant,
    )
