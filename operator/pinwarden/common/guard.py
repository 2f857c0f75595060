"""The one way in which a process of the agent works on an item of a loop: what fails is the item,
and the loop goes on.

An item is a pod, a limit's pattern, a group, a call, a connection or a file. Names, registers and
files come from programs that are not trusted, so any exception may come out of the work on one.
`Guard.item` ends it there. The item is logged once for each cause, counted under its kind, and due
again after a backoff. Kinds are a closed set, as they label a metric; names are anybody's, and are
logged escaped.

Imports nothing outside the standard library: the holder uses it too.
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
    """An item whose last try failed, by `cause`; `due` again at this time of the guard's clock."""

    cause: str
    due: float
    backoff: Backoff = field(default_factory=Backoff)


class Guard:
    """What failed in one process. `failures` counts by kind; `clock` is monotonic, in seconds.

    Of items that fail, the `REMEMBERED` latest are known by name; an older one is logged anew.
    """

    def __init__(self, kinds: Collection[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._failures = dict.fromkeys(kinds, 0)
        self._failing: OrderedDict[tuple[str, str], _Failing] = OrderedDict()
        self._clock = clock

    @property
    def failures(self) -> Mapping[str, int]:
        """By kind, how often the work on an item failed."""
        return self._failures

    @contextmanager
    def item(self, kind: str, name: str = "") -> Iterator[None]:
        """Work on one item.

        Any exception ends the work and is noted; signals that end the process are no `Exception`.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever an untrusted item causes
            self.failed(kind, name, error)
        else:
            self.succeeded(kind, name)

    def failed(self, kind: str, name: str, error: Exception) -> float:
        """Note a failure, for callers that catch it themselves.

        Return the seconds until the next try.
        """
        self._failures[kind] += 1
        cause = f"{type(error).__name__}: {error}"
        failing = self._failing.pop((kind, name), None) or _Failing("", 0.0)
        if failing.cause != cause:
            expected = isinstance(error, OSError)
            _log.error(
                "%s failed, all others go on, trying again: %s",
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
        """Note that the item works."""
        if self._failing.pop((kind, name), None):
            _log.info("%s works again", shown(f"{kind} {name}".rstrip()))

    def due(self, kind: str, name: str = "") -> bool:
        """Whether the item may be tried now: always, unless it failed a moment ago."""
        failing = self._failing.get((kind, name))
        return failing is None or self._clock() >= failing.due

    def cause(self, kind: str, name: str = "") -> str:
        """Why the item's last try failed; empty where it did not."""
        failing = self._failing.get((kind, name))
        return shown(failing.cause) if failing else ""


def shown(text: str, most: int = _LONGEST_NAME) -> str:
    """The text for one line of a log or report: what is not printable is escaped, and what is
    longer than `most` ends with an ellipsis.
    """
    escaped = "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text[: most + 1]
    )
    return escaped if len(escaped) <= most else f"{escaped[: most - 1]}…"
