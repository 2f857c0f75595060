"""Find redundant limits (P13).

Limit A *implies* limit B for a pod of both, if a pod within A is always within B. So A and B have
the same scope and counting, and the amount of A is not above B's. A counts all sources and
containers of B. A is enforced, because an Audit limit denies nothing. If B grants (P14), or allows
grants (`maxGrant`), A grants or allows as much. If B asks for more than the amount (`minimumLevel`,
`contention: Reserve`, `onOvershoot: Kill`), so does A.

Only the status shows redundancy. Redundant limits are compiled and enforced as all others.
"""

from collections.abc import Collection, Sequence

from pinwarden.api.pinlimit import (
    ClusterPinLimit,
    Contention,
    Enforcement,
    OnOvershoot,
    PinLimitSpec,
    Scope,
)
from pinwarden.plan.limit_compiler import Limit, effective_grant, limit_name


def implies(strong: Limit, weak: Limit, matching: Sequence[Limit]) -> bool:
    """Return whether `strong` implies `weak` for a pod with exactly these `matching` limits.

    With scope Node, limits sum over pods, so only an answer for all pods matters.
    """
    a: PinLimitSpec = strong.spec
    b: PinLimitSpec = weak.spec
    return (
        a.enforcement is Enforcement.ENFORCE
        and (a.scope, a.counting) == (b.scope, b.counting)
        and a.limit.bytes <= b.limit.bytes
        and _covers(a.sources, b.sources)
        and _covers(a.containers, b.containers)
        and a.minimum_level.rank <= b.minimum_level.rank
        and (a.contention is Contention.RESERVE or b.contention is Contention.SHARE)
        and (a.on_overshoot is OnOvershoot.KILL or b.on_overshoot is OnOvershoot.REPORT)
        and _grants_as_much(strong, weak, matching)
    )


def overriding(limit: Limit, combinations: Collection[Sequence[Limit]]) -> frozenset[str]:
    """Return the limits that make `limit` redundant, empty if `limit` matters or has no pod.

    `combinations` are the distinct sets of limits of its pods; each contains `limit`. If two limits
    imply each other, the limit with the later name is redundant. With scope Node, the same limit
    must imply `limit` for every pod.
    """
    by_combination = [
        {limit_name(other) for other in combination if _overrides(other, limit, combination)}
        for combination in combinations
    ]
    if not by_combination or not all(by_combination):
        return frozenset()
    common = frozenset.intersection(*map(frozenset, by_combination))
    by_node = isinstance(limit, ClusterPinLimit) and limit.spec.scope is Scope.NODE
    if common or by_node:
        return common
    return frozenset().union(*by_combination)


def _overrides(other: Limit, limit: Limit, combination: Sequence[Limit]) -> bool:
    if other is limit or not implies(other, limit, combination):
        return False
    return not implies(limit, other, combination) or limit_name(other) < limit_name(limit)


def _covers(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    """Return whether `wide` includes `narrow`, where an empty list means everything."""
    return not wide or (bool(narrow) and set(narrow) <= set(wide))


def _grants_as_much(strong: Limit, weak: Limit, matching: Sequence[Limit]) -> bool:
    """Return whether `strong` grants as much as `weak`; its own limit bounds each grant."""
    raised = min(effective_grant(weak, matching) or 0, strong.spec.limit.bytes)
    if raised > (effective_grant(strong, matching) or 0):
        return False
    return _max_grant(weak) <= _max_grant(strong)


def _max_grant(limit: Limit) -> int:
    if isinstance(limit, ClusterPinLimit) and limit.spec.max_grant is not None:
        return limit.spec.max_grant.bytes
    return 0
