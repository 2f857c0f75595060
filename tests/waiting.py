"""Waits of the tests: each ends as soon as possible, and fails after enough time of the machine.

All seconds are spare ones (`cluster.patience`): a test beside others gets more of them by the
clock.
"""

import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.patience import Patience

SECONDS = 30.0
CLUSTER_SECONDS = 120.0
"""For what a node does."""
POLL_SECONDS = 0.05
T = TypeVar("T")


def eventually(read: Callable[[], T], holds: Callable[[T], Any], seconds: float = SECONDS) -> T:
    """Return the first reading that holds."""
    patience = Patience(seconds)
    while not holds(last := read()):
        assert not patience.ended, f"not within {patience.elapsed:.0f} s; last: {last}"
        time.sleep(POLL_SECONDS)
    return last


def until(holds: Callable[[], bool], what: str, seconds: float = CLUSTER_SECONDS) -> float:
    """Wait until `holds` and return the seconds by the clock; `what` is for the failure."""
    patience = Patience(seconds)
    while not holds():
        assert not patience.ended, f"after {patience.elapsed:.0f} s still not: {what}"
        time.sleep(POLL_SECONDS)
    return patience.elapsed


def output(process: "subprocess.Popen[str]", seconds: float = SECONDS) -> tuple[str, str]:
    """Wait for the end of a process and return what its pipes carried, as `Popen.communicate` does.

    Raises:
        TimeoutExpired: the process still runs.
    """
    patience = Patience(seconds)
    while True:
        try:
            return process.communicate(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if patience.ended:
                raise


def exit_status(process: "subprocess.Popen[Any]", seconds: float = SECONDS) -> int:
    """Wait for the end of a process and return its exit status."""
    return int(eventually(process.poll, lambda status: status is not None, seconds) or 0)
