"""Why a pod is held as it is, and what to do next: a pure function from what the API server has to findings.

From the bottom up: `findings` is what an answer is made of, `evidence` what is known and what the operator's rules make of it, `advice`
the commands; `nearest` and `limits` compare limits; `selection`, `node`, `holding` and `groups` follow a limit from its selector to the
call that it refuses, each with the findings of its stretch.
"""

from collections.abc import Iterator

from pinwarden.api.nodepinconfig import PodReport, SourceLevel
from pinwarden.api.pinlimit import Level, Source
from pinwarden.plan.denials import describe_denial
from pinwarden.plan.explain import enforcement, groups, limits, matching, propagation
from pinwarden.plan.explain.advice import display_name, kubectl
from pinwarden.plan.explain.evidence import Case, Evidence, NodeAgent
from pinwarden.plan.explain.findings import (
    Cause,
    DeniedCall,
    Explanation,
    Finding,
    GroupUse,
    LimitUse,
    NextStep,
    PodUse,
    Standing,
)

__all__ = [
    "Cause",
    "DeniedCall",
    "Evidence",
    "Explanation",
    "Finding",
    "GroupUse",
    "LimitUse",
    "NextStep",
    "NodeAgent",
    "PodUse",
    "Standing",
    "explain",
]


def explain(evidence: Evidence) -> Explanation:
    """What holds for the pod, what it uses, and the findings, the most important one first."""
    case = Case(evidence)
    found = sorted(_findings(case), key=lambda finding: (not finding.problem, finding.cause.rank))
    return Explanation(
        namespace=case.pod.namespace,
        pod=case.pod.name,
        uid=case.pod.uid,
        node=case.pod.node or None,
        findings=found or [_counted(case)],
        use=_use(case),
        limits=list(limits.uses(case)),
        sources=_sources(case),
        refused=_denied_calls(case),
        overshoots=list(limits.overshoots(case)),
        groups=list(groups.uses(case)),
    )


def _findings(case: Case) -> Iterator[Finding]:
    yield from matching.placing(case)
    if case.windows:
        return
    yield from matching.selecting(case)
    yield from matching.standing(case)
    if case.pod.terminal or not case.pod.node:
        return
    concerned = case.matching or any(group.has_member(case.pod.labels) for group in case.evidence.groups)
    if concerned:
        yield from propagation.reaching(case)
    if case.evidence.node is not None:
        yield from propagation.taking(case)
        yield from enforcement.level(case)
        yield from enforcement.denied_calls(case)
        yield from enforcement.amounts(case)
        yield from groups.findings(case)


def _counted(case: Case) -> Finding:
    """Where nothing else is to say: limits hold, as far as they ask for."""
    return Finding(
        cause=Cause.COUNTED,
        problem=False,
        message="The pod's use is counted, as its limits ask for.",
        next=NextStep(text="Watch its use.", command=kubectl("pinwarden", "top", "-n", case.pod.namespace)),
    )


def _use(case: Case) -> PodUse | None:
    report, status = case.report, case.evidence.config.status if case.evidence.config else None
    if report is None or status is None:
        return None
    silent = case.view.silent
    return PodUse(
        locked=report.vm_lck,
        pinned=report.vm_pin,
        total=report.vm_lck + report.vm_pin,
        peak=report.peak,
        processes=report.processes,
        level=None if silent else report.level,
        reason="AgentSilent" if silent else report.reason,
        message="" if silent else report.message,
        denials=None if report.denials is None else sum(each.count for each in report.denials),
        sampled_at=status.sampled_at,
        stale=case.stale,
    )


def _sources(case: Case) -> list[SourceLevel]:
    """The level of the pod for each source; none without a report of the pod: what nodes reach in an ordinary pod is `probe`'s to tell."""
    report = case.report
    if report is None or case.view.silent:
        return []
    return [
        _source(each, report)
        for each in sorted(case.view.sources, key=lambda each: list(Source).index(each.source))
    ]


def _source(node: SourceLevel, pod: PodReport) -> SourceLevel:
    """A source in this pod: the weaker of what the node reaches for it and how the pod is held.

    A pod is held exactly while it uses nothing but mlock and its like. A call of another source loosens it to what the node reaches.
    """
    if pod.level is Level.DENY and node.source is not Source.MLOCK:
        loosens = "; a call of it takes the pod from Deny to this" if node.counted else ""
        return node.model_copy(update={"message": f"{node.message}{loosens}".removeprefix("; ")})
    if pod.level is Level.DENY or (node.counted and pod.level.rank >= node.level.rank):
        return node.model_copy(update={"level": pod.level, "reason": pod.reason})
    return node


def _denied_calls(case: Case) -> list[DeniedCall]:
    """The refusals that are known, newest first: those that the node lists, and older ones that Events tell."""
    names = {limit.metadata.uid: display_name(limit) for limit in case.selecting}
    known = [
        DeniedCall(time=each.time, text=describe_denial(each, names.get(each.uid, each.name or "of none")))
        for each in limits.listed(case)
    ]
    first = min((each.time for each in known), default=None)
    earlier = [each for each in case.evidence.events if first is None or each.time < first]
    return sorted([*known, *earlier], key=lambda each: each.time, reverse=True)
