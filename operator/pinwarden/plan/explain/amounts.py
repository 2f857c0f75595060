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
    kubectl,
    patch,
    raise_to,
    recreate_gated,
    watch,
)
from pinwarden.plan.explain.evidence import Case
from pinwarden.plan.explain.findings import Cause, Finding, NextStep
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
        words = (
            f"The gate refused {'a call' if count == 1 else f'{count} calls'} for {display_name(limit)} "
            f"({limit.spec.limit}{' now' if was_other else ''})"
        )
        last = f"; the last one: {describe_denial(known[-1], display_name(limit))}" if known else ""
        now = ""
        if raised and not fits:
            now = ". The limit was raised since: the call will fit once the node's agent has taken that"
        elif fits:
            again = now_used + (known[-1].asked or 0) <= amount
            now = f". The limit was raised since{': the call would fit now' if again else ', above what was needed then'}"
        step = watch(case.pod) if raised else raise_to(limit, max(_needed(case, limit), amount))
        yield Finding(
            cause=Cause.DENIED_BY_GATE, problem=not fits, message=f"{words}{last}{now}.", next=step
        )
    others = [denial for denial in listed(case) if denial.uid not in seen]
    if others:
        yield _other_denial(
            case, others[-1].uid, describe_denial(others[-1], others[-1].name or "of none")
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
        step = NextStep(
            text="The node did not know the pod yet; see which limit it has for such pods (operator's --unknown-pods).",
            command=kubectl(
                "get", "nodepinconfig", case.pod.node, "-o", "jsonpath={.spec.unknownPods}"
            ),
        )
    elif not uid and exact:
        step = NextStep(
            text="Calls after which a pod cannot be held exactly are refused under minimumLevel: Deny; let them through.",
            command=patch(exact[0], {"minimumLevel": "Converge"}),
        )
    else:
        step = NextStep(
            text="The limit behind it does not hold for the pod now, or is gone; see its Events.",
            command=kubectl(
                "events", "--for", f"pod/{case.pod.name}", namespace=case.pod.namespace
            ),
        )
    return Finding(
        cause=Cause.DENIED_BY_GATE,
        problem=True,
        message=f"The gate refused a call: {text}.",
        next=step,
    )


def use_and_grants(case: Case) -> Iterator[Finding]:
    """Yield use above a limit, overshoots and grants."""
    for limit in case.matching:
        share = case.shares[limit_name(limit)]
        if share.over and not share.silent:
            yield _over(case, limit)
        if limit.spec.grant:
            yield from _grant(case, limit)
    for shot in overshoots(case):
        limit = next(matching for matching in case.matching if matching.metadata.uid == shot.limit)
        step = recreate_gated(case.evidence, "To have it held exactly")
        if case.use and case.use.level is Level.DENY:
            if (share := case.shares[limit_name(limit)]).over and not share.silent:
                continue  # the finding about use above the limit says why
            step = watch(case.pod)
        elif limit.spec.contention is Contention.SHARE:
            step = NextStep(
                text="Divide what is left among the processes, so that they cannot race; some are then refused early.",
                command=patch(limit, {"contention": "Reserve"}),
            )
        yield Finding(
            cause=Cause.OVERSHOT,
            problem=False,
            message=f"Use was seen above {display_name(limit)} {shot.count} time(s), last at {shot.last_time:%Y-%m-%dT%H:%M:%SZ}: "
            f"{short(shot.peak)} over for {shot.seconds:g} s at worst (a lower bound). "
            "A race passed it, or it was lowered below its use for a while.",
            next=step,
        )


def _over(case: Case, limit: Limit) -> Finding:
    use = case.use
    now, _ = used(limit, use) if use else (None, None)
    exact = use is not None and use.level is Level.DENY
    whence = (
        "the limit was lowered below its use, or came later"
        if exact
        else "the limit was lowered below its use or came later, or a race passed it"
    )
    what = "Nothing is evicted; new pins are refused until its use is below"
    if limit.spec.enforcement is Enforcement.AUDIT:
        what = "It is an Audit limit and refuses nothing"
    elif not case.acknowledges(limit) or (use is not None and use.level is Level.OBSERVE):
        what = "Nothing is evicted, and nothing is known to refuse new pins for it"
    return Finding(
        cause=Cause.OVER_LIMIT,
        problem=True,
        message=f"{'The node' if now is None else short(now)} is above {display_name(limit)} ({limit.spec.limit}): {whence}. {what}.",
        next=raise_to(limit, max(_needed(case, limit), limit.spec.limit.bytes)),
    )


def _grant(case: Case, limit: Limit) -> Iterator[Finding]:
    reached = effective_grant(limit, case.matching) or 0
    if isinstance(limit, PinLimit) and reached < limit.spec.limit.bytes:
        yield _grant_limited(case, limit, reached)
    elif case.acknowledges(limit):
        yield Finding(
            cause=Cause.GRANTED,
            problem=False,
            message=f"{display_name(limit)} is a grant: what the runtime gave the processes is raised up to {limit.spec.limit}.",
            next=NextStep(
                text="See what a process may lock now, in KiB.",
                command=kubectl(
                    "exec",
                    case.pod.name,
                    "--",
                    "sh",
                    "-c",
                    "ulimit -l",
                    namespace=case.pod.namespace,
                ),
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
            text="An administrator lets it through by a ClusterPinLimit with maxGrant, such as this one for these pods.",
            command=grant_ceiling(limit, wanted),
        )
    else:
        change = {"maxGrant": wanted}
        if granting.spec.limit.bytes < limit.spec.limit.bytes:
            change["limit"] = wanted
        step = NextStep(
            text=f"An administrator lets it through by {display_name(granting)}.",
            command=patch(granting, change),
        )
    lets = f"lets {short(reached)} of it through" if reached else "lets none of it through"
    return Finding(
        cause=Cause.GRANT_LIMITED,
        problem=True,
        message=f"{display_name(limit)} is a grant of {wanted}, and the maxGrant of the matching ClusterPinLimits {lets}; "
        "above that, the limit that the runtime gave stays.",
        next=step,
    )
