"""When writing is allowed: once everything has been listed, and while this replica holds the Lease."""

import asyncio
from collections.abc import Callable

from pinwarden.controller.ratelimit import RateLimiter


class WriteGuard:
    """What every write passes last; `opened` wakes those who wait."""

    def __init__(self, leading: Callable[[], bool], limiter: RateLimiter) -> None:
        self._leading = leading
        self._limiter = limiter
        self._changed = asyncio.Event()
        self.synced = asyncio.Event()

    def notify_leading(self) -> None:
        """This replica holds the Lease, now or again."""
        self._changed.set()

    @property
    def may_write(self) -> bool:
        """Whether writing is allowed now."""
        return self.synced.is_set() and self._leading()

    async def wait_leading(self) -> None:
        """Wait until writing is allowed, which it may not be any more after the next wait for something else."""
        await self.synced.wait()
        while not self._leading():
            self._changed.clear()
            await self._changed.wait()

    async def acquire(self) -> None:
        """Wait for leave to write now, at the pace of all writers."""
        await self.wait_leading()
        await self._limiter.acquire()
        await self.wait_leading()

    def pause(self, seconds: float) -> None:
        """The API server asked for a pause."""
        self._limiter.pause(seconds)
