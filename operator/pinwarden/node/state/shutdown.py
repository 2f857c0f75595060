"""Ends a process with one thread on SIGTERM or SIGINT.

The signal raises `ShutdownError` at any point, to interrupt long work too. Work with a required
end sets `at_once` to False, and checks `asked` between two steps.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class ShutdownError(BaseException):
    """A signal asked for the end.

    This is not an `Exception`: the guard of an item must not count a failure.
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
