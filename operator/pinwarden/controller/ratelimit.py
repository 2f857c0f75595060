"""Rate limits: a token bucket for one object, and a rate limiter shared by all writers."""

import asyncio
from collections.abc import Callable
from time import monotonic


class TokenBucket:
    """Allow `burst` actions at once and `rate` actions a second on average."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    def delay(self, spare: float = 0.0) -> float:
        """Return the seconds until an action may take a token and leave `spare`; 0 if now."""
        self._fill()
        return max(0.0, (1.0 + spare - self._tokens) / self._rate)

    def take(self) -> None:
        """Take one token. An overdrawn bucket delays later actions."""
        self._fill()
        self._tokens -= 1.0

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class RateLimiter:
    """One rate for all writers, and a pause for all of them when the API server asks for it."""

    def __init__(self, rate: float, burst: float) -> None:
        self._bucket = TokenBucket(rate, burst)
        self._paused_until = 0.0

    async def acquire(self) -> None:
        """Wait until one write is allowed."""
        delay = self._bucket.delay()
        self._bucket.take()
        await asyncio.sleep(delay)
        while (paused := self._paused_until - monotonic()) > 0:
            await asyncio.sleep(paused)

    def pause(self, seconds: float) -> None:
        """Allow no write for `seconds`, because the API server is overloaded."""
        self._paused_until = max(self._paused_until, monotonic() + seconds)
