"""Totals of the nodes' reports for metrics: over the cluster, over each namespace, and by problem.

The totals of a node are computed once per view and added to the sum. A scrape therefore costs only
the changes since the last scrape. Amounts are in bytes as last reported, also from nodes whose
agent is silent; the level of their pods is unknown (H1, H2). Texts of nodes map to closed sets: a
stolen token of an agent cannot create series.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

from pinwarden.api.pinlimit import Level
from pinwarden.api.reasons import (
    ACCOUNTANT_SILENT,
    AUDIT,
    ENDED,
    GATE_LOST,
    GATE_UNAVAILABLE,
    NO_PROCESSES,
    NOT_READABLE,
    POD_GONE,
    RLIMIT_GATE,
    SECCOMP_GATE,
    SILENT,
    STARTING,
)
from pinwarden.controller.items import Items
from pinwarden.plan.node_view import NodeView, PodSample
from pinwarden.plan.types import Pod

UNKNOWN: Final = "Unknown"
OTHER: Final = "Other"
LEVELS: Final = (*(level.value for level in Level), UNKNOWN)
REASONS: Final = (
    *(SECCOMP_GATE, RLIMIT_GATE, AUDIT, GATE_LOST, GATE_UNAVAILABLE, NOT_READABLE, "NotDealt"),
    *(
        "UseUnknown",
        "CapIPCLock",
        "CapSysResource",
        "ThreadsUnread",
        "TreeTooDeep",
        "ContainerUnknown",
    ),
    *("SourceNotSeparable", STARTING, "NotSupported", "InvalidPattern", "NotUnderstood"),
    *(NO_PROCESSES, ENDED, POD_GONE, SILENT, OTHER),
)
"""The reasons why a pod does not reach a better level."""

PROBLEMS: Final = {
    SILENT: "the node has limits or groups, and no agent is ready, or the node is lost",
    "SpecNotTaken": "the agent cannot read the newest spec and keeps the last good spec",
    "Truncated": "a list of the report was truncated, so figures are lower bounds",
    GATE_LOST: "a pod's gate is lost: its pinning calls fail with ENOSYS",
    "ObserveOnly": "the agent may not set limits, so only gated pods are limited",
    ACCOUNTANT_SILENT: "the accountant is silent, so figures of groups are old",
}
FAIR_PARTS: Final = ("current", "anonymous", "shared")

_Key = TypeVar("_Key")
PodsOn = Callable[[str], Mapping[str, Pod]]
"""The pods of a node, by the UIDs of their cgroups."""


@dataclass(slots=True)
class NamespaceTotals:
    """A namespace: governed pods by level, and the fair view of `attached` pods (M11)."""

    pinned: int = 0
    attached: int = 0
    levels: dict[str, int] = field(default_factory=dict)
    fair: dict[str, int] = field(default_factory=dict)

    def add(self, other: Self, times: int = 1) -> None:
        """Add other totals, or with -1 subtract them."""
        self.pinned += other.pinned * times
        self.attached += other.attached * times
        _add(self.levels, other.levels, times)
        _add(self.fair, other.fair, times)


@dataclass(slots=True)
class Totals:
    """Pods by level and reason, and nodes by source, level and whether the source is counted."""

    silent: int = 0
    pinned: int = 0
    pods: dict[tuple[str, str], int] = field(default_factory=dict)
    sources: dict[tuple[str, str, bool], int] = field(default_factory=dict)
    namespaces: dict[str, NamespaceTotals] = field(default_factory=dict)
    problems: dict[str, set[str]] = field(default_factory=dict)

    def add(self, other: Self, times: int = 1) -> None:
        """Add other totals, or with -1 subtract them."""
        self.silent += other.silent * times
        self.pinned += other.pinned * times
        _add(self.pods, other.pods, times)
        _add(self.sources, other.sources, times)
        for name, namespace in other.namespaces.items():
            total = self.namespaces.get(name) or self.namespaces.setdefault(name, NamespaceTotals())
            total.add(namespace, times)
            if not (total.levels or total.attached):
                del self.namespaces[name]
        for problem, nodes in other.problems.items():
            known = self.problems.setdefault(problem, set())
            (known.update if times > 0 else known.difference_update)(nodes)


class TotalsCache:
    """The totals over all nodes, updated by the views that changed."""

    def __init__(self) -> None:
        self._total = Totals()
        self._shares: dict[str, tuple[NodeView, Totals]] = {}

    def update(self, views: Mapping[str, NodeView], pods_on: PodsOn, items: Items) -> Totals:
        """Return the totals of all views; read only the changed views, and omit failed views."""
        for name in self._shares.keys() - views.keys():
            self._total.add(self._shares.pop(name)[1], -1)
        for name, view in views.items():
            last = self._shares.get(name)
            if last and last[0] is view:
                continue
            share = Totals()
            with items.item("metrics", f"node {name}"):
                share = node_totals(view, pods_on(name))
            if last:
                self._total.add(last[1], -1)
            self._total.add(share)
            self._shares[name] = view, share
        return self._total


def node_totals(view: NodeView, pods: Mapping[str, Pod]) -> Totals:
    """Return the totals of one node, which has these pods."""
    problems = {problem: {view.name} for problem in _problems(view)}
    share = Totals(silent=int(view.silent), problems=problems)
    for source in view.sources:
        share.sources[source.source.value, source.level.value, source.counted] = 1
    for uid, use in view.pods.items():
        key = level, _ = level_and_reason(view, use)
        share.pinned += use.pinned
        share.pods[key] = share.pods.get(key, 0) + 1
        if pod := pods.get(uid):
            namespace = share.namespaces.get(pod.namespace) or share.namespaces.setdefault(
                pod.namespace, NamespaceTotals()
            )
            namespace.pinned += use.pinned
            namespace.levels[level] = namespace.levels.get(level, 0) + 1
    for fair in view.fair_view:
        if pod := pods.get(fair.pod):
            parts: dict[str, int] = {part: getattr(fair, part) for part in FAIR_PARTS}
            share.namespaces.setdefault(pod.namespace, NamespaceTotals()).add(
                NamespaceTotals(attached=1, fair=parts)
            )
    return share


def _add(into: dict[_Key, int], more: Mapping[_Key, int], times: int) -> None:
    """Add the counts, and remove the keys whose sum is zero."""
    for key, count in more.items():
        if now := into.get(key, 0) + count * times:
            into[key] = now
        else:
            into.pop(key, None)


def level_and_reason(view: NodeView, use: PodSample) -> tuple[str, str]:
    """Return the level of a pod and the reason, both from closed sets."""
    if view.silent:
        return UNKNOWN, SILENT
    return use.level.value, use.reason if use.reason in REASONS else OTHER


def _problems(view: NodeView) -> Iterator[str]:
    if view.silent:
        if view.requested or view.requested_groups:
            yield SILENT
        return
    if view.problem:
        yield "SpecNotTaken"
    if view.truncated:
        yield "Truncated"
    if any(use.reason == GATE_LOST for use in view.pods.values()):
        yield GATE_LOST
    levels = [source.level for source in view.sources if source.counted]
    if levels and all(level is Level.OBSERVE for level in levels):
        yield "ObserveOnly"
    if any(report.reason == ACCOUNTANT_SILENT for report in view.groups.values()):
        yield ACCOUNTANT_SILENT
