"""The seconds of a round, shared so no group waits for ever."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class RoundTime:
    """Shares `seconds` of each round among groups.

    Half of the seconds is divided equally. The other half goes to one group, in turn from round to
    round. The next groups of the round get the seconds left by a group.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._round = 0
        self._shares: dict[str, float] = {}
        self._left = seconds

    def begin(self, uids: Sequence[str]) -> None:
        """Begin a round with these groups."""
        self._round += 1
        self._left = 0.0 if uids else self._seconds
        self._shares = dict.fromkeys(uids, self._seconds / 2 / max(1, len(uids)))
        if uids:
            self._shares[uids[self._round % len(uids)]] += self._seconds / 2

    def enter(self, uid: str) -> None:
        """Give this group its share, once in a round."""
        self._left = max(0.0, self._left) + self._shares.pop(uid, 0.0)

    @contextmanager
    def spend(self, most: float) -> Iterator[float]:
        """Yield the seconds for the body, at most `most`, and count the seconds taken."""
        began = self._clock()
        try:
            yield max(0.0, min(most, self._left))
        finally:
            self._left -= self._clock() - began
