"""The state of the node as metrics, read from the latest snapshot at scrape time.

Unknown values are absent, not zero (H2). All numbers of a snapshot are samples, taken at
`pinwarden_agent_sampled_timestamp_seconds`. By default they are sums, under 100 series in total.
Series of each governed pod are optional. They have the pod's UID, because the agent knows no names.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pinwarden import __version__
from pinwarden.api.nodepinconfig import NodePinConfigStatus
from pinwarden.api.pinlimit import Level
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.node.agent.threads import Snapshot, SnapshotBoard

PREFIX = "pinwarden_agent"
FAIR_PARTS = ("current", "anonymous", "shared")
_FAIR = (
    "current is the charge by the kernel, anonymous is anonymous memory, "
    "shared is the fair share of groups"
)


class SnapshotCollector(Collector):
    """Collects the metrics of a snapshot.

    `state_files` belong to the other processes, by name. With `pods`, each pod has series too.
    """

    def __init__(
        self, board: SnapshotBoard, state_files: Mapping[str, Path], *, pods: bool
    ) -> None:
        self._board = board
        self._state_files = state_files
        self._pods = pods

    def describe(self) -> Iterable[Metric]:
        """Return nothing: at registration there is no snapshot yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all families. Before the first snapshot, those of the snapshot have no series."""
        yield InfoMetricFamily(f"{PREFIX}_build", "Version of the agent.", {"version": __version__})
        yield self._last_renewals()
        snapshot = self._board.latest
        report = snapshot.report if snapshot else None
        yield from _of_pods(report)
        yield from _of_limits(report)
        yield from _of_groups(report)
        yield from _of_node(report)
        yield from _of_configuration(snapshot)
        yield _of_failures(snapshot)
        if self._pods:
            yield from _of_each_pod(report)

    def _last_renewals(self) -> Metric:
        heard = _family(
            "heard_timestamp_seconds",
            "When another process of the node last renewed its state file: "
            "the gate every 2 s, the accountant every round.",
            "process",
        )
        for process, path in self._state_files.items():
            try:
                heard.add_metric([process], path.stat().st_mtime)
            except OSError:  # no file yet: not known to be a fault
                continue
        return heard


def _of_pods(report: NodePinConfigStatus | None) -> Iterator[Metric]:
    pods = report.pods if report else ()
    pinned = _family(
        "governed_pinned_bytes",
        "Memory locked (VmLck) and pinned (VmPin) by the address spaces of governed pods.",
        "counter",
    )
    levels = _family(
        "governed_pods",
        "Governed pods with a cgroup, by level of enforcement.",
        "level",
    )
    reasons = _family(
        "governed_pods_by_reason",
        "Governed pods with a cgroup, by the reason against a better level.",
        "reason",
    )
    if report:
        pinned.add_metric(["locked"], sum(pod.vm_lck for pod in pods))
        pinned.add_metric(["pinned"], sum(pod.vm_pin for pod in pods))
        for level in Level:
            levels.add_metric([level.value], sum(pod.level is level for pod in pods))
        for reason, count in sorted(Counter(pod.reason for pod in pods if pod.reason).items()):
            reasons.add_metric([reason], count)
    yield from (pinned, levels, reasons)
    processes = sum(pod.processes for pod in pods) if report else None
    yield _single("governed_processes", "Processes in governed pods.", processes)


def _of_limits(report: NodePinConfigStatus | None) -> Iterator[Metric]:
    overshoots = report.overshoots if report else ()
    yield _single(
        "applied_limits",
        "Limits applied to all their processes.",
        len(report.applied_limits) if report else None,
    )
    yield _single(
        "unsupported_limits",
        "Limits that this agent cannot enforce.",
        len(report.unsupported_limits) if report else None,
    )
    yield _single(
        "overshoots",
        "Episodes of sampled use above a limit, over the overshoots listed in the status.",
        sum(overshoot.count for overshoot in overshoots) if report else None,
    )
    yield _single(
        "overshoot_peak_bytes",
        "Largest sampled excess over a limit, over the overshoots listed in the status: "
        "a lower bound.",
        max((overshoot.peak for overshoot in overshoots), default=0) if report else None,
    )
    denials = CounterMetricFamily(
        f"{PREFIX}_denials",
        "Calls denied by the seccomp gate since its journal began; absent without a gate.",
    )
    if report and report.denials_dropped is not None:
        denials.add_metric([], report.denials_dropped + len(report.recent_denials))
    yield denials


def _of_groups(report: NodePinConfigStatus | None) -> Iterator[Metric]:
    """Yield the sums over all groups of shared memory, without unknown amounts."""
    groups = report.groups if report else ()
    phases = _family("shared_groups", "Groups of shared memory on this node, by phase.", "phase")
    for phase in Phase if report else ():
        phases.add_metric([phase.value], sum(group.phase is phase for group in groups))
    yield phases
    borrows = [borrow for group in groups for borrow in group.borrowers]
    sums = {
        "charge": ("Memory of the objects of all groups.", [group.charge for group in groups]),
        "orphaned": (
            "Memory of the objects of all groups that no pod has mapped.",
            [group.orphaned for group in groups],
        ),
        "dead_cgroup": (
            "Memory of the objects of all groups that is charged to deleted cgroups.",
            [group.dead for group in groups],
        ),
        "borrowed": (
            "Memory borrowed by pods from groups, summed over pods.",
            [borrow.borrowed for borrow in borrows],
        ),
    }
    for name, (text, amounts) in sums.items():
        known = [amount for amount in amounts if amount is not None]
        there = report and (known or not groups)
        yield _single(f"shared_{name}_bytes", text, sum(known) if there else None)
    fair = _family(
        "fair_bytes", f"Fair view of all pods attached to groups (M11): {_FAIR}.", "part"
    )
    if report and report.fair_view:
        for part in FAIR_PARTS:
            fair.add_metric([part], sum(getattr(pod, part) for pod in report.fair_view))
    yield fair


def _of_node(report: NodePinConfigStatus | None) -> Iterator[Metric]:
    yield _single(
        "truncated",
        "1 if a list of the status was cut at its maximum length.",
        report.truncated if report else None,
    )
    sources = _family(
        "source_level",
        "1 for the level of a source on the node; counted: whether the ledger counts the source.",
        *("source", "level", "counted"),
    )
    for row in report.sources if report else ():
        sources.add_metric([row.source.value, row.level.value, str(row.counted).lower()], 1)
    yield sources
    sampled = report.sampled_at if report else None
    yield _single(
        "sampled_timestamp_seconds",
        "When the numbers of the agent were sampled.",
        sampled.timestamp() if sampled else None,
    )


def _of_configuration(snapshot: Snapshot | None) -> Iterator[Metric]:
    configuration = snapshot.configuration if snapshot else None
    yield _single(
        "configuration_problem",
        "1 while a newer configuration cannot be read: the last good one stays in force.",
        snapshot.problem is not None if snapshot else None,
    )
    yield _single(
        "configured_limits",
        "Limits in force.",
        len(configuration.spec.limits) if configuration else None,
    )
    yield _single(
        "configuration_generation",
        "Generation of the NodePinConfig in force.",
        configuration.generation if configuration else None,
    )


def _of_failures(snapshot: Snapshot | None) -> Metric:
    failures = CounterMetricFamily(
        f"{PREFIX}_item_failures",
        "Failures of the work on a single item, by process and kind of item; "
        "the log names the item.",
        labels=["process", "kind"],
    )
    for (process, kind), count in (snapshot.failures if snapshot else {}).items():
        failures.add_metric([process, kind], count)
    return failures


def _of_each_pod(report: NodePinConfigStatus | None) -> Iterator[Metric]:
    pinned = _family(
        "pod_pinned_bytes", "Memory locked and pinned by a governed pod.", "uid", "counter"
    )
    peak = _family(
        "pod_peak_bytes",
        "Largest sampled sum of locked and pinned memory of a pod: a lower bound.",
        "uid",
    )
    processes = _family("pod_processes", "Processes of a pod.", "uid")
    level = _family(
        "pod_level", "1 for the level of a pod and its reason.", "uid", "level", "reason"
    )
    denials = CounterMetricFamily(
        f"{PREFIX}_pod_denials",
        "Calls of a pod denied by the gate for its limits; absent for a pod without a gate.",
        labels=["uid"],
    )
    for pod in report.pods if report else ():
        uid = pod.uid
        pinned.add_metric([uid, "locked"], pod.vm_lck)
        pinned.add_metric([uid, "pinned"], pod.vm_pin)
        peak.add_metric([uid], pod.peak)
        processes.add_metric([uid], pod.processes)
        level.add_metric([uid, pod.level.value, pod.reason], 1)
        if pod.denials is not None:
            denials.add_metric([uid], sum(denial.count for denial in pod.denials))
    yield from (pinned, peak, processes, level, denials)
    borrowed = _family(
        "pod_borrowed_bytes",
        "Pages of a group mapped by a pod.",
        "uid",
        "group_uid",
    )
    mapped = _family(
        "pod_mapped_bytes",
        "Address range of a group mapped by a pod.",
        "uid",
        "group_uid",
    )
    for group in report.groups if report else ():
        for borrow in group.borrowers:
            if borrow.borrowed is not None:
                borrowed.add_metric([borrow.pod, group.uid], borrow.borrowed)
            if borrow.mapped is not None:
                mapped.add_metric([borrow.pod, group.uid], borrow.mapped)
    fair = _family("pod_fair_bytes", f"Fair view of a pod (M11): {_FAIR}.", "uid", "part")
    for row in report.fair_view if report else ():
        for part in FAIR_PARTS:
            fair.add_metric([row.pod, part], getattr(row, part))
    yield from (borrowed, mapped, fair)


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)


def _single(name: str, text: str, value: float | None) -> Metric:
    """Return a family with one series, or without a series if the value is unknown."""
    family = _family(name, text)
    if value is not None:
        family.add_metric([], value)
    return family
