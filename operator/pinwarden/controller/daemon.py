"""The operator as a process: create the parts, run them in one event loop, and stop them.

SIGTERM stops all writes first and then releases the Lease, so that another replica continues at
once. The end of the operator changes nothing on the nodes (H3).
"""

import asyncio
import logging
import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.aio.client import Configuration

from pinwarden import SYSTEM_NAMESPACE
from pinwarden.api.meta import GROUP, VERSION
from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.controller import transform
from pinwarden.controller.client import Api, ConnectionSetupError, configure
from pinwarden.controller.denial_events import DenialEvents
from pinwarden.controller.events import EventRecorder
from pinwarden.controller.finalizers import Finalizers
from pinwarden.controller.handlers import OperatorMemo
from pinwarden.controller.http_server import HttpServer
from pinwarden.controller.items import Items
from pinwarden.controller.kopf_thread import KopfThread
from pinwarden.controller.leader_election import LeaderElector
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.metrics_collector import ClusterCollector
from pinwarden.controller.ratelimit import RateLimiter
from pinwarden.controller.reflector import Reflector, ReflectorConfig
from pinwarden.controller.resync import Resync
from pinwarden.controller.spec_reconciler import WRITERS as SPEC_WRITERS
from pinwarden.controller.spec_reconciler import SpecReconciler
from pinwarden.controller.status_reconciler import WRITERS as STATUS_WRITERS
from pinwarden.controller.status_reconciler import StatusReconciler
from pinwarden.controller.store import Store
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.controller.write_guard import WriteGuard
from pinwarden.plan import limit_compiler as rules
from pinwarden.plan.decode import AGENT_SELECTOR

WRITES_PER_SECOND = 150.0
_BOUND = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
_log = logging.getLogger(__name__)


class StartError(Exception):
    """The operator cannot start with these options; the message is for users."""


@dataclass(frozen=True)
class OperatorOptions:
    """The options of the command line.

    Empty `namespaces` means all. `unknown_pods` is in bytes. `metrics_port` 0 takes a free port,
    and None serves no metrics. `per_pod_metrics` adds series of each governed pod.
    """

    kubeconfig: Path | None
    namespaces: Sequence[str]
    unknown_pods: int | None
    metrics_address: str
    metrics_port: int | None
    per_pod_metrics: bool

    @property
    def own_namespace(self) -> str:
        """Return the namespace of the operator, its Lease and the agents."""
        return os.environ.get("POD_NAMESPACE") or SYSTEM_NAMESPACE


async def run(settings: OperatorOptions) -> None:
    """Run until SIGTERM or SIGINT. Raises StartError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        configuration = await configure(settings.kubeconfig)
    except ConnectionSetupError as error:
        raise StartError(str(error)) from error
    async with AsyncExitStack() as resources:
        api = await resources.enter_async_context(Api(configuration))
        operator = _Operator(settings, api, configuration)
        await operator.serve(resources)
        await operator.run(stop)


class _Operator:
    """The parts of the operator."""

    def __init__(self, settings: OperatorOptions, api: Api, configuration: Configuration) -> None:
        self._settings = settings
        self._metrics = metrics = Metrics()
        self._items = items = Items(metrics)
        own = settings.own_namespace
        compile_queue, aggregate_queue = WorkQueue(), WorkQueue()
        exempt, watched = frozenset({"kube-system", own}), frozenset(settings.namespaces)
        self._store = store = Store(
            rules.LimitSettings(exempt, settings.unknown_pods, watched or None),
            compile_queue,
            aggregate_queue,
            metrics,
        )
        self._leader = LeaderElector(api, own, metrics)
        self._guard = guard = WriteGuard(
            self._leader.leading,
            self._leader.renewed,
            RateLimiter(WRITES_PER_SECOND, WRITES_PER_SECOND),
        )
        self._recorder = EventRecorder(api, metrics, items)
        self._denial_events = DenialEvents(store, guard, self._recorder, metrics, items)
        self._specs = specs = SpecReconciler(api, store, compile_queue, guard, metrics, items)
        finalizers = Finalizers(api, store, guard, self._recorder, metrics)
        self._statuses = StatusReconciler(
            api, store, aggregate_queue, specs, guard, self._recorder, finalizers, metrics, items
        )
        self._reflectors = [
            Reflector(api, source, metrics, items, self._record_unreadable)
            for source in _sources(settings, store)
        ]
        memo = OperatorMemo(configuration, store, metrics, items, asyncio.get_running_loop())
        self._kopf = KopfThread(memo, settings.namespaces)
        self._resync = Resync(
            api, settings.namespaces, metrics, lambda: store.uids, store.remove_uid, items
        )
        metrics.set_leading(self._leader.leading, guard.synced.is_set)
        queues = {"compile": compile_queue, "spec": specs.write_queue, "aggregate": aggregate_queue}
        metrics.set_queue_lengths(lambda name: len(queues[name]))
        metrics.set_missed(lambda: self._resync.missed)
        metrics.include(
            ClusterCollector(store, self._leader.leading, items, pods=settings.per_pod_metrics)
        )

    async def serve(self, resources: AsyncExitStack) -> None:
        """Start to serve probes and scrapes. Raises StartError."""
        port = self._settings.metrics_port
        if port is None:
            return
        try:
            web = HttpServer(self._settings.metrics_address, port, self._metrics, self._unready)
            url = await resources.enter_async_context(web)
        except OSError as error:
            raise StartError(f"--metrics-port {port}: {error.strerror or error}") from error
        _log.info("metrics are at %s/metrics", url)

    async def run(self, stop: asyncio.Event) -> None:
        """Run all parts until `stop`; the failure of a part is a defect and ends the operator."""
        parts = [
            *(reflector.run() for reflector in self._reflectors),
            *(self._specs.run_writer() for _ in range(SPEC_WRITERS)),
            *(self._statuses.run_writer() for _ in range(STATUS_WRITERS)),
            self._specs.run_compiler(),
            self._specs.run_slow_compiler(),
            self._kopf.run(),
            self._resync.run(),
            self._recorder.run(),
            self._recorder.run_settling(),
            self._denial_events.run(),
            self._lead(),
            self._sync(),
        ]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
            await stop.wait()
            _log.info("the operator ends; limits stay in force")
            for task in tasks:
                task.cancel()
        await self._leader.release()

    def _record_unreadable(self, regarding: dict[str, Any], problem: str) -> None:
        if regarding["kind"] == NodePinConfig.__name__:
            self._store.forget_report(regarding["name"])
        if self._guard.may_write:
            self._recorder.record_unreadable(regarding, problem)

    async def _lead(self) -> None:
        """Compete for the Lease once everything is listed.

        Before, this replica could write nothing.
        """
        await self._guard.synced.wait()
        await self._leader.run()

    async def _sync(self) -> None:
        """Allow writes once everything has been listed."""
        for reflector in self._reflectors:
            await reflector.synced.wait()
        await self._resync.synced.wait()
        _log.info("everything is listed")
        self._guard.synced.set()

    def _unready(self) -> list[str]:
        missing = [
            reflector.resource for reflector in self._reflectors if not reflector.synced.is_set()
        ]
        complete = self._resync.synced.is_set() and not self._resync.missed
        return [*missing, *([] if complete else ["limits"])]


def _sources(settings: OperatorOptions, store: Store) -> Iterable[ReflectorConfig[Any]]:
    """Yield all resources that a reflector watches; kopf watches limits and groups."""
    own = settings.own_namespace
    spaces = [f"/namespaces/{name}" for name in settings.namespaces] or [""]
    for space in spaces:
        yield ReflectorConfig(
            "pods",
            "Pod",
            f"/api/v1{space}/pods",
            transform.pod,
            store.put_pod,
            store.remove_pod,
            field_selector=_BOUND,
        )
    agents = f"/api/v1/namespaces/{own}/pods"
    yield ReflectorConfig(
        "agents",
        "Pod",
        agents,
        transform.agent_pod,
        store.put_agent,
        store.remove_agent,
        label_selector=AGENT_SELECTOR,
    )
    yield ReflectorConfig(
        "nodes",
        "Node",
        "/api/v1/nodes",
        transform.node,
        store.put_node,
        store.remove_node,
        by_name=True,
    )
    yield ReflectorConfig(
        "namespaces",
        "Namespace",
        "/api/v1/namespaces",
        transform.namespace,
        store.put_namespace,
        store.remove_namespace,
        by_name=True,
    )
    configs = f"/apis/{GROUP}/{VERSION}/{NodePinConfig.plural}"
    yield ReflectorConfig(
        "nodepinconfigs",
        NodePinConfig.__name__,
        configs,
        transform.node_pin_config,
        store.put_config,
        store.remove_config,
        by_name=True,
        api_version=f"{GROUP}/{VERSION}",
    )
