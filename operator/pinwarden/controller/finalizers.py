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
from pinwarden.controller.events import Happening, Recorder
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.resources import Seen, read, reference
from pinwarden.controller.store import Managed, State
from pinwarden.controller.write_guard import Gate
from pinwarden.plan.group_compiler import FINALIZER
from pinwarden.plan.group_on_node import DrainWait

FIELD_MANAGER = "pinwarden-operator-finalizer"
LEFT_SECONDS = 120.0


class End(NamedTuple):
    """Whether the group is gone by now, and in how many seconds its end must be looked at again; 0 for when something changes."""

    gone: bool = False
    look_after: float = 0.0


class Finalizers:
    """Sets and removes it. `clock` is monotonic."""

    def __init__(
        self,
        api: Api,
        state: State,
        gate: Gate,
        recorder: Recorder,
        metrics: Metrics,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._api = api
        self._state = state
        self._gate = gate
        self._recorder = recorder
        self._metrics = metrics
        self._clock = clock
        self._stuck: dict[str, dict[str, float]] = {}

    async def settle(self, entry: Managed, waits: Sequence[DrainWait]) -> End:
        """Give a resource the finalizer that it needs, or take it away; `waits` is what its end waits for. Raises ApiError."""
        seen = entry.seen
        if seen.kind is not SharedMemoryGroup:
            return End()
        if seen.deleting and not seen.finalizers:
            return End(gone=True)
        group = self._state.world.groups.get(seen.full_name)
        drains = group is not None and group.drains
        if drains and seen.deleting and (delay := self._delay(seen, waits)) is not None:
            return End(look_after=delay)
        accepted = self._state.world.group_rejection(seen.full_name) is None
        wanted = drains and not seen.deleting and (accepted or bool(waits))
        if wanted == (FINALIZER in seen.finalizers):
            return End()
        await self._gate.leave()
        answer = read(SharedMemoryGroup, await self._apply(seen, wanted=wanted))
        self._metrics.wrote("finalizer")
        self._state.answered(answer)
        for wait in waits if drains and not wanted else ():
            self._tell_left(seen, wait)
        return End(gone=answer.deleting and not answer.finalizers)

    def _tell_left(self, seen: Seen, wait: DrainWait) -> None:
        """Tell what is left, on the Node where the namespace takes no Events any more."""
        if self._state.world.namespace(seen.namespace or "").terminating:
            self._recorder.happened_on(wait.node, _left(seen, wait))
        else:
            self._recorder.happened(seen, _left(seen, wait))

    async def _apply(self, seen: Seen, *, wanted: bool) -> Json:
        path, body = reference(seen)
        if not wanted:
            return await self._api.patch(path, without(FINALIZER, seen.uid, list(seen.finalizers)))
        body["metadata"]["finalizers"] = [FINALIZER]
        return await self._api.apply(path, body, FIELD_MANAGER)

    def _delay(self, seen: Seen, waits: Sequence[DrainWait]) -> float | None:
        """None once nothing is waited for but in vain; else the seconds until that may be so, 0 where something may still come."""
        now = self._clock()
        before = self._stuck.get(seen.uid, {})
        since = {wait.node: before.get(wait.node, now) for wait in waits if self._in_vain(seen, wait)}
        left = max((at + LEFT_SECONDS - now for at in since.values()), default=0.0)
        if len(since) == len(waits) and left <= 0:
            self._stuck.pop(seen.uid, None)
            return None
        self._stuck = {uid: kept for uid, kept in self._stuck.items() if self._state.seen_as(uid)}
        self._stuck[seen.uid] = since
        return left if len(since) == len(waits) else 0.0

    def _in_vain(self, seen: Seen, wait: DrainWait) -> bool:
        world = self._state.world
        abandoned = world.namespace(seen.namespace or "").terminating
        return bool(wait.stuck) or (abandoned and not world.members_of(seen.full_name).get(wait.node))


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


def _left(seen: Seen, wait: DrainWait) -> Happening:
    amount = "an unknown amount" if wait.charge is None else short(wait.charge)
    note = f"{seen.kind.__name__} {seen.full_name} is not released on node {wait.node}, where {amount} of it may be left: {wait.why}."
    return Happening("Warning", "LeftOnNode", "Drain", note)
