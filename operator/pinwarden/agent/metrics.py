"""The agent's metrics, in base units, with closed label sets: under 100 series whatever runs on the node.

What the engine found is read from its last snapshot when someone asks; what the agent itself did is counted as it happens. A number that
cannot be known is absent (H2). All of a snapshot's numbers are samples, taken at `pinwarden_agent_sampled_timestamp_seconds`.
"""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pinwarden import __version__
from pinwarden.agent.workers import Board, Snapshot
from pinwarden.api.nodepinconfig import NodePinConfigStatus
from pinwarden.api.pinlimit import Level
from pinwarden.api.sharedmemorygroup import Phase

CONTENT_TYPE = CONTENT_TYPE_LATEST
FAILURES = ("list", "watch", "status", "remember", "local")
_TICK_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_PREFIX = "pinwarden_agent"


class Metrics:
    """Counts, and renders all of it; calls may come from several threads."""

    def __init__(self, board: Board) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_SnapshotCollector(board))
        ProcessCollector(registry=self._registry)
        self._failures = Counter(
            f"{_PREFIX}_failures",
            "Failures by operation: list, watch and status of the API server, remember of the disk, local of a local file.",
            ["operation"],
            registry=self._registry,
        )
        for operation in FAILURES:
            self._failures.labels(operation)
        self._writes = Counter(
            f"{_PREFIX}_status_writes", "Statuses that the API server took.", registry=self._registry
        )
        self._ticks = Histogram(
            f"{_PREFIX}_tick_seconds",
            "How long it took to look at every process and to deal.",
            buckets=_TICK_SECONDS,
            registry=self._registry,
        )

    def failed(self, operation: str) -> None:
        """One of `FAILURES` failed."""
        self._failures.labels(operation).inc()

    def status_written(self) -> None:
        """The API server took a status."""
        self._writes.inc()

    def ticked(self, seconds: float) -> None:
        """A tick took so long."""
        self._ticks.observe(seconds)

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self._registry)


class _SnapshotCollector(Collector):
    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily(f"{_PREFIX}_build", "Version of the agent.", {"version": __version__})
        if snapshot := self._board.latest:
            yield from _of_report(snapshot)
            yield from _of_configuration(snapshot)

    def describe(self) -> Iterable[Metric]:
        return []  # asked at registration, before there is a snapshot


def _of_report(snapshot: Snapshot) -> Iterable[Metric]:
    report = snapshot.report
    pinned = GaugeMetricFamily(
        f"{_PREFIX}_governed_pinned_bytes",
        "Sum over governed pods of what their address spaces have locked (VmLck) and pinned (VmPin).",
        labels=["counter"],
    )
    pinned.add_metric(["locked"], sum(pod.vm_lck for pod in report.pods))
    pinned.add_metric(["pinned"], sum(pod.vm_pin for pod in report.pods))
    yield pinned
    pods = GaugeMetricFamily(
        f"{_PREFIX}_governed_pods",
        "Governed pods whose cgroup exists, by the level they are held at.",
        labels=["level"],
    )
    for level in Level:
        pods.add_metric([level.value], sum(pod.level is level for pod in report.pods))
    yield pods
    yield _gauge(
        "governed_processes", "Processes in governed pods.", sum(pod.processes for pod in report.pods)
    )
    yield _gauge(
        "applied_limits", "Limits dealt to every process that they govern.", len(report.applied_limits)
    )
    yield _gauge(
        "unsupported_limits", "Limits that this agent could not take.", len(report.unsupported_limits)
    )
    yield _gauge(
        "overshoots",
        "Times that use was seen above a limit, over the overshoots that are still listed in the status.",
        sum(overshoot.count for overshoot in report.overshoots),
    )
    yield _gauge(
        "overshoot_peak_bytes",
        "The most that was seen above a limit, over the overshoots still listed: a lower bound.",
        max((overshoot.peak for overshoot in report.overshoots), default=0),
    )
    if report.denials_dropped is not None:
        yield CounterMetricFamily(
            f"{_PREFIX}_denials",
            "Calls that the seccomp gate refused, since its journal began; absent without a gate.",
            value=report.denials_dropped + len(report.recent_denials),
        )
    yield from _of_groups(report)
    yield _gauge("truncated", "1 when a list of the status was cut at its longest length.", report.truncated)
    sources = GaugeMetricFamily(
        f"{_PREFIX}_source_level",
        "1 for the level that the node reaches for a source; counted says whether the ledger sees it.",
        labels=["source", "level", "counted"],
    )
    for source in report.sources:
        sources.add_metric([source.source.value, source.level.value, str(source.counted).lower()], 1)
    yield sources
    if report.sampled_at is not None:
        yield _gauge(
            "sampled_timestamp_seconds", "When these numbers were sampled.", report.sampled_at.timestamp()
        )


def _of_groups(report: NodePinConfigStatus) -> Iterable[Metric]:
    """Sums over all groups of shared memory; what is not known of a group is not in them."""
    groups = GaugeMetricFamily(
        f"{_PREFIX}_shared_groups", "Groups of shared memory on this node, by phase.", labels=["phase"]
    )
    for phase in Phase:
        groups.add_metric([phase.value], sum(each.phase is phase for each in report.groups))
    yield groups
    sums = {
        "charge": ("What the objects of all groups hold.", [each.charge for each in report.groups]),
        "orphaned": ("What no pod has mapped of it.", [each.orphaned for each in report.groups]),
        "dead_cgroup": (
            "What of it is charged to cgroups that are gone.",
            [each.dead for each in report.groups],
        ),
        "borrowed": (
            "What pods borrow, added up over pods.",
            [borrow.borrowed for each in report.groups for borrow in each.borrowers],
        ),
    }
    for name, (text, amounts) in sums.items():
        known = [amount for amount in amounts if amount is not None]
        if known or not report.groups:
            yield _gauge(f"shared_{name}_bytes", text, sum(known))


def _of_configuration(snapshot: Snapshot) -> Iterable[Metric]:
    yield _gauge(
        "configuration_problem",
        "1 while a newer configuration cannot be read and the last good one stays in force.",
        snapshot.problem is not None,
    )
    if snapshot.configuration is None:
        return
    yield _gauge("configured_limits", "Limits in force.", len(snapshot.configuration.spec.limits))
    if snapshot.configuration.generation is not None:
        yield _gauge(
            "configuration_generation",
            "Generation of the NodePinConfig in force.",
            snapshot.configuration.generation,
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)
