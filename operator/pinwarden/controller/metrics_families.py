"""The metrics of the cluster, nodes and namespaces as tables: name, help, labels, and the getter of
the value.

A getter returns a number, or numbers by the values of the last labels, or None for an unknown
figure (H2).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pinwarden.controller.managed_resource import ManagedResource
from pinwarden.controller.metrics_totals import (
    FAIR_PARTS,
    LEVELS,
    PROBLEMS,
    NamespaceTotals,
    Totals,
)
from pinwarden.controller.resources import conditions_of
from pinwarden.controller.store import Store

PREFIX: Final = "pinwarden_operator"
MOST_NODES: Final = 50
CONDITIONS = ("Ready", "Accepted", "Applied", "Enforced", "Complete", "WithinLimit", "Granted")
GROUP_CONDITIONS = (*CONDITIONS[:3], "Available", *CONDITIONS[3:-1], "Drained")
STATUSES = ("True", "False", "Unknown")
SINCE = "since the first report of each node to this replica"
_NAMESPACE = ("resource_namespace",)
FAIR_HELP = (
    "current is the kernel's charge, anonymous the pod's anonymous memory, "
    "shared the pod's share of its groups"
)

T = TypeVar("T")
Value = float | Mapping[tuple[str, ...], float] | None


@dataclass(frozen=True, slots=True)
class MetricRow(Generic[T]):
    """A metric, and the getter of its value from a subject of type T."""

    name: str
    help: str
    labels: tuple[str, ...]
    value: Callable[[T], Value]
    counter: bool = False


class FilledTable(Generic[T]):
    """The metrics of a table during one scrape; `add` reads the values of one subject."""

    def __init__(self, rows: Sequence[MetricRow[T]]) -> None:
        self._metrics = [
            (
                row.value,
                (CounterMetricFamily if row.counter else GaugeMetricFamily)(
                    f"{PREFIX}_{row.name}", row.help, labels=row.labels
                ),
            )
            for row in rows
        ]

    def add(self, labels: Sequence[str], subject: T) -> None:
        """Add a sample for each figure of the subject that is known."""
        for get, metric in self._metrics:
            value = get(subject)
            if isinstance(value, Mapping):
                for more, number in value.items():
                    metric.add_metric([*labels, *more], number)
            elif value is not None:
                metric.add_metric(labels, value)

    def __iter__(self) -> Iterator[Metric]:
        return (metric for _, metric in self._metrics)


class Scrape(NamedTuple):
    """The cluster at the time of a scrape; `omitted` counts by kind the objects without series."""

    store: Store
    totals: Totals
    limits: Sequence[ManagedResource]
    groups: Sequence[ManagedResource]
    omitted: Mapping[str, int]


def _by_condition(entries: Iterable[ManagedResource], types: Sequence[str]) -> Value:
    """Return how many resources have each condition at each status."""
    counts = Counter[tuple[str, str]](
        (condition.type, condition.status)
        for entry in entries
        for condition in conditions_of(entry.status)
    )
    return {(kind, status): counts[kind, status] for kind in types for status in STATUSES}


def _unreadable(scrape: Scrape) -> Value:
    return {
        ("limits",): sum(entry.observed.resource is None for entry in scrape.limits),
        ("groups",): sum(entry.observed.resource is None for entry in scrape.groups),
        ("nodepinconfigs",): len(scrape.store.unreadable),
    }


def _named_problems(scrape: Scrape) -> Value:
    problems = scrape.totals.problems
    return {
        (problem, node): 1
        for problem in PROBLEMS
        for node in sorted(problems.get(problem, ()))[:MOST_NODES]
    }


CLUSTER: Final[Sequence[MetricRow[Scrape]]] = (
    MetricRow(
        "nodes",
        "Known nodes, by whether the agent is ready and the node is not lost.",
        ("agent",),
        lambda scrape: {
            ("answering",): len(scrape.store.views) - scrape.totals.silent,
            ("silent",): scrape.totals.silent,
        },
    ),
    MetricRow(
        "nodes_with_problem",
        "Nodes by problem.",
        ("problem",),
        lambda scrape: {(name,): len(scrape.totals.problems.get(name, ())) for name in PROBLEMS},
    ),
    MetricRow(
        "node_problem",
        f"1 for each of the first {MOST_NODES} nodes with a problem, by name.",
        ("problem", "resource_node"),
        _named_problems,
    ),
    MetricRow(
        "source_nodes",
        "Nodes by source, by the level for the source, and by whether the source is counted.",
        ("source", "level", "counted"),
        lambda scrape: {
            (source, level, str(counted).lower()): count
            for (source, level, counted), count in sorted(scrape.totals.sources.items())
        },
    ),
    MetricRow(
        "governed_pods",
        "Governed pods by level, and by the reason for no higher level.",
        ("level", "reason"),
        lambda scrape: dict(sorted(scrape.totals.pods.items())),
    ),
    MetricRow(
        "governed_pinned_bytes",
        "Locked and pinned bytes of all governed pods, as last reported, also by silent agents.",
        (),
        lambda scrape: scrape.totals.pinned,
    ),
    MetricRow(
        "limits",
        "PinLimits and ClusterPinLimits by condition.",
        ("condition", "status"),
        lambda scrape: _by_condition(scrape.limits, CONDITIONS),
    ),
    MetricRow(
        "groups",
        "SharedMemoryGroups by condition.",
        ("condition", "status"),
        lambda scrape: _by_condition(scrape.groups, GROUP_CONDITIONS),
    ),
    MetricRow(
        "unreadable_objects", "Objects that this version cannot read.", ("resource",), _unreadable
    ),
    MetricRow(
        "series_omitted",
        "Limits, groups and namespaces without series, because there are too many.",
        ("of",),
        lambda scrape: {(kind,): count for kind, count in scrape.omitted.items()},
    ),
    MetricRow(
        "denials",
        f"Calls that the gates of all nodes denied, {SINCE}.",
        (),
        lambda scrape: scrape.store.counters.denied,
        counter=True,
    ),
)

NAMESPACES: Final[Sequence[MetricRow[NamespaceTotals]]] = (
    MetricRow(
        "namespace_pinned_bytes",
        "Locked and pinned bytes of the governed pods of a namespace.",
        _NAMESPACE,
        lambda totals: totals.pinned if totals.levels else None,
    ),
    MetricRow(
        "namespace_pods",
        "Governed pods of a namespace by level.",
        (*_NAMESPACE, "level"),
        lambda totals: {(level,): totals.levels.get(level, 0) for level in LEVELS if totals.levels},
    ),
    MetricRow(
        "namespace_fair_bytes",
        f"Fair view of pods attached to groups: {FAIR_HELP}.",
        (*_NAMESPACE, "part"),
        lambda totals: {
            (part,): totals.fair.get(part, 0) for part in FAIR_PARTS if totals.attached
        },
    ),
)
