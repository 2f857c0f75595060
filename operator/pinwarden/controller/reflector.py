"""Reflectors: list and watch one resource, and put each transformed object into the store.

The `informer` of the kubernetes package keeps whole typed objects and lists without pages. At
150,000 pods these are gigabytes. A reflector decodes a page of the list or a line of the watch,
transforms its objects, and forgets it.

Updates are level-triggered: `put` may repeat a known object. After a gap in the history (410) the
reflector lists again and removes the missing objects, for which it keeps only the keys.
"""

import asyncio
import json
import logging
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from pinwarden.common.backoff import Backoff
from pinwarden.controller.client import Api, ApiError, Json, pages
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics

PAGE = 250
_YIELD_EVERY = 50
# 410 Gone: the history starts later. 504 Timeout: the server's data is older than the version.
_LOST = {410, 504}
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class ReflectorConfig(Generic[T]):
    """The resource to watch, and the functions that receive its objects.

    `resource` is the plural name in logs and metrics. `transform` returns the key and the stored
    value of an object; `put` receives the value, `remove` the key. The key is the name with
    `by_name`, and the UID otherwise.
    """

    resource: str
    kind: str
    path: str
    transform: Callable[[Json], tuple[str, T]]
    put: Callable[[T], None]
    remove: Callable[[str], None]
    field_selector: str = ""
    label_selector: str = ""
    by_name: bool = False
    api_version: str = "v1"

    def key(self, raw: Json) -> str:
        """Return the key of an object, also if `transform` cannot read the object."""
        return str(raw["metadata"]["name" if self.by_name else "uid"])

    def reference(self, raw: Json) -> Json:
        """Return the reference to the object for an Event."""
        named = {name: raw["metadata"].get(name) for name in ("namespace", "name", "uid")}
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            **{key: value for key, value in named.items() if value},
        }

    @property
    def query(self) -> dict[str, str]:
        """Return the selectors as query parameters."""
        selectors = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: selector for name, selector in selectors.items() if selector}


class Reflector(Generic[T]):
    """List and watch until cancelled; `synced` is set after the first list.

    If an object cannot be read, the store keeps its last state, and `on_failure` receives a
    reference and the problem. The object is read again when it changes, and with the list after
    the end of the watch.
    """

    def __init__(
        self,
        api: Api,
        source: ReflectorConfig[T],
        metrics: Metrics,
        items: Items,
        on_failure: Callable[[Json, str], None] = lambda *_: None,
    ) -> None:
        self._api = api
        self._source = source
        self._metrics = metrics
        self._items = items
        self._on_failure = on_failure
        self._unreadable: set[str] = set()
        self._backoff = Backoff()
        self._failing = False
        self._keys: set[str] = set()
        self._version = ""
        self.synced = asyncio.Event()

    @property
    def resource(self) -> str:
        """Return the plural name of the watched resource."""
        return self._source.resource

    async def run(self) -> None:
        """List and watch until cancelled; continue within seconds after the API server returns."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except ApiError as error:
                await self._handle_error(error)

    async def _list(self) -> None:
        source = self._source
        seen: set[str] = set()
        version = ""
        async with aclosing(pages(self._api.get, source.path, PAGE, **source.query)) as listed:
            async for page in listed:
                version = version or page["metadata"]["resourceVersion"]
                for item in page["items"]:
                    seen.add(self._put(item))
        for key in self._keys - seen:
            self._remove(key)
        self._keys = seen
        self._version = version
        self._recovered()
        if not self.synced.is_set():
            _log.info("%d %s are listed", len(seen), source.resource)
            self.synced.set()

    async def _watch(self) -> None:
        """Watch from the last version until the server ends the watch after some minutes."""
        seconds = random.randrange(300, 600)  # noqa: S311 - not a secret
        lines = self._api.watch(
            self._source.path,
            resourceVersion=self._version,
            timeoutSeconds=seconds,
            **self._source.query,
        )
        count = 0
        async with aclosing(lines) as events:
            async for line in events:
                self._handle_event(_decoded(line))
                self._recovered()
                count += 1
                if count % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        self._metrics.watch_ended(self._source.resource, "timeout")
        if self._unreadable:
            self._version = ""  # list again, to retry these objects

    def _put(self, raw: Json) -> str:
        """Put an object into the store and return its key."""
        source = self._source
        key = source.key(raw)

        def failed(problem: str) -> None:
            self._unreadable.add(key)
            self._on_failure(source.reference(raw), problem)

        with self._items.item("watch", f"{source.resource} {key}", failed):
            source.put(source.transform(raw)[1])
            self._unreadable.discard(key)
        return key

    def _remove(self, key: str) -> None:
        with self._items.item("watch", f"{self._source.resource} {key}"):
            self._unreadable.discard(key)
            self._source.remove(key)

    def _handle_event(self, event: Json) -> None:
        source, item = self._source, event["object"]
        match event["type"]:
            case "ERROR":
                raise ApiError(
                    f"the watch of {source.resource} ended: {item.get('message')}", item.get("code")
                )
            case "ADDED" | "MODIFIED":
                self._keys.add(self._put(item))
            case "DELETED":
                key = source.key(item)
                self._keys.discard(key)
                self._remove(key)
        self._version = item["metadata"]["resourceVersion"]

    async def _handle_error(self, error: ApiError) -> None:
        self._metrics.watch_ended(self._source.resource, error.kind)
        if error.status in _LOST:
            _log.info("listing %s again: %s", self._source.resource, error)
            self._version = ""
        elif not self._failing:
            self._failing = True
            _log.warning("cannot watch %s, retrying: %s", self._source.resource, error)
        await asyncio.sleep(self._backoff.failed(error.retry_after))

    def _recovered(self) -> None:
        self._backoff.succeeded()
        if self._failing:
            self._failing = False
            _log.info("watching %s again", self._source.resource)


def _decoded(line: bytes) -> Json:
    try:
        event: Json = json.loads(line)
    except ValueError as error:
        raise ApiError(f"the watch broke within a line: {error}") from error
    return event
