"""Ends a process with one thread at SIGTERM and SIGINT.

The signal raises `ShutdownError` at any point, so that long work ends too. Work that must be
completed sets `at_once` to False, and checks `asked` between two steps.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class ShutdownError(BaseException):
    """A signal asked for the end.

    Not an `Exception`, so that no guard of an item counts it as a failure.
    """


@dataclass(slots=True)
class Shutdown:
    """Whether a signal `asked` for the end, and whether a signal raises `at_once`."""

    asked: bool = False
    at_once: bool = True


@contextmanager
def shutdown_on_signals() -> Iterator[Shutdown]:
    """Raise ShutdownError on these signals from now on; cancel the stall alarm in the end."""
    shutdown = Shutdown()

    def end(*_: object) -> None:
        shutdown.asked = True
        if shutdown.at_once:
            raise ShutdownError

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        yield shutdown
    finally:
        signal.alarm(0)
