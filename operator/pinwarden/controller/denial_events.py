"""Events on the pods of what was refused to them, from what the agents list.

For each pod, limit and source there is one Event at a time: the first refusal is told at once, and those that follow within `QUIET_SECONDS`
are counted in the note of the next. All Events together have a pace, those of one pod an allowance; refusals that wait for it are counted
on. A pod that is gone is told nothing.

Every replica keeps what is news, and only the one that may write tells it. One that may not keeps the last minute of it, because the other
may have ended before it told. An Event's name follows from the refusal, so that the server refuses one that it has already.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic

from pinwarden.api.nodepinconfig import DenialReport
from pinwarden.common.text import printable
from pinwarden.controller.events import Recorder
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.ratelimit import Throttle
from pinwarden.controller.store import State
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.controller.write_guard import Gate
from pinwarden.plan.denials import FRESH, SeenDenials, describe_denial, describe_repeats, find_new_denials
from pinwarden.plan.types import Pod

QUIET_SECONDS = 60.0
_BURST = 100.0
_PER_SECOND = 20.0
_WAITING = 4096
_SPARE_NODES = 1024
_CREDIBLE = timedelta(days=1)  # of a node's clock


@dataclass(slots=True)
class _Waiting:
    """Refusals of one pod, limit and source on a node that are not told yet: when they `began`, the newest, received at `at`."""

    node: str
    began: datetime
    newest: DenialReport
    at: float
    more: int = 0
    at_least: bool = False


class Refusals:
    """Takes what the agents list, and has it told. `clock` is monotonic; `now` is the time of day."""

    def __init__(
        self,
        state: State,
        gate: Gate,
        recorder: Recorder,
        metrics: Metrics,
        items: Items,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._state = state
        self._gate = gate
        self._recorder = recorder
        self._metrics = metrics
        self._items = items
        self._clock = clock
        self._now = now
        self._throttle = Throttle(_PER_SECOND, _BURST)
        self._queue = WorkQueue(clock)
        self._seen: dict[str, SeenDenials] = {}
        self._waiting: dict[str, _Waiting] = {}

    def reported(self, node: str, listed: Sequence[DenialReport]) -> None:
        """A node's agent lists these refusals."""
        found = find_new_denials(self._seen.get(node), listed, self._now())
        self._seen[node] = found.seen
        if len(self._seen) > 2 * len(self._state.held) + _SPARE_NODES:
            self._seen = {name: seen for name, seen in self._seen.items() if name in self._state.held}
        if not self._gate.open:
            self._forget_old()
        for refusal in found.denials:
            self._take(node, refusal, found.missed)

    async def tell(self) -> None:
        """Tells until cancelled."""
        await self._items.work_off("refusals", self._queue, self._tell_next)

    async def _tell_next(self, key: str) -> float:
        if not self._gate.open:
            await self._gate.led()
            self._forget_old()
        await self._gate.leave()
        return await self._tell(key)

    def _take(self, node: str, refusal: DenialReport, missed: bool) -> None:
        key = "|".join((node, refusal.pod, refusal.uid, refusal.source))
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            waiting = _Waiting(node, refusal.time, refusal, self._clock(), at_least=missed)
        else:
            waiting.newest, waiting.at = refusal, self._clock()
            waiting.more += 1
            waiting.at_least |= missed
        self._waiting[key] = waiting  # as the last one: the first is the one that heard nothing for longest
        self._queue.add(key)
        if len(self._waiting) > _WAITING:
            self._drop(next(iter(self._waiting)))
            if self._gate.open:
                self._metrics.event_dropped()

    def _forget_old(self) -> None:
        """What came longer ago than `FRESH` while another replica was to tell it, it has told."""
        oldest = self._clock() - FRESH.total_seconds()
        for key in [key for key, waiting in self._waiting.items() if waiting.at < oldest]:
            self._drop(key)

    def _drop(self, key: str) -> None:
        del self._waiting[key]
        self._queue.discard(key)

    async def _tell(self, key: str) -> float:
        """Sends the Event if there is one to send now; the seconds in which to send no other of its kind."""
        waiting = self._waiting.get(key)
        pod = self._state.pod_at(waiting.node, waiting.newest.pod) if waiting else None
        if waiting is None or pod is None:
            self._waiting.pop(key, None)
            return 0.0
        leave = self._recorder.leave(pod.uid)
        if (delay := leave.wait()) > 0:
            self._queue.add(key)
            return delay
        leave.take()
        del self._waiting[key]
        await self._throttle.leave()
        await self._send(pod, waiting)
        return QUIET_SECONDS

    async def _send(self, pod: Pod, waiting: _Waiting) -> None:
        refusal = waiting.newest
        limit = self._state.seen_as(refusal.uid)
        if limit is not None and limit.namespace not in (None, pod.namespace):
            limit = None  # it cannot hold for the pod, whoever wrote that it did
        name = f"{limit.kind.__name__} {limit.full_name}" if limit else printable(refusal.name) or "unknown"
        note = describe_denial(refusal, name) + describe_repeats(
            waiting.more, waiting.at_least, refusal.time - waiting.began
        )
        now = self._now()
        time = refusal.time if abs(now - refusal.time) < _CREDIBLE else now
        identity = f"{waiting.node} {refusal.number} {refusal.time.isoformat()}"
        await self._recorder.refused(pod, limit, note, time, identity)
