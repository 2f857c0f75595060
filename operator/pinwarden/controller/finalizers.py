"""The finalizer of a SharedMemoryGroup, which delays the deletion until every node has released the
group (M10).

The finalizer is set before any node gets the group, and removed once every node has released the
group. A deleted node does not delay the deletion. Some nodes delay the deletion for at most
`LEFT_SECONDS`: the agent or accountant is silent, does not understand the group or cannot release
the group, or the namespace is being deleted and the node has no member pod. An Event then reports
the memory that may be left on the node.

A rejected group keeps the finalizer until its nodes have released it. A group without nodes, or
with the policy `Orphan`, has no finalizer.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.common.text import short
from pinwarden.controller.client import Api, Json
from pinwarden.controller.events import EventDraft, EventRecorder
from pinwarden.controller.managed_resource import ManagedResource
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.resources import ObservedResource, read, reference
from pinwarden.controller.store import Store
from pinwarden.controller.write_guard import WriteGuard
from pinwarden.plan.group_compiler import FINALIZER
from pinwarden.plan.group_on_node import DrainWait

FIELD_MANAGER = "pinwarden-operator-finalizer"
LEFT_SECONDS = 120.0


class FinalizerResult(NamedTuple):
    """Whether the group is gone, and the seconds until the next check; 0 waits for a change."""

    gone: bool = False
    requeue_after: float = 0.0


class Finalizers:
    """Set and remove finalizers. `clock` is monotonic."""

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

    async def reconcile(
        self, entry: ManagedResource, waits: Sequence[DrainWait]
    ) -> FinalizerResult:
        """Set or remove the finalizer; `waits` are the reasons to wait. Raises ApiError."""
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
        """Record an Event, on the Node if the namespace accepts no more Events."""
        if self._store.cluster.namespace(observed.namespace or "").terminating:
            self._recorder.record_on_node(wait.node, _leftover_event(observed, wait))
        else:
            self._recorder.record(observed, _leftover_event(observed, wait))

    async def _apply(self, observed: ObservedResource, *, wanted: bool) -> Json:
        path, body = reference(observed)
        if not wanted:
            return await self._api.patch(
                path, finalizer_removal(FINALIZER, observed.uid, list(observed.finalizers))
            )
        body["metadata"]["finalizers"] = [FINALIZER]
        return await self._api.apply(path, body, FIELD_MANAGER)

    def _delay(self, observed: ObservedResource, waits: Sequence[DrainWait]) -> float | None:
        """Return the seconds to wait, 0 for a report, or None if the deletion may proceed."""
        now = self._clock()
        before = self._stuck.get(observed.uid, {})
        stuck = (wait.node for wait in waits if self._is_stuck(observed, wait))
        since = {node: before.get(node, now) for node in stuck}
        left = max((at + LEFT_SECONDS - now for at in since.values()), default=0.0)
        if len(since) == len(waits) and left <= 0:
            self._stuck.pop(observed.uid, None)
            return None
        self._stuck = {
            uid: kept for uid, kept in self._stuck.items() if self._store.resource_of(uid)
        }
        self._stuck[observed.uid] = since
        return left if len(since) == len(waits) else 0.0

    def _is_stuck(self, observed: ObservedResource, wait: DrainWait) -> bool:
        cluster = self._store.cluster
        abandoned = cluster.namespace(observed.namespace or "").terminating
        return bool(wait.stuck) or (
            abandoned and not cluster.members_of(observed.full_name).get(wait.node)
        )


def finalizer_removal(finalizer: str, uid: str, finalizers: Sequence[str]) -> list[Json]:
    """Return a JSON patch (RFC 6902) that removes one finalizer, also if another manager set it.

    The server rejects the patch with 422 if the object was recreated or its finalizers changed.
    Server-side apply would leave a finalizer that another manager owns too.
    """
    return [
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "test", "path": "/metadata/finalizers", "value": list(finalizers)},
        {
            "op": "replace",
            "path": "/metadata/finalizers",
            "value": [name for name in finalizers if name != finalizer],
        },
    ]


def _leftover_event(observed: ObservedResource, wait: DrainWait) -> EventDraft:
    amount = "an unknown amount" if wait.charge is None else short(wait.charge)
    note = (
        f"{observed.kind.__name__} {observed.full_name} is not released on node {wait.node}, "
        f"where {amount} of its memory may be left: {wait.why}."
    )
    return EventDraft("Warning", "LeftOnNode", "Drain", note)
