"""The figures of all nodes by pod and by group, for `kubectl pinwarden top`.

NodePinConfigs identify pods by the UIDs of their cgroups; this module joins them with the Pods. If
a node reports a pod that the API server does not have, the pod's UID is its name: the pod has just
ended, or left something (P6).

An unknown figure is None, not 0 (H2). A report is *stale* if it is older than any report of a live
agent; its figures are shown with their age. If the report is stale, or the agent is not alive, the
levels are unknown (H1). Figures of groups are as old as the sample of the accountant.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pinwarden.api.meta import Model
from pinwarden.api.nodepinconfig import NodeLimit, NodePinConfig, NodePinConfigStatus, PodReport
from pinwarden.api.pinlimit import Enforcement, Level, Scope, Source
from pinwarden.api.reasons import SILENT
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.plan.types import Pod

STALE: Final = timedelta(minutes=6)
"""An agent writes at least every five minutes."""

COUNTED_IN: Final[Mapping[str, tuple[Source, ...]]] = {
    "VmLck": (Source.MLOCK, Source.MEMFD_SECRET, Source.VFIO),
    "VmPin": (Source.IO_URING, Source.RDMA, Source.IOMMUFD, Source.VDPA),
}
"""The kernel's counters of a process, and the sources that each counter adds up."""


class PodFigure(Model):
    """The last sample of a pod in bytes, and its level; `limit` is the strictest, of `scope`."""

    namespace: str | None = None
    pod: str
    uid: str
    node: str
    total: int | None = None
    locked: int | None = None
    pinned: int | None = None
    peak: int | None = None
    processes: int | None = None
    limit: int | None = None
    limit_name: str | None = None
    scope: Scope | None = None
    enforcement: Enforcement | None = None
    level: Level | None = None
    reason: str = ""
    message: str = ""
    denials: int | None = None
    sampled_at: datetime | None = None
    stale: bool = False


class GroupFigure(Model):
    """A SharedMemoryGroup on a node, in bytes."""

    group: str
    node: str
    phase: Phase
    reason: str = ""
    charge: int | None = None
    orphaned: int | None = None
    dead: int | None = None
    truncated: bool = False
    sampled_at: datetime | None = None
    stale: bool = False


class BorrowFigure(Model):
    """The borrow of a pod from a group, in bytes."""

    group: str
    namespace: str | None = None
    pod: str
    node: str
    member: bool
    borrowed: int | None = None
    mapped: int | None = None
    limit: int | None = None
    level: Level | None = None
    denials: int | None = None
    sampled_at: datetime | None = None
    stale: bool = False


class FairFigure(Model):
    """The fair view of a pod (M11) in bytes: `fair` is the sum of `anonymous` and `shared`."""

    namespace: str | None = None
    pod: str
    node: str
    current: int
    anonymous: int
    shared: int
    fair: int
    sampled_at: datetime | None = None
    stale: bool = False


class SharedFigures(Model):
    """All figures of shared memory."""

    groups: list[GroupFigure]
    borrows: list[BorrowFigure]
    fair_view: list[FairFigure]


class FigureFilter(NamedTuple):
    """The figures to show: of one `namespace`, or of all (None).

    `selected`: only of the given pods. `alive` are the nodes with a live agent.
    """

    alive: Collection[str]
    namespace: str | None = None
    selected: bool = False

    def includes(self, pod: Pod | None) -> bool:
        """Return whether to show figures of the pod, which is None if only its UID is known."""
        return pod is not None or (self.namespace is None and not self.selected)


def pod_figures(
    pods: Sequence[Pod],
    configs: Iterable[NodePinConfig],
    figure_filter: FigureFilter,
    now: datetime,
) -> list[PodFigure]:
    """Return the figures of those `pods` that have limits or are reported, largest use first."""
    nodes = _nodes(pods, configs, figure_filter, now)
    return sorted(
        (figure for node in nodes for figure in node.pod_figures()),
        key=lambda figure: (*_largest(figure.total), figure.namespace or "", figure.pod),
    )


def shared_figures(
    pods: Sequence[Pod],
    configs: Iterable[NodePinConfig],
    figure_filter: FigureFilter,
    now: datetime,
) -> SharedFigures:
    """Return the figures of the reported groups and of their pods."""
    nodes = list(_nodes(pods, configs, figure_filter, now))
    groups = [figure for node in nodes for figure in node.groups()]
    borrows = [figure for node in nodes for figure in node.borrows()]
    fair = [figure for node in nodes for figure in node.fair_view()]
    return SharedFigures(
        groups=sorted(groups, key=lambda group: (group.group, *_largest(group.charge), group.node)),
        borrows=sorted(
            borrows, key=lambda borrow: (borrow.group, *_largest(borrow.borrowed), borrow.pod)
        ),
        fair_view=sorted(fair, key=lambda view: (-view.fair, view.namespace or "", view.pod)),
    )


def uncounted(configs: Iterable[NodePinConfig]) -> Mapping[tuple[Source, ...], list[str]]:
    """Return the uncounted sources with their nodes, whose figures are lower bounds (H2)."""
    nodes_of: dict[tuple[Source, ...], list[str]] = {}
    for config in configs:
        sources = tuple(
            level.source
            for level in (config.status.sources if config.status else ())
            if not level.counted
        )
        if sources:
            nodes_of.setdefault(sources, []).append(config.metadata.name)
    return nodes_of


def is_stale(sampled: datetime | None, now: datetime) -> bool:
    """Return whether a report is older than any report of a live agent."""
    return sampled is None or now - sampled > STALE


def _largest(amount: int | None) -> tuple[bool, int]:
    """Return a sort key: the largest amount first, an unknown amount last."""
    return amount is None, -(amount or 0)


def _nodes(
    pods: Iterable[Pod],
    configs: Iterable[NodePinConfig],
    figure_filter: FigureFilter,
    now: datetime,
) -> Iterator["_NodeFigures"]:
    by_node: dict[str, dict[str, Pod]] = {}
    for pod in pods:
        by_node.setdefault(pod.node, {}).update(dict.fromkeys(pod.cgroup_uids, pod))
    for config in configs:
        on_node = by_node.get(config.metadata.name, {})
        yield _NodeFigures(config, on_node, figure_filter, now)


class _NodeFigures:
    """The figures of one node; `pods` are its pods by the UIDs of their cgroups."""

    def __init__(
        self,
        config: NodePinConfig,
        pods: Mapping[str, Pod],
        figure_filter: FigureFilter,
        now: datetime,
    ) -> None:
        self._spec, self._status = config.spec, config.status or NodePinConfigStatus()
        self._name = config.metadata.name
        self._pods, self._filter, self._now = pods, figure_filter, now
        self._sampled_at = self._status.sampled_at
        alive = self._name in figure_filter.alive
        self._trusts_levels = alive and not is_stale(self._sampled_at, now)

    def pod_figures(self) -> Iterator[PodFigure]:
        limits = {limit.name: limit for limit in self._spec.limits}
        limit_names = {pod.uid: pod.limits for pod in self._spec.pods if pod.limits}
        reports = {pod.uid: pod for pod in self._status.pods}
        mirrors = {pod.uid for pod in self._pods.values() if pod.uid != pod.cgroup_uid}
        for uid in (limit_names.keys() - mirrors) | reports.keys():
            if self._filter.includes(self._pods.get(uid)):
                names = limit_names.get(uid, ())
                limit = _strictest(limits[name] for name in names if name in limits)
                yield self._pod_figure(uid, limit, reports.get(uid))

    def _pod_figure(self, uid: str, limit: NodeLimit | None, report: PodReport | None) -> PodFigure:
        pod = self._pods.get(uid)
        figure = PodFigure(
            namespace=pod.namespace if pod else None,
            pod=pod.name if pod else uid,
            uid=uid,
            node=self._name,
            limit=limit.limit if limit else None,
            limit_name=limit.name.partition("@")[0] if limit else None,
            scope=limit.scope if limit else None,
            enforcement=limit.enforcement if limit else None,
        )
        if report is None:
            return figure
        known, denials = self._trusts_levels, report.denials
        return figure.model_copy(
            update={
                "total": report.vm_lck + report.vm_pin,
                "locked": report.vm_lck,
                "pinned": report.vm_pin,
                "peak": report.peak,
                "processes": report.processes,
                "level": report.level if known else None,
                "reason": report.reason if known else SILENT,
                "message": report.message if known else "",
                "denials": None if denials is None else sum(denial.count for denial in denials),
                "sampled_at": self._sampled_at,
                "stale": is_stale(self._sampled_at, self._now),
            }
        )

    def groups(self) -> Iterator[GroupFigure]:
        namespace = self._filter.namespace
        names = {group.uid: group.name for group in self._spec.groups}
        for report in () if self._filter.selected else self._status.groups:
            name = names.get(report.uid, report.uid)
            if namespace is None or name.startswith(f"{namespace}/"):
                yield GroupFigure(
                    group=name,
                    node=self._name,
                    phase=report.phase,
                    reason=report.reason,
                    charge=report.charge,
                    orphaned=report.orphaned,
                    dead=report.dead,
                    truncated=report.truncated,
                    sampled_at=report.sampled_at,
                    stale=is_stale(report.sampled_at, self._now),
                )

    def borrows(self) -> Iterator[BorrowFigure]:
        groups = {group.uid: group for group in self._spec.groups}
        for report in self._status.groups:
            group = groups.get(report.uid)
            stale = is_stale(report.sampled_at, self._now)
            for borrow in report.borrowers:
                pod = self._pods.get(borrow.pod)
                if not self._filter.includes(pod):
                    continue
                members = group.members if group else []
                limits = [member.borrow_limit for member in members if borrow.pod in member.pods]
                yield BorrowFigure(
                    group=group.name if group else report.uid,
                    namespace=pod.namespace if pod else None,
                    pod=pod.name if pod else borrow.pod,
                    node=self._name,
                    member=borrow.member,
                    borrowed=borrow.borrowed,
                    mapped=borrow.mapped,
                    limit=min((limit for limit in limits if limit is not None), default=None),
                    level=borrow.level if self._trusts_levels and not stale else None,
                    denials=borrow.denials,
                    sampled_at=report.sampled_at,
                    stale=stale,
                )

    def fair_view(self) -> Iterator[FairFigure]:
        for view in self._status.fair_view:
            pod = self._pods.get(view.pod)
            if self._filter.includes(pod):
                sampled = self._fair_sampled(view.pod)
                yield FairFigure(
                    namespace=pod.namespace if pod else None,
                    pod=pod.name if pod else view.pod,
                    node=self._name,
                    current=view.current,
                    anonymous=view.anonymous,
                    shared=view.shared,
                    fair=view.anonymous + view.shared,
                    sampled_at=sampled,
                    stale=is_stale(sampled, self._now),
                )

    def _fair_sampled(self, uid: str) -> datetime | None:
        """Return the time of the oldest figure of the pod's fair view."""
        attached = {group.uid for group in self._spec.groups if uid in group.pods()}
        reports = (report for report in self._status.groups if report.uid in attached)
        times = [self._sampled_at, *(report.sampled_at for report in reports)]
        return min((time for time in times if time is not None), default=None)


def _strictest(limits: Iterable[NodeLimit]) -> NodeLimit | None:
    """Return the limit to show: enforced before Audit, then scope Pod, then the least amount."""
    return min(
        limits,
        key=lambda limit: (
            limit.enforcement is Enforcement.AUDIT,
            list(Scope).index(limit.scope),
            limit.limit,
            limit.name,
        ),
        default=None,
    )
