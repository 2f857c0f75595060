"""One kind of object, listed and watched, each pruned on arrival and handed on.

The `informer` of the kubernetes package holds whole typed objects before a handler sees them, and lists without pages: at 150,000 pods that
is gigabytes. Here a page of the list or a line of the watch is decoded, pruned to the few fields used, handed on and forgotten.

What is handed on is level-triggered: `put` may repeat what is known. After a gap in the history (410) the list is read again, and what it
does not hold any more is removed: only the keys are kept for that.
"""

import asyncio
import json
import logging
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from pinwarden.controller.backoff import Backoff
from pinwarden.controller.client import Api, ApiError, Json, pages
from pinwarden.controller.metrics import Metrics

PAGE = 250
_YIELD_EVERY = 50
# Gone: the history does not reach back that far. Timeout: the version is ahead of the server's, whose data is older than what was seen.
_LOST = {410, 504}
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Source(Generic[T]):
    """What to watch, and where to.

    `resource` is its plural name, for people and metrics. `prune` gives the key and what is kept of an object; `put` takes that, `remove`
    the key alone.
    """

    resource: str
    path: str
    prune: Callable[[Json], tuple[str, T]]
    put: Callable[[T], None]
    remove: Callable[[str], None]
    field_selector: str = ""
    label_selector: str = ""

    @property
    def query(self) -> dict[str, str]:
        """The selectors as parameters."""
        selectors = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: selector for name, selector in selectors.items() if selector}


class Watch(Generic[T]):
    """Follows a `Source` for ever; `synced` is set once it was listed."""

    def __init__(self, api: Api, source: Source[T], metrics: Metrics) -> None:
        self._api = api
        self._source = source
        self._metrics = metrics
        self._backoff = Backoff()
        self._failing = False
        self._keys: set[str] = set()
        self._version = ""
        self.synced = asyncio.Event()

    @property
    def resource(self) -> str:
        """The plural name of what is watched."""
        return self._source.resource

    async def run(self) -> None:
        """Lists and watches until cancelled; an API server that is away is asked again within seconds of its return."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except ApiError as error:
                await self._failed(error)

    async def _list(self) -> None:
        source = self._source
        seen: set[str] = set()
        version = ""
        async with aclosing(pages(self._api.get, source.path, PAGE, **source.query)) as listed:
            async for page in listed:
                version = version or page["metadata"]["resourceVersion"]
                for item in page["items"]:
                    key, kept = source.prune(item)
                    seen.add(key)
                    source.put(kept)
        for key in self._keys - seen:
            source.remove(key)
        self._keys = seen
        self._version = version
        self._works()
        if not self.synced.is_set():
            _log.info("%d %s are listed", len(seen), source.resource)
            self.synced.set()

    async def _watch(self) -> None:
        """From the last version on, until the server ends the watch, as it does after some minutes."""
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
                self._take(_decoded(line))
                self._works()
                count += 1
                if count % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        self._metrics.watch_ended(self._source.resource, "timeout")

    def _take(self, event: Json) -> None:
        source, item = self._source, event["object"]
        match event["type"]:
            case "ERROR":
                raise ApiError(
                    f"the watch of {source.resource} ended: {item.get('message')}", item.get("code")
                )
            case "ADDED" | "MODIFIED":
                key, kept = source.prune(item)
                self._keys.add(key)
                source.put(kept)
            case "DELETED":
                key, _ = source.prune(item)
                self._keys.discard(key)
                source.remove(key)
        self._version = item["metadata"]["resourceVersion"]

    async def _failed(self, error: ApiError) -> None:
        self._metrics.watch_ended(self._source.resource, error.kind)
        if error.status in _LOST:
            _log.info("%s are listed again: %s", self._source.resource, error)
            self._version = ""
        elif not self._failing:
            self._failing = True
            _log.warning("%s cannot be watched, trying again: %s", self._source.resource, error)
        await asyncio.sleep(self._backoff.failed(error.retry_after))

    def _works(self) -> None:
        self._backoff.succeeded()
        if self._failing:
            self._failing = False
            _log.info("%s are watched again", self._source.resource)


def _decoded(line: bytes) -> Json:
    try:
        event: Json = json.loads(line)
    except ValueError as error:
        raise ApiError(f"the watch broke within a line: {error}") from error
    return event
