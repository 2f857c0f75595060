"""Follows the NodePinConfig of the node: posts each configuration to the main thread and saves it.

Without the object, nothing is posted, and the last configuration stays (H3). Each failure is
counted, and the first of a series is logged. The next attempt lists again after a backoff of at
most a few seconds. So agents return soon after the API server does.

A configuration is posted first and saved then: an edit does not wait for the disk. Each event, also
a bookmark, retries a failed save. A removed or changed file is saved again, because the gate and
the accountant read the file. An unreadable configuration is posted as a problem, and the last good
configuration stays. The same holds for a failure of `retain`, which a later event retries.
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
"""Kinds of items guarded by the watcher."""
_ITEM = ("configuration", "of the NodePinConfig")
_SHORT_WATCH_SECONDS = 1.0
_SETTLED_SECONDS = 10.0
_log = logging.getLogger(__name__)


class ConfigWatcher:
    """Posts each configuration of the node's object once.

    `announce` gets the uid of the object, None without an object. `failed` gets the failed
    operation: list, watch or remember. `retain` adds the limits that stay from before.
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
        self._accepted: Configuration | None = None
        self._unsaved: Configuration | None = None
        self._outage = False
        self._missing = False

    def run(self) -> NoReturn:
        """Follow the object for ever. A failure of the API server is tried again."""
        while True:
            started = time.monotonic()
            try:
                self._follow()
            except ApiError as error:
                if time.monotonic() - started > _SETTLED_SECONDS:
                    self._backoff.succeeded()
                self._failed(self._operation)
                if not self._outage:
                    _log.warning(
                        "cannot %s the NodePinConfig, trying again: %s", self._operation, error
                    )
                self._outage = True
                self._sleep(self._backoff.failed(error.retry_after))

    def _follow(self) -> NoReturn:
        self._operation = "list"
        observed, version = self._client.list_own()
        if self._outage:
            _log.info("the API server answers again")
        self._outage = False
        self._observe(observed)
        self._operation = "watch"
        while True:
            started = time.monotonic()
            for event in self._client.watch_own(version):
                version = event.resource_version
                if event.object is not None or event.deleted:
                    self._observe(event.object)
                else:
                    self._save()
            if time.monotonic() - started < _SHORT_WATCH_SECONDS:
                raise ApiError("the server ended the watch at once")

    def _observe(self, observed: Object | None) -> None:
        if observed is None:
            self._announce(None)
            if not self._missing:
                _log.warning(
                    "there is no NodePinConfig for this node: limits in force stay in force"
                )
            self._missing = True
            return
        self._missing = False
        due = self._retry and self._guard.due(*_ITEM)
        # a write of the status alone comes back with the same generation and spec
        if observed != self._last or due:
            self._last = observed
            self._accept(observed)
        self._announce(observed.uid)
        self._save()

    def _accept(self, observed: Object) -> None:
        self._retry = False
        try:
            new = Configuration.parse(observed.spec, observed.uid, observed.generation)
        except ConfigurationError as error:
            _log.error(
                "cannot read generation %d of the NodePinConfig, "
                "the last good configuration stays in force: %s",
                observed.generation,
                error,
            )
            self._reject(observed, str(error))
            return
        with self._guard.item(*_ITEM):
            configuration = self._retain(new)
            self._post(configuration)
            self._accepted = self._unsaved = configuration
            return
        self._retry = True
        self._reject(observed, self._guard.cause(*_ITEM))

    def _reject(self, observed: Object, cause: str) -> None:
        self._post(
            Problem(
                shown(f"generation {observed.generation}: {cause}", LONGEST_MESSAGE), observed.uid
            )
        )

    def _save(self) -> None:
        if not self._memory.intact:
            self._unsaved = self._accepted
        if self._unsaved is None:
            return
        try:
            self._memory.save(self._unsaved)
        except OSError as error:
            self._failed("remember")
            _log.warning("cannot save the configuration in force for a restart: %s", error)
            return
        self._unsaved = None
