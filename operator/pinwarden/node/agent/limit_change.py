"""New limits of one process, computed from its use."""

from typing import NamedTuple

from pinwarden.node.agent.original_limits import RlimitRecord
from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.pods.privileges import HeldBackReason
from pinwarden.node.pods.process import Process


class LimitChange(NamedTuple):
    """A process, its record, its new limits, and the use in bytes behind these limits."""

    process: Process
    record: RlimitRecord
    limits: Limits
    use: int

    @property
    def lowers(self) -> bool:
        """Whether the hard limit is lowered."""
        return self.limits.hard < self.record.applied.hard

    def exceeded(self) -> bool:
        """Sample the process after the change. Return whether it exceeds the new limit.

        A process that ignores its rlimit does not count.
        """
        process = self.process
        try:
            process.sample()
        except OSError:  # the process is gone, or the next sample of its pod reports the failure
            return False
        exceeds = max(process.locked, process.pinned) > self.limits.hard
        obeys = process.held_back in (None, HeldBackReason.THREADS_UNREAD)
        return exceeds and process.use > self.use and obeys
