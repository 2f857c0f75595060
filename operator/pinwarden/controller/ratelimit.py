"""Paces: for one object, and for all writers together."""

import asyncio
from collections.abc import Callable
from time import monotonic


class TokenBucket:
    """Leave for `burst` actions at once and for `rate` a second on average."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    def delay(self, spare: float = 0.0) -> float:
        """Seconds until there is leave for one action that leaves `spare` others; 0 when there is."""
        self._fill()
        return max(0.0, (1.0 + spare - self._tokens) / self._rate)

    def take(self) -> None:
        """One action; leave may have been overdrawn by it, which delays those after it."""
        self._fill()
        self._tokens -= 1.0

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class RateLimiter:
    """One pace for all writers, and a stop for all of them when the API server asks for one."""

    def __init__(self, rate: float, burst: float) -> None:
        self._bucket = TokenBucket(rate, burst)
        self._paused_until = 0.0

    async def acquire(self) -> None:
        """Wait for leave to write once."""
        delay = self._bucket.delay()
        self._bucket.take()
        await asyncio.sleep(delay)
        while (paused := self._paused_until - monotonic()) > 0:
            await asyncio.sleep(paused)

    def pause(self, seconds: float) -> None:
        """The API server had enough: nobody writes for so long."""
        self._paused_until = max(self._paused_until, monotonic() + seconds)
