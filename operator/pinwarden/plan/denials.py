"""Find new denied calls in the reports of a node, and describe them in a sentence.

A node's agent lists the last denials of its gate in each report. Number and time identify a denial:
numbers restart at 1 with a new journal, and a clock may step, but both rarely repeat together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from pinwarden.api.nodepinconfig import DenialReport
from pinwarden.api.pinlimit import Source
from pinwarden.common.text import compared, printable, short

FRESH: Final = timedelta(minutes=1)

_WORDS: Final = {
    Source.MLOCK: "mlock",
    Source.SHM_LOCK: "SHM_LOCK",
    Source.MEMFD_SECRET: "memfd_secret",
    Source.IO_URING: "io_uring",
    Source.RDMA: "RDMA",
    Source.VFIO: "VFIO",
    Source.IOMMUFD: "iommufd",
    Source.XDP: "AF_XDP",
    Source.PERF: "perf",
    Source.UDMABUF: "udmabuf",
    Source.VDPA: "vDPA",
    Source.ZERO_COPY: "zero-copy",
}


@dataclass(frozen=True, slots=True)
class SeenDenials:
    """The number and time of each denial in the last report of a node, and the highest number."""

    listed: frozenset[tuple[int, datetime]] = frozenset()
    number: int = 0


@dataclass(frozen=True, slots=True)
class NewDenials:
    """New denials, newest last, and the updated `seen`. `missed`: others were in no report."""

    denials: Sequence[DenialReport]
    missed: bool
    seen: SeenDenials


def find_new_denials(
    seen: SeenDenials | None, listed: Sequence[DenialReport], now: datetime
) -> NewDenials:
    """Return which `listed` denials are new after `seen`.

    `seen` is None for the first report of a node. Then denials older than `FRESH` count as known.
    """
    first = seen is None
    seen = seen or SeenDenials()
    new = [denial for denial in listed if _identity(denial) not in seen.listed]
    if not new:  # a shorter list, as of a recreated object, forgets nothing
        return NewDenials([], False, seen)
    before = 0 if new[0].number <= seen.number else seen.number
    numbers = [new[0].number - 1 if first else before, *(denial.number for denial in new)]
    missed = any(later > sooner + 1 for sooner, later in pairwise(numbers))
    if first:
        new = [denial for denial in new if now - denial.time <= FRESH]
    return NewDenials(new, missed, SeenDenials(frozenset(map(_identity, listed)), numbers[-1]))


def describe_denial(denial: DenialReport, limit: str) -> str:
    """Return a sentence with the process, the call and the cause; `limit` names the limit."""
    asked = " of an unknown amount" if denial.asked is None else f" of {short(denial.asked)}"
    if denial.asked == 0:
        asked = ""  # the call pins nothing itself; what it allows later is the cause
    where = f" in container {printable(denial.container)}" if denial.container else ""
    call = printable(denial.call) or _WORDS[denial.source]
    return (
        f'{call}{asked} by process "{printable(denial.process)}" (pid {denial.pid}){where} '
        f"denied: {_cause(denial, limit)}"
    )


def _cause(denial: DenialReport, limit: str) -> str:
    """Return the message of the gate, or the use and the limit if the use is the cause."""
    message = printable(denial.message)
    if denial.limit is None:
        return message or "the cause is unknown"
    if message:
        return f"{message}; limit {limit} of {short(denial.limit)}"
    used, most = ("unknown", short(denial.limit))
    if denial.used is not None:
        used, most = compared(denial.used, denial.limit)
    return f"{used} of {most} used, limit {limit}"


def describe_repeats(more: int, at_least: bool, span: timedelta) -> str:
    """Return the end of a sentence about similar denials within the time; empty for none."""
    if not more:
        return ""
    minutes = max(1, round(span / timedelta(minutes=1)))
    within = "minute" if minutes == 1 else f"{minutes} minutes"
    return f"; and {'at least ' if at_least else ''}{more} more in the last {within}"


def _identity(denial: DenialReport) -> tuple[int, datetime]:
    return denial.number, denial.time
