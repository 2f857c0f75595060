"""The operator's metrics, in base units, with closed label sets.

The actions of the operator are counted here as they happen. `metrics_collector` reads the state of
the cluster at each scrape.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pinwarden import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST
RESOURCES = ("pods", "agents", "nodes", "namespaces", "nodepinconfigs")
ENDS = ("timeout", "gone", "unreachable", "throttled", "conflict", "server", "refused")
WRITES = ("spec", "status", "finalizer", "event", "lease")
RESULTS = ("written", *ENDS[1:])
QUEUES = ("compile", "spec", "aggregate")
Loop = Literal[
    "watch", "limits", "census", "compile", "spec", "aggregate", "refusals", "events", "metrics"
]
LOOPS: tuple[Loop, ...] = get_args(Loop)
_PREFIX = "pinwarden_operator"
_SECONDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
_APPLY_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

Stage = Literal["compile", "aggregate"]


class Metrics:
    """Count the operator's actions and render all metrics."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_Build())
        ProcessCollector(registry=self._registry)
        self._watch_ends = self._counter(
            "watch_ends",
            "Ended watches, each of which was restarted.",
            resource=RESOURCES,
            reason=ENDS,
        )
        self._kopf_starts = self._counter(
            "kopf_starts", "Starts of kopf, which watches the limits and groups."
        )
        self._census = self._counter(
            "census_corrections",
            "Deletions of limits and groups that no event reported, found by comparing lists.",
        )
        self._writes = self._counter(
            "writes",
            "Write requests, by the kind of object and the result.",
            kind=WRITES,
            result=RESULTS,
        )
        self._unreadable = self._counter(
            "unreadable",
            "Objects that this version could not read.",
            resource=("limits", "groups", "nodepinconfigs"),
        )
        self._item_failures = self._counter(
            "item_failures",
            "Failures of single objects and names in a loop, which continued with the others.",
            loop=LOOPS,
        )
        self._dropped_events = self._counter(
            "events_dropped", "Events that were repetitions or exceeded a rate limit."
        )
        self._duration = Histogram(
            f"{_PREFIX}_reconcile_seconds",
            "Time to compile the spec of a node, or to aggregate the status of a limit or group, "
            "without the write.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        for stage in ("compile", "aggregate"):
            self._duration.labels(stage)
        self._apply = Histogram(
            f"{_PREFIX}_apply_seconds",
            "Time from the observation of a new generation of a limit or group until its status "
            "says Applied.",
            buckets=_APPLY_SECONDS,
            registry=self._registry,
        )
        self._leader = self._gauge("leader", "1 while this replica may write.")
        self._synced = self._gauge("synced", "1 once everything has been listed.")

    def watch_ended(self, resource: str, reason: str) -> None:
        """Count the end of a watch, by one of `RESOURCES` and one of `ENDS`."""
        self._watch_ends.labels(resource, reason).inc()

    def kopf_started(self) -> None:
        """Count a start of kopf."""
        self._kopf_starts.inc()

    def resync_corrected(self, count: int) -> None:
        """Count deletions of limits and groups that only a resync found."""
        self._census.inc(count)

    def wrote(self, kind: str, result: str = "written") -> None:
        """Count a write, by one of `WRITES` and one of `RESULTS`."""
        self._writes.labels(kind, result).inc()

    def unreadable(self, resource: str) -> None:
        """Count an unreadable object."""
        self._unreadable.labels(resource).inc()

    def item_failed(self, loop: Loop) -> None:
        """Count the failure of an item in one of `LOOPS`."""
        self._item_failures.labels(loop).inc()

    def set_failing(self, failing: Callable[[str], int]) -> None:
        """Set the function for the number of failing items of a loop."""
        gauge = self._gauge("items_failing", "Objects and names whose last run failed.", "loop")
        for loop in LOOPS:
            gauge.labels(loop).set_function(partial(failing, loop))

    def event_dropped(self) -> None:
        """Count a dropped Event."""
        self._dropped_events.inc()

    def reconciled(self, stage: Stage, seconds: float) -> None:
        """Record the duration of one compilation or aggregation."""
        self._duration.labels(stage).observe(seconds)

    def applied(self, seconds: float) -> None:
        """Record the time until every node applied a generation of a limit or group."""
        self._apply.observe(seconds)

    def set_leading(self, leading: Callable[[], bool], synced: Callable[[], bool]) -> None:
        """Set the functions for `leader` and `synced`."""
        self._leader.set_function(leading)
        self._synced.set_function(synced)

    def set_queue_lengths(self, lengths: Callable[[str], int]) -> None:
        """Set the function for the length of each of `QUEUES`."""
        gauge = self._gauge(
            "queue_length", "Nodes, or limits and groups, that wait to be processed.", "queue"
        )
        for name in QUEUES:
            gauge.labels(name).set_function(partial(lengths, name))

    def set_missed(self, missed: Callable[[], int]) -> None:
        """Set the function for the number of unreported limits and groups."""
        self._gauge(
            "limits_missed", "Existing limits and groups that no event has reported."
        ).set_function(missed)

    def include(self, collector: Collector) -> None:
        """Collect from `collector` at each scrape."""
        self._registry.register(collector)

    def families(self) -> Iterable[Metric]:
        """Return all metrics, also metrics without series."""
        return self._registry.collect()

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, **labels: tuple[str, ...]) -> Counter:
        counter = Counter(f"{_PREFIX}_{name}", text, list(labels), registry=self._registry)
        match tuple(labels.values()):
            case (first,):
                for value in first:
                    counter.labels(value)
            case (first, second):
                for value in first:
                    for other in second:
                        counter.labels(value, other)
        return counter

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, labels, registry=self._registry)


class _Build(Collector):
    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily(
            f"{_PREFIX}_build", "Version of the operator.", {"version": __version__}
        )
