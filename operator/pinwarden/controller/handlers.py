"""The operator's kopf handlers for PinLimits, ClusterPinLimits and SharedMemoryGroups.

`kopf_thread` hosts this registry, and `resync` finds the changes without an event. All handlers
share the operator's memo. They write nothing: an event only updates the store, and the reconcilers
write. Two usual handlers are absent: `daemon` cleans up, and `http_server` answers probes.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import kopf
from kubernetes.aio.client import Configuration

from pinwarden.api.meta import GROUP, VERSION
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.api.sharedmemorygroup import SharedMemoryGroup
from pinwarden.common.backoff import Backoff
from pinwarden.controller.client import CONNECT_SECONDS, WATCH_SILENCE_SECONDS, Json
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.resources import UserResource, read
from pinwarden.controller.store import Store

_log = logging.getLogger(__name__)
registry = kopf.OperatorRegistry()


@dataclass(frozen=True)
class OperatorMemo:
    """The memo of all handlers: the way from kopf's thread to the operator's `loop`."""

    configuration: Configuration
    store: Store
    metrics: Metrics
    items: Items
    loop: asyncio.AbstractEventLoop

    def __copy__(self) -> Self:
        """Return this memo: kopf copies the memo for each object."""
        return self

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function in the operator's loop, and return at once."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            _log.debug("the event loop ended before kopf")

    def observe(self, kind: type[UserResource], event: kopf.RawEvent) -> None:
        """Update the store. A failure of an object ends here."""
        raw: Json = dict(event["object"])
        with self.items.item("limits", f"{kind.plural} {raw['metadata']['uid']}"):
            observed = read(kind, raw)
            if event["type"] == "DELETED":
                self.store.remove_resource(observed.key, observed.uid)
            else:
                self.store.put_resource(observed)


class _EndlessBackoffs:
    """The pauses between kopf's attempts. Each iteration starts with a short pause."""

    def __iter__(self) -> Iterator[float]:
        backoff = Backoff()
        while True:
            yield backoff.failed()


@kopf.on.startup(registry=registry)
async def configure(settings: kopf.OperatorSettings, memo: OperatorMemo, **_: Any) -> None:
    """Turn off kopf's Events, and let kopf reconnect soon after the API server returns."""
    memo.metrics.kopf_started()
    settings.posting.enabled = False
    settings.process.ultimate_exiting_timeout = None
    settings.queueing.exit_timeout = 0.1
    settings.networking.connect_timeout = CONNECT_SECONDS
    settings.networking.error_backoffs = _EndlessBackoffs()
    settings.watching.inactivity_timeout = WATCH_SILENCE_SECONDS


@kopf.on.login(registry=registry)
async def login(memo: OperatorMemo, **_: Any) -> kopf.ConnectionInfo:
    """Return kopf's connection to the API server, the same as the operator's."""
    configuration = memo.configuration
    token = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, _sep, value = (token or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=(scheme or "Bearer") if value else None,
        token=value or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
    )


@kopf.on.event(GROUP, VERSION, PinLimit.plural, registry=registry)
async def pin_limit_changed(event: kopf.RawEvent, memo: OperatorMemo, **_: Any) -> None:
    """Put a PinLimit into the store, or remove a deleted PinLimit."""
    memo.call(memo.observe, PinLimit, event)


@kopf.on.event(GROUP, VERSION, ClusterPinLimit.plural, registry=registry)
async def cluster_pin_limit_changed(event: kopf.RawEvent, memo: OperatorMemo, **_: Any) -> None:
    """Put a ClusterPinLimit into the store, or remove a deleted ClusterPinLimit."""
    memo.call(memo.observe, ClusterPinLimit, event)


@kopf.on.event(GROUP, VERSION, SharedMemoryGroup.plural, registry=registry)
async def group_changed(event: kopf.RawEvent, memo: OperatorMemo, **_: Any) -> None:
    """Put a SharedMemoryGroup into the store, or remove a deleted SharedMemoryGroup."""
    memo.call(memo.observe, SharedMemoryGroup, event)
