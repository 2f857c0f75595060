"""Comparing sets: which limits and groups there are, and which are known; both are called limits here.

kopf lists again after a gap in the history and then tells of everything there is, but not of what was deleted meanwhile; nor does it tell
when its first list is complete. So the names of all limits are listed now and then (metadata only), and

- what was known before the list was asked for and is not in it, is gone: a UID never comes back;
- until everything in the list is known, the limits are not synced;
- what two lists in a row have and is still not known, was never told of: the operator is not ready while that is so.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing

from pinwarden.api.meta import GROUP, VERSION
from pinwarden.common.backoff import Backoff
from pinwarden.controller.client import Api, ApiError, pages
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.resources import KINDS

PERIOD_SECONDS = 5.0
_SYNC_SECONDS = 0.2
_PAGE = 500
_SHARE_OF_TIME = 0.01
_log = logging.getLogger(__name__)


class Resync:
    """Compares for ever; `synced` is set once every limit that was there is known, `missed` is how many stay unknown.

    `known` gives the UIDs that are known now, `gone` is told a UID.
    """

    def __init__(
        self,
        api: Api,
        namespaces: Sequence[str],
        metrics: Metrics,
        known: Callable[[], Collection[str]],
        gone: Callable[[str], None],
        items: Items,
    ) -> None:
        base = f"/apis/{GROUP}/{VERSION}"
        spaces = [f"/namespaces/{name}" for name in namespaces] or [""]
        self._paths = [
            f"{base}{space}/{kind.plural}"
            for kind in KINDS
            for space in (spaces if kind.namespaced else [""])
        ]
        self._api = api
        self._metrics = metrics
        self._known = known
        self._gone = gone
        self._items = items
        self._unknown: set[str] = set()
        self.missed = 0
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Compares every few seconds, and less often where that would take more than a hundredth of the time."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        failing = False
        while True:
            started = loop.time()
            try:
                await self._compare()
            except ApiError as error:
                if not failing:
                    _log.warning("the limits cannot be listed, trying again: %s", error)
                failing = True
                await asyncio.sleep(backoff.failed(error.retry_after))
                continue
            failing = False
            backoff.succeeded()
            took = loop.time() - started
            waiting = max(_SYNC_SECONDS, took)  # nothing is written before the first agreement
            await asyncio.sleep(
                max(PERIOD_SECONDS, took / _SHARE_OF_TIME) if self.synced.is_set() else waiting
            )

    async def _compare(self) -> None:
        before = set(self._known())
        listed: set[str] = set()
        for path in self._paths:
            listed |= await self._list(path)
        gone = before - listed
        for uid in gone:
            with self._items.item("census", uid):
                self._gone(uid)
        self._metrics.census_corrected(len(gone))
        unknown = listed - set(self._known())
        if not self.synced.is_set():
            if not unknown:
                _log.info("%d limits are listed", len(listed))
                self.synced.set()
            return
        missed = len(unknown & self._unknown)
        if missed and not self.missed:
            _log.error("%d limits exist that the watch never told of", missed)
        self.missed, self._unknown = missed, unknown

    async def _list(self, path: str) -> set[str]:
        found: set[str] = set()
        async with aclosing(pages(self._api.get_metadata, path, _PAGE)) as listed:
            async for page in listed:
                found |= {item["metadata"]["uid"] for item in page["items"]}
        return found
