"""The condition for every write: all objects have been listed, and this replica holds the Lease."""

import asyncio
from collections.abc import Callable

from pinwarden.controller.ratelimit import RateLimiter


class WriteGuard:
    """Every writer calls `acquire` right before its write.

    The elector sets `renewed` after it took or renewed the Lease, which wakes waiting writers.
    """

    def __init__(
        self, leading: Callable[[], bool], renewed: asyncio.Event, limiter: RateLimiter
    ) -> None:
        self._leading = leading
        self._renewed = renewed
        self._limiter = limiter
        self.synced = asyncio.Event()

    @property
    def may_write(self) -> bool:
        """Return whether a write is allowed now."""
        return self.synced.is_set() and self._leading()

    async def wait_leading(self) -> None:
        """Wait until a write is allowed. Any later `await` may end the permission."""
        await self.synced.wait()
        while not self._leading():
            self._renewed.clear()
            await self._renewed.wait()

    async def acquire(self) -> None:
        """Wait until a write is allowed now, at the rate of all writers."""
        await self.wait_leading()
        await self._limiter.acquire()
        await self.wait_leading()

    def pause(self, seconds: float) -> None:
        """Allow no write for `seconds`, as the API server asked."""
        self._limiter.pause(seconds)
