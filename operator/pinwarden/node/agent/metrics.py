"""The agent's metrics, in base units, with closed label sets: under 100 series without per-pod
metrics.
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
    """Counts and renders all metrics. Several threads may call.

    `state_files` and `pods` are for `SnapshotCollector`.
    """

    def __init__(
        self,
        board: SnapshotBoard,
        state_files: Mapping[str, Path] | None = None,
        *,
        pods: bool = False,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(SnapshotCollector(board, state_files or {}, pods=pods))
        ProcessCollector(registry=self._registry)
        self._failures = Counter(
            f"{PREFIX}_failures",
            "Failures by operation: list, watch and status: requests to the API server; "
            "remember: writes to disk; local: reads of local files.",
            ["operation"],
            registry=self._registry,
        )
        for operation in FAILURES:
            self._failures.labels(operation)
        self._writes = Counter(
            f"{PREFIX}_status_writes",
            "Statuses written to the API server.",
            registry=self._registry,
        )
        self._ticks = Histogram(
            f"{PREFIX}_tick_seconds",
            "Duration of a tick: sample due processes, allocate, set rlimits.",
            buckets=_TICK_SECONDS,
            registry=self._registry,
        )

    def failed(self, operation: str) -> None:
        """Count a failure, one of `FAILURES`."""
        self._failures.labels(operation).inc()

    def status_written(self) -> None:
        """Count a written status."""
        self._writes.inc()

    def ticked(self, seconds: float) -> None:
        """Observe the duration of a tick."""
        self._ticks.observe(seconds)

    def families(self) -> Iterable[Metric]:
        """Return all metrics, including those without a series."""
        return self._registry.collect()

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)
