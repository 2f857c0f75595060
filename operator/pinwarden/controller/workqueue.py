"""A queue of names to work on.

If a name is added while it waits, it is processed once. If a name is added during its run, it is
processed again. A burst of events therefore costs one run, and no two workers process the same
name.
"""

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from pinwarden.common.backoff import Backoff

_PRUNE_SLACK = 1024


@dataclass(slots=True)
class _QueuedName:
    """The state of a name, in times of the queue's clock.

    `again` is set if the name was added while busy.
    """

    due: float | None = None
    busy: bool = False
    again: float | None = None
    not_before: float = 0.0
    backoff: Backoff | None = None

    @property
    def waiting(self) -> bool:
        return self.due is not None or self.busy or self.backoff is not None


class WorkQueue:
    """Names that become due, each after the pause of its last run."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._names: dict[str, _QueuedName] = {}
        self._heap: list[tuple[float, str]] = []
        self._prune_above = _PRUNE_SLACK
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return sum(
            (entry.due is not None) + (entry.again is not None) for entry in self._names.values()
        )

    @property
    def idle(self) -> bool:
        """Return whether no name waits or is processed; failed names do not count."""
        return not any(
            entry.busy or (entry.due is not None and entry.backoff is None)
            for entry in self._names.values()
        )

    def add(self, name: str, delay: float = 0.0) -> None:
        """Process `name` in `delay` seconds or later; the earliest of several calls counts."""
        entry = self._names.setdefault(name, _QueuedName())
        due = self._clock() + delay
        if entry.busy:
            entry.again = due if entry.again is None else min(due, entry.again)
            return
        due = max(due, entry.not_before)
        if entry.due is None or due < entry.due:
            entry.due = due
            heapq.heappush(self._heap, (due, name))
            self._compact_heap()
            self._changed.set()

    def discard(self, name: str) -> None:
        """Forget `name`; a worker in its run must still call `done` or `failed`."""
        entry = self._names.pop(name, None)
        if entry is not None and entry.busy:
            self._names[name] = _QueuedName(busy=True)

    async def get(self) -> str:
        """Return the next due name; the caller must end its run with `done` or `failed`."""
        while True:
            self._changed.clear()
            delay = self._until_due()
            if delay is not None and delay <= 0:
                _, name = heapq.heappop(self._heap)
                entry = self._names[name]
                entry.due, entry.not_before, entry.busy = None, 0.0, True
                if self._heap:
                    self._changed.set()  # another worker may find another name due
                return name
            try:
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, name: str, quiet: float = 0.0) -> None:
        """End the run of `name`; the next run starts no sooner than in `quiet` seconds."""
        entry = self._names[name]
        entry.backoff = None
        self._end(name, entry, quiet)

    def failed(self, name: str, at_least: float | None = None) -> None:
        """End the run of `name`, and retry after a growing pause."""
        entry = self._names[name]
        entry.backoff = entry.backoff or Backoff()
        if entry.again is None:
            entry.again = 0.0
        self._end(name, entry, entry.backoff.failed(at_least))

    def _end(self, name: str, entry: _QueuedName, quiet: float) -> None:
        now = self._clock()
        entry.busy = False
        entry.not_before = now + quiet if quiet > 0 else 0.0
        again, entry.again = entry.again, None
        if again is not None:
            self.add(name, again - now)
        elif not entry.not_before:
            del self._names[name]
        elif len(self._names) > self._prune_above:
            self._prune(now)

    def _prune(self, now: float) -> None:
        """Forget idle names whose quiet time is over."""
        self._names = {
            name: entry
            for name, entry in self._names.items()
            if entry.waiting or entry.not_before > now
        }
        self._prune_above = 2 * len(self._names) + _PRUNE_SLACK

    def _compact_heap(self) -> None:
        """Rebuild the heap when most of its times are outdated."""
        if len(self._heap) > 2 * len(self._names) + _PRUNE_SLACK:
            self._heap = [
                (entry.due, name) for name, entry in self._names.items() if entry.due is not None
            ]
            heapq.heapify(self._heap)

    def _until_due(self) -> float | None:
        """Return the seconds until the next name is due, None if no name waits."""
        while self._heap and not self._is_current(*self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] - self._clock() if self._heap else None

    def _is_current(self, due: float, name: str) -> bool:
        entry = self._names.get(name)
        return entry is not None and entry.due == due
