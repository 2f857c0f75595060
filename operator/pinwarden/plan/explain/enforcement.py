"""How the pod is held: at which level, what was refused, what got past, and why it is not held better."""

from collections.abc import Iterable, Iterator
from typing import Final

from pinwarden.api.nodepinconfig import DenialReport
from pinwarden.api.pinlimit import ClusterPinLimit, Contention, Enforcement, Level, PinLimit
from pinwarden.api.reasons import ENDED, GATE_LOST, GATE_UNAVAILABLE, NO_PROCESSES, STARTING, UNREAD
from pinwarden.common.text import short
from pinwarden.plan.denials import describe_denial
from pinwarden.plan.explain.advice import (
    agent_log,
    display_name,
    gated,
    grant_ceiling,
    kubectl,
    patch,
    raise_to,
    replaced,
)
from pinwarden.plan.explain.evidence import Case
from pinwarden.plan.explain.findings import Cause, Finding, NextStep
from pinwarden.plan.explain.limits import denials, listed, overshoots, strictest, used
from pinwarden.plan.limit_compiler import Limit, effective_grant, limit_name
from pinwarden.plan.node_view import PodSample

_BY_CAPABILITY: Final = {"CapIPCLock": "CAP_IPC_LOCK", "CapSysResource": "CAP_SYS_RESOURCE"}
_UNKNOWN_PODS: Final = "unknownPods"
_LEAST_MARGIN: Final = 64 << 10


def denied_calls(case: Case) -> Iterator[Finding]:
    """Of calls that the gate refused: each limit once, with the last of them."""
    use = case.use
    seen: set[str] = set()
    for limit in case.matching:
        known = denials(case, limit)
        seen.update(each.uid for each in known)
        count = (use.denied(limit.metadata.uid or "") if use else None) or len(known)
        if not count:
            continue
        amount = limit.spec.limit.bytes
        now_used = (used(limit, use)[0] if use else None) or 0
        raised = 0 < _needed_then(known) <= amount and now_used <= amount
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
        step = _watch(case) if raised else raise_to(limit, max(_needed(case, limit), amount))
        yield Finding(cause=Cause.DENIED_BY_GATE, problem=not fits, message=f"{words}{last}{now}.", next=step)
    others = [each for each in listed(case) if each.uid not in seen]
    if others:
        yield _other_denial(case, others[-1].uid, describe_denial(others[-1], others[-1].name or "of none"))


def _needed_then(known: Iterable[DenialReport]) -> int:
    """Bytes in which each of these calls would have fitted; 0 where that is not known of any."""
    return max((each.used + each.asked for each in known if each.used is not None and each.asked), default=0)


def _needed(case: Case, limit: Limit) -> int:
    """Bytes in which each call would have fitted that is known to have been refused for the limit, and today's use fits."""
    now, _ = used(limit, case.use) if case.use else (None, None)
    return max(_needed_then(denials(case, limit)), now or 0)


def _other_denial(case: Case, uid: str, text: str) -> Finding:
    """Of a call that was refused for something else than a limit that holds now."""
    exact = [limit for limit in case.matching if limit.spec.minimum_level is Level.DENY]
    if uid == _UNKNOWN_PODS:
        step = NextStep(
            text="The node did not know the pod yet; see which limit it has for such pods (operator's --unknown-pods).",
            command=kubectl("get", "nodepinconfig", case.pod.node, "-o", "jsonpath={.spec.unknownPods}"),
        )
    elif not uid and exact:
        step = NextStep(
            text="Calls after which a pod cannot be held exactly are refused under minimumLevel: Deny; let them through.",
            command=patch(exact[0], {"minimumLevel": "Converge"}),
        )
    else:
        step = NextStep(
            text="The limit behind it does not hold for the pod now, or is gone; see its Events.",
            command=kubectl("events", "--for", f"pod/{case.pod.name}", namespace=case.pod.namespace),
        )
    return Finding(
        cause=Cause.DENIED_BY_GATE, problem=True, message=f"The gate refused a call: {text}.", next=step
    )


def level(case: Case) -> Iterator[Finding]:
    """Of the level that the pod is reported at; nothing while its agent is silent or has not reported it.

    The level is of the limits that the agent took. So the pod is said to be held where it is to all enforced limits that match, and else
    to which of them; nothing where it took none (H1).
    """
    use, enforced = case.use, _enforced(case)
    if case.view.silent or not case.matching:
        return
    if use is None:
        yield from _unreported(case)
        return
    if use.reason == GATE_LOST:
        yield Finding(
            cause=Cause.GATE_LOST,
            problem=True,
            message=f"The gate has lost the pod: {use.message or 'its pinning calls end with ENOSYS'}. Only a new pod can be held again.",
            next=replaced(case.evidence, "To have it held again"),
        )
    elif use.reason in (NO_PROCESSES, ENDED):
        yield _deserted(case, use)
    elif not enforced:
        return
    elif use.reason == STARTING:
        yield _not_started(
            case,
            f"A process starts in the pod, and until it has, the pod is not known to be held: {use.message}.",
        )
    elif use.reason == UNREAD:
        yield _not_started(
            case,
            f"The pod's processes are being looked at, and until that is done, it is not known to be held: {use.message}.",
        )
    elif use.level is Level.OBSERVE:
        yield _not_enforceable(case, use)
    elif not any(map(case.acknowledges, enforced)):
        return
    elif use.level is not Level.DENY:
        yield from _by_rlimit(case, use)
    elif all(map(case.acknowledges, enforced)):
        yield Finding(
            cause=Cause.HELD_EXACTLY,
            problem=False,
            message=f"The seccomp gate holds the pod exactly: a call that would pass the limit fails{_remark(use)}.",
            next=_watch(case),
        )
    else:
        yield _in_part(case, f"The seccomp gate holds the pod exactly{_remark(use)}")


def amounts(case: Case) -> Iterator[Finding]:
    """Of use above a limit, and of grants."""
    for limit in case.matching:
        share = case.shares[limit_name(limit)]
        if share.over and not share.silent:
            yield _over(case, limit)
        if limit.spec.grant:
            yield from _grant(case, limit)
    for shot in overshoots(case):
        limit = next(each for each in case.matching if each.metadata.uid == shot.limit)
        step = gated(case.evidence, "To have it held exactly")
        if case.use and case.use.level is Level.DENY:
            if (share := case.shares[limit_name(limit)]).over and not share.silent:
                continue  # no race did it, and why it is over is told
            step = _watch(case)
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


def _enforced(case: Case) -> list[Limit]:
    return [limit for limit in case.matching if limit.spec.enforcement is Enforcement.ENFORCE]


def _watch(case: Case) -> NextStep:
    return NextStep(
        text="Nothing needs to be done; watch its use.",
        command=kubectl("pinwarden", "top", "-n", case.pod.namespace),
    )


def _remark(use: PodSample) -> str:
    return f" ({use.message})" if use.message else ""


def _unreported(case: Case) -> Iterator[Finding]:
    pod = case.pod
    if not pod.started:
        yield _not_started(
            case,
            "No container of the pod has started; it is held from its first instruction with the gate's profile, and else from "
            "when the agent sees it.",
        )
    elif all(map(case.acknowledges, case.matching)):
        yield Finding(
            cause=Cause.NOT_REPORTED,
            problem=True,
            message=f"Its containers have started, but the agent of node {pod.node} has not reported the pod.",
            next=NextStep(text="See what the agent says.", command=agent_log(case.evidence)),
        )


def _not_started(case: Case, what: str) -> Finding:
    pod = case.pod
    return Finding(
        cause=Cause.NOT_STARTED,
        problem=False,
        message=what,
        next=NextStep(
            text="See what it waits for, and look again in some seconds.",
            command=kubectl("describe", "pod", pod.name, namespace=pod.namespace),
        ),
    )


def _deserted(case: Case, use: PodSample) -> Finding:
    """Of a pod in whose cgroup no process is."""
    if use.reason == ENDED or not case.pod.running:
        return _not_started(case, f"Nothing of the pod runs: {use.message}.")
    return Finding(
        cause=Cause.NOT_ENFORCEABLE,
        problem=True,
        message=f"The pod's containers run, and nobody counts or holds what they pin: {use.message}.",
        next=NextStep(
            text="Compare the kubelet's cgroupDriver with SystemdCgroup of the runtime, also of the pod's RuntimeClass.",
            command=kubectl("get", "--raw", f"/api/v1/nodes/{case.pod.node}/proxy/configz"),
        ),
    )


def _not_enforceable(case: Case, use: PodSample) -> Finding:
    why = f"{use.reason or 'no reason is given'}{': ' + use.message if use.message else ''}"
    message = f"The pod's use is counted, and nothing refuses what would pass its limit ({why})"
    if capability := _BY_CAPABILITY.get(use.reason):
        message += f". The kernel does not hold a process that can have {capability} to RLIMIT_MEMLOCK; the seccomp gate can hold it"
        step = gated(case.evidence, "To have it held")
    elif use.reason == GATE_UNAVAILABLE:
        step = NextStep(
            text="See what the node can hold, and why not more.",
            command=kubectl("pinwarden", "probe", case.pod.node, "-o", "wide"),
        )
    else:
        step = NextStep(text="See what the agent says.", command=agent_log(case.evidence))
    return Finding(cause=Cause.NOT_ENFORCEABLE, problem=True, message=f"{message}.", next=step)


def _in_part(case: Case, how: str) -> Finding:
    enforced = _enforced(case)
    held = ", ".join(display_name(limit) for limit in enforced if case.acknowledges(limit))
    others = ", ".join(display_name(limit) for limit in enforced if not case.acknowledges(limit))
    return Finding(
        cause=Cause.HELD_IN_PART,
        problem=True,
        message=f"{how}, but to {held} only: not, as far as is known, to {others}.",
        next=NextStep(
            text="What those wait for is a finding of its own; see what the node is told to hold.",
            command=kubectl("get", "nodepinconfig", case.pod.node, "-o", "yaml"),
        ),
    )


def _by_rlimit(case: Case, use: PodSample) -> Iterator[Finding]:
    level = "; ".join(filter(None, (f"level {use.level}", use.message)))
    by = f"The pod is held by RLIMIT_MEMLOCK, which the agent deals to its processes ({level})"
    unseen = (
        "The kernel itself refuses what does not fit (ENOMEM, or EAGAIN from mmap), and nobody sees or counts that"
        f"{_of_its_user(case)}"
    )
    asking = [limit for limit in _enforced(case) if limit.spec.minimum_level.rank < use.level.rank]
    if asking:
        names = ", ".join(
            f"{display_name(limit)} (minimumLevel: {limit.spec.minimum_level})" for limit in asking
        )
        yield Finding(
            cause=Cause.LEVEL_TOO_LOW,
            problem=True,
            message=f"{by}, and {names} asks for more.",
            next=_exactly(case, use),
        )
    limit = strictest(case)
    near = limit is not None and _is_near(use.peak, limit)
    if limit and near:
        yield _at_limit(limit, use, by, unseen)
    if not all(map(case.acknowledges, _enforced(case))):
        yield _in_part(case, by)
    elif not asking and not near:
        given = ". A limit raises nothing above what the runtime gave (often 8Mi) unless it is a grant"
        granted = any(each.spec.grant for each in case.matching)
        yield Finding(
            cause=Cause.HELD_BY_RLIMIT,
            problem=False,
            message=f"{by}. {unseen}{'' if granted else given}.",
            next=_exactly(case, use),
        )


def _of_its_user(case: Case) -> str:
    """That other pods may use up what io_uring allows, of a pod for which a driver or io_uring has pinned something."""
    if case.report is None or not case.report.vm_pin:
        return ""
    return (
        ". Of io_uring's buffers it compares the sum of the user id on the node: pods with the same uid use up each other's, and "
        "hostUsers: false gives the pod a user of its own"
    )


def _at_limit(limit: Limit, use: PodSample, by: str, unseen: str) -> Finding:
    amount = limit.spec.limit.bytes
    left = "nothing is left" if use.pinned >= amount else f"{short(amount - use.pinned)} are left now"
    return Finding(
        cause=Cause.AT_LIMIT,
        problem=True,
        message=f"{by}, and its use came up to {short(use.peak)} of {limit.spec.limit} ({display_name(limit)}); {left}. {unseen}.",
        next=raise_to(limit, max(use.peak, amount)),
    )


def _exactly(case: Case, use: PodSample) -> NextStep:
    """What has a pod held exactly that is not: the gate's profile, or, where it has that, no calls that loosen it."""
    if use.denials is None:
        return gated(case.evidence, "To have it held exactly, and refusals explained")
    enforced = _enforced(case)
    if any(limit.spec.minimum_level is Level.DENY for limit in enforced):
        return replaced(
            case.evidence, "A call loosened the pod before it was forbidden. To have it held exactly again"
        )
    return NextStep(
        text="The gate holds the pod, and a call loosened it. To have such calls refused, in pods that are made from now on, ask for Deny.",
        command=patch(enforced[0], {"minimumLevel": "Deny"}),
    )


def _is_near(peak: int, limit: Limit) -> bool:
    """Whether so little was left that an ordinary call may not have fitted."""
    amount = limit.spec.limit.bytes
    return amount > 0 and peak + max(_LEAST_MARGIN, amount // 16) > amount


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
                    "exec", case.pod.name, "--", "sh", "-c", "ulimit -l", namespace=case.pod.namespace
                ),
            ),
        )


def _grant_limited(case: Case, limit: PinLimit, reached: int) -> Finding:
    """Of a grant that the administrator does not let through, or not so far (P14)."""
    wanted = str(limit.spec.limit)
    giving = max(
        (each for each in case.matching if isinstance(each, ClusterPinLimit) and each.spec.max_grant),
        key=lambda each: (each.spec.limit.bytes, each.metadata.name),
        default=None,
    )
    if giving is None:
        step = NextStep(
            text="An administrator lets it through by a ClusterPinLimit with maxGrant, such as this one for these pods.",
            command=grant_ceiling(limit, wanted),
        )
    else:
        change = {"maxGrant": wanted}
        if giving.spec.limit.bytes < limit.spec.limit.bytes:
            change["limit"] = wanted
        step = NextStep(
            text=f"An administrator lets it through by {display_name(giving)}.", command=patch(giving, change)
        )
    lets = f"lets {short(reached)} of it through" if reached else "lets none of it through"
    return Finding(
        cause=Cause.GRANT_LIMITED,
        problem=True,
        message=f"{display_name(limit)} is a grant of {wanted}, and the maxGrant of the matching ClusterPinLimits {lets}; "
        "above that, the limit that the runtime gave stays.",
        next=step,
    )
