"""The condition for every write: all objects have been listed, and this replica holds the Lease."""

import asyncio
from collections.abc import Callable

from pinwarden.controller.ratelimit import RateLimiter


class WriteGuard:
    """Every writer calls `acquire` right before its write.

    `notify_leading` wakes waiting writers.
    """

    def __init__(self, leading: Callable[[], bool], limiter: RateLimiter) -> None:
        self._leading = leading
        self._limiter = limiter
        self._changed = asyncio.Event()
        self.synced = asyncio.Event()

    def notify_leading(self) -> None:
        """Wake waiting writers after this replica took or renewed the Lease."""
        self._changed.set()

    @property
    def may_write(self) -> bool:
        """Return whether a write is allowed now."""
        return self.synced.is_set() and self._leading()

    async def wait_leading(self) -> None:
        """Wait until a write is allowed. Any later `await` may end the permission."""
        await self.synced.wait()
        while not self._leading():
            self._changed.clear()
            await self._changed.wait()

    async def acquire(self) -> None:
        """Wait until a write is allowed now, at the rate of all writers."""
        await self.wait_leading()
        await self._limiter.acquire()
        await self.wait_leading()

    def pause(self, seconds: float) -> None:
        """Allow no write for `seconds`, as the API server asked."""
        self._limiter.pause(seconds)
