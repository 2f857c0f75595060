"""The specs of the NodePinConfigs, from a dirty node to the API server, in two stages.

*compile*: compute the node's spec in memory, at once, also on a replica without the Lease. If the
spec differs from the stored spec, it waits as JSON of a few kilobytes. As models, 5,000 specs would
take 300 MB.

*write*: server-side apply, at most once in `QUIET_SECONDS` per node. The spec is one atomic map, so
a write replaces every manual edit. The Node owns the object, and the garbage collector deletes both
together.

A first limit in a namespace changes the specs of all nodes, of thousands. These writes must not
delay an edit of another limit. So such nodes wait in a queue of their own, and are compiled at a
third of the rate of all writes.
"""

import asyncio
import json
import logging
from dataclasses import dataclass
from time import monotonic
from typing import NoReturn

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
SLOW_PER_SECOND = 50.0
REJECTED_SECONDS = 10.0
_SLICE_SECONDS = 0.02
_COMPILED_POLL_SECONDS = 0.02
_API_VERSION = f"{GROUP}/{VERSION}"
_CONFIGS = f"/apis/{_API_VERSION}/{NodePinConfig.plural}"
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _NodeSpec:
    """The spec of a node as a digest, and as JSON while it waits to be written.

    `rewritten` has the digests of the sent and the stored spec if the API server changed the spec.
    """

    desired: bytes = b""
    pending: bytes | None = None
    rewritten: tuple[bytes, bytes] | None = None


class SpecReconciler:
    """Compile dirty nodes and write changed specs."""

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
        self._specs: dict[str, _NodeSpec] = {}
        self.write_queue = WorkQueue()

    async def wait_compiled(self) -> None:
        """Wait until no node waits to be compiled."""
        while not self._compile_queue.idle:
            await asyncio.sleep(_COMPILED_POLL_SECONDS)

    async def run_compiler(self) -> None:
        """Compile dirty nodes until cancelled, and yield to other tasks in between."""
        await self._guard.synced.wait()
        await self._items.process_queue(
            "compile", self._compile_queue, self._compile_next, self._store.compile_failed
        )

    async def run_slow_compiler(self) -> NoReturn:
        """Compile nodes that can wait until cancelled, at most `SLOW_PER_SECOND` a second."""
        queue = self._store.slow_compile_queue
        while True:
            name = await queue.get()
            queue.done(name)
            self._compile_queue.add(name)
            await asyncio.sleep(1 / SLOW_PER_SECOND)

    async def run_writer(self) -> None:
        """Write pending specs until cancelled; `WRITERS` of these run at once."""
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
        spec, owner = self._specs.get(name), self._store.node_uids.get(name)
        if spec is None or spec.pending is None or owner is None:
            return 0.0  # the node is gone, and its compilation comes next
        try:
            await self._apply(name, spec.pending, owner)
        except ApiError as error:
            raise self._failed(name, error) from error
        self._metrics.wrote("spec")
        return QUIET_SECONDS

    def _compile(self, name: str) -> None:
        store = self._store
        owner = store.node_uids.get(name)
        if owner is None:
            self._specs.pop(name, None)
            self.write_queue.discard(name)
            self._items.forget("spec", name)
            store.forget_node(name)
            return
        compiled, overflow = store.cluster.compiled(name)
        store.set_desired(store.view(name).with_desired(compiled, overflow))
        data = transform.canonical(compiled.to_wire())
        spec = self._specs.setdefault(name, _NodeSpec())
        spec.desired = transform.digest_of(data, owner)
        if self._is_stored(name, spec):
            spec.pending = None
        else:
            spec.pending = data
            self.write_queue.add(name)

    def _is_stored(self, name: str, spec: _NodeSpec) -> bool:
        """Return whether the API server has the desired spec, or its own rewrite of that spec."""
        stored = self._store.stored.get(name)
        if stored is None:
            return False
        return stored.digest == spec.desired or spec.rewritten == (spec.desired, stored.digest)

    async def _apply(self, name: str, data: bytes, owner: str) -> None:
        body: Json = {
            "apiVersion": _API_VERSION,
            "kind": NodePinConfig.__name__,
            "metadata": {
                "name": name,
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": name, "uid": owner}
                ],
            },
            "spec": json.loads(data),
        }
        before = self._store.stored.get(name)
        _, stored = transform.node_pin_config(await self._api.apply(f"{_CONFIGS}/{name}", body))
        sent = transform.digest_of(data, owner)
        spec = self._specs.get(name)  # read after the answer: the node may be gone by now
        if stored.digest != sent:
            if spec:
                spec.rewritten = (sent, stored.digest)
            _log.warning(
                "the API server changed the fields of NodePinConfig %s; "
                "check that the CRDs are of this version",
                name,
            )
        if spec and spec.pending is data:
            spec.pending = None
        self._store.config_written(stored, before)
        if spec and spec.pending is None and not self._is_stored(name, spec):
            self._compile_queue.add(name)  # another edit replaced this write meanwhile

    def _failed(self, name: str, error: ApiError) -> RetryError:
        self._metrics.wrote("spec", error.kind)
        if error.status == 429:
            self._guard.pause(error.retry_after or 1.0)
        rejected = error.kind == "refused"
        if rejected:
            _log.warning("cannot write NodePinConfig %s, retrying: %s", name, error)
        return RetryError(REJECTED_SECONDS if rejected else error.retry_after)
