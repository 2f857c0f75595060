"""The statuses of limits and groups: aggregated from the reports of the nodes, and written when
they change.

A dirty resource waits until all nodes are compiled: a status must never judge an edited limit by
the specs before the edit (H1). Each resource has a budget of twenty writes at once and one more
every five seconds. Changed conditions may use the whole budget. Changed borrowers of a group must
leave a quarter, and changed figures half. The aggregation of one resource takes at most a tenth of
the time.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import NamedTuple

from pinwarden.api.meta import LabelSelector, ObjectMeta
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit, PinLimitSpec, PinLimitStatus
from pinwarden.api.quantity import Quantity
from pinwarden.api.reasons import NO_PODS
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup, SharedMemoryGroupStatus
from pinwarden.controller.client import Api, ApiError
from pinwarden.controller.events import EventDraft, EventRecorder
from pinwarden.controller.finalizers import Finalizers
from pinwarden.controller.items import Items, RetryError
from pinwarden.controller.managed_resource import STATUS_BURST, ManagedResource
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.resources import (
    ObservedResource,
    Status,
    applied_to,
    conditions_of,
    reference,
)
from pinwarden.controller.spec_reconciler import REJECTED_SECONDS, SpecReconciler
from pinwarden.controller.store import Store
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.controller.write_guard import WriteGuard
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.group_compiler import Group
from pinwarden.plan.group_on_node import DrainWait, drain_wait
from pinwarden.plan.group_status import group_shares, group_status, rejected_group_status, settled
from pinwarden.plan.limit_status import aggregate, combine

QUIET_SECONDS = 0.2
SPARED_BY_FIGURES = STATUS_BURST / 2
SPARED_BY_BORROWERS = STATUS_BURST / 4
_GONE_SECONDS = 5.0
WRITERS = 4
_TIMES_ITS_COST = 10.0
_log = logging.getLogger(__name__)


class ComputedStatus(NamedTuple):
    """The status of a limit or group, and the nodes that delay the deletion of a group."""

    status: Status
    waits: Sequence[DrainWait] = ()


class StatusReconciler:
    """Compute the status of dirty limits and groups, and write it if it changed."""

    def __init__(
        self,
        api: Api,
        store: Store,
        queue: WorkQueue,
        specs: SpecReconciler,
        guard: WriteGuard,
        recorder: EventRecorder,
        finalizers: Finalizers,
        metrics: Metrics,
        items: Items,
    ) -> None:
        self._api = api
        self._store = store
        self._queue = queue
        self._specs = specs
        self._guard = guard
        self._recorder = recorder
        self._finalizers = finalizers
        self._metrics = metrics
        self._items = items

    async def run_writer(self) -> None:
        """Compute and write statuses until cancelled; `WRITERS` of these run at once."""
        await self._items.process_queue("aggregate", self._queue, self._write, self._report_failure)

    async def _write(self, key: str) -> float:
        await self._guard.wait_leading()
        await self._specs.wait_compiled()
        entry = self._store.resources.get(key)
        if entry is None:
            self._items.forget("aggregate", key)
            return 0.0
        started = monotonic()
        computed = compute_status(self._store, entry)
        cost = monotonic() - started
        self._metrics.reconciled("aggregate", cost)
        try:
            await self._reconcile(key, entry, computed)
        except ApiError as error:
            return self._failed(key, error)
        return max(QUIET_SECONDS, cost * _TIMES_ITS_COST)

    def _report_failure(self, key: str, problem: str) -> None:
        """Record an Event, because the status cannot be computed."""
        if entry := self._store.resources.get(key):
            note = f"The status cannot be computed and stays unchanged: {problem}"
            self._recorder.record(
                entry.observed, EventDraft("Warning", "StatusFailed", "Aggregate", note)
            )

    async def _reconcile(self, key: str, entry: ManagedResource, computed: ComputedStatus) -> None:
        """Set or remove the finalizer, and write the status now or later if it changed."""
        try:
            result = await self._finalizers.reconcile(entry, computed.waits)
        except ApiError as error:
            self._metrics.wrote("finalizer", error.kind)
            raise
        if result.requeue_after > 0:
            self._queue.add(key, result.requeue_after)
        if result.gone or computed.status == entry.status:
            return
        spared = _spared(entry.status, computed.status)
        if (delay := entry.write_bucket.delay(spared)) > 0:
            self._queue.add(key, delay)
            return
        await self._guard.acquire()
        try:
            await self._apply(entry, computed.status)
        except ApiError as error:
            self._metrics.wrote("status", error.kind)
            raise
        self._metrics.wrote("status")

    async def _apply(self, entry: ManagedResource, status: Status) -> None:
        observed = entry.observed
        path, body = reference(observed)
        # The watch may deliver the write before the answer.
        before, unapplied_since = entry.status, entry.unapplied_since
        answer = await self._api.apply(f"{path}/status", {**body, "status": status.to_wire()})
        version = int(answer["metadata"]["resourceVersion"])
        if version > entry.version:
            entry.status, entry.version = status, version
        entry.write_bucket.take()
        if unapplied_since is not None and (reason := applied_to(status, observed.generation)):
            if reason != NO_PODS:
                self._metrics.applied(monotonic() - unapplied_since)
            if entry.observed.generation == observed.generation:
                entry.unapplied_since = None
        self._recorder.record_change(observed, before, status)

    def _failed(self, key: str, error: ApiError) -> float:
        """Return the seconds to wait if a watch event will follow. Raises RetryError."""
        if error.status in (404, 409):  # deleted, or recreated with the same name
            return _GONE_SECONDS
        if error.status == 429:
            self._guard.pause(error.retry_after or 1.0)
        rejected = error.kind == "refused"
        if rejected:
            _log.warning("cannot write the status of %s, retrying: %s", key, error)
        raise RetryError(REJECTED_SECONDS if rejected else error.retry_after) from error


def compute_status(store: Store, entry: ManagedResource) -> ComputedStatus:
    """Return the status, and the nodes that delay a deletion."""
    now = datetime.now(UTC)
    if entry.observed.kind is SharedMemoryGroup:
        return _compute_group(store, entry, now)
    return ComputedStatus(_limit_status(store, entry, now))


def _limit_status(store: Store, entry: ManagedResource, now: datetime) -> PinLimitStatus:
    observed = entry.observed
    previous = entry.status if isinstance(entry.status, PinLimitStatus) else None
    if not isinstance(observed.resource, PinLimit | ClusterPinLimit):
        rejection = Rejection("Invalid", observed.problem)
        return combine(_unreadable(entry), [], previous, now, rejection=rejection)
    return aggregate(
        observed.resource,
        store.cluster.pods_of(observed.key),
        store.views,
        previous,
        now,
        rejection=store.cluster.rejection(observed.key),
        overriding=store.cluster.overriding(observed.key),
        cache=entry.shares_cache,
    )


def _compute_group(store: Store, entry: ManagedResource, now: datetime) -> ComputedStatus:
    observed, cluster = entry.observed, store.cluster
    name = observed.full_name
    group = cluster.groups.get(name)
    previous = entry.status if isinstance(entry.status, SharedMemoryGroupStatus) else None
    rejection = cluster.group_rejection(name) if group else Rejection("Invalid", observed.problem)
    if group is None or rejection is not None:
        rejection = rejection or Rejection("Invalid", observed.problem)
        waits = _waits(store, group) if group else []
        status = rejected_group_status(_metadata(observed), rejection, previous, now, waits)
        return ComputedStatus(status, waits)
    members, on = cluster.members_of(name), cluster.nodes_of_group(name)
    views = {node: store.view(node) for node in {*members, *on} if node in cluster.nodes}
    shares = group_shares(group, members, on, views, store.pod_at, entry.group_shares_cache)
    status = settled(previous, group_status(group, shares, previous, now))
    return ComputedStatus(status, [share.waits for share in shares if share.waits])


def _waits(store: Store, group: Group) -> list[DrainWait]:
    """Return the nodes that delay the deletion of a rejected group."""
    nodes = sorted(store.cluster.nodes_of_group(group.name))
    waits = (drain_wait(group, store.view(node), store.pod_at, rejected=True) for node in nodes)
    return [wait for wait in waits if wait]


def _metadata(observed: ObservedResource) -> ObjectMeta:
    return ObjectMeta(
        name=observed.name,
        namespace=observed.namespace,
        uid=observed.uid,
        generation=observed.generation,
    )


def _unreadable(entry: ManagedResource) -> PinLimit:
    """Return a limit with the metadata of an unreadable limit."""
    spec = PinLimitSpec(pod_selector=LabelSelector(), limit=Quantity(0))
    return PinLimit(metadata=_metadata(entry.observed), spec=spec)


def _spared(before: Status | None, status: Status) -> float:
    """Return how many writes this change must leave for more important ones."""
    if _conditions(before) != _conditions(status):
        return 0.0
    return SPARED_BY_FIGURES if _borrowers(before) == _borrowers(status) else SPARED_BY_BORROWERS


def _conditions(status: Status | None) -> object:
    if status is None:
        return None
    conditions = [(item.type, item.status, item.reason) for item in conditions_of(status)]
    return status.observed_generation, conditions


def _borrowers(status: Status | None) -> frozenset[tuple[str, str]]:
    """Return namespace and name of each pod in a group's status; none for a limit."""
    listed = status.borrowers if isinstance(status, SharedMemoryGroupStatus) else None
    return frozenset((borrower.namespace, borrower.pod) for borrower in listed or ())
