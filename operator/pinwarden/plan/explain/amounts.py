"""Findings about amounts: denied calls, use above a limit, overshoots and grants."""

from collections.abc import Iterable, Iterator
from typing import Final

from pinwarden.api.nodepinconfig import DenialReport
from pinwarden.api.pinlimit import ClusterPinLimit, Contention, Enforcement, Level, PinLimit
from pinwarden.common.text import short
from pinwarden.plan.denials import describe_denial
from pinwarden.plan.explain.advice import (
    display_name,
    grant_ceiling,
    kubectl_step,
    patch,
    raise_to,
    recreate_gated,
    watch,
)
from pinwarden.plan.explain.evidence import Case
from pinwarden.plan.explain.findings import Cause, Finding, NextStep, problem, remark
from pinwarden.plan.explain.limits import denials, listed, overshoots, used
from pinwarden.plan.limit_compiler import Limit, effective_grant, limit_name

_UNKNOWN_PODS: Final = "unknownPods"


def denied_calls(case: Case) -> Iterator[Finding]:
    """Yield the denials of each limit once, with the last denied call."""
    use = case.use
    seen: set[str] = set()
    for limit in case.matching:
        known = denials(case, limit)
        seen.update(denial.uid for denial in known)
        count = (use.denied(limit.metadata.uid or "") if use else None) or len(known)
        if not count:
            continue
        amount = limit.spec.limit.bytes
        now_used = (used(limit, use)[0] if use else None) or 0
        raised = 0 < _would_have_allowed(known) <= amount and now_used <= amount
        fits = raised and case.acknowledges(limit)
        was_other = bool(known) and known[-1].limit not in (None, amount)
        calls = (
            f"The gate denied {'a call' if count == 1 else f'{count} calls'} for "
            f"{display_name(limit)} ({limit.spec.limit}{' now' if was_other else ''})"
        )
        last = (
            f"; the last call: {describe_denial(known[-1], display_name(limit))}" if known else ""
        )
        now = ""
        if raised and not fits:
            now = (
                ". The limit was raised since: the call will fit once the node's agent "
                "acknowledges the new limit"
            )
        elif fits:
            again = now_used + (known[-1].asked or 0) <= amount
            fit = ": the call would fit now" if again else ", above what was needed then"
            now = f". The limit was raised since{fit}"
        step = watch(case.pod) if raised else raise_to(limit, max(_needed(case, limit), amount))
        yield Finding(
            cause=Cause.DENIED_BY_GATE, problem=not fits, message=f"{calls}{last}{now}.", next=step
        )
    others = [denial for denial in listed(case) if denial.uid not in seen]
    if others:
        yield _other_denial(
            case, others[-1].uid, describe_denial(others[-1], others[-1].name or "unknown")
        )


def _would_have_allowed(known: Iterable[DenialReport]) -> int:
    """Return the smallest limit that would have allowed all these calls; 0 if unknown."""
    return max(
        (
            denial.used + denial.asked
            for denial in known
            if denial.used is not None and denial.asked
        ),
        default=0,
    )


def _needed(case: Case, limit: Limit) -> int:
    """Return the smallest limit for today's use and all known denied calls."""
    now, _ = used(limit, case.use) if case.use else (None, None)
    return max(_would_have_allowed(denials(case, limit)), now or 0)


def _other_denial(case: Case, uid: str, text: str) -> Finding:
    """Return the denial of a call for another reason than a matching limit."""
    exact = [limit for limit in case.matching if limit.spec.minimum_level is Level.DENY]
    if uid == _UNKNOWN_PODS:
        step = kubectl_step(
            "The node did not know the pod yet. See its limit for unknown pods "
            "(--unknown-pods of the operator).",
            "get nodepinconfig",
            case.pod.node,
            "-o",
            "jsonpath={.spec.unknownPods}",
        )
    elif not uid and exact:
        step = NextStep(
            text="minimumLevel: Deny denies calls that loosen the pod. To allow such calls, use "
            "Converge.",
            command=patch(exact[0], {"minimumLevel": "Converge"}),
        )
    else:
        step = kubectl_step(
            "The limit of the denial does not apply to the pod any more. See the pod's Events.",
            "events --for",
            f"pod/{case.pod.name}",
            namespace=case.pod.namespace,
        )
    return problem(Cause.DENIED_BY_GATE, f"The gate denied a call: {text}.", step)


def use_and_grants(case: Case) -> Iterator[Finding]:
    """Yield use above a limit, overshoots and grants."""
    by_uid = {limit.metadata.uid: limit for limit in case.matching}
    for limit in case.matching:
        share = case.shares[limit_name(limit)]
        if share.over and not share.silent:
            yield _over(case, limit)
        if limit.spec.grant:
            yield from _grant(case, limit)
    for overshoot in overshoots(case):
        limit = by_uid[overshoot.limit]
        step = recreate_gated(case.evidence, "To limit the pod exactly")
        if case.use and case.use.level is Level.DENY:
            if (share := case.shares[limit_name(limit)]).over and not share.silent:
                continue  # the finding about use above the limit says why
            step = watch(case.pod)
        elif limit.spec.contention is Contention.SHARE:
            step = NextStep(
                text="Divide the allowance among the processes, so they cannot race; some calls "
                "are then denied early.",
                command=patch(limit, {"contention": "Reserve"}),
            )
        yield remark(
            Cause.OVERSHOT,
            f"Use exceeded {display_name(limit)} {overshoot.count} time(s), last at "
            f"{overshoot.last_time:%Y-%m-%dT%H:%M:%SZ}: {short(overshoot.peak)} over for "
            f"{overshoot.seconds:g} s at worst (a lower bound). The cause was a race, or a "
            "lowered limit.",
            step,
        )


def _over(case: Case, limit: Limit) -> Finding:
    use = case.use
    now, _ = used(limit, use) if use else (None, None)
    exact = use is not None and use.level is Level.DENY
    cause = (
        "the limit was lowered below its use, or came later"
        if exact
        else "the limit was lowered below its use or came later, or a race exceeded the limit"
    )
    effect = "Nothing is evicted; new pins are denied until the use is below the limit"
    if limit.spec.enforcement is Enforcement.AUDIT:
        effect = "An Audit limit denies nothing"
    elif not case.acknowledges(limit) or (use is not None and use.level is Level.OBSERVE):
        effect = "Nothing is evicted, and nothing is known to deny new pins for the limit"
    return problem(
        Cause.OVER_LIMIT,
        f"{'The node' if now is None else short(now)} is above {display_name(limit)} "
        f"({limit.spec.limit}): {cause}. {effect}.",
        raise_to(limit, max(_needed(case, limit), limit.spec.limit.bytes)),
    )


def _grant(case: Case, limit: Limit) -> Iterator[Finding]:
    reached = effective_grant(limit, case.matching) or 0
    if isinstance(limit, PinLimit) and reached < limit.spec.limit.bytes:
        yield _grant_limited(case, limit, reached)
    elif case.acknowledges(limit):
        yield remark(
            Cause.GRANTED,
            f"{display_name(limit)} is a grant: the limit of the processes is raised up to "
            f"{limit.spec.limit}.",
            kubectl_step(
                "See the limit of a process in KiB.",
                "exec",
                case.pod.name,
                "--",
                "sh",
                "-c",
                "ulimit -l",
                namespace=case.pod.namespace,
            ),
        )


def _grant_limited(case: Case, limit: PinLimit, reached: int) -> Finding:
    """Return the finding of a grant above `maxGrant` (P14)."""
    wanted = str(limit.spec.limit)
    granting = max(
        (
            other
            for other in case.matching
            if isinstance(other, ClusterPinLimit) and other.spec.max_grant
        ),
        key=lambda other: (other.spec.limit.bytes, other.metadata.name),
        default=None,
    )
    if granting is None:
        step = NextStep(
            text="An administrator can allow the grant by a ClusterPinLimit with maxGrant, as in "
            "this command.",
            command=grant_ceiling(limit, wanted),
        )
    else:
        change = {"maxGrant": wanted}
        if granting.spec.limit.bytes < limit.spec.limit.bytes:
            change["limit"] = wanted
        step = NextStep(
            text=f"An administrator can allow the grant by {display_name(granting)}.",
            command=patch(granting, change),
        )
    allowed = short(reached) if reached else "nothing"
    return problem(
        Cause.GRANT_LIMITED,
        f"{display_name(limit)} is a grant of {wanted}, but the maxGrant of the matching "
        f"ClusterPinLimits allows {allowed}; beyond, the runtime's own limit stays.",
        step,
    )
