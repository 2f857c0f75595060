"""Counting what processes have pinned. `procfs` reads it from the kernel's own per-process counters."""

from typing import NamedTuple


class ProcessKey(NamedTuple):
    """A process for as long as the node runs: ids come again, an id with its start time (clock ticks since boot) does not."""

    pid: int
    start_ticks: int
