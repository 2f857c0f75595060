"""The specs of the NodePinConfigs: from a dirty node to what the API server has, in two stages.

*compile*: what the node shall hold, in memory and at once, also on a replica that does not lead. What differs from what the API server has
waits as JSON, a few kilobytes each: as models, 5,000 of them would take 300 MB.

*write*: server-side apply, at most once in `QUIET_SECONDS` per node. The spec is one atomic map, so that it replaces every hand edit. The
object is owned by its Node, and the garbage collector removes it with the Node.
"""

import asyncio
import json
import logging
from time import monotonic

from pinwarden.api.meta import GROUP, VERSION
from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.controller import transform
from pinwarden.controller.client import Api, ApiError, Json
from pinwarden.controller.items import Items, RetryError
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.store import Store
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.controller.write_guard import WriteGuard

QUIET_SECONDS = 0.2
WRITERS = 16
REFUSED_SECONDS = 10.0
_SLICE_SECONDS = 0.02
_COMPILED_POLL_SECONDS = 0.02
_API_VERSION = f"{GROUP}/{VERSION}"
_CONFIGS = f"/apis/{_API_VERSION}/{NodePinConfig.plural}"
_log = logging.getLogger(__name__)


class SpecReconciler:
    """Compiles dirty nodes and writes what differs."""

    def __init__(
        self,
        api: Api,
        store: Store,
        compile_queue: WorkQueue,
        guard: WriteGuard,
        metrics: Metrics,
        items: Items,
    ) -> None:
        self._api = api
        self._store = store
        self._compile_queue = compile_queue
        self._guard = guard
        self._metrics = metrics
        self._items = items
        self._slice_ends = 0.0
        self._pending: dict[str, bytes] = {}
        self._desired: dict[str, bytes] = {}
        self._stored_as: dict[str, tuple[bytes, bytes]] = {}
        self.write_queue = WorkQueue()

    async def wait_compiled(self) -> None:
        """Wait until no node waits to be compiled."""
        while not self._compile_queue.idle:
            await asyncio.sleep(_COMPILED_POLL_SECONDS)

    async def run_compiler(self) -> None:
        """Compiles dirty nodes until cancelled, and lets others run in between."""
        await self._guard.synced.wait()
        await self._items.process_queue(
            "compile", self._compile_queue, self._compile_next, self._store.compile_failed
        )

    async def run_writer(self) -> None:
        """One of `WRITERS`: writes what waits until cancelled."""
        await self._items.process_queue("spec", self.write_queue, self._write)

    async def _compile_next(self, name: str) -> float:
        started = monotonic()
        if started >= self._slice_ends:
            await asyncio.sleep(0)
            started = monotonic()
            self._slice_ends = started + _SLICE_SECONDS
        self._compile(name)
        self._metrics.reconciled("compile", monotonic() - started)
        return 0.0

    async def _write(self, name: str) -> float:
        await self._guard.acquire()
        data, owner = self._pending.get(name), self._store.node_uids.get(name)
        if data is None or owner is None:  # a node that is gone is compiled next, which forgets it
            return 0.0
        try:
            await self._apply(name, data, owner)
        except ApiError as error:
            raise self._failed(name, error) from error
        self._metrics.wrote("spec")
        return QUIET_SECONDS

    def _compile(self, name: str) -> None:
        store = self._store
        owner = store.node_uids.get(name)
        if owner is None:
            for kept in (self._pending, self._desired, self._stored_as):
                kept.pop(name, None)
            self.write_queue.discard(name)
            self._items.forget("spec", name)
            store.forget_node(name)
            return
        spec, room = store.cluster.compiled(name)
        store.set_desired(store.view(name).with_desired(spec, room))
        data = transform.canonical(spec.to_wire())
        self._desired[name] = transform.digest_of(data, owner)
        if self._is_stored(name):
            self._pending.pop(name, None)
        else:
            self._pending[name] = data
            self.write_queue.add(name)

    def _is_stored(self, name: str) -> bool:
        """Whether the API server has what is desired, or what it makes of it."""
        stored, desired = self._store.stored.get(name), self._desired[name]
        if stored is None:
            return False
        return stored.digest == desired or self._stored_as.get(name) == (desired, stored.digest)

    async def _apply(self, name: str, data: bytes, owner: str) -> None:
        body: Json = {
            "apiVersion": _API_VERSION,
            "kind": NodePinConfig.__name__,
            "metadata": {
                "name": name,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": owner}],
            },
            "spec": json.loads(data),
        }
        before = self._store.stored.get(name)
        _, stored = transform.node_pin_config(await self._api.apply(f"{_CONFIGS}/{name}", body))
        sent = transform.digest_of(data, owner)
        if stored.digest != sent:
            self._stored_as[name] = (sent, stored.digest)
            _log.warning(
                "NodePinConfig %s was stored other than it was written: are the CRDs of this version?", name
            )
        if self._pending.get(name) is data:
            del self._pending[name]
        self._store.config_written(stored, before)
        if name in self._desired and name not in self._pending and not self._is_stored(name):
            self._compile_queue.add(name)  # what was written was taken back meanwhile

    def _failed(self, name: str, error: ApiError) -> RetryError:
        self._metrics.wrote("spec", error.kind)
        if error.status == 429:
            self._guard.pause(error.retry_after or 1.0)
        refused = error.kind == "refused"
        if refused:
            _log.warning("NodePinConfig %s cannot be written: %s", name, error)
        return RetryError(REFUSED_SECONDS if refused else error.retry_after)
