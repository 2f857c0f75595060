"""The statuses of limits and groups: aggregated from what the nodes report, and written when they change.

A dirty one is looked at only while no node waits to be compiled: a status must never judge an edited limit by what its nodes were asked
before (H1). Each has leave for twenty writes at once and for one more every five seconds. Conditions may use all of it. A group's borrowers
that come or go must leave a quarter, mere figures half. Looking at one takes at most a tenth of the time, however many pods it holds for.
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
from pinwarden.controller.events import Happening, Recorder
from pinwarden.controller.finalizers import Finalizers
from pinwarden.controller.items import Items, TryAgainError
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.resources import Seen, Status, applied_to, conditions_of, reference
from pinwarden.controller.spec_reconciler import REFUSED_SECONDS, Specs
from pinwarden.controller.store import STATUS_BURST, Managed, State
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.controller.write_guard import Gate
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.group_compiler import Group
from pinwarden.plan.group_on_node import DrainWait, drain_wait
from pinwarden.plan.group_status import group_shares, group_status, rejected_group_status, settled
from pinwarden.plan.limit_status import aggregate, conclude

QUIET_SECONDS = 0.2
SPARED_BY_FIGURES = STATUS_BURST / 2
SPARED_BY_BORROWERS = STATUS_BURST / 4
_GONE_SECONDS = 5.0
WRITERS = 4
_TIMES_ITS_COST = 10.0
_log = logging.getLogger(__name__)


class Looked(NamedTuple):
    """The status that a limit or group should have now, and the nodes that the end of a group waits for."""

    status: Status
    waits: Sequence[DrainWait] = ()


class Statuses:
    """Looks at dirty limits and groups and writes what changed."""

    def __init__(
        self,
        api: Api,
        state: State,
        queue: WorkQueue,
        specs: Specs,
        gate: Gate,
        recorder: Recorder,
        finalizers: Finalizers,
        metrics: Metrics,
        items: Items,
    ) -> None:
        self._api = api
        self._state = state
        self._queue = queue
        self._specs = specs
        self._gate = gate
        self._recorder = recorder
        self._finalizers = finalizers
        self._metrics = metrics
        self._items = items

    async def write(self) -> None:
        """One of `WRITERS`: looks and writes until cancelled."""
        await self._items.work_off("aggregate", self._queue, self._write, self._not_looked_at)

    async def _write(self, key: str) -> float:
        await self._gate.led()
        await self._specs.settled()
        entry = self._state.resources.get(key)
        if entry is None:
            self._items.forget("aggregate", key)
            return 0.0
        started = monotonic()
        looked = look(self._state, entry)
        cost = monotonic() - started
        self._metrics.reconciled("aggregate", cost)
        try:
            await self._settle(key, entry, looked)
        except ApiError as error:
            return self._failed(key, error)
        return max(QUIET_SECONDS, cost * _TIMES_ITS_COST)

    def _not_looked_at(self, key: str, problem: str) -> None:
        """An Event says it, as the status cannot."""
        if entry := self._state.resources.get(key):
            note = f"The status cannot be worked out and stands still: {problem}"
            self._recorder.happened(entry.seen, Happening("Warning", "StatusFailed", "Aggregate", note))

    async def _settle(self, key: str, entry: Managed, looked: Looked) -> None:
        """See to the finalizer; write the status now or later, or not when it is what the API server has."""
        try:
            end = await self._finalizers.settle(entry, looked.waits)
        except ApiError as error:
            self._metrics.wrote("finalizer", error.kind)
            raise
        if end.look_after > 0:
            self._queue.add(key, end.look_after)
        if end.gone or looked.status == entry.status:
            return
        if (delay := _delay(entry, looked.status)) > 0:
            self._queue.add(key, delay)
            return
        await self._gate.leave()
        try:
            await self._apply(entry, looked.status)
        except ApiError as error:
            self._metrics.wrote("status", error.kind)
            raise
        self._metrics.wrote("status")

    async def _apply(self, entry: Managed, status: Status) -> None:
        seen = entry.seen
        path, body = reference(seen)
        before, unapplied = (
            entry.status,
            entry.unapplied,
        )  # the watch may tell of the write before it is answered
        answer = await self._api.apply(f"{path}/status", {**body, "status": status.to_wire()})
        version = int(answer["metadata"]["resourceVersion"])
        if version > entry.version:
            entry.status, entry.version = status, version
        entry.leave.take()
        if unapplied is not None and (reason := applied_to(status, seen.generation)):
            if reason != NO_PODS:
                self._metrics.applied(monotonic() - unapplied)
            if entry.seen.generation == seen.generation:
                entry.unapplied = None
        self._recorder.changed(seen, before, status)

    def _failed(self, key: str, error: ApiError) -> float:
        """The seconds to wait where its watch will tell more. Raises TryAgainError."""
        if error.status in (404, 409):  # gone, or another one of its name
            return _GONE_SECONDS
        if error.status == 429:
            self._gate.stop(error.retry_after or 1.0)
        refused = error.kind == "refused"
        if refused:
            _log.warning("the status of %s cannot be written: %s", key, error)
        raise TryAgainError(REFUSED_SECONDS if refused else error.retry_after) from error


def look(state: State, entry: Managed) -> Looked:
    """What the limit or group should have as its status now, and what its end waits for."""
    now = datetime.now(UTC)
    if entry.seen.kind is SharedMemoryGroup:
        return _look_at_group(state, entry, now)
    return Looked(_limit_status(state, entry, now))


def _limit_status(state: State, entry: Managed, now: datetime) -> PinLimitStatus:
    seen = entry.seen
    previous = entry.status if isinstance(entry.status, PinLimitStatus) else None
    if not isinstance(seen.resource, PinLimit | ClusterPinLimit):
        refusal = Rejection("Invalid", seen.problem)
        return conclude(_unreadable(entry), [], previous, now, rejection=refusal)
    return aggregate(
        seen.resource,
        state.world.pods_of(seen.key),
        state.views,
        previous,
        now,
        rejection=state.world.rejection(seen.key),
        overriding=state.world.overriding(seen.key),
        kept=entry.kept,
    )


def _look_at_group(state: State, entry: Managed, now: datetime) -> Looked:
    seen, world = entry.seen, state.world
    name = seen.full_name
    group = world.groups.get(name)
    previous = entry.status if isinstance(entry.status, SharedMemoryGroupStatus) else None
    refusal = world.group_rejection(name) if group else Rejection("Invalid", seen.problem)
    if group is None or refusal is not None:
        refusal = refusal or Rejection("Invalid", seen.problem)
        waits = _waits(state, group) if group else []
        return Looked(rejected_group_status(_metadata(seen), refusal, previous, now, waits), waits)
    members, on = world.members_of(name), world.nodes_of_group(name)
    views = {node: state.view(node) for node in {*members, *on} if node in world.nodes}
    shares = group_shares(group, members, on, views, state.pod_at, entry.kept_group)
    status = settled(previous, group_status(group, shares, previous, now))
    return Looked(status, [share.waits for share in shares if share.waits])


def _waits(state: State, group: Group) -> list[DrainWait]:
    """What the end of a group that is refused waits for."""
    nodes = sorted(state.world.nodes_of_group(group.name))
    waits = (drain_wait(group, state.view(node), state.pod_at, rejected=True) for node in nodes)
    return [wait for wait in waits if wait]


def _metadata(seen: Seen) -> ObjectMeta:
    return ObjectMeta(name=seen.name, namespace=seen.namespace, uid=seen.uid, generation=seen.generation)


def _unreadable(entry: Managed) -> PinLimit:
    """Stands for a limit that cannot be read where only its metadata counts."""
    spec = PinLimitSpec(pod_selector=LabelSelector(), limit=Quantity(0))
    return PinLimit(metadata=_metadata(entry.seen), spec=spec)


def _delay(entry: Managed, status: Status) -> float:
    """Return the seconds until this status may be written."""
    return entry.leave.wait(_spared(entry.status, status))


def _spared(before: Status | None, status: Status) -> float:
    """Return how many writes this change must leave for more important ones."""
    if _conditions(before) != _conditions(status):
        return 0.0
    return SPARED_BY_FIGURES if _borrowers(before) == _borrowers(status) else SPARED_BY_BORROWERS


def _conditions(status: Status | None) -> object:
    if status is None:
        return None
    conditions = [(each.type, each.status, each.reason) for each in conditions_of(status)]
    return status.observed_generation, conditions


def _borrowers(status: Status | None) -> frozenset[tuple[str, str]]:
    """Return namespace and name of each pod that a group's status lists; none for a limit."""
    listed = status.borrowers if isinstance(status, SharedMemoryGroupStatus) else None
    return frozenset((borrower.namespace, borrower.pod) for borrower in listed or ())
