"""Queues of names to work on, and paces for it.

A name that is added while it waits is worked on once; one that is added while it is worked on is worked on again. So a burst of events
costs one piece of work, and no name is worked on by two workers.
"""

import asyncio
import heapq
from collections.abc import Callable
from time import monotonic

from pinwarden.common.backoff import Backoff


class WorkQueue:
    """Names that become due, each not sooner than the pace that its last piece of work asked for."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._busy: set[str] = set()
        self._again: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due) + len(self._again)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is worked on, but for names that failed and are tried again."""
        return not self._busy and all(name in self._backoffs for name in self._due)

    def add(self, name: str, delay: float = 0.0) -> None:
        """Work on `name`, not before `delay` seconds from now; the soonest of several calls counts."""
        due = self._clock() + delay
        if name in self._busy:
            self._again[name] = min(due, self._again.get(name, due))
            return
        due = max(due, self._not_before.get(name, 0.0))
        if due < self._due.get(name, float("inf")):
            self._due[name] = due
            heapq.heappush(self._heap, (due, name))
            if len(self._heap) > 2 * len(self._due) + 1024:
                self._heap = [(due, name) for name, due in self._due.items()]
                heapq.heapify(self._heap)
            self._changed.set()

    def discard(self, name: str) -> None:
        """Forget all about `name`, unless it is worked on."""
        for waiting in (self._due, self._again, self._not_before, self._backoffs):
            waiting.pop(name, None)

    async def get(self) -> str:
        """Wait for a name that is due; `done` or `failed` must follow."""
        while True:
            self._changed.clear()
            delay = self._until_due()
            if delay is not None and delay <= 0:
                _, name = heapq.heappop(self._heap)
                del self._due[name]
                self._not_before.pop(name, None)
                self._busy.add(name)
                if self._heap:
                    self._changed.set()  # there may be another one for another worker
                return name
            try:
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, name: str, quiet: float = 0.0) -> None:
        """The work on `name` ended; the next comes not before `quiet` seconds from now."""
        self._backoffs.pop(name, None)
        self._end(name, quiet)

    def failed(self, name: str, at_least: float | None = None) -> None:
        """The work on `name` failed and is tried again after a pause that grows from one failure to the next."""
        delay = self._backoffs.setdefault(name, Backoff()).failed(at_least)
        self._again.setdefault(name, 0.0)
        self._end(name, delay)

    def _end(self, name: str, quiet: float) -> None:
        self._busy.discard(name)
        if quiet > 0:
            self._not_before[name] = self._clock() + quiet
            if len(self._not_before) > 2 * len(self._due) + 1024:
                self._forget_past()
        due = self._again.pop(name, None)
        if due is not None:
            self.add(name, due - self._clock())

    def _forget_past(self) -> None:
        now = self._clock()
        self._not_before = {name: due for name, due in self._not_before.items() if due > now}

    def _until_due(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] - self._clock() if self._heap else None
