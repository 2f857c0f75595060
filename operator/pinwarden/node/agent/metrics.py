"""The agent's metrics, in base units, with closed label sets: under 100 series whatever runs on the node, unless pods are asked for.

What the agent itself did is counted here as it happens; what it knows of its node `snapshotted` reads when someone asks.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pinwarden.node.agent.metrics_collector import PREFIX, SnapshotCollector
from pinwarden.node.agent.threads import SnapshotBoard

CONTENT_TYPE = CONTENT_TYPE_LATEST
FAILURES = ("list", "watch", "status", "remember", "local")
_TICK_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Counts, and renders all of it; calls may come from several threads. `records` and `pods` are for `SnapshotCollector`."""

    def __init__(
        self, board: SnapshotBoard, records: Mapping[str, Path] | None = None, *, pods: bool = False
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(SnapshotCollector(board, records or {}, pods=pods))
        ProcessCollector(registry=self._registry)
        self._failures = Counter(
            f"{PREFIX}_failures",
            "Failures by operation: list, watch and status of the API server, remember of the disk, local of a local file.",
            ["operation"],
            registry=self._registry,
        )
        for operation in FAILURES:
            self._failures.labels(operation)
        self._writes = Counter(
            f"{PREFIX}_status_writes", "Statuses that the API server took.", registry=self._registry
        )
        self._ticks = Histogram(
            f"{PREFIX}_tick_seconds",
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

    def families(self) -> Iterable[Metric]:
        """All metrics, also those that have no series now."""
        return self._registry.collect()

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self._registry)
