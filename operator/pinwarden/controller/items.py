"""The boundary at which the failure of one item ends: all loops of the operator use this module.

An item is a node to compile, a limit to aggregate, an object of a watch, or a series of a metric.
The failure of an item is logged, counted and remembered until the item succeeds, and the loop
continues with the other items. A failure of the loop itself is a defect and ends the operator.
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
    """The work on a name did not succeed; retry in `after` seconds or later."""

    def __init__(self, after: float | None = None) -> None:
        super().__init__()
        self.after = after


class Item:
    """An item of a loop; `error` is the failure of its run, None if the run succeeded."""

    error: Exception | None = None

    @property
    def problem(self) -> str:
        """Return the failure as a short text, empty if there is none."""
        return f"{type(self.error).__name__}: {self.error}"[:_MOST_TEXT] if self.error else ""


class Items:
    """Handle the failures of items, and count the failing items by loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._failing: dict[tuple[Loop, str], str] = {}
        metrics.set_failing(self.failing)

    def failing(self, loop: str) -> int:
        """Return how many items of the loop failed in their last run."""
        return sum(failing_loop == loop for failing_loop, _ in self._failing)

    @contextmanager
    def item(
        self, loop: Loop, name: str, failed: Callable[[str], None] | None = None
    ) -> Iterator[Item]:
        """Process one item in the block. Exceptions end here, except `RetryError`.

        `failed` receives the problem. A failure of `failed` counts as an item of its own and ends
        here too.
        """
        item = Item()
        try:
            yield item
        except RetryError:
            raise
        except Exception as error:  # noqa: BLE001 - the failure of an item ends only here
            item.error = error
            if self._is_new_failure(loop, name, item.problem):
                _log.exception("%s: %s failed, others continue: %s", loop, name, item.problem)
            if failed is not None:
                with self.item(loop, _handler_of(name)):
                    failed(item.problem)
        else:
            self.forget(loop, name)

    def forget(self, loop: Loop, name: str) -> None:
        """Forget the failures of an item, because the item is gone or succeeded."""
        self._failing.pop((loop, name), None)
        self._failing.pop((loop, _handler_of(name)), None)

    async def process_queue(
        self,
        loop: Loop,
        queue: WorkQueue,
        work: Callable[[str], Awaitable[float]],
        failed: Callable[[str, str], None] = lambda *_: None,
    ) -> NoReturn:
        """Call `work` for each name of the queue when the name is due, until cancelled.

        `work` returns the seconds until the name may be processed again, or raises `RetryError`.
        After a failure, `failed` receives the name and the problem, and the name is retried after a
        growing pause.
        """
        while True:
            name = await queue.get()
            try:
                with self.item(loop, name, partial(failed, name)) as item:
                    queue.done(name, await work(name))
            except RetryError as retry:
                queue.failed(name, retry.after)
            else:
                if item.error is not None:
                    queue.failed(name)

    def _is_new_failure(self, loop: Loop, name: str, problem: str) -> bool:
        """Count and remember a failure; return whether it differs from the item's last failure."""
        self._metrics.item_failed(loop)
        is_new = self._failing.get((loop, name)) != problem
        self._failing[loop, name] = problem
        if len(self._failing) > _REMEMBERED:
            del self._failing[next(iter(self._failing))]
        return is_new


def _handler_of(name: str) -> str:
    """Return the name of the item that handles the failures of `name`."""
    return f"{name}, handling its failure"
