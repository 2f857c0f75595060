"""Where the failure of one item ends: each loop of the operator hands its items through `Items`.

An item is a node to compile, a limit to aggregate, an object that a watch tells of, a series of a metric. Whatever goes wrong with one of
them costs that one: the failure is logged, counted, remembered until the item succeeds, and the loop goes on with all others. What goes
wrong with the loop itself ends the operator, as a defect should.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, NoReturn

from pinwarden.controller.metrics import Loop, Metrics
from pinwarden.controller.workqueue import WorkQueue

_REMEMBERED: Final = 4096
_MOST_TEXT: Final = 512
_log = logging.getLogger(__name__)


class RetryError(Exception):
    """The work on a name did not succeed and is to be tried again; `after` are the seconds that it takes at least."""

    def __init__(self, after: float | None = None) -> None:
        super().__init__()
        self.after = after


class Item:
    """An item in the hands of a loop. Once it was left, `error` says what went wrong, None where nothing did."""

    error: Exception | None = None

    @property
    def problem(self) -> str:
        """What went wrong, in few words for people."""
        return f"{type(self.error).__name__}: {self.error}"[:_MOST_TEXT] if self.error else ""


class Items:
    """Takes the failures of items; those that fail now are counted by loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._failing: dict[tuple[Loop, str], str] = {}
        metrics.watch_failing(self.failing)

    def failing(self, loop: str) -> int:
        """How many items of the loop failed when they were last tried."""
        return sum(kind == loop for kind, _ in self._failing)

    @contextmanager
    def item(self, loop: Loop, name: str, failed: Callable[[str], None] | None = None) -> Iterator[Item]:
        """The work on one item: an exception in the block is that item's, `TryAgainError` alone is raised on.

        `failed` is told the problem. What goes wrong in `failed` is an item of its own, so it ends here too.
        """
        item = Item()
        try:
            yield item
        except RetryError:
            raise
        except Exception as error:  # noqa: BLE001 - here alone the failure of an item ends
            item.error = error
            if self._is_news(loop, name, item.problem):
                _log.exception("%s: %s failed, others go on: %s", loop, name, item.problem)
            if failed is not None:
                with self.item(loop, _handler_of(name)):
                    failed(item.problem)
        else:
            self.forget(loop, name)

    def forget(self, loop: Loop, name: str) -> None:
        """The item is gone, or has succeeded."""
        self._failing.pop((loop, name), None)
        self._failing.pop((loop, _handler_of(name)), None)

    async def process_queue(
        self,
        loop: Loop,
        queue: WorkQueue,
        work: Callable[[str], Awaitable[float]],
        failed: Callable[[str, str], None] = lambda *_: None,
    ) -> NoReturn:
        """Work on each name of a queue when it is due, for ever.

        `work` answers in how many seconds the name may be worked on next, or raises `TryAgainError`. A name that fails is tried again
        after a pause that grows, and `failed` is told the name and the problem.
        """
        while True:
            name = await queue.get()
            try:
                with self.item(loop, name, partial(failed, name)) as item:
                    queue.done(name, await work(name))
            except RetryError as again:
                queue.failed(name, again.after)
            else:
                if item.error is not None:
                    queue.failed(name)

    def _is_news(self, loop: Loop, name: str, problem: str) -> bool:
        """Count and remember a failure; whether the item did not fail in this way before."""
        self._metrics.item_failed(loop)
        news = self._failing.get((loop, name)) != problem
        self._failing[loop, name] = problem
        if len(self._failing) > _REMEMBERED:
            del self._failing[next(iter(self._failing))]
        return news


def _handler_of(name: str) -> str:
    """The name of the item that handles the failures of `name`."""
    return f"{name}, handling its failure"
