"""Findings about matching: whether the pod is on a node, and which limits match it."""

from collections.abc import Iterator

from pinwarden.api.pinlimit import ClusterPinLimit, Enforcement, PinLimit
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.explain.advice import display_name, first_limit, kubectl, kubectl_step, patch
from pinwarden.plan.explain.evidence import Case
from pinwarden.plan.explain.findings import Cause, Finding, NextStep, problem, remark
from pinwarden.plan.explain.limits import overridden, strictest
from pinwarden.plan.explain.nearest import NearMiss, nearest
from pinwarden.plan.limit_compiler import Limit, LimitSettings, limit_name, matches
from pinwarden.plan.types import Node

_SUPPORTED = {"counting": "EveryPin", "onOvershoot": "Report", "sources": None}


def placing(case: Case) -> Iterator[Finding]:
    """Yield why no limit can apply to the pod: it has ended, is unscheduled, or is for Windows."""
    pod = case.pod
    if pod.terminal:
        yield remark(
            Cause.POD_ENDED,
            "All containers of the pod have ended, so no limit applies any more.",
            kubectl_step(
                "Delete the pod when its log is no longer needed.",
                "delete pod",
                pod.name,
                namespace=pod.namespace,
            ),
        )
    elif not pod.node:
        yield problem(
            Cause.NOT_SCHEDULED,
            "The pod has no node yet. Its limits apply once it is scheduled; limits with a "
            "nodeSelector are not evaluated yet.",
            kubectl_step(
                "See why the pod is not scheduled.",
                "describe pod",
                pod.name,
                namespace=pod.namespace,
            ),
        )
    elif case.windows:
        yield remark(
            Cause.ON_WINDOWS,
            "The pod is for Windows, where no agent runs, so no limit or group applies.",
            kubectl_step(
                "See the operating system of its node.", "get node", pod.node, "-o", "wide"
            ),
        )


def selecting(case: Case) -> Iterator[Finding]:
    """Yield rejected and unreadable limits, or a finding without a matching limit."""
    for limit in case.selecting:
        if rejection := case.rejected.get(limit_name(limit)):
            yield _rejected(limit, rejection)
    for name, error in sorted(case.evidence.unreadable.items()):
        yield remark(
            Cause.LIMIT_NOT_UNDERSTOOD,
            f"{name} is of another version of pinwarden, so its effect is unknown: {error}.",
            kubectl_step(
                "Use a kubectl-pinwarden of the operator's version.",
                "get deployment pinwarden-operator -o",
                "jsonpath={.spec.template.spec.containers[0].image}",
                namespace=case.evidence.system,
            ),
        )
    if exempt := _exempt(case):
        yield exempt
    elif not case.matching:
        yield _unlimited(case)


def standing(case: Case) -> Iterator[Finding]:
    """Yield findings about Audit limits and redundant limits."""
    if case.matching and all(
        limit.spec.enforcement is Enforcement.AUDIT for limit in case.matching
    ):
        limit = case.matching[0]
        yield remark(
            Cause.AUDIT,
            f"Only Audit limits match ({', '.join(map(display_name, case.matching))}), "
            "which deny nothing.",
            NextStep(
                text="Enforce the limit if its figures are as expected.",
                command=patch(limit, {"enforcement": "Enforce"}),
            ),
        )
    yield from _overridden(case)


def _overridden(case: Case) -> Iterator[Finding]:
    """Yield a finding for each redundant limit, except Audit limits and ceilings above a limit."""
    first = strictest(case)
    by_name = {limit_name(limit): limit for limit in case.matching}
    for name, others in sorted(overridden(case).items()):
        limit, other = by_name[name], first if first in others else others[0]
        if (
            other is None
            or limit.spec.enforcement is Enforcement.AUDIT
            or (isinstance(limit, ClusterPinLimit) and isinstance(other, PinLimit))
        ):
            continue
        yield remark(
            Cause.OVERRIDDEN,
            f"{display_name(limit)} ({limit.spec.limit}) is redundant: "
            f"{display_name(other)} ({other.spec.limit}) is reached first.",
            NextStep(
                text=f"For more than {other.spec.limit}, {_author(other)} must raise "
                f"{display_name(other)}.",
                command=patch(other, {"limit": str(limit.spec.limit)}),
            ),
        )


def _author(limit: Limit) -> str:
    return (
        "a user with rights on the namespace" if isinstance(limit, PinLimit) else "an administrator"
    )


def _rejected(limit: Limit, rejection: Rejection) -> Finding:
    field = rejection.message.removeprefix("spec.").partition(":")[0]
    if field in _SUPPORTED:
        step = NextStep(
            text=f"Change spec.{field}.", command=patch(limit, {field: _SUPPORTED[field]})
        )
    else:
        kind = "pinlimit" if isinstance(limit, PinLimit) else "clusterpinlimit"
        command = kubectl("edit", kind, limit.metadata.name, namespace=limit.metadata.namespace)
        step = NextStep(text=f"Correct spec.{field}.", command=command)
    return problem(
        Cause.LIMIT_REJECTED,
        f"{display_name(limit)} matches, but is rejected ({rejection.reason}): "
        f"{rejection.message}.",
        step,
    )


def _exempt(case: Case) -> Finding | None:
    evidence = case.evidence
    if evidence.pod.namespace not in evidence.settings.exempt:
        return None
    node, everywhere = evidence.node or Node(case.pod.node), LimitSettings(exempt=frozenset())
    reached = [
        limit
        for limit in evidence.limits
        if matches(limit, case.pod, evidence.namespace, node, everywhere)
        and limit not in case.selecting
    ]
    if not reached and case.matching:
        return None
    names = ", ".join(map(display_name, reached))
    besides = f"; {names} would match otherwise" if names else ""
    return remark(
        Cause.EXEMPT_NAMESPACE,
        f"Namespace {case.pod.namespace} is exempt: a ClusterPinLimit reaches the "
        f"namespace only by name{besides}.",
        first_limit(case.pod),
    )


def _unlimited(case: Case) -> Finding:
    """Return the finding without a matching limit: the nearest limit, and the smallest change."""
    near = nearest(case.evidence)
    message, step = (
        "No limit applies to the pod.",
        first_limit(case.pod),
    )
    if near is not None:
        message = (
            f"No limit matches the pod. The nearest is {display_name(near.limit)}: "
            f"{'; '.join(near.differences)}."
        )
        step = _to_match(case, near) or step
    return Finding(cause=Cause.NO_LIMIT, problem=not case.rejected, message=message, next=step)


def _to_match(case: Case, near: NearMiss) -> NextStep | None:
    """Return how to make the nearest limit match by a label, None if impossible."""
    pod, limit = case.pod, near.limit
    if not near.labels:
        return None
    if not near.labels.keys() & pod.labels.keys():
        labels = [f"{key}={value}" for key, value in sorted(near.labels.items())]
        return kubectl_step(
            f"To apply {display_name(limit)}, label the pod and its template.",
            "label pod",
            pod.name,
            *labels,
            namespace=pod.namespace,
        )
    if (
        limit.status is not None
        and limit.status.matched_pods == 0
        and near.labels.keys() <= pod.labels.keys()
    ):
        own = {key: pod.labels[key] for key in sorted(near.labels)}
        return NextStep(
            text=f"{display_name(limit)} matches no pod at all. If it is meant for this pod, "
            "correct its podSelector.",
            command=patch(limit, {"podSelector": {"matchLabels": own}}),
        )
    return None
