"""Sampled use above limits (H1). Peaks and times are lower bounds (H2).

An episode begins with a sample above the limit. It ends with a sample at or below the limit, or
after `LONGEST_GAP_SECONDS` without a sample. Its duration is the time between the samples above.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from pinwarden.api.nodepinconfig import OvershootReport
from pinwarden.node.pods.policy import reported_name

LISTED = 32
LONGEST_GAP_SECONDS = 2.0
_KEPT = 256


@dataclass(slots=True)
class _Record:
    peak: int
    last_time: datetime
    seconds: float = 0.0
    count: int = 0


class Overshoots:
    """Overshoots per uid of a limit and pod (None with scope Node).

    The containers of a pod share a record, and each has its own episodes.
    """

    def __init__(self) -> None:
        self._records: dict[tuple[str, str | None], _Record] = {}
        self._above: dict[tuple[str, str | None, str | None], float] = {}

    def sample(
        self,
        limit: str,
        pod: str | None,
        container: str | None,
        excess: int,
        now: float,
        time: datetime,
    ) -> None:
        """Add a sample of `excess` bytes above the limit, if positive.

        `now` is in seconds, monotonic.
        """
        since = self._above.pop((limit, pod, container), None)
        if excess <= 0:
            return
        self._above[limit, pod, container] = now
        record = self._records.setdefault((limit, pod), _Record(0, time))
        record.peak = max(record.peak, excess)
        record.last_time = time
        if since is None or now - since > LONGEST_GAP_SECONDS:
            record.count += 1
        else:
            record.seconds += now - since
        if len(self._records) > _KEPT:
            del self._records[min(self._records, key=lambda key: self._records[key].last_time)]

    def keep(self, limits: Collection[str]) -> None:
        """Forget all other limits, by uid."""
        self._records = {key: record for key, record in self._records.items() if key[0] in limits}
        self._above = {key: since for key, since in self._above.items() if key[0] in limits}

    def end(self, pod: str) -> None:
        """End the episodes of a pod that is gone. Its records stay."""
        self._above = {key: since for key, since in self._above.items() if key[1] != pod}

    def reports(self) -> tuple[list[OvershootReport], bool]:
        """Return the latest overshoots, newest first, and whether more exist."""
        newest = sorted(self._records.items(), key=lambda item: item[1].last_time, reverse=True)
        listed = [
            OvershootReport(
                limit=limit,
                pod=None if pod is None else reported_name(pod),
                peak=record.peak,
                seconds=round(record.seconds, 3),
                count=record.count,
                last_time=record.last_time,
            )
            for (limit, pod), record in newest[:LISTED]
        ]
        return listed, len(newest) > LISTED
