"""How long to wait after a failure: twice as long each time up to a cap, and never in step with others."""

import random
from collections.abc import Callable

CAP_SECONDS = 4.0
RETRY_AFTER_CAP_SECONDS = 30.0


class Backoff:
    """Delays in seconds: `first`, then doubled up to `cap`, each shortened at random by up to a half."""

    def __init__(
        self,
        first: float = 0.1,
        cap: float = CAP_SECONDS,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first = first
        self._cap = cap
        self._uniform = uniform
        self._next = first

    def failed(self, at_least: float | None = None) -> float:
        """The delay after one more failure; `at_least` is what the server asked for (Retry-After), believed up to 30 s."""
        delay = self._uniform(self._next / 2, self._next)
        self._next = min(self._next * 2, self._cap)
        return max(delay, min(at_least or 0.0, RETRY_AFTER_CAP_SECONDS))

    def succeeded(self) -> None:
        """The next failure is a first one."""
        self._next = self._first
