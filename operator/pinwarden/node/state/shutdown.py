"""How a process of the agent that has one thread ends: at SIGTERM and SIGINT.

`EndError` is raised wherever the process is, which also ends what takes long. What must not be left half done sets `at_once` to False, and
looks at `asked` between two pieces of work.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class EndError(BaseException):
    """A signal asked for the end. No `Exception`, so that nothing which guards an item takes it for a failure."""


@dataclass(slots=True)
class Ending:
    """Whether the end was `asked` for, and whether that raises `at_once`."""

    asked: bool = False
    at_once: bool = True


@contextmanager
def ended_by_signals() -> Iterator[Ending]:
    """From now on such a signal raises; in the end the alarm that a stall would set off is off."""
    ending = Ending()

    def end(*_: object) -> None:
        ending.asked = True
        if ending.at_once:
            raise EndError

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        yield ending
    finally:
        signal.alarm(0)
