"""Contains the failure of one item of a loop, so the loop continues with all others.

An item is a pod, a pattern of a limit, a group, a call, a connection or a file. Names, registers
and files come from untrusted programs, so the work on an item can raise any exception. `Guard.item`
catches the exception. The failure is logged once for each cause and counted by kind. The item is
due again after a backoff. Kinds are a closed set, because they label a metric. Names are untrusted,
and are logged escaped.

This module imports only the standard library: the holder uses it too.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pinwarden.common.backoff import Backoff

REMEMBERED = 1024
_LONGEST_NAME = 256
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Failing:
    """An item with a failure for `cause`. The next try is `due` at this time of the clock."""

    cause: str
    due: float
    backoff: Backoff = field(default_factory=Backoff)


class Guard:
    """The failures of one process.

    `failures` counts them by kind. `clock` is monotonic, in seconds. The `REMEMBERED` latest
    failing items are known by name. An older one is logged again.
    """

    def __init__(self, kinds: Collection[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._failures = dict.fromkeys(kinds, 0)
        self._failing: OrderedDict[tuple[str, str], _Failing] = OrderedDict()
        self._clock = clock

    @property
    def failures(self) -> Mapping[str, int]:
        """How often the work on an item failed, by kind."""
        return self._failures

    @contextmanager
    def item(self, kind: str, name: str = "") -> Iterator[None]:
        """Work on one item. An `Exception` ends the work and is recorded; others propagate."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever an untrusted item causes
            self.failed(kind, name, error)
        else:
            self.succeeded(kind, name)

    def failed(self, kind: str, name: str, error: Exception) -> float:
        """Record a failure caught by the caller. Return the seconds until the next try."""
        self._failures[kind] += 1
        cause = f"{type(error).__name__}: {error}"
        failing = self._failing.pop((kind, name), None) or _Failing("", 0.0)
        if failing.cause != cause:
            expected = isinstance(error, OSError)
            _log.error(
                "%s failed, all others continue, trying again: %s",
                shown(f"{kind} {name}".rstrip()),
                shown(cause),
                exc_info=None if expected else error,
            )
        wait = failing.backoff.failed()
        failing.cause, failing.due = cause, self._clock() + wait
        self._failing[kind, name] = failing
        if len(self._failing) > REMEMBERED:
            self._failing.popitem(last=False)
        return wait

    def succeeded(self, kind: str, name: str = "") -> None:
        """Record a success."""
        if self._failing.pop((kind, name), None):
            _log.info("%s works again", shown(f"{kind} {name}".rstrip()))

    def due(self, kind: str, name: str = "") -> bool:
        """Return whether the item may be tried now: always, except shortly after a failure."""
        failing = self._failing.get((kind, name))
        return failing is None or self._clock() >= failing.due

    def cause(self, kind: str, name: str = "") -> str:
        """Return why the last try of the item failed, empty if it succeeded."""
        failing = self._failing.get((kind, name))
        return shown(failing.cause) if failing else ""


def shown(text: str, most: int = _LONGEST_NAME) -> str:
    """Return the text for one line of a log or report.

    Unprintable characters are escaped. A text longer than `most` ends with an ellipsis.
    """
    escaped = "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text[: most + 1]
    )
    return escaped if len(escaped) <= most else f"{escaped[: most - 1]}…"
