"""The comparison of existing and known limits and groups, here both called limits.

kopf does not report when its first list is complete. After a gap in the history kopf lists again
and reports every object, but no deletion in the gap. Therefore a resync lists the metadata of all
limits every few seconds:

- If a limit was known before the list and is missing in the list, it was deleted: a UID is never
  used again.
- The limits are synced once each limit of a list is known.
- If a limit is in two lists in a row and still unknown, kopf missed the limit. The operator is not
  ready meanwhile.
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
    """Compare until cancelled.

    `synced` is set once every limit is known. `missed` counts limits that stay unknown.
    `known` returns the UIDs in the store; `gone` receives the UID of a deleted limit.
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
        """Compare every few seconds, or less often so that lists take at most a hundredth of the
        time.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        failing = False
        while True:
            started = loop.time()
            try:
                await self._compare()
            except ApiError as error:
                if not failing:
                    _log.warning("cannot list the limits, retrying: %s", error)
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
        self._metrics.resync_corrected(len(gone))
        unknown = listed - set(self._known())
        if not self.synced.is_set():
            if not unknown:
                _log.info("%d limits are listed", len(listed))
                self.synced.set()
            return
        missed = len(unknown & self._unknown)
        if missed and not self.missed:
            _log.error(
                "%d limits exist that the watch never reported; the operator is not ready", missed
            )
        self.missed, self._unknown = missed, unknown

    async def _list(self, path: str) -> set[str]:
        uids: set[str] = set()
        async with aclosing(pages(self._api.get_metadata, path, _PAGE)) as listed:
            async for page in listed:
                uids |= {item["metadata"]["uid"] for item in page["items"]}
        return uids
