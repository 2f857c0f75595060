"""Events on pods about denied calls, from the reports of the agents.

Each pod, limit and source has one Event at a time. The first denial is sent at once. Denials of the
following `QUIET_SECONDS` are counted in the note of the next Event. All Events share a rate limit,
and each pod has a budget; waiting denials are counted. A deleted pod gets no Event.

Every replica keeps new denials, and only the leader sends them. The other replicas keep the denials
of the last minute, because the leader may end before it sends them. The name of an Event follows
from the denial, so the server rejects a second Event of one denial.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic

from pinwarden.api.nodepinconfig import DenialReport
from pinwarden.common.text import printable
from pinwarden.controller.events import EventRecorder
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.ratelimit import RateLimiter
from pinwarden.controller.store import Store
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.controller.write_guard import WriteGuard
from pinwarden.plan.denials import (
    FRESH,
    SeenDenials,
    describe_denial,
    describe_repeats,
    find_new_denials,
)
from pinwarden.plan.types import Pod

QUIET_SECONDS = 60.0
_BURST = 100.0
_PER_SECOND = 20.0
_MOST_PENDING = 4096
_SPARE_NODES = 1024
_CREDIBLE = timedelta(days=1)  # of a node's clock


@dataclass(slots=True)
class _PendingDenials:
    """Unsent denials of one pod, limit and source on a node.

    `at` is the time at which the newest arrived.
    """

    node: str
    first_time: datetime
    newest: DenialReport
    at: float
    repeated: int = 0
    at_least: bool = False


class DenialEvents:
    """Send reported denials as Events. `clock` is monotonic; `now` is the time of day."""

    def __init__(
        self,
        store: Store,
        guard: WriteGuard,
        recorder: EventRecorder,
        metrics: Metrics,
        items: Items,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._guard = guard
        self._recorder = recorder
        self._metrics = metrics
        self._items = items
        self._clock = clock
        self._now = now
        self._limiter = RateLimiter(_PER_SECOND, _BURST)
        self._queue = WorkQueue(clock)
        self._seen: dict[str, SeenDenials] = {}
        self._pending: dict[str, _PendingDenials] = {}
        store.denial_listeners.append(self.observe)

    def observe(self, node: str, listed: Sequence[DenialReport]) -> None:
        """Add the new denials of a node's report. A failure ends here."""
        with self._items.item("refusals", f"denials of node {node}"):
            self._observe(node, listed)

    def _observe(self, node: str, listed: Sequence[DenialReport]) -> None:
        new = find_new_denials(self._seen.get(node), listed, self._now())
        self._seen[node] = new.seen
        if len(self._seen) > 2 * len(self._store.stored) + _SPARE_NODES:
            self._seen = {
                name: seen for name, seen in self._seen.items() if name in self._store.stored
            }
        if not self._guard.may_write:
            self._forget_old()
        for denial in new.denials:
            self._add(node, denial, new.missed)

    async def run(self) -> None:
        """Send Events until cancelled."""
        await self._items.process_queue("refusals", self._queue, self._process)

    async def _process(self, key: str) -> float:
        if not self._guard.may_write:
            await self._guard.wait_leading()
            self._forget_old()
        await self._guard.acquire()
        return await self._process_pending(key)

    def _add(self, node: str, denial: DenialReport, missed: bool) -> None:
        key = "|".join((node, denial.pod, denial.uid, denial.source))
        pending = self._pending.pop(key, None)
        if pending is None:
            pending = _PendingDenials(node, denial.time, denial, self._clock(), at_least=missed)
        else:
            pending.newest, pending.at = denial, self._clock()
            pending.repeated += 1
            pending.at_least |= missed
        self._pending[key] = pending  # last in the order: the first entry has waited longest
        self._queue.add(key)
        if len(self._pending) > _MOST_PENDING:
            self._drop(next(iter(self._pending)))
            if self._guard.may_write:
                self._metrics.event_dropped()

    def _forget_old(self) -> None:
        """Drop denials older than `FRESH`: the previous leader has sent them."""
        oldest = self._clock() - FRESH.total_seconds()
        for key in [key for key, pending in self._pending.items() if pending.at < oldest]:
            self._drop(key)

    def _drop(self, key: str) -> None:
        del self._pending[key]
        self._queue.discard(key)

    async def _process_pending(self, key: str) -> float:
        """Send the Event if its pod's budget allows, and return the seconds until the next run."""
        pending = self._pending.get(key)
        pod = self._store.pod_at(pending.node, pending.newest.pod) if pending else None
        if pending is None or pod is None:
            self._pending.pop(key, None)
            return 0.0
        bucket = self._recorder.bucket_of(pod.uid)
        if (delay := bucket.delay()) > 0:
            self._queue.add(key)
            return delay
        bucket.take()
        del self._pending[key]
        await self._limiter.acquire()
        await self._send(pod, pending)
        return QUIET_SECONDS

    async def _send(self, pod: Pod, pending: _PendingDenials) -> None:
        denial = pending.newest
        limit = self._store.resource_of(denial.uid)
        if limit is not None and limit.namespace not in (None, pod.namespace):
            limit = None  # a limit of another namespace cannot apply to the pod
        name = (
            f"{limit.kind.__name__} {limit.full_name}"
            if limit
            else printable(denial.name) or "unknown"
        )
        note = describe_denial(denial, name) + describe_repeats(
            pending.repeated, pending.at_least, denial.time - pending.first_time
        )
        now = self._now()
        time = denial.time if abs(now - denial.time) < _CREDIBLE else now
        identity = f"{pending.node} {denial.number} {denial.time.isoformat()}"
        await self._recorder.send_denial(pod, limit, note, time, identity)
