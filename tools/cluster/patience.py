"""How long to wait before something counts as failed, by what the machine could have done
meanwhile.

A number of seconds that is right on a quiet machine is wrong on a busy one. So a wait is measured
in *spare* seconds: the time in which processors of this machine had nothing to do (the idle column
of /proc/stat, proc_stat(5)). While other work keeps all of them busy, little of it passes, and what
is waited for gets its turn. A wait ends in any case after ``MOST`` times as many seconds by the
clock.
"""

import os
import time
from pathlib import Path

MOST = 10.0
_STAT = Path("/proc/stat")
_IDLE = 4  # the column, counted from the line's name


def _idle_seconds() -> float:
    """Return for how long the processors of this machine had nothing to do since its start, on
    average.
    """
    ticks = int(_STAT.read_text().split("\n", 1)[0].split()[_IDLE])
    return ticks / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)


class Patience:
    """The patience of one wait, which begins when it is made; ``seconds`` are spare ones."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()
        self._idle = _idle_seconds()

    @property
    def elapsed(self) -> float:
        """Seconds by the clock since the wait began."""
        return time.monotonic() - self._began

    @property
    def ended(self) -> bool:
        """Whether what is waited for had enough time."""
        return _idle_seconds() - self._idle >= self.seconds or self.elapsed >= MOST * self.seconds
