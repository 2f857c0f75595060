"""Waits of the cluster tests: each ends as soon as it can, and fails once the machine had time enough."""

import time
from collections.abc import Callable

from cluster.patience import Patience

SECONDS = 120.0
POLL_SECONDS = 0.2


def eventually(holds: Callable[[], bool], what: str) -> float:
    """Wait until it holds, for at most 120 spare seconds; return after how many seconds by the clock it did."""
    patience = Patience(SECONDS)
    while not holds():
        assert not patience.ended, f"after {patience.elapsed:.0f} s still not: {what}"
        time.sleep(POLL_SECONDS)
    return patience.elapsed
