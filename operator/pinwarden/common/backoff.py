"""How long to wait after a failure: twice as long each time up to a cap, and never in step with
others.
"""

import random
from collections.abc import Callable

RETRY_AFTER_CAP_SECONDS = 30.0


class Backoff:
    """Delays in seconds: `first`, then doubled up to `cap`, each shortened at random by up to a
    half.

    A delay that the server asks for (Retry-After) is believed up to `asked_cap`.
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
        """Return the delay after one more failure; `at_least` is what the server asked for."""
        delay = self._uniform(self._next / 2, self._next)
        self._next = min(self._next * 2, self._cap)
        return max(delay, min(at_least or 0.0, self._asked_cap))

    def succeeded(self) -> None:
        """The next failure is a first one."""
        self._next = self._first
