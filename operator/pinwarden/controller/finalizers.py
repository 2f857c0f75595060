"""The finalizer of a SharedMemoryGroup: it cannot go while its end is waited for (M10).

It is set before any node is asked to hold the group, and removed once every node has released it. Nothing is waited for in vain: not a node
that is gone, and not for longer than `LEFT_SECONDS` one whose agent or accountant is silent, does not understand the group or cannot do
what is asked, or, when the namespace is being deleted, one without a member pod. What may be left on such a node an Event tells.

A group that is refused keeps the finalizer until the nodes that it was on have released it. One that was on none, or whose policy is
Orphan, has no finalizer.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.common.text import short
from pinwarden.controller.client import Api, Json
from pinwarden.controller.events import EventDraft, EventRecorder
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.resources import ObservedResource, read, reference
from pinwarden.controller.store import ManagedResource, Store
from pinwarden.controller.write_guard import WriteGuard
from pinwarden.plan.group_compiler import FINALIZER
from pinwarden.plan.group_on_node import DrainWait

FIELD_MANAGER = "pinwarden-operator-finalizer"
LEFT_SECONDS = 120.0


class FinalizerResult(NamedTuple):
    """Whether the group is gone by now, and in how many seconds its end must be looked at again; 0 for when something changes."""

    gone: bool = False
    requeue_after: float = 0.0


class Finalizers:
    """Sets and removes it. `clock` is monotonic."""

    def __init__(
        self,
        api: Api,
        store: Store,
        guard: WriteGuard,
        recorder: EventRecorder,
        metrics: Metrics,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._api = api
        self._store = store
        self._guard = guard
        self._recorder = recorder
        self._metrics = metrics
        self._clock = clock
        self._stuck: dict[str, dict[str, float]] = {}

    async def reconcile(self, entry: ManagedResource, waits: Sequence[DrainWait]) -> FinalizerResult:
        """Give a resource the finalizer that it needs, or take it away; `waits` is what its end waits for. Raises ApiError."""
        observed = entry.observed
        if observed.kind is not SharedMemoryGroup:
            return FinalizerResult()
        if observed.deleting and not observed.finalizers:
            return FinalizerResult(gone=True)
        group = self._store.cluster.groups.get(observed.full_name)
        drains = group is not None and group.drains
        if drains and observed.deleting and (delay := self._delay(observed, waits)) is not None:
            return FinalizerResult(requeue_after=delay)
        accepted = self._store.cluster.group_rejection(observed.full_name) is None
        wanted = drains and not observed.deleting and (accepted or bool(waits))
        if wanted == (FINALIZER in observed.finalizers):
            return FinalizerResult()
        await self._guard.acquire()
        answer = read(SharedMemoryGroup, await self._apply(observed, wanted=wanted))
        self._metrics.wrote("finalizer")
        self._store.resource_written(answer)
        for wait in waits if drains and not wanted else ():
            self._record_leftover(observed, wait)
        return FinalizerResult(gone=answer.deleting and not answer.finalizers)

    def _record_leftover(self, observed: ObservedResource, wait: DrainWait) -> None:
        """Tell what is left, on the Node where the namespace takes no Events any more."""
        if self._store.cluster.namespace(observed.namespace or "").terminating:
            self._recorder.record_on_node(wait.node, _leftover_event(observed, wait))
        else:
            self._recorder.record(observed, _leftover_event(observed, wait))

    async def _apply(self, observed: ObservedResource, *, wanted: bool) -> Json:
        path, body = reference(observed)
        if not wanted:
            return await self._api.patch(path, without(FINALIZER, observed.uid, list(observed.finalizers)))
        body["metadata"]["finalizers"] = [FINALIZER]
        return await self._api.apply(path, body, FIELD_MANAGER)

    def _delay(self, observed: ObservedResource, waits: Sequence[DrainWait]) -> float | None:
        """None once nothing is waited for but in vain; else the seconds until that may be so, 0 where something may still come."""
        now = self._clock()
        before = self._stuck.get(observed.uid, {})
        since = {wait.node: before.get(wait.node, now) for wait in waits if self._in_vain(observed, wait)}
        left = max((at + LEFT_SECONDS - now for at in since.values()), default=0.0)
        if len(since) == len(waits) and left <= 0:
            self._stuck.pop(observed.uid, None)
            return None
        self._stuck = {uid: kept for uid, kept in self._stuck.items() if self._store.resource_of(uid)}
        self._stuck[observed.uid] = since
        return left if len(since) == len(waits) else 0.0

    def _in_vain(self, observed: ObservedResource, wait: DrainWait) -> bool:
        cluster = self._store.cluster
        abandoned = cluster.namespace(observed.namespace or "").terminating
        return bool(wait.stuck) or (abandoned and not cluster.members_of(observed.full_name).get(wait.node))


def without(finalizer: str, uid: str, finalizers: Sequence[str]) -> list[Json]:
    """A JSON patch (RFC 6902) that takes one of an object's finalizers away, whoever set it; an apply would leave what others own too.

    The server refuses it with 422 where the object is another one or has other finalizers by now.
    """
    return [
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "test", "path": "/metadata/finalizers", "value": list(finalizers)},
        {
            "op": "replace",
            "path": "/metadata/finalizers",
            "value": [each for each in finalizers if each != finalizer],
        },
    ]


def _leftover_event(observed: ObservedResource, wait: DrainWait) -> EventDraft:
    amount = "an unknown amount" if wait.charge is None else short(wait.charge)
    note = (
        f"{observed.kind.__name__} {observed.full_name} is not released on node {wait.node}, "
        f"where {amount} of it may be left: {wait.why}."
    )
    return EventDraft("Warning", "LeftOnNode", "Drain", note)
