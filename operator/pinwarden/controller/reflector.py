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

from pinwarden.common.backoff import Backoff
from pinwarden.controller.client import Api, ApiError, Json, pages
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics

PAGE = 250
_YIELD_EVERY = 50
# Gone: the history does not reach back that far. Timeout: the version is ahead of the server's, whose data is older than what was seen.
_LOST = {410, 504}
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class ReflectorConfig(Generic[T]):
    """What to watch, and where to.

    `resource` is its plural name, for people and metrics. `prune` gives the key and what is kept of an object; `put` takes that, `remove`
    the key alone. `by_name` says that the key is the object's name, and else its UID.
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
        """The key of an object, also of one that `prune` cannot read."""
        return str(raw["metadata"]["name" if self.by_name else "uid"])

    def reference(self, raw: Json) -> Json:
        """The object as an Event refers to it."""
        named = {name: raw["metadata"].get(name) for name in ("namespace", "name", "uid")}
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            **{key: value for key, value in named.items() if value},
        }

    @property
    def query(self) -> dict[str, str]:
        """The selectors as parameters."""
        selectors = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: selector for name, selector in selectors.items() if selector}


class Reflector(Generic[T]):
    """Follows a `Source` for ever; `synced` is set once it was listed.

    An object that cannot be taken leaves what was known of it, `failed` is told a reference to it and the problem, and it is tried again
    when it changes and with the next list, which comes with the end of the watch while there is one.
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
                self._handle_event(_decoded(line))
                self._recovered()
                count += 1
                if count % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        self._metrics.watch_ended(self._source.resource, "timeout")
        if self._unreadable:
            self._version = ""  # they are tried again

    def _put(self, raw: Json) -> str:
        """Take an object as it is now; returns its key."""
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
            _log.info("%s are listed again: %s", self._source.resource, error)
            self._version = ""
        elif not self._failing:
            self._failing = True
            _log.warning("%s cannot be watched, trying again: %s", self._source.resource, error)
        await asyncio.sleep(self._backoff.failed(error.retry_after))

    def _recovered(self) -> None:
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
