"""Which limit says nothing new beside another one (P13).

Limit A *implies* limit B for a pod that both hold for when keeping A keeps B: the same scope and counting, A's amount not above B's, and
A sums over everything that B sums over (sources and, with scope Container, containers). A must be enforced: an audit limit holds nothing
back, so it implies nothing. Where B gives (a grant, P14) or lets others give (`maxGrant`), A must give as much; where B asks for more than
the amount (a stronger `minimumLevel`, `contention: Reserve`, `onOvershoot: Kill`), A must ask for it too.

This is told in status only. Every limit is compiled and held, overridden or not.
"""

from collections.abc import Collection, Sequence

from pinwarden.api.pinlimit import ClusterPinLimit, Contention, Enforcement, OnOvershoot, PinLimitSpec, Scope
from pinwarden.plan.limit_compiler import Limit, effective_grant, limit_name


def implies(strong: Limit, weak: Limit, matching: Sequence[Limit]) -> bool:
    """Whether `strong` implies `weak` for a pod that exactly the `matching` limits hold for, both among them.

    With scope Node the sums are over pods, so the answer is for one pod and means something only when it is the same for all of them.
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
        and _gives_as_much(strong, weak, matching)
    )


def overriding(limit: Limit, combinations: Collection[Sequence[Limit]]) -> frozenset[str]:
    """The limits that override `limit`, empty where it adds something for some pod, or holds for none.

    `combinations` are the distinct sets of limits that hold for its pods, `limit` among each. Of two limits that imply each other the one
    whose name sorts first stands. With scope Node one and the same limit must imply it for every pod; else each pod may have its own.
    """
    found = [
        {limit_name(other) for other in combination if _overrides(other, limit, combination)}
        for combination in combinations
    ]
    if not found or not all(found):
        return frozenset()
    common = frozenset.intersection(*map(frozenset, found))
    by_node = isinstance(limit, ClusterPinLimit) and limit.spec.scope is Scope.NODE
    if common or by_node:
        return common
    return frozenset().union(*found)


def _overrides(other: Limit, limit: Limit, combination: Sequence[Limit]) -> bool:
    if other is limit or not implies(other, limit, combination):
        return False
    return not implies(limit, other, combination) or limit_name(other) < limit_name(limit)


def _covers(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    """Whether one selection takes in the other, where empty means everything."""
    return not wide or (bool(narrow) and set(narrow) <= set(wide))


def _gives_as_much(strong: Limit, weak: Limit, matching: Sequence[Limit]) -> bool:
    """Whether `weak` raises nothing that `strong` does not: no grant passes `strong`'s own limit."""
    raised = min(effective_grant(weak, matching) or 0, strong.spec.limit.bytes)
    if raised > (effective_grant(strong, matching) or 0):
        return False
    return _max_grant(weak) <= _max_grant(strong)


def _max_grant(limit: Limit) -> int:
    if isinstance(limit, ClusterPinLimit) and limit.spec.max_grant is not None:
        return limit.spec.max_grant.bytes
    return 0
