"""Findings about enforcement: the level of the pod, and why it is not better."""

from collections.abc import Iterator
from typing import Final

from pinwarden.api.pinlimit import Enforcement, Level
from pinwarden.api.reasons import (
    ENDED,
    GATE_LOST,
    GATE_UNAVAILABLE,
    NO_PROCESSES,
    RESTART_GATES,
    STARTING,
    UNREAD,
)
from pinwarden.common.text import short
from pinwarden.plan.explain.advice import (
    agent_log,
    display_name,
    kubectl_step,
    patch,
    raise_to,
    recreate,
    recreate_gated,
    watch,
)
from pinwarden.plan.explain.evidence import Case
from pinwarden.plan.explain.findings import Cause, Finding, NextStep, problem, remark
from pinwarden.plan.explain.limits import strictest
from pinwarden.plan.limit_compiler import Limit
from pinwarden.plan.node_view import PodSample

_BY_CAPABILITY: Final = {"CapIPCLock": "CAP_IPC_LOCK", "CapSysResource": "CAP_SYS_RESOURCE"}
_LEAST_MARGIN: Final = 64 << 10


def level(case: Case) -> Iterator[Finding]:
    """Yield the level of the pod; nothing while its agent is silent or has not reported it.

    The level is about the acknowledged limits. If only some enforced limits of the pod are
    acknowledged, the finding names them. Without an acknowledged limit, there is no finding (H1).
    """
    use, enforced = case.use, _enforced(case)
    if case.view.silent or not case.matching:
        return
    if use is None:
        yield from _unreported(case)
        return
    if use.reason == GATE_LOST:
        yield problem(
            Cause.GATE_LOST,
            "The gate has lost the pod: "
            f"{use.message or 'its pinning calls fail with ENOSYS'}. Only a new pod can be limited "
            "again.",
            recreate(case.evidence, "To limit the workload again"),
        )
    elif use.reason in (NO_PROCESSES, ENDED):
        yield _without_processes(case, use)
    elif not enforced:
        return
    elif use.reason == STARTING:
        yield _not_started(
            case, f"A process starts in the pod, so the level is not known yet: {use.message}."
        )
    elif use.reason == UNREAD:
        yield _not_started(
            case,
            f"The agent reads the pod's processes, so the level is not known yet: {use.message}.",
        )
    elif use.level is Level.OBSERVE:
        yield _not_enforceable(case, use)
    elif not any(map(case.acknowledges, enforced)):
        return
    elif use.level is not Level.DENY:
        yield from _by_rlimit(case, use)
    elif all(map(case.acknowledges, enforced)):
        yield remark(
            Cause.HELD_EXACTLY,
            f"The seccomp gate limits the pod exactly: a call above the limit fails{_remark(use)}.",
            watch(case.pod),
        )
    else:
        yield _held_in_part(case, f"The seccomp gate limits the pod exactly{_remark(use)}")


def _enforced(case: Case) -> list[Limit]:
    return [limit for limit in case.matching if limit.spec.enforcement is Enforcement.ENFORCE]


def _remark(use: PodSample) -> str:
    return f" ({use.message})" if use.message else ""


def _unreported(case: Case) -> Iterator[Finding]:
    pod = case.pod
    if not pod.started:
        yield _not_started(
            case,
            "No container of the pod has started. The pod is limited from its first instruction "
            "with the gate's profile, and without the profile once the agent finds its processes.",
        )
    elif all(map(case.acknowledges, case.matching)):
        yield problem(
            Cause.NOT_REPORTED,
            f"Containers have started, but the agent of node {pod.node} has not reported the pod.",
            NextStep(text="See the log of the agent.", command=agent_log(case.evidence)),
        )


def _not_started(case: Case, message: str) -> Finding:
    pod = case.pod
    return remark(
        Cause.NOT_STARTED,
        message,
        kubectl_step(
            "See what the pod waits for, and try again in some seconds.",
            "describe pod",
            pod.name,
            namespace=pod.namespace,
        ),
    )


def _without_processes(case: Case, use: PodSample) -> Finding:
    """Return the finding of a cgroup without processes."""
    if use.reason == ENDED or not case.pod.running:
        return _not_started(case, f"No process of the pod runs: {use.message}.")
    return problem(
        Cause.NOT_ENFORCEABLE,
        f"The pod's containers run, but are neither counted nor limited: {use.message}.",
        kubectl_step(
            "Compare the kubelet's cgroupDriver with SystemdCgroup of the runtime, also of "
            "the pod's RuntimeClass.",
            "get --raw",
            f"/api/v1/nodes/{case.pod.node}/proxy/configz",
        ),
    )


def _not_enforceable(case: Case, use: PodSample) -> Finding:
    why = f"{use.reason or 'unknown reason'}{': ' + use.message if use.message else ''}"
    message = f"The pod's use is counted, but no call above its limit is denied ({why})"
    if capability := _BY_CAPABILITY.get(use.reason):
        message += (
            f". The kernel does not apply RLIMIT_MEMLOCK to a process that can have {capability}, "
            "but the seccomp gate can limit the pod"
        )
        step = _to_gate(case, use, "To limit the pod")
    elif use.reason == GATE_UNAVAILABLE:
        step = kubectl_step(
            "See the levels of the node and their reasons.",
            "pinwarden probe",
            case.pod.node,
            "-o",
            "wide",
        )
    else:
        step = NextStep(text="See the log of the agent.", command=agent_log(case.evidence))
    return problem(Cause.NOT_ENFORCEABLE, f"{message}.", step)


def _held_in_part(case: Case, how: str) -> Finding:
    enforced = _enforced(case)
    applied = ", ".join(display_name(limit) for limit in enforced if case.acknowledges(limit))
    others = ", ".join(display_name(limit) for limit in enforced if not case.acknowledges(limit))
    return problem(
        Cause.HELD_IN_PART,
        f"{how}, but only for {applied}. Not known to be enforced: {others}.",
        kubectl_step(
            "See the findings of the other limits, and the spec of the node.",
            "get nodepinconfig",
            case.pod.node,
            "-o",
            "yaml",
        ),
    )


def _by_rlimit(case: Case, use: PodSample) -> Iterator[Finding]:
    level = "; ".join(filter(None, (f"level {use.level}", use.message)))
    by = f"RLIMIT_MEMLOCK limits the pod ({level})"
    unseen = (
        "The kernel itself denies calls above the limit (ENOMEM, or EAGAIN from mmap), and these "
        f"denials are not counted{_shared_by_user(case)}"
    )
    asking = [limit for limit in _enforced(case) if limit.spec.minimum_level.rank < use.level.rank]
    if asking:
        names = ", ".join(
            f"{display_name(limit)} (minimumLevel: {limit.spec.minimum_level})" for limit in asking
        )
        yield problem(
            Cause.LEVEL_TOO_LOW,
            f"{by}, but a higher level is required by {names}.",
            _to_hold_exactly(case, use),
        )
    limit = strictest(case)
    near = limit is not None and _is_near(use.peak, limit)
    if limit and near:
        yield _at_limit(limit, use, by, unseen)
    if not all(map(case.acknowledges, _enforced(case))):
        yield _held_in_part(case, by)
    elif not asking and not near:
        only_grants = ". Only a grant raises the runtime's own limit (often 8Mi)"
        granted = any(matching.spec.grant for matching in case.matching)
        yield remark(
            Cause.HELD_BY_RLIMIT,
            f"{by}. {unseen}{'' if granted else only_grants}.",
            _to_hold_exactly(case, use),
        )


def _shared_by_user(case: Case) -> str:
    """Return a remark about the shared allowance of io_uring; empty if the pod has no `VmPin`."""
    if case.report is None or not case.report.vm_pin:
        return ""
    return (
        ". For buffers of io_uring, the kernel sums over the user id on the node: pods with the "
        "same uid share one allowance, and hostUsers: false separates the pod"
    )


def _at_limit(limit: Limit, use: PodSample, by: str, unseen: str) -> Finding:
    amount = limit.spec.limit.bytes
    left = (
        "nothing is left" if use.pinned >= amount else f"{short(amount - use.pinned)} are left now"
    )
    return problem(
        Cause.AT_LIMIT,
        f"{by}, and its use reached {short(use.peak)} of {limit.spec.limit} "
        f"({display_name(limit)}); {left}. {unseen}.",
        raise_to(limit, max(use.peak, amount)),
    )


def _to_hold_exactly(case: Case, use: PodSample) -> NextStep:
    """Return how to limit the pod exactly: with the gate, or without loosening calls."""
    if use.denials is None or RESTART_GATES in use.message:
        return _to_gate(case, use, "To limit the pod exactly and to see denied calls")
    enforced = _enforced(case)
    if any(limit.spec.minimum_level is Level.DENY for limit in enforced):
        return recreate(
            case.evidence, "A call loosened the pod earlier. To limit the pod exactly again"
        )
    return NextStep(
        text="A call loosened the gated pod. To deny such calls in new pods, set minimumLevel: "
        "Deny.",
        command=patch(enforced[0], {"minimumLevel": "Deny"}),
    )


def _to_gate(case: Case, use: PodSample, why: str) -> NextStep:
    """Return how to gate the pod: unchanged if its node gates new containers, else by profile."""
    if RESTART_GATES in use.message:
        return recreate(case.evidence, f"The node gates new containers. {why}")
    return recreate_gated(case.evidence, why)


def _is_near(peak: int, limit: Limit) -> bool:
    """Return whether so little is left that an ordinary call may be denied."""
    amount = limit.spec.limit.bytes
    return amount > 0 and peak + max(_LEAST_MARGIN, amount // 16) > amount
