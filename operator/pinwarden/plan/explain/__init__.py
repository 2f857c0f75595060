"""Explain how and why a pod is limited: a pure function from API objects to findings.

`findings` defines the answer, `evidence` applies the operator's rules to the known objects, and
`advice` has the commands. `nearest` and `limits` compare limits. `matching`, `propagation`,
`enforcement`, `amounts` and `groups` follow a limit from its selector to the denied call, and yield
the findings of their stage.
"""

from collections.abc import Iterator

from pinwarden.api.nodepinconfig import PodReport, SourceLevel
from pinwarden.api.pinlimit import Level, Source
from pinwarden.api.reasons import SILENT
from pinwarden.plan.denials import describe_denial
from pinwarden.plan.explain import amounts, enforcement, groups, limits, matching, propagation
from pinwarden.plan.explain.advice import display_name, kubectl_step
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
    remark,
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
    """Return the limits and the use of the pod, and the findings, the most important first."""
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
    concerned = case.matching or any(
        group.has_member(case.pod.labels) for group in case.evidence.groups
    )
    if concerned:
        yield from propagation.reaching(case)
    if case.evidence.node is not None:
        yield from propagation.acknowledging(case)
        yield from enforcement.level(case)
        yield from amounts.denied_calls(case)
        yield from amounts.use_and_grants(case)
        yield from groups.findings(case)


def _counted(case: Case) -> Finding:
    """Return the finding for a pod without other findings."""
    return remark(
        Cause.COUNTED,
        "The pod's use is counted, as its limits require.",
        kubectl_step("Watch its use.", "pinwarden top -n", case.pod.namespace),
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
        reason=SILENT if silent else report.reason,
        message="" if silent else report.message,
        denials=None if report.denials is None else sum(denial.count for denial in report.denials),
        sampled_at=status.sampled_at,
        stale=case.stale,
    )


def _sources(case: Case) -> list[SourceLevel]:
    """Return the level of the pod for each source, empty without a report of the pod."""
    report = case.report
    if report is None or case.view.silent:
        return []
    return [
        _source(level, report)
        for level in sorted(case.view.sources, key=lambda level: list(Source).index(level.source))
    ]


def _source(node: SourceLevel, pod: PodReport) -> SourceLevel:
    """Return a source in this pod, with the weaker level of node and pod.

    A pod is limited exactly while it uses only Mlock. A call of another source loosens it to the
    node's level.
    """
    if pod.level is Level.DENY and node.source is not Source.MLOCK:
        loosens = "; its calls loosen the pod from Deny to this level" if node.counted else ""
        return node.model_copy(update={"message": f"{node.message}{loosens}".removeprefix("; ")})
    if pod.level is Level.DENY or (node.counted and pod.level.rank >= node.level.rank):
        return node.model_copy(update={"level": pod.level, "reason": pod.reason})
    return node


def _denied_calls(case: Case) -> list[DeniedCall]:
    """Return the known denials, newest first: of the node's report, and older ones from Events."""
    names = {limit.metadata.uid: display_name(limit) for limit in case.selecting}
    known = [
        DeniedCall(
            time=call.time, text=describe_denial(call, names.get(call.uid, call.name or "unknown"))
        )
        for call in limits.listed(case)
    ]
    first = min((call.time for call in known), default=None)
    earlier = [call for call in case.evidence.events if first is None or call.time < first]
    return sorted([*known, *earlier], key=lambda call: call.time, reverse=True)
