"""What the operator knows of the cluster, as metrics: read when someone asks, and told only by the replica that may write.

So nothing is counted twice over the replicas, and every sum over one metric is what it seems to be. Figures of limits and groups are those
of their status; a figure that is not known is absent (H2). A limit or group has about 20 series and there are as many as people make, so
they are told by default, but of at most `MOST_LIMITS` and `MOST_GROUPS`: those that are not Ready first. What is left out is counted in
`series_omitted`, and is in the counts by condition all the same. Series of pods are opt-in: nothing bounds them but the number of pods.

Labels are called `resource_namespace`, `resource_pod` and `resource_node`, as Prometheus gives `namespace`, `pod` and `node` to the process
that it scrapes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit, PinLimitStatus
from pinwarden.api.sharedmemorygroup import Management, Phase, SharedMemoryGroup, SharedMemoryGroupStatus
from pinwarden.controller.items import Items
from pinwarden.controller.metrics_totals import (
    FAIR_PARTS,
    LEVELS,
    PROBLEMS,
    Totals,
    TotalsCache,
    level_and_reason,
)
from pinwarden.controller.resources import conditions_of
from pinwarden.controller.store import ManagedResource, Store
from pinwarden.plan.types import Pod

PREFIX: Final = "pinwarden_operator"
MOST_LIMITS: Final = 500
MOST_GROUPS: Final = 250
MOST_NAMESPACES: Final = 500
MOST_NODES: Final = 50
CONDITIONS = ("Ready", "Accepted", "Applied", "Enforced", "Complete", "WithinLimit", "Granted")
GROUP_CONDITIONS = (*CONDITIONS[:3], "Available", *CONDITIONS[3:-1], "Drained")
STATUSES = ("True", "False", "Unknown")
LIMIT = ("kind", "resource_namespace", "limit")
GROUP = ("resource_namespace", "group")
POD = ("resource_namespace", "resource_pod", "resource_node")


class ClusterCollector(Collector):
    """`leading`: whether this replica may write. With `pods`, series of each governed pod too."""

    def __init__(self, store: Store, leading: Callable[[], bool], items: Items, *, pods: bool) -> None:
        self._store = store
        self._items = items
        self._leading = leading
        self._pods = pods
        self._totals = TotalsCache()

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is follows from what is known."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families; without a series on a replica that may not write."""
        store, leading = self._store, self._leading()
        limits: list[ManagedResource] = []
        groups: list[ManagedResource] = []
        for entry in store.resources.values() if leading else ():
            (groups if entry.observed.kind is SharedMemoryGroup else limits).append(entry)
        total = self._totals.update(store.views, self._pods_on, self._items) if leading else None
        namespaces = (
            sorted(total.namespaces, key=lambda name: (-total.namespaces[name].pinned, name)) if total else []
        )
        yield from _of_nodes(store, total)
        yield from _of_namespaces(total, namespaces[:MOST_NAMESPACES])
        yield from _by_condition("limits", "PinLimits and ClusterPinLimits", limits, CONDITIONS, told=leading)
        yield from _by_condition("groups", "SharedMemoryGroups", groups, GROUP_CONDITIONS, told=leading)
        yield from _of_limits(store, _first(limits, MOST_LIMITS), self._items)
        yield from _of_groups(store, _first(groups, MOST_GROUPS), self._items)
        unreadable = _gauge("unreadable_objects", "Objects that this version cannot read.", "resource")
        for what, count in (
            ("limits", sum(entry.observed.resource is None for entry in limits)),
            ("groups", sum(entry.observed.resource is None for entry in groups)),
            ("nodepinconfigs", len(store.unreadable)),
        ):
            if leading:
                unreadable.add_metric([what], count)
        yield unreadable
        omitted = _gauge(
            "series_omitted", "Limits, groups and namespaces that are too many to be told of.", "of"
        )
        for what, all_of, most in (
            ("limits", limits, MOST_LIMITS),
            ("groups", groups, MOST_GROUPS),
            ("namespaces", namespaces, MOST_NAMESPACES),
        ):
            if leading:
                omitted.add_metric([what], max(0, len(all_of) - most))
        yield omitted
        denials = CounterMetricFamily(
            f"{PREFIX}_denials",
            "Calls that the seccomp gates of all nodes refused, as reported since this replica's first look at each.",
        )
        if leading:
            denials.add_metric([], store.counters.denied)
        yield denials
        if self._pods:
            yield from self._of_pods(told=leading)

    def _pods_on(self, node: str) -> Mapping[str, Pod]:
        return {uid: pod for pod in self._store.cluster.pods_on(node) for uid in pod.cgroup_uids}

    def _of_pods(self, *, told: bool) -> Iterator[Metric]:
        pinned = _gauge(
            "pod_pinned_bytes", "What a governed pod was last seen to have locked and pinned.", *POD
        )
        peak = _gauge("pod_peak_bytes", "The most that was seen of it: a lower bound.", *POD)
        level = _gauge(
            "pod_level", "1 for the level that it is held at, and the reason.", *POD, "level", "reason"
        )
        denials = CounterMetricFamily(
            f"{PREFIX}_pod_denials",
            "Calls of it that its gate refused for limits that hold for it; absent without a gate.",
            labels=POD,
        )
        borrowed = _gauge(
            "pod_borrowed_bytes", "Pages of a group that it has mapped, each once.", *POD, "group"
        )
        mapped = _gauge("pod_mapped_bytes", "The extent of a group that it has mapped.", *POD, "group")
        fair = _gauge("pod_fair_bytes", f"Its fair view (M11): {_FAIR}.", *POD, "part")
        for node, view in self._store.views.items() if told else ():
            with self._items.item("metrics", f"node {node}"):
                pods = self._pods_on(node)
                for uid, use in view.pods.items():
                    if pod := pods.get(uid):
                        labels = [pod.namespace, pod.name, node]
                        pinned.add_metric(labels, use.pinned)
                        peak.add_metric(labels, use.peak)
                        level.add_metric([*labels, *level_and_reason(view, use)], 1)
                        if use.denials is not None:
                            denials.add_metric(labels, sum(use.denials.values()))
                for uid, report in view.groups.items():
                    observed = self._store.resource_of(uid)
                    for borrow in report.borrowers if observed else ():
                        if (pod := pods.get(borrow.pod)) and observed:
                            labels = [pod.namespace, pod.name, node, observed.full_name]
                            _known(borrowed, labels, borrow.borrowed)
                            _known(mapped, labels, borrow.mapped)
                for each in view.fair_view:
                    if pod := pods.get(each.pod):
                        for part in FAIR_PARTS:
                            fair.add_metric([pod.namespace, pod.name, node, part], getattr(each, part))
        yield from (pinned, peak, level, denials, borrowed, mapped, fair)


def _of_nodes(store: Store, total: Totals | None) -> Iterator[Metric]:
    nodes = _gauge(
        "nodes",
        "Known nodes, by whether their agent answers: it is ready, and the node is not lost.",
        "agent",
    )
    problems = _gauge("nodes_with_problem", "Nodes by what is wrong with them.", "problem")
    named = _gauge(
        "node_problem",
        f"1 for each of the first {MOST_NODES} nodes with a problem, by name.",
        *("problem", "resource_node"),
    )
    sources = _gauge(
        "source_nodes",
        "Nodes by the level that they reach for a source, and whether their ledger counts it.",
        *("source", "level", "counted"),
    )
    pods = _gauge(
        "governed_pods", "Governed pods by the level that they are held at, and why at no better.", *_HELD
    )
    pinned = _gauge(
        "governed_pinned_bytes",
        "What all governed pods have locked and pinned, as last reported, also by agents that are silent now.",
    )
    if total:
        nodes.add_metric(["answering"], len(store.views) - total.silent)
        nodes.add_metric(["silent"], total.silent)
        for problem in PROBLEMS:
            found = sorted(total.problems.get(problem, ()))
            problems.add_metric([problem], len(found))
            for name in found[:MOST_NODES]:
                named.add_metric([problem, name], 1)
        for (source, level, counted), count in sorted(total.sources.items()):
            sources.add_metric([source, level, str(counted).lower()], count)
        for (level, reason), count in sorted(total.pods.items()):
            pods.add_metric([level, reason], count)
        pinned.add_metric([], total.pinned)
    yield from (nodes, problems, named, sources, pods, pinned)


_HELD = ("level", "reason")
_FAIR = "current is what the kernel charges, anonymous its own anonymous memory, shared what counts as its own of its groups"


def _of_namespaces(total: Totals | None, names: Sequence[str]) -> Iterator[Metric]:
    namespace = "resource_namespace"
    pinned = _gauge("namespace_pinned_bytes", "What the governed pods of a namespace have pinned.", namespace)
    pods = _gauge(
        "namespace_pods",
        "Governed pods of a namespace by the level that they are held at.",
        namespace,
        "level",
    )
    fair = _gauge(
        "namespace_fair_bytes", f"Fair view of pods that are attached to groups: {_FAIR}.", namespace, "part"
    )
    for name in names if total else ():
        found = total.namespaces[name] if total else None
        if found and found.levels:
            pinned.add_metric([name], found.pinned)
            for level in LEVELS:
                pods.add_metric([name, level], found.levels.get(level, 0))
        if found and found.attached:
            for part in FAIR_PARTS:
                fair.add_metric([name, part], found.fair.get(part, 0))
    yield from (pinned, pods, fair)


def _by_condition(
    name: str, what: str, entries: Iterable[ManagedResource], conditions: Sequence[str], *, told: bool
) -> Iterator[Metric]:
    """How many there are with each condition at each status."""
    family = _gauge(name, f"{what} by condition.", "condition", "status")
    found = Counter[tuple[str, str]](
        (each.type, each.status) for entry in entries for each in conditions_of(entry.status)
    )
    for condition in conditions if told else ():
        for status in STATUSES:
            family.add_metric([condition, status], found[condition, status])
    yield family


def _first(entries: Iterable[ManagedResource], most: int) -> list[ManagedResource]:
    """At most so many of them, those first that are not Ready; always the same ones while nothing changes."""

    def order(entry: ManagedResource) -> tuple[bool, str]:
        ready = any((each.type, each.status) == ("Ready", "True") for each in conditions_of(entry.status))
        return ready, entry.observed.key

    return sorted(entries, key=order)[:most]


def _of_limits(store: Store, entries: Sequence[ManagedResource], items: Items) -> Iterator[Metric]:
    info = _gauge(
        "limit_info",
        "1 for each limit, with what its spec says.",
        *(*LIMIT, "scope", "enforcement", "minimum_level", "contention", "grant"),
    )
    amount = _gauge("limit_bytes", "What may be pinned, in the limit's scope.", *LIMIT)
    pods = _gauge("limit_pods", "Pods that match.", *LIMIT)
    nodes = _gauge(
        "limit_nodes", "Nodes with a matching pod, by whether they acknowledged it.", *LIMIT, "acknowledged"
    )
    pinned = _gauge(
        "limit_pinned_bytes", "What the matching pods have pinned together, as last sampled.", *LIMIT
    )
    advice = _gauge("limit_recommended_bytes", "A limit that the observed use would have fitted in.", *LIMIT)
    peak = _gauge("limit_overshoot_peak_bytes", "The most that was seen above it: a lower bound.", *LIMIT)
    overshoots = CounterMetricFamily(
        f"{PREFIX}_limit_overshoots",
        "How often use was seen to pass it, as reported since this replica's first look at each node: a lower bound.",
        labels=LIMIT,
    )
    conditions = _gauge(
        "limit_condition", "1 for the status of each of its conditions.", *LIMIT, "condition", "status"
    )
    denials = CounterMetricFamily(
        f"{PREFIX}_limit_denials",
        "Calls that gates refused for it, as reported since this replica's first look at each node.",
        labels=LIMIT,
    )
    for entry in entries:
        with items.item("metrics", entry.observed.key):
            observed, status = entry.observed, entry.status
            labels = [observed.kind.__name__, observed.namespace or "", observed.name]
            _conditions(conditions, labels, entry, CONDITIONS)
            if isinstance(observed.resource, PinLimit | ClusterPinLimit):
                spec = observed.resource.spec
                kind = (
                    spec.scope,
                    spec.enforcement,
                    spec.minimum_level,
                    spec.contention,
                    str(spec.grant).lower(),
                )
                info.add_metric([*labels, *kind], 1)
                amount.add_metric(labels, spec.limit.bytes)
                denials.add_metric(labels, store.counters.denials(observed.uid))
                overshoots.add_metric(labels, store.counters.overshoots(observed.uid))
            if not isinstance(status, PinLimitStatus):
                continue
            _known(pods, labels, status.matched_pods)
            _known(pinned, labels, status.pinned_bytes)
            _known(advice, labels, None if status.recommendation is None else status.recommendation.bytes)
            if status.nodes:
                nodes.add_metric([*labels, "true"], status.nodes.applied)
                nodes.add_metric([*labels, "false"], status.nodes.desired - status.nodes.applied)
            if status.pinned_bytes is not None:  # else nobody looked
                peak.add_metric(labels, status.overshoot.peak_bytes if status.overshoot else 0)
    yield from (info, amount, pods, nodes, pinned, advice, peak, overshoots, conditions, denials)


def _of_groups(store: Store, entries: Sequence[ManagedResource], items: Items) -> Iterator[Metric]:
    info = _gauge(
        "group_info",
        "1 for each group, with what its spec says; prefault is true where pinwarden takes all pages at once.",
        *(*GROUP, "backing", "management", "accounting", "enforcement", "prefault"),
    )
    capacity = _gauge("group_capacity_bytes", "What its object may hold, on each node.", *GROUP)
    fullest = _gauge("group_fullest_bytes", "What its object holds on the node where that is most.", *GROUP)
    phase = _gauge("group_phase", "1 for the worst phase of its instances.", *GROUP, "phase")
    figures = {
        "charge_bytes": _gauge("group_charge_bytes", "What its objects hold, over all nodes.", *GROUP),
        "borrowed_bytes": _gauge(
            "group_borrowed_bytes", "What pods borrow of it, added up over pods.", *GROUP
        ),
        "orphaned_bytes": _gauge("group_orphaned_bytes", "What no pod has mapped of its charge.", *GROUP),
        "dead_cgroup_bytes": _gauge(
            "group_dead_cgroup_bytes", "What is charged to cgroups that are gone.", *GROUP
        ),
        "borrower_count": _gauge("group_borrowers", "Pods that have some of it mapped.", *GROUP),
        "matched_pods": _gauge("group_pods", "Pods that are attached.", *GROUP),
    }
    conditions = _gauge(
        "group_condition", "1 for the status of each of its conditions.", *GROUP, "condition", "status"
    )
    denials = CounterMetricFamily(
        f"{PREFIX}_group_denials",
        "Mappings of it that gates refused, as reported since this replica's first look at each node.",
        labels=GROUP,
    )
    for entry in entries:
        with items.item("metrics", entry.observed.key):
            observed, status = entry.observed, entry.status
            labels = [observed.namespace or "", observed.name]
            _conditions(conditions, labels, entry, GROUP_CONDITIONS)
            if isinstance(observed.resource, SharedMemoryGroup):
                spec = observed.resource.spec
                filled = spec.management is Management.CREATE and spec.prefault
                kind = (
                    spec.backing.kind,
                    spec.management,
                    spec.accounting,
                    spec.enforcement,
                    str(filled).lower(),
                )
                info.add_metric([*labels, *kind], 1)
                denials.add_metric(labels, store.counters.denials(observed.uid))
                _known(capacity, labels, None if spec.capacity is None else spec.capacity.bytes)
                reports = (share.report for share in entry.group_shares_cache.last)
                charges = [each.charge for each in reports if each and each.charge is not None]
                _known(fullest, labels, max(charges, default=None))
            if isinstance(status, SharedMemoryGroupStatus):
                for name, family in figures.items():
                    _known(family, labels, getattr(status, name))
                for each in Phase if status.phase else ():
                    phase.add_metric([*labels, each.value], each is status.phase)
    yield from (info, capacity, fullest, phase, *figures.values(), conditions, denials)


def _conditions(
    family: GaugeMetricFamily, labels: Sequence[str], entry: ManagedResource, known: Sequence[str]
) -> None:
    for each in conditions_of(entry.status):
        if each.type in known:
            family.add_metric([*labels, each.type, each.status], 1)


def _known(family: GaugeMetricFamily, labels: Sequence[str], figure: int | None) -> None:
    """The figure, unless it is not known (H2)."""
    if figure is not None:
        family.add_metric(labels, figure)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
