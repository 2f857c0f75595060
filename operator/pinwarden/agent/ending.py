"""How a process of the agent that has one thread ends: SIGTERM and SIGINT raise `EndError` wherever it is."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class EndError(Exception):
    """A signal asked for the end."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """From now on such a signal raises; in the end the alarm that a stall would set off is off."""

    def end(*_: object) -> None:
        raise EndError

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        yield
    finally:
        signal.alarm(0)
