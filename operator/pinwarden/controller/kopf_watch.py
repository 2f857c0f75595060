"""PinLimits, ClusterPinLimits and SharedMemoryGroups, watched by kopf.

kopf only runs `on.event` handlers here, standalone, and changes no object. It runs in a thread with
an event loop of its own: kopf handles the signals of its loop, and cancels every task of the loop
when it ends. If kopf fails, it is started again and lists all objects again.

kopf reports neither the end of a list nor deletions during a gap in the history. `resync` finds
both.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from pinwarden.api.meta import GROUP, VERSION
from pinwarden.common.backoff import Backoff
from pinwarden.controller.client import CONNECT_SECONDS, WATCH_SILENCE_SECONDS
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.resources import KINDS, ObservedResource, UserResource, read

_STOP_SECONDS = 2.0
_log = logging.getLogger(__name__)


class _WithoutAttempts(logging.Filter):
    """Drop kopf's log line for each attempt while the API server is away.

    The reflectors log the failure once.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Request attempt")


logging.getLogger("kopf").setLevel(logging.WARNING)
logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
logging.getLogger("kopf._cogs.clients.watching").addFilter(_WithoutAttempts())


class KopfWatch:
    """Run kopf, and call `put` and `remove` (key, UID) for its events in the event loop of the
    caller.
    """

    def __init__(
        self,
        configuration: Configuration,
        namespaces: Sequence[str],
        metrics: Metrics,
        put: Callable[[ObservedResource], None],
        remove: Callable[[str, str], None],
        items: Items,
    ) -> None:
        self._configuration = configuration
        self._namespaces = namespaces
        self._metrics = metrics
        self._put = put
        self._remove = remove
        self._items = items
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._metrics.kopf_started()
            started = self._loop.time()
            stop = threading.Event()
            ended = asyncio.Event()
            thread = threading.Thread(
                target=self._thread, args=(stop, ended), name="kopf", daemon=True
            )
            thread.start()
            try:
                await ended.wait()
            finally:
                stop.set()
            if self._loop.time() - started > _STOP_SECONDS * 10:
                self._backoff.succeeded()
            await asyncio.sleep(self._backoff.failed())

    def _thread(self, stop: threading.Event, ended: asyncio.Event) -> None:
        try:
            asyncio.run(self._kopf(stop))
        except Exception:  # kopf raises whatever its tasks did
            logging.getLogger(__name__).exception("kopf failed, starting it again")
        finally:
            self._post(ended.set)

    async def _kopf(self, stop: threading.Event) -> None:
        flag = asyncio.Event()
        waiting = asyncio.create_task(_wait_for(stop, flag))
        scope: dict[str, Any] = (
            {"namespaces": list(self._namespaces)} if self._namespaces else {"clusterwide": True}
        )
        try:
            await kopf.operator(
                registry=self._registry(),
                settings=settings(),
                standalone=True,
                identity="pinwarden",  # type: ignore[arg-type]  # of use to peers only; left out, kopf asks for a user's name
                stop_flag=flag,
                **scope,
            )
        finally:
            waiting.cancel()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: object) -> kopf.ConnectionInfo:
            return await connection(self._configuration)

        for kind in KINDS:

            @kopf.on.event(GROUP, VERSION, kind.plural, registry=registry)
            async def observed(
                event: kopf.RawEvent, kind: type[UserResource] = kind, **_: object
            ) -> None:
                self._on_event(kind, event["type"], dict(event["object"]))

        return registry

    def _on_event(self, kind: type[UserResource], event: str | None, raw: dict[str, Any]) -> None:
        """Send an event from kopf's thread to the caller's loop."""
        self._post(self._handle_event, kind, event, raw)

    def _handle_event(
        self, kind: type[UserResource], event: str | None, raw: dict[str, Any]
    ) -> None:
        with self._items.item("limits", f"{kind.plural} {raw['metadata']['uid']}"):
            observed = read(kind, raw)
            if event == "DELETED":
                self._remove(observed.key, observed.uid)
            else:
                self._put(observed)

    def _post(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            _log.debug("the event loop ended before kopf")


async def _wait_for(stop: threading.Event, flag: asyncio.Event) -> None:
    while not stop.is_set():
        await asyncio.sleep(0.1)
    flag.set()


async def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """Return kopf's connection to the API server, the same as the operator's."""
    token = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, _, value = (token or "").rpartition(" ")
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


class _Forever:
    """Endless pauses in seconds between kopf's attempts.

    Each iteration starts with a short pause.
    """

    def __iter__(self) -> Iterator[float]:
        backoff = Backoff()
        while True:
            yield backoff.failed()


def settings() -> kopf.OperatorSettings:
    """Return settings with which kopf posts no Events and reconnects soon after the API server
    returns.
    """
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.posting.loggers = False
    chosen.process.ultimate_exiting_timeout = None
    chosen.queueing.exit_timeout = 0.1
    chosen.networking.connect_timeout = CONNECT_SECONDS
    chosen.networking.error_backoffs = _Forever()
    chosen.watching.inactivity_timeout = WATCH_SILENCE_SECONDS
    return chosen
