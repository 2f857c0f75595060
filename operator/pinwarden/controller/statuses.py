"""The statuses of the limits: aggregated from what the nodes report, and written when they change.

A dirty limit is looked at only while no node waits to be compiled: a status must never judge an edited limit by what its nodes were asked
before (H1). A limit has leave for ten writes at once and for one more every five seconds. Conditions may use all of it, mere figures must
leave half. Looking at a limit takes at most a tenth of the time, however many pods it holds for.
"""

import logging
from datetime import UTC, datetime
from time import monotonic

from pinwarden.api.meta import GROUP, VERSION, LabelSelector, ObjectMeta
from pinwarden.api.pinlimit import PinLimit, PinLimitSpec, PinLimitStatus
from pinwarden.api.quantity import Quantity
from pinwarden.controller.client import Api, ApiError
from pinwarden.controller.events import Recorder
from pinwarden.controller.gate import Gate
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.specs import REFUSED_SECONDS, Specs
from pinwarden.controller.state import STATUS_BURST, ManagedLimit, State, conditions_of
from pinwarden.controller.work import WorkQueue
from pinwarden.plan.aggregate import aggregate, conclude
from pinwarden.plan.compile import Refusal

QUIET_SECONDS = 0.2
SPARED_BY_FIGURES = STATUS_BURST / 2
_GONE_SECONDS = 5.0
WRITERS = 4
_TIMES_ITS_COST = 10.0
_API_VERSION = f"{GROUP}/{VERSION}"
_log = logging.getLogger(__name__)


class Statuses:
    """Looks at dirty limits and writes what changed."""

    def __init__(
        self,
        api: Api,
        state: State,
        queue: WorkQueue,
        specs: Specs,
        gate: Gate,
        recorder: Recorder,
        metrics: Metrics,
    ) -> None:
        self._api = api
        self._state = state
        self._queue = queue
        self._specs = specs
        self._gate = gate
        self._recorder = recorder
        self._metrics = metrics

    async def write(self) -> None:
        """One of `WRITERS`: looks and writes until cancelled."""
        while True:
            key = await self._queue.get()
            await self._gate.led()
            await self._specs.settled()
            entry = self._state.limits.get(key)
            if entry is None:
                self._queue.done(key)
                continue
            started = monotonic()
            status = status_of(self._state, entry)
            cost = monotonic() - started
            self._metrics.reconciled("aggregate", cost)
            await self._settle(key, entry, status, max(QUIET_SECONDS, cost * _TIMES_ITS_COST))

    async def _settle(self, key: str, entry: ManagedLimit, status: PinLimitStatus, quiet: float) -> None:
        """Write the status now or later, or not when it is what the API server has."""
        if status == entry.status:
            self._queue.done(key, quiet)
            return
        if (delay := _delay(entry, status)) > 0:
            self._queue.add(key, delay)
            self._queue.done(key, quiet)
            return
        try:
            await self._gate.leave()
            await self._apply(entry, status)
        except ApiError as error:
            self._failed(key, error)
        else:
            self._metrics.wrote("status")
            self._queue.done(key, quiet)

    async def _apply(self, entry: ManagedLimit, status: PinLimitStatus) -> None:
        seen = entry.seen
        metadata = {"name": seen.name, "uid": seen.uid}
        space = ""
        if seen.namespace:
            metadata["namespace"] = seen.namespace
            space = f"namespaces/{seen.namespace}/"
        path = f"/apis/{_API_VERSION}/{space}{seen.kind.plural}/{seen.name}/status"
        body = {"apiVersion": _API_VERSION, "kind": seen.kind.__name__, "metadata": metadata}
        before = entry.status  # the watch may tell of the write before it is answered
        answer = await self._api.apply(path, {**body, "status": status.to_wire()})
        version = int(answer["metadata"]["resourceVersion"])
        if version > entry.version:
            entry.status, entry.version = status, version
        entry.leave.take()
        self._recorder.changed(seen, before, status)

    def _failed(self, key: str, error: ApiError) -> None:
        self._metrics.wrote("status", error.kind)
        if error.status in (404, 409):  # gone, or another one of its name: its watch will tell
            self._queue.done(key, _GONE_SECONDS)
            return
        if error.status == 429:
            self._gate.stop(error.retry_after or 1.0)
        refused = error.kind == "refused"
        if refused:
            _log.warning("the status of %s cannot be written: %s", key, error)
        self._queue.failed(key, REFUSED_SECONDS if refused else error.retry_after)


def status_of(state: State, entry: ManagedLimit) -> PinLimitStatus:
    """The status that the limit should have now."""
    now = datetime.now(UTC)
    seen = entry.seen
    if seen.limit is None:
        return conclude(_unreadable(entry), [], entry.status, now, refusal=Refusal("Invalid", seen.problem))
    return aggregate(
        seen.limit,
        state.world.pods_of(seen.key),
        state.views,
        entry.status,
        now,
        refusal=state.world.refusal(seen.key),
        overriding=state.world.overriding(seen.key),
        kept=entry.kept,
    )


def _unreadable(entry: ManagedLimit) -> PinLimit:
    """Stands for a limit that cannot be read where only its metadata counts."""
    seen = entry.seen
    metadata = ObjectMeta(name=seen.name, namespace=seen.namespace, uid=seen.uid, generation=seen.generation)
    spec = PinLimitSpec(pod_selector=LabelSelector(), limit=Quantity(0))
    return PinLimit(metadata=metadata, spec=spec)


def _delay(entry: ManagedLimit, status: PinLimitStatus) -> float:
    """Seconds until this status may be written."""
    figures = _essence(entry.status) == _essence(status)
    return entry.leave.wait(SPARED_BY_FIGURES if figures else 0.0)


def _essence(status: PinLimitStatus | None) -> object:
    """What is worth a write at once."""
    if status is None:
        return None
    conditions = [(each.type, each.status, each.reason) for each in conditions_of(status)]
    return status.observed_generation, conditions
