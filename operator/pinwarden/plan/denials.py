"""Refused calls: which of those that a node lists are news, and how one reads for people.

A node's agent lists the last refusals of its gate again and again. They are told apart by number and time: numbers begin at 1 again with a
new journal, and a clock may step, but hardly both to what was there before.
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
    """What a node listed last, as number and time of each refusal, and the highest number of it."""

    listed: frozenset[tuple[int, datetime]] = frozenset()
    number: int = 0


@dataclass(frozen=True, slots=True)
class NewDenials:
    """Refusals that were not seen before, newest last, and what is seen with them. `missed`: there were others that no list had."""

    denials: Sequence[DenialReport]
    missed: bool
    seen: SeenDenials


def find_new_denials(seen: SeenDenials | None, listed: Sequence[DenialReport], now: datetime) -> NewDenials:
    """What of the list is news to who has `seen` so much.

    At first sight (None) nobody knows which of them were told before: those that are older than `FRESH` count as told.
    """
    first = seen is None
    seen = seen or SeenDenials()
    new = [each for each in listed if _identity(each) not in seen.listed]
    if not new:  # an emptier list, as of an object that was made anew, takes nothing back
        return NewDenials([], False, seen)
    before = 0 if new[0].number <= seen.number else seen.number
    numbers = [new[0].number - 1 if first else before, *(each.number for each in new)]
    missed = any(later > sooner + 1 for sooner, later in pairwise(numbers))
    if first:
        new = [each for each in new if now - each.time <= FRESH]
    return NewDenials(new, missed, SeenDenials(frozenset(map(_identity, listed)), numbers[-1]))


def describe_denial(denial: DenialReport, limit: str) -> str:
    """One sentence: who asked for what, and why it was refused. `limit` names the limit."""
    asked = " of an unknown amount" if denial.asked is None else f" of {short(denial.asked)}"
    if denial.asked == 0:
        asked = ""  # the call pins nothing itself; what it allows later is the cause
    where = f" in container {printable(denial.container)}" if denial.container else ""
    call = printable(denial.call) or _WORDS[denial.source]
    return (
        f'{call}{asked} by process "{printable(denial.process)}" (pid {denial.pid}){where} '
        f"refused: {_cause(denial, limit)}"
    )


def _cause(denial: DenialReport, limit: str) -> str:
    """Why: in words where the use is not the cause, else what is used of the limit."""
    message = printable(denial.message)
    if denial.limit is None:
        return message or "the cause is not known"
    if message:
        return f"{message}; limit {limit} of {short(denial.limit)}"
    used, most = ("unknown", short(denial.limit))
    if denial.used is not None:
        used, most = compared(denial.used, denial.limit)
    return f"{used} of {most} used, limit {limit}"


def describe_repeats(more: int, at_least: bool, span: timedelta) -> str:
    """How often the like was refused besides within the time, to stand behind a sentence; empty for never."""
    if not more:
        return ""
    minutes = max(1, round(span / timedelta(minutes=1)))
    within = "minute" if minutes == 1 else f"{minutes} minutes"
    return f"; and {'at least ' if at_least else ''}{more} more in the last {within}"


def _identity(denial: DenialReport) -> tuple[int, datetime]:
    return denial.number, denial.time
