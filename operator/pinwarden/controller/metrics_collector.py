"""The operator's knowledge of the cluster as metrics, read at each scrape from the leader only.

No value is therefore counted twice over the replicas, and a sum over a metric is correct. Figures
of limits and groups come from their status; an unknown figure is absent (H2). A limit or group has
about 20 series. At most `MOST_LIMITS` limits and `MOST_GROUPS` groups have series, first those
without Ready=True. `series_omitted` counts the rest, and the counts by condition include all.
Series of pods are opt-in, because only the number of pods bounds them.

The labels are called `resource_namespace`, `resource_pod` and `resource_node`, because Prometheus
adds `namespace`, `pod` and `node` of the scraped process.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit, PinLimitStatus
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup, SharedMemoryGroupStatus
from pinwarden.controller import metrics_families, metrics_resources
from pinwarden.controller.items import Items
from pinwarden.controller.managed_resource import ManagedResource
from pinwarden.controller.metrics_families import FilledTable, Scrape
from pinwarden.controller.metrics_resources import PodOnNode, ResourceCounts
from pinwarden.controller.metrics_totals import TotalsCache
from pinwarden.controller.resources import conditions_of
from pinwarden.controller.store import Store
from pinwarden.plan.node_view import NodeView
from pinwarden.plan.types import Pod

MOST_LIMITS: Final = 500
MOST_GROUPS: Final = 250
MOST_NAMESPACES: Final = 500


class ClusterCollector(Collector):
    """Report the cluster while this replica is `leading`.

    With `pods`, also a few series per governed pod.
    """

    def __init__(
        self, store: Store, leading: Callable[[], bool], items: Items, *, pods: bool
    ) -> None:
        self._store = store
        self._items = items
        self._leading = leading
        self._pods = pods
        self._totals = TotalsCache()

    def describe(self) -> Iterable[Metric]:
        """Return no metric: registration must not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, with samples only on the leader."""
        scrape = self._scrape() if self._leading() else None
        cluster = FilledTable(metrics_families.CLUSTER)
        namespaces = FilledTable(metrics_families.NAMESPACES)
        if scrape:
            cluster.add([], scrape)
            for name in _largest_namespaces(scrape)[:MOST_NAMESPACES]:
                namespaces.add([name], scrape.totals.namespaces[name])
        yield from (*cluster, *namespaces)
        yield from self._of_limits(_not_ready_first(scrape.limits, MOST_LIMITS) if scrape else ())
        yield from self._of_groups(_not_ready_first(scrape.groups, MOST_GROUPS) if scrape else ())
        if self._pods:
            yield from self._of_pods(self._store.views.items() if scrape else ())

    def _scrape(self) -> Scrape:
        limits: list[ManagedResource] = []
        groups: list[ManagedResource] = []
        for entry in self._store.resources.values():
            (groups if entry.observed.kind is SharedMemoryGroup else limits).append(entry)
        totals = self._totals.update(self._store.views, self._pods_on, self._items)
        omitted = {
            "limits": max(0, len(limits) - MOST_LIMITS),
            "groups": max(0, len(groups) - MOST_GROUPS),
            "namespaces": max(0, len(totals.namespaces) - MOST_NAMESPACES),
        }
        return Scrape(self._store, totals, limits, groups, omitted)

    def _pods_on(self, node: str) -> Mapping[str, Pod]:
        return {uid: pod for pod in self._store.cluster.pods_on(node) for uid in pod.cgroup_uids}

    def _counts(self, uid: str) -> ResourceCounts:
        counters = self._store.counters
        return ResourceCounts(counters.denials(uid), counters.overshoots(uid))

    def _of_limits(self, entries: Iterable[ManagedResource]) -> Iterator[Metric]:
        conditions = FilledTable(metrics_resources.LIMIT_CONDITION)
        specs = FilledTable(metrics_resources.LIMIT_SPECS)
        counts = FilledTable(metrics_resources.LIMIT_COUNTS)
        statuses = FilledTable(metrics_resources.LIMIT_STATUSES)
        for entry in entries:
            with self._items.item("metrics", entry.observed.key):
                observed, status = entry.observed, entry.status
                labels = [observed.kind.__name__, observed.namespace or "", observed.name]
                if status:
                    conditions.add(labels, status)
                if isinstance(observed.resource, PinLimit | ClusterPinLimit):
                    specs.add(labels, observed.resource.spec)
                    counts.add(labels, self._counts(observed.uid))
                if isinstance(status, PinLimitStatus):
                    statuses.add(labels, status)
        yield from (*conditions, *specs, *counts, *statuses)

    def _of_groups(self, entries: Iterable[ManagedResource]) -> Iterator[Metric]:
        conditions = FilledTable(metrics_resources.GROUP_CONDITION)
        specs = FilledTable(metrics_resources.GROUP_SPECS)
        counts = FilledTable(metrics_resources.GROUP_COUNTS)
        statuses = FilledTable(metrics_resources.GROUP_STATUSES)
        shares = FilledTable(metrics_resources.GROUP_SHARES)
        for entry in entries:
            with self._items.item("metrics", entry.observed.key):
                observed, status = entry.observed, entry.status
                labels = [observed.namespace or "", observed.name]
                if status:
                    conditions.add(labels, status)
                if isinstance(observed.resource, SharedMemoryGroup):
                    specs.add(labels, observed.resource.spec)
                    counts.add(labels, self._counts(observed.uid))
                    shares.add(labels, _charges(entry))
                if isinstance(status, SharedMemoryGroupStatus):
                    statuses.add(labels, status)
        yield from (*conditions, *specs, *counts, *shares, *statuses)

    def _of_pods(self, views: Iterable[tuple[str, NodeView]]) -> Iterator[Metric]:
        samples = FilledTable(metrics_resources.PODS)
        borrows = FilledTable(metrics_resources.POD_BORROWS)
        fair_views = FilledTable(metrics_resources.POD_FAIR)
        for node, view in views:
            with self._items.item("metrics", f"node {node}"):
                pods = {
                    uid: [pod.namespace, pod.name, node] for uid, pod in self._pods_on(node).items()
                }
                for uid, sample in view.pods.items():
                    if labels := pods.get(uid):
                        samples.add(labels, PodOnNode(view, sample))
                for uid, report in view.groups.items():
                    group = self._store.resource_of(uid)
                    for borrow in report.borrowers if group else ():
                        if group and (labels := pods.get(borrow.pod)):
                            borrows.add([*labels, group.full_name], borrow)
                for fair in view.fair_view:
                    if labels := pods.get(fair.pod):
                        fair_views.add(labels, fair)
        yield from (*samples, *borrows, *fair_views)


def _largest_namespaces(scrape: Scrape) -> Sequence[str]:
    namespaces = scrape.totals.namespaces
    return sorted(namespaces, key=lambda name: (-namespaces[name].pinned, name))


def _charges(group: ManagedResource) -> Sequence[int]:
    """Return the known charge of a group on each of its nodes."""
    reports = (share.report for share in group.group_shares_cache.shares)
    return [report.charge for report in reports if report and report.charge is not None]


def _not_ready_first(entries: Iterable[ManagedResource], most: int) -> Sequence[ManagedResource]:
    """Return at most `most` resources in a stable order, first those without Ready=True."""

    def order(entry: ManagedResource) -> tuple[bool, str]:
        statuses = {condition.type: condition.status for condition in conditions_of(entry.status)}
        return statuses.get("Ready") == "True", entry.observed.key

    return sorted(entries, key=order)[:most]
