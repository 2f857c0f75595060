"""Delays after failures: twice as long each time up to a cap, with a random share."""

import random
from collections.abc import Callable

RETRY_AFTER_CAP_SECONDS = 30.0


class Backoff:
    """Delays in seconds: `first`, then doubled up to `cap`, each less a random part up to a half.

    A delay requested by the server (Retry-After) counts up to `asked_cap`.
    """

    def __init__(
        self,
        first: float = 0.1,
        cap: float = 4.0,
        uniform: Callable[[float, float], float] = random.uniform,
        *,
        asked_cap: float = RETRY_AFTER_CAP_SECONDS,
    ) -> None:
        self._first = self._next = first
        self._cap = cap
        self._uniform = uniform
        self._asked_cap = asked_cap

    def failed(self, at_least: float | None = None) -> float:
        """Return the delay after a failure; `at_least` is the delay requested by the server."""
        delay = self._uniform(self._next / 2, self._next)
        self._next = min(self._next * 2, self._cap)
        return max(delay, min(at_least or 0.0, self._asked_cap))

    def succeeded(self) -> None:
        """Start again with the first delay."""
        self._next = self._first
