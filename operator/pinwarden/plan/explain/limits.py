"""Compare the limits of a pod: the strictest, the redundant ones, and the denials of each."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from pinwarden.api.nodepinconfig import DenialReport, OvershootReport
from pinwarden.api.pinlimit import ClusterPinLimit, Enforcement, Scope
from pinwarden.plan.explain.advice import display_name
from pinwarden.plan.explain.evidence import Case
from pinwarden.plan.explain.findings import LimitUse, Standing
from pinwarden.plan.limit_compiler import Limit, effective_grant, limit_name
from pinwarden.plan.limit_overrides import overriding
from pinwarden.plan.node_view import PodSample


def strictest(case: Case) -> Limit | None:
    """Return the acknowledged limit with the least amount and scope Pod, None if there is none."""
    acknowledged = [
        limit
        for limit in case.matching
        if limit.spec.enforcement is Enforcement.ENFORCE
        and limit.spec.scope is Scope.POD
        and case.acknowledges(limit)
    ]
    return min(
        acknowledged, key=lambda limit: (limit.spec.limit.bytes, limit_name(limit)), default=None
    )


def overridden(case: Case) -> Mapping[str, Sequence[Limit]]:
    """Return redundant limits by name, each with the acknowledged limits that imply it (P13)."""
    by_name = {limit_name(limit): limit for limit in case.matching}
    implying = {
        name: overriding(limit, [case.matching]) & case.acknowledged
        for name, limit in by_name.items()
    }
    return {
        name: [by_name[other] for other in sorted(others)]
        for name, others in implying.items()
        if others
    }


def uses(case: Case) -> Iterator[LimitUse]:
    """Yield a row for each limit, the strictest first."""
    first, implied = strictest(case), overridden(case)
    name_of_first = limit_name(first) if first else None

    def order(limit: Limit) -> tuple[bool, bool, str]:
        name = limit_name(limit)
        return name != name_of_first, name in case.rejected or name in implied, name

    for limit in sorted(case.selecting, key=order):
        yield _use(case, limit, first, implied.get(limit_name(limit), ()))


def denials(case: Case, limit: Limit) -> Sequence[DenialReport]:
    """Return the listed denials of this limit for the pod, oldest first."""
    return [denial for denial in listed(case) if denial.uid == limit.metadata.uid]


def listed(case: Case) -> Sequence[DenialReport]:
    """Return the listed denials of the pod."""
    status = case.evidence.config.status if case.evidence.config else None
    return [
        denial
        for denial in (status.recent_denials if status else ())
        if denial.pod == case.pod.cgroup_uid
    ]


def overshoots(case: Case) -> Sequence[OvershootReport]:
    """Return the overshoots of the pod's limits, also of limits on the whole node."""
    uids = {limit.metadata.uid for limit in case.matching}
    return [
        overshoot
        for overshoot in case.view.overshoots
        if overshoot.limit in uids and overshoot.pod in (None, case.pod.cgroup_uid)
    ]


def used(limit: Limit, use: PodSample) -> tuple[int | None, int | None]:
    """Return use and peak in the limit's scope in bytes, None if other pods count too."""
    if isinstance(limit, ClusterPinLimit) and limit.spec.scope is Scope.NODE:
        return None, None
    if limit.spec.scope is Scope.POD:
        return use.pinned, use.peak
    selected = limit.spec.containers
    own = [
        container for name, container in use.containers.items() if not selected or name in selected
    ]
    return max((container.pinned for container in own), default=None), max(
        (container.peak for container in own), default=None
    )


def _use(case: Case, limit: Limit, first: Limit | None, implied_by: Sequence[Limit]) -> LimitUse:
    spec, name = limit.spec, limit_name(limit)
    row = partial(
        LimitUse,
        kind=type(limit).__name__,
        name=name,
        scope=Scope(spec.scope),
        enforcement=spec.enforcement,
        minimum_level=spec.minimum_level,
    )
    if rejection := case.rejected.get(name):
        return row(limit=None, standing=Standing.REJECTED, because=rejection.message)
    standing, because = _standing(case, limit, first, implied_by)
    share, use = case.shares[name], case.use
    now, peak = used(limit, use) if use else (None, None)
    return row(
        limit=spec.limit.bytes,
        grant=effective_grant(limit, case.matching),
        standing=standing,
        because=because,
        used=now,
        peak=peak,
        denials=share.denials,
        acknowledged=None if share.silent else case.acknowledges(limit),
    )


def _standing(
    case: Case, limit: Limit, first: Limit | None, implied_by: Sequence[Limit]
) -> tuple[Standing, str]:
    if limit.spec.enforcement is Enforcement.AUDIT:
        return Standing.AUDIT, "the limit denies nothing"
    if implied_by:
        return Standing.OVERRIDDEN, f"redundant beside {', '.join(map(display_name, implied_by))}"
    if not case.acknowledges(limit):
        return Standing.PENDING, "not acknowledged by an agent yet"
    if limit is first:
        return Standing.STRICTEST, "reached first by the pod as a whole"
    if limit.spec.scope is Scope.POD and first is not None:
        same = first.spec.limit.bytes == limit.spec.limit.bytes
        return (
            Standing.HOLDS,
            f"{display_name(first)} is reached {'at the same amount' if same else 'first'}",
        )
    return Standing.HOLDS, "the limit has another scope"
