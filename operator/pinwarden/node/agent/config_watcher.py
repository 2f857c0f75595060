"""Follows the node's NodePinConfig: list, then watch, for ever; what it says goes to the main
thread, and to disk.

A missing or deleted object is no news (H3): nothing is posted, and the last configuration stays.
Each failure is counted, the first of a row is logged, and the next try comes after a backoff of at
most a few seconds, so that agents are back soon after the API server is; it begins with a list,
which for one name is one key. A configuration is posted first and written to disk then: an edit
does not wait for the disk. A write that failed is tried again with every event, bookmarks included,
and so is one whose file somebody removed or changed: gate and accountant go by it. A configuration
that cannot be read is a problem, which is posted, and the last good one stays. The same holds where
`retain` fails, which is tried again with a later event.
"""

import logging
import time
from collections.abc import Callable
from typing import NoReturn

from pinwarden.common.backoff import Backoff
from pinwarden.common.guard import Guard, shown
from pinwarden.node.agent.api_client import ApiError, NodePinConfigClient, Object
from pinwarden.node.state.config import (
    LONGEST_MESSAGE,
    ConfigFile,
    Configuration,
    ConfigurationError,
    Problem,
)

KINDS = ("configuration",)
"""Kinds of items that the watcher guards."""
_ITEM = ("configuration", "of the NodePinConfig")
_SHORT_WATCH_SECONDS = 1.0
_SETTLED_SECONDS = 10.0
_log = logging.getLogger(__name__)


class ConfigWatcher:
    """Posts each configuration of the node's object once.

    `announce` is told the uid of the object, None while there is none; `failed` the operation that
    failed (list, watch, remember). `retain` adds to a configuration what stays of the one before.
    """

    def __init__(
        self,
        client: NodePinConfigClient,
        memory: ConfigFile,
        *,
        post: Callable[[Configuration | Problem], None],
        announce: Callable[[str | None], None],
        failed: Callable[[str], None],
        retain: Callable[[Configuration], Configuration] = lambda new: new,
        guard: Guard | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._retain = retain
        self._guard = guard or Guard(KINDS)
        self._retry = False
        self._memory = memory
        self._post = post
        self._announce = announce
        self._failed = failed
        self._sleep = sleep
        self._backoff = Backoff(cap=4.0, asked_cap=4.0)
        self._operation = "list"
        self._last: Object | None = None
        self._taken: Configuration | None = None
        self._unsaved: Configuration | None = None
        self._outage = False
        self._missing = False

    def run(self) -> NoReturn:
        """Never returns; a failure of the API server is no exception."""
        while True:
            started = time.monotonic()
            try:
                self._follow()
            except ApiError as error:
                if time.monotonic() - started > _SETTLED_SECONDS:
                    self._backoff.succeeded()
                self._failed(self._operation)
                if not self._outage:
                    _log.warning("%s of the NodePinConfig failed, trying again: %s", self._operation, error)
                self._outage = True
                self._sleep(self._backoff.failed(error.retry_after))

    def _follow(self) -> NoReturn:
        self._operation = "list"
        found, version = self._client.list_own()
        if self._outage:
            _log.info("the API server answers again")
        self._outage = False
        self._see(found)
        self._operation = "watch"
        while True:
            started = time.monotonic()
            for event in self._client.watch_own(version):
                version = event.resource_version
                if event.object is not None or event.deleted:
                    self._see(event.object)
                else:
                    self._remember()
            if time.monotonic() - started < _SHORT_WATCH_SECONDS:
                raise ApiError("the server ended the watch at once")

    def _see(self, found: Object | None) -> None:
        if found is None:
            self._announce(None)
            if not self._missing:
                _log.warning("there is no NodePinConfig for this node: what is in force stays in force")
            self._missing = True
            return
        self._missing = False
        due = self._retry and self._guard.due(*_ITEM)
        if (
            found != self._last or due
        ):  # a write of the status alone comes back with the same generation and spec
            self._last = found
            self._take(found)
        self._announce(found.uid)
        self._remember()

    def _take(self, found: Object) -> None:
        self._retry = False
        try:
            new = Configuration.parse(found.spec, found.uid, found.generation)
        except ConfigurationError as error:
            _log.error(
                "generation %d of the NodePinConfig cannot be read, the last good one stays in force: %s",
                found.generation,
                error,
            )
            self._refuse(found, str(error))
            return
        with self._guard.item(*_ITEM):
            configuration = self._retain(new)
            self._post(configuration)
            self._taken = self._unsaved = configuration
            return
        self._retry = True
        self._refuse(found, self._guard.cause(*_ITEM))

    def _refuse(self, found: Object, cause: str) -> None:
        self._post(Problem(shown(f"generation {found.generation}: {cause}", LONGEST_MESSAGE), found.uid))

    def _remember(self) -> None:
        if not self._memory.intact:
            self._unsaved = self._taken
        if self._unsaved is None:
            return
        try:
            self._memory.save(self._unsaved)
        except OSError as error:
            self._failed("remember")
            _log.warning("the configuration in force is not kept over a restart: %s", error)
            return
        self._unsaved = None
