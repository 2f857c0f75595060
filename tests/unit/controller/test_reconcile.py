"""From events to writes, with a fake API server that only takes writes."""

import asyncio
import copy
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit, PinLimitStatus, Source
from pinwarden.controller import resources, spec_reconciler, status_reconciler, store, transform
from pinwarden.controller.client import FIELD_MANAGER, ApiError
from pinwarden.controller.events import SETTLE_SECONDS, EventRecorder
from pinwarden.controller.finalizers import Finalizers
from pinwarden.controller.items import Items
from pinwarden.controller.managed_resource import STATUS_BURST, STATUSES_PER_SECOND
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.ratelimit import RateLimiter, TokenBucket
from pinwarden.controller.spec_reconciler import SpecReconciler
from pinwarden.controller.status_reconciler import (
    QUIET_SECONDS,
    SPARED_BY_FIGURES,
    StatusReconciler,
)
from pinwarden.controller.store import Store
from pinwarden.controller.transform import AgentPod, KnownNode
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.controller.write_guard import WriteGuard
from pinwarden.plan.limit_compiler import LimitSettings
from pinwarden.plan.types import Namespace, Node, Pod

Json = dict[str, Any]


class Server:
    """A fake API server: `spoil` changes stored objects, `meanwhile` runs before an answer."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.applied: list[str] = []
        self.events: list[Json] = []
        self.errors: list[ApiError] = []
        self.version = 100
        self.spoil: Callable[[Json], None] = lambda _: None
        self.meanwhile: Callable[[str], None] = lambda _: None

    async def apply(self, path: str, body: Json, manager: str = FIELD_MANAGER) -> Json:
        await asyncio.sleep(0)
        self.applied.append(path)
        if self.errors:
            raise self.errors.pop(0)
        self.version += 1
        stored = copy.deepcopy(body)
        self.spoil(stored)
        old = self.objects.get(path)
        changed = old is None or old.get("spec") != stored.get("spec")
        generation = (old["metadata"]["generation"] if old else 0) + changed
        stored["metadata"] |= {"generation": generation, "resourceVersion": str(self.version)}
        stored["metadata"].setdefault("uid", f"uid-{path}")
        if old is not None and "status" in old:
            stored.setdefault("status", old["status"])
        self.objects[path] = stored
        answer = copy.deepcopy(stored)
        self.meanwhile(path)
        await asyncio.sleep(0.002)
        return answer

    async def patch(self, path: str, operations: list[Json]) -> Json:
        raise AssertionError(f"nothing has a finalizer here: {path}")

    async def create(self, path: str, body: Json) -> Json:
        self.events.append(body)
        return body


class Operator:
    """The store and the reconcilers around a `Server`."""

    def __init__(self) -> None:
        self.server = server = Server()
        self.metrics = metrics = Metrics()
        self.items = items = Items(metrics)
        compile_queue, aggregate_queue = WorkQueue(), WorkQueue()
        self.leading = True
        self.store = Store(LimitSettings(), compile_queue, aggregate_queue, metrics)
        self.queues = (compile_queue, self.store.slow_compile_queue, aggregate_queue)
        self.renewed = asyncio.Event()
        self.guard = WriteGuard(lambda: self.leading, self.renewed, RateLimiter(10_000.0, 10_000.0))
        self.now = 0.0
        self.recorder = EventRecorder(server, metrics, items, lambda: self.now)  # type: ignore[arg-type]
        self.specs = SpecReconciler(
            server,  # type: ignore[arg-type]
            self.store,
            compile_queue,
            self.guard,
            metrics,
            items,
        )
        self.finalizers = Finalizers(
            server,  # type: ignore[arg-type]
            self.store,
            self.guard,
            self.recorder,
            metrics,
            lambda: self.now,
        )
        self.statuses = StatusReconciler(
            server,  # type: ignore[arg-type]
            self.store,
            aggregate_queue,
            self.specs,
            self.guard,
            self.recorder,
            self.finalizers,
            metrics,
            items,
        )

    async def settle(self) -> None:
        """Let the time pass after which a change of enforcement has lasted."""
        await self.rest()
        self.now += SETTLE_SECONDS
        self.recorder.settle()

    def node(self, name: str = "n1", uid: str = "node-uid", *, lost: bool = False) -> None:
        self.store.put_node(KnownNode(Node(name), uid, lost))

    def pod(self, uid: str = "p1", node: str = "n1") -> None:
        pod = Pod(
            namespace="ns", name=uid, uid=uid, cgroup_uid=uid, node=node, containers={"main": "id"}
        )
        self.store.put_pod(pod)

    def agent(self, ready: bool = True, node: str = "n1") -> None:
        self.store.put_agent(AgentPod(f"agent-{node}", node, ready))

    def limit(
        self, version: int = 1, generation: int = 1, status: Json | None = None, **spec: Any
    ) -> None:
        self.store.put_resource(
            resources.read(PinLimit, limit(version, generation, status, **spec))
        )

    def spec(self, node: str = "n1") -> Json:
        spec: Json = self.server.objects.get(config_path(node), {}).get("spec", {})
        return spec

    def status(self) -> Json:
        status: Json = self.server.objects.get(STATUS, {}).get("status", {})
        return status

    def condition(self, kind: str) -> str:
        conditions: list[dict[str, str]] = self.status().get("conditions", [])
        return {condition["type"]: condition["reason"] for condition in conditions}.get(kind, "")

    def report(
        self,
        pinned: int = 4096,
        node: str = "n1",
        *,
        ended: Sequence[str] = (),
        weak: str = "",
    ) -> None:
        """Deliver a report that applies the spec, without the pods in `ended`.

        With the reason `weak`, pods are at Observe.
        """
        config = copy.deepcopy(self.server.objects[config_path(node)])
        spec, _ = NodePinConfigSpec.parse(config["spec"])
        level = {"level": "Converge", "reason": ""}
        config["status"] = {
            "observedGeneration": config["metadata"]["generation"],
            "appliedLimits": [{"uid": limit.uid, "hash": limit.hash} for limit in spec.limits],
            "sources": [{"source": source, "counted": True, **level} for source in Source],
            "pods": [
                {
                    "uid": pod.uid,
                    "vmLck": pinned,
                    "vmPin": 0,
                    "peak": pinned,
                    "processes": 1,
                    **({"level": "Observe", "reason": weak} if weak else level),
                }
                for pod in spec.pods
                if pod.limits and pod.uid not in ended
            ],
        }
        self.store.put_config(transform.node_pin_config(config)[1])

    async def limit_pod(self) -> None:
        """Wait until the spec limits a pod of a node with an agent."""
        self.node()
        self.agent()
        self.pod()
        self.limit()
        await self.until(lambda: limited_pods(self) == [("p1", ["ns/l"])])

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    async def rest(self) -> None:
        """Wait until no name is due; without the Lease, wait for a moment."""
        for _ in range(3):
            await asyncio.sleep(0.03)
        await self.until(lambda: not (self.leading and any(map(_works, self.queues))))


def _works(queue: WorkQueue) -> bool:
    """Return whether a name is processed or due after its quiet time; ignore failed names."""
    soon = monotonic() + QUIET_SECONDS
    return any(
        entry.busy or (entry.due is not None and entry.due <= soon and entry.backoff is None)
        for entry in queue._names.values()
    )


STATUS = "/apis/pinwarden.io/v1alpha1/namespaces/ns/pinlimits/l/status"


def config_path(node: str) -> str:
    return f"/apis/pinwarden.io/v1alpha1/nodepinconfigs/{node}"


def limited_pods(operator: Operator) -> list[tuple[str, list[str]]]:
    """Return the pods of the spec with their limits."""
    return [(pod["uid"], pod["limits"]) for pod in operator.spec().get("pods", [])]


def limit(version: int, generation: int, status: Json | None = None, **spec: Any) -> Json:
    metadata = {
        "name": "l",
        "namespace": "ns",
        "uid": "limit-uid",
        "generation": generation,
        "resourceVersion": str(version),
    }
    body = {"limit": "1Mi", "podSelector": {}, **spec}
    return {"kind": "PinLimit", "metadata": metadata, "spec": body, "status": status}


def scenario(work: Callable[[Operator], Awaitable[None]]) -> Server:
    """Run `work` beside the reconcilers."""

    async def run() -> Server:
        async with running() as operator:
            operator.guard.synced.set()
            await work(operator)
        return operator.server

    return asyncio.run(run())


@asynccontextmanager
async def running() -> AsyncIterator[Operator]:
    operator = Operator()
    parts = (
        operator.specs.run_compiler(),
        operator.specs.run_slow_compiler(),
        *(operator.specs.run_writer() for _ in range(2)),
        *(operator.statuses.run_writer() for _ in range(2)),
        operator.recorder.run(),
    )
    tasks = [asyncio.create_task(part) for part in parts]
    yield operator
    failed = [task.exception() for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    assert not failed


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_reconciler, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(status_reconciler, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(store, "COALESCE_SECONDS", 0.005)


def test_spec_new_is_written_once_with_its_node_as_owner() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.pod()
        operator.limit()
        await operator.until(lambda: operator.spec().get("limits"))
        await operator.rest()

    server = scenario(work)
    stored = server.objects[config_path("n1")]
    assert [owner["uid"] for owner in stored["metadata"]["ownerReferences"]] == ["node-uid"]
    assert server.applied.count(config_path("n1")) == 1


def test_first_limit_of_a_namespace_reaches_nodes_without_its_pods() -> None:
    def names(operator: Operator, node: str) -> object:
        return operator.spec(node).get("limitedNamespaces")

    async def work(operator: Operator) -> None:
        for node in ("n1", "n2"):
            operator.node(node, node)
        operator.pod()
        await operator.until(lambda: names(operator, "n1") == names(operator, "n2") == [])
        operator.limit()
        await operator.until(lambda: names(operator, "n1") == names(operator, "n2") == ["ns"])
        await operator.rest()
        before = list(operator.server.applied)
        operator.limit(version=2, generation=2, limit="2Mi")
        await operator.until(lambda: operator.spec()["limits"][0]["limit"] == 2 << 20)
        await operator.rest()
        assert config_path("n2") not in operator.server.applied[len(before) :]

    scenario(work)


def test_spec_already_stored_is_not_written() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.pod()
        await operator.until(operator.spec)
        before = list(operator.server.applied)
        stored = copy.deepcopy(operator.server.objects[config_path("n1")])
        operator.store.put_config(transform.node_pin_config(stored)[1])
        await operator.rest()
        assert operator.server.applied == before

    scenario(work)


def test_writes_without_the_lease_wait_for_the_lease() -> None:
    async def work(operator: Operator) -> None:
        operator.leading = False
        operator.node()
        operator.pod()
        operator.limit()
        await operator.rest()
        assert operator.server.applied == []
        operator.leading = True
        operator.renewed.set()
        await operator.until(lambda: operator.spec() and operator.status())

    scenario(work)


@pytest.mark.parametrize("change", ["edit", "delete", "owner"])
def test_spec_changed_by_hand_is_restored(change: str) -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.pod()
        await operator.until(lambda: "n1" in operator.store.stored)
        path = config_path("n1")
        good, stored = operator.spec(), copy.deepcopy(operator.server.objects[path])
        count = operator.server.applied.count(path)
        if change == "delete":
            del operator.server.objects[path]
            operator.store.remove_config("n1")
        else:
            if change == "edit":
                stored["spec"]["unknownPods"] = 7
                stored["metadata"]["generation"] += 1
            else:
                stored["metadata"]["ownerReferences"] = []
            operator.server.objects[path] = stored
            operator.store.put_config(transform.node_pin_config(copy.deepcopy(stored))[1])
        await operator.until(lambda: operator.server.applied.count(path) > count)
        await operator.until(lambda: operator.spec() == good)

    scenario(work)


def test_spec_answer_after_acknowledgement_keeps_the_acknowledgement() -> None:
    """An applied limit is reported as applied (H1)."""

    async def work(operator: Operator) -> None:
        def acknowledged(path: str) -> None:
            if path == config_path("n1"):
                operator.report()

        operator.server.meanwhile = acknowledged
        operator.node()
        operator.agent()
        operator.pod()
        operator.limit()
        await operator.until(lambda: operator.condition("Applied") == "Acknowledged")

    scenario(work)


def test_spec_answer_after_deletion_recreates_the_object() -> None:
    async def work(operator: Operator) -> None:
        path = config_path("n1")

        def deleted(at: str) -> None:
            if at == path and operator.server.applied.count(path) == 1:
                operator.store.put_config(
                    transform.node_pin_config(operator.server.objects.pop(path))[1]
                )
                operator.store.remove_config("n1")

        operator.server.meanwhile = deleted
        operator.node()
        operator.pod()
        await operator.until(operator.spec)

    scenario(work)


def test_spec_reverted_during_its_write_is_written_again() -> None:
    async def work(operator: Operator) -> None:
        path = config_path("n1")
        operator.node()
        operator.pod()
        await operator.until(operator.spec)
        good = operator.spec()

        def reverted(at: str) -> None:
            if at == path:
                operator.store.remove_pod("p2")

        operator.server.meanwhile = reverted
        operator.pod("p2")
        await operator.until(lambda: len(operator.spec()["pods"]) == 2)
        await operator.until(lambda: operator.spec() == good)

    scenario(work)


def test_spec_rewritten_by_the_server_is_written_once() -> None:
    """CRDs of an older version prune a field."""

    async def work(operator: Operator) -> None:
        operator.server.spoil = lambda body: body.get("spec", {}).pop("mode", None)
        operator.node()
        operator.pod()
        await operator.until(operator.spec)
        await operator.rest()
        stored = copy.deepcopy(operator.server.objects[config_path("n1")])
        operator.store.put_config(transform.node_pin_config(stored)[1])
        await operator.rest()
        assert operator.server.applied.count(config_path("n1")) == 1
        operator.pod("p2")
        await operator.until(lambda: len(operator.spec()["pods"]) == 2)

    scenario(work)


def test_spec_failed_write_retries_with_the_newest_spec() -> None:
    async def work(operator: Operator) -> None:
        operator.server.errors = [
            ApiError("no answer"),
            ApiError("busy", 429, 0.01),
            ApiError("broken", 500),
        ]
        operator.node()
        operator.pod()
        await operator.until(lambda: operator.server.applied)
        operator.pod("p2")
        await operator.until(lambda: len(operator.spec().get("pods", [])) == 2)

    scenario(work)


def test_spec_of_node_deleted_before_its_write_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spec_reconciler, "_SLICE_SECONDS", 0.0)

    async def work(operator: Operator) -> None:
        operator.leading = False
        operator.node()
        await operator.rest()
        operator.leading = True
        operator.renewed.set()
        for number in range(100):
            operator.node(f"other-{number}")
        operator.store.remove_node("n1")
        await operator.until(lambda: len(operator.server.objects) == 100)
        assert not operator.spec()

    scenario(work)


def test_spec_of_deleted_node_is_left_to_the_garbage_collector() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.pod()
        await operator.until(operator.spec)
        operator.store.remove_node("n1")
        operator.store.remove_pod("p1")
        operator.store.remove_config("n1")
        before = len(operator.server.applied)
        await operator.rest()
        assert len(operator.server.applied) == before
        operator.node(uid="another")
        await operator.until(lambda: len(operator.server.applied) > before)

    scenario(work)


def test_agent_deleted_after_its_node_leaves_no_state() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.agent()
        await operator.until(operator.spec)
        operator.store.remove_node("n1")
        operator.store.remove_config("n1")
        await operator.until(lambda: not operator.store.views)
        operator.store.remove_agent("agent-n1")
        await operator.until(lambda: not operator.store.views)

    scenario(work)


def test_agent_observed_before_its_node_counts() -> None:
    async def work(operator: Operator) -> None:
        operator.agent()
        await operator.until(lambda: not operator.store.views)
        operator.node()
        await operator.until(lambda: operator.store.views)
        assert not operator.store.view("n1").silent

    scenario(work)


@pytest.mark.rule("H1")
def test_status_of_edited_limit_ignores_older_acknowledgements() -> None:
    async def work(operator: Operator) -> None:
        seen: list[tuple[int, str]] = []
        original = operator.server.apply

        async def spy(path: str, body: Json, manager: str = FIELD_MANAGER) -> Json:
            if path == STATUS:
                status = body["status"]
                applied = next(item for item in status["conditions"] if item["type"] == "Applied")
                seen.append((status["observedGeneration"], applied["status"]))
            return await original(path, body, manager)

        operator.server.apply = spy  # type: ignore[method-assign]
        operator.node()
        operator.agent()
        operator.pod()
        operator.limit()
        await operator.until(lambda: operator.spec().get("limits"))
        operator.report()
        await operator.until(lambda: (1, "True") in seen)
        operator.limit(version=1000, generation=2, limit="2Mi")
        await operator.until(lambda: seen[-1][0] == 2)
        assert seen[-1] == (2, "False")
        operator.report()
        await operator.until(lambda: seen[-1] == (2, "True"))
        assert (2, "True") not in seen[:-1]

    scenario(work)


@pytest.mark.rule("H1")
def test_status_with_silent_agent_is_unknown() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.agent()
        operator.pod()
        operator.limit()
        await operator.until(lambda: operator.spec().get("limits"))
        operator.report()
        await operator.until(lambda: operator.condition("Enforced") == "Enforced")
        operator.agent(ready=False)
        await operator.until(lambda: operator.condition("Enforced") == "AgentSilent")
        operator.agent(ready=True)
        await operator.until(lambda: operator.condition("Enforced") == "Enforced")
        operator.node(lost=True)
        await operator.until(lambda: operator.condition("Enforced") == "AgentSilent")
        operator.agent(ready=False)
        operator.agent(ready=True)
        assert operator.store.view("n1").silent
        operator.node(lost=False)
        await operator.until(lambda: operator.condition("Enforced") == "Enforced")
        operator.store.remove_agent("agent-n1")
        await operator.until(lambda: operator.condition("Enforced") == "AgentSilent")

    scenario(work)


def test_status_with_changed_figures_waits_and_with_conditions_does_not() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.agent()
        operator.pod()
        operator.limit()
        await operator.until(lambda: operator.spec().get("limits"))
        operator.report(pinned=4096)
        await operator.until(lambda: operator.condition("Enforced") == "Enforced")
        use_up(operator.store.resources["ns/l"].write_bucket, SPARED_BY_FIGURES)
        count = operator.server.applied.count(STATUS)
        operator.report(pinned=8192)
        await operator.rest()
        assert operator.server.applied.count(STATUS) == count
        operator.report(pinned=2 << 20)
        await operator.until(lambda: operator.condition("WithinLimit") == "OverLimit")
        assert operator.status()["pinnedBytes"] == 2 << 20

    scenario(work)


def test_status_with_flapping_conditions_waits_for_its_budget() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.agent()
        operator.pod()
        operator.limit()
        await operator.until(lambda: operator.spec().get("limits"))
        operator.report(pinned=4096)
        await operator.until(lambda: operator.condition("Enforced") == "Enforced")
        use_up(operator.store.resources["ns/l"].write_bucket, 0.0)
        operator.agent(ready=False)
        await operator.rest()
        assert operator.condition("Enforced") == "Enforced"
        operator.store.resources["ns/l"].write_bucket = TokenBucket(
            STATUSES_PER_SECOND, STATUS_BURST
        )
        operator.report(pinned=8192)
        await operator.until(lambda: operator.condition("Enforced") != "Enforced")

    scenario(work)


def use_up(write_bucket: TokenBucket, spare: float) -> None:
    """Take tokens until no action may leave `spare` tokens."""
    while write_bucket.delay(spare) == 0.0:
        write_bucket.take()


def test_status_echo_of_own_write_is_ignored() -> None:
    async def work(operator: Operator) -> None:
        operator.limit()
        await operator.until(operator.status)
        entry = operator.store.resources["ns/l"]
        assert entry.observed.resource is not None
        before = entry.observed.resource
        operator.limit(version=operator.server.version, status=operator.status())
        assert entry.observed.resource is before
        await operator.rest()
        assert operator.server.applied.count(STATUS) == 1

    scenario(work)


def test_watch_event_older_than_the_store_is_ignored() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.pod()
        operator.limit(version=50, generation=2, limit="2Mi")
        operator.limit(version=49, generation=1, limit="1Mi")
        await operator.until(lambda: operator.spec().get("limits"))
        assert operator.spec()["limits"][0]["limit"] == 2 << 20
        old = copy.deepcopy(operator.server.objects[config_path("n1")])
        operator.limit(version=51, generation=3, limit="3Mi")
        await operator.until(lambda: operator.spec()["limits"][0]["limit"] == 3 << 20)
        await operator.rest()
        count = len(operator.server.applied)
        operator.store.put_config(transform.node_pin_config(old)[1])
        await operator.rest()
        assert operator.server.applied[count:].count(config_path("n1")) == 0

    scenario(work)


def test_limit_unreadable_names_the_field_and_limits_no_pod() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.pod()
        operator.limit(burst=3)
        await operator.until(lambda: operator.condition("Accepted") == "Invalid")
        assert "spec.burst" in operator.status()["conditions"][0]["message"]
        assert operator.spec()["limits"] == []
        operator.limit(version=1000, generation=2)
        await operator.until(lambda: operator.condition("Accepted") == "Accepted")
        await operator.until(lambda: operator.spec()["limits"])

    scenario(work)


def test_report_unreadable_counts_as_missing() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.agent()
        operator.pod()
        operator.limit()
        await operator.until(lambda: operator.spec().get("limits"))
        operator.report()
        await operator.until(lambda: operator.condition("Applied") == "Acknowledged")
        config = copy.deepcopy(operator.server.objects[config_path("n1")])
        config["status"] = {"observedGeneration": 1, "novelty": True}
        operator.store.put_config(transform.node_pin_config(config)[1])
        await operator.until(lambda: operator.condition("Applied") == "Pending")

    scenario(work)


def test_limit_removal_needs_the_uid_of_the_stored_limit() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.pod()
        operator.limit()
        await operator.until(lambda: operator.spec().get("limits"))
        operator.store.remove_resource("ns/l", "another-uid")
        assert operator.store.uids == ["limit-uid"]
        operator.store.remove_uid("limit-uid")
        await operator.until(lambda: operator.spec()["limits"] == [])
        assert operator.store.uids == []

    scenario(work)


def test_events_of_status_have_each_reason_once() -> None:
    async def work(operator: Operator) -> None:
        await operator.limit_pod()
        operator.report()
        await operator.until(lambda: operator.condition("Enforced") == "Enforced")
        await operator.settle()
        operator.agent(ready=False)
        await operator.until(lambda: operator.condition("Enforced") == "AgentSilent")
        await operator.settle()
        operator.agent(ready=True)
        await operator.until(lambda: operator.condition("Enforced") == "Enforced")
        await operator.settle()
        await operator.rest()

    server = scenario(work)
    reasons = [event["reason"] for event in server.events]
    assert sorted(reasons) == ["Accepted", "AgentSilent", "Applied", "Enforced"]
    assert {event["regarding"]["uid"] for event in server.events} == {"limit-uid"}


def test_only_lasting_change_of_enforcement_causes_an_event() -> None:
    async def work(operator: Operator) -> None:
        await operator.limit_pod()
        operator.report()
        await operator.until(lambda: operator.condition("Enforced") == "Enforced")
        await operator.settle()
        for lasts in (False, True):
            operator.report(weak="CapIPCLock")
            await operator.until(lambda: operator.condition("Enforced") == "CapIPCLock")
            if lasts:
                await operator.settle()
            operator.report()
            await operator.until(lambda: operator.condition("Enforced") == "Enforced")
            await operator.settle()
        await operator.rest()

    reasons = [event["reason"] for event in scenario(work).events]
    assert sorted(reasons) == ["Accepted", "Applied", "CapIPCLock", "Enforced"]


def test_limit_invalid_reads_with_the_problem_of_its_field() -> None:
    good = resources.read(PinLimit, limit(7, 2))
    assert (good.key, good.version, good.generation, good.problem) == ("ns/l", 7, 2, "")
    assert good.resource is not None
    assert resources.read(PinLimit, limit(7, 2, limit="lots")).problem.startswith("spec.limit: ")
    assert resources.read(PinLimit, limit(7, 2, status={"matchedPods": "many"})).status is None
    assert resources.read(
        PinLimit, limit(7, 2, status={"matchedPods": 3})
    ).status == PinLimitStatus(matched_pods=3)
    raw = limit(7, 2)
    raw["kind"] = "ClusterPinLimit"
    del raw["metadata"]["namespace"]
    assert resources.read(ClusterPinLimit, raw).key == "l"


def apply_seconds(operator: Operator) -> float:
    """Return the number of measured times until Applied."""
    families = operator.metrics.families()
    samples = (sample for family in families for sample in family.samples)
    return next(
        sample.value
        for sample in samples
        if sample.name == "pinwarden_operator_apply_seconds_count"
    )


def test_apply_seconds_of_an_edit_are_measured_once() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.pod()
        operator.agent()
        operator.limit()
        await operator.until(lambda: operator.condition("Applied") == "Pending")
        assert apply_seconds(operator) == 0
        operator.report()
        await operator.until(lambda: operator.condition("Applied") == "Acknowledged")
        await operator.rest()
        assert apply_seconds(operator) == 1
        operator.pod("p2")
        operator.report()
        await operator.until(lambda: operator.status()["matchedPods"] == 2)
        await operator.rest()
        assert apply_seconds(operator) == 1, "the pod is new, the limit is not"

    scenario(work)


def test_apply_seconds_without_pods_or_already_applied_are_not_measured() -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.limit()
        await operator.until(lambda: operator.condition("Applied") == "NoPods")
        operator.agent()
        operator.pod()
        await operator.until(lambda: operator.spec().get("limits"))
        operator.report()
        await operator.until(lambda: operator.condition("Applied") == "Acknowledged")
        await operator.rest()
        assert apply_seconds(operator) == 0, "the limit was applied before the pod"

    scenario(work)


@pytest.mark.rule("H3", "P6")
@pytest.mark.parametrize("how", ["deleted", "Failed"])
def test_deleted_pod_with_processes_stays_until_they_end(how: str) -> None:
    """A pod deleted by force still runs: https://github.com/kubernetes/kubernetes/issues/51835."""

    async def work(operator: Operator) -> None:
        await operator.limit_pod()
        operator.report()
        if how == "deleted":
            operator.store.remove_pod("p1")
        else:
            pod = operator.store.cluster.pod("p1")
            assert pod is not None
            operator.store.put_pod(replace(pod, terminal=True))
        await operator.until(
            lambda: (operator.status().get("topPods") or [{}])[0].get("reason") == "PodGone"
        )
        assert (operator.status()["matchedPods"], operator.status()["pinnedBytes"]) == (1, 4096)
        assert operator.condition("Enforced") == "Enforced"
        assert limited_pods(operator) == [("p1", ["ns/l"])]
        operator.report(ended=["p1"])
        await operator.until(lambda: limited_pods(operator) == [])
        await operator.until(lambda: operator.status()["matchedPods"] == 0)

    scenario(work)


@pytest.mark.rule("P14", "H3")
def test_deleted_pod_without_matching_limit_is_unlimited() -> None:
    async def work(operator: Operator) -> None:
        await operator.limit_pod()
        operator.report()
        operator.store.remove_pod("p1")
        operator.limit(2, 2, podSelector={"matchLabels": {"app": "other"}})
        await operator.until(lambda: limited_pods(operator) == [("p1", [])])
        operator.limit(3, 3)
        await operator.until(lambda: limited_pods(operator) == [("p1", ["ns/l"])])
        operator.store.remove_uid("limit-uid")
        await operator.until(lambda: limited_pods(operator) == [("p1", [])])

    scenario(work)


@pytest.mark.rule("H3")
@pytest.mark.parametrize("first", ["pod", "namespace"])
def test_deleted_pod_in_deleted_namespace_keeps_its_clusterpinlimits(first: str) -> None:
    """Two watches deliver the two deletions in either order."""

    async def work(operator: Operator) -> None:
        selected = {"matchLabels": {"tier": "guest"}}
        raw = limit(1, 1, namespaceSelector=selected)
        del raw["metadata"]["namespace"]
        operator.store.put_resource(
            resources.read(ClusterPinLimit, {**raw, "kind": "ClusterPinLimit"})
        )
        operator.store.put_namespace(Namespace("ns", {"tier": "guest"}))
        operator.node()
        operator.agent()
        operator.pod()
        await operator.until(lambda: limited_pods(operator) == [("p1", ["l"])])
        operator.report()
        if first == "namespace":
            operator.store.remove_namespace("ns")
        operator.store.remove_pod("p1")
        operator.store.remove_namespace("ns")
        operator.node("n2", "other-uid")
        await operator.until(lambda: operator.spec("n2"))
        await operator.rest()
        assert limited_pods(operator) == [("p1", ["l"])]
        operator.report(ended=["p1"])
        await operator.until(lambda: limited_pods(operator) == [])
        operator.pod("p2")
        await operator.until(lambda: limited_pods(operator) == [("p2", [])])

    scenario(work)


@pytest.mark.parametrize("why", ["never reported", "silent", "another pod has its cgroup"])
def test_deleted_pod_without_need_is_removed_at_once(why: str) -> None:
    async def work(operator: Operator) -> None:
        operator.node()
        operator.agent()
        operator.store.put_pod(Pod("ns", "p1", "p1", "hash", "n1"))
        operator.limit()
        await operator.until(lambda: ("hash", ["ns/l"]) in limited_pods(operator))
        if why != "never reported":
            operator.report()
        operator.agent(ready=why != "silent")
        operator.store.remove_pod("p1")
        if why == "another pod has its cgroup":  # a recreated mirror pod
            assert operator.store.cluster.pod("p1") is not None
            operator.store.put_pod(Pod("ns", "p2", "p2", "hash", "n1"))
        await operator.rest()
        await operator.until(lambda: operator.store.cluster.pod("p1") is None)

    scenario(work)


@pytest.mark.rule("H3")
def test_deleted_pod_stays_if_a_new_pod_claims_its_uid() -> None:
    async def work(operator: Operator) -> None:
        await gone_pods(operator, 1)
        operator.store.put_pod(Pod("ns", "thief", "thief", "gone-0", "n1"))
        assert operator.store.cluster.pod("gone-0") is not None

    scenario(work)


async def gone_pods(operator: Operator, count: int) -> None:
    """Delete this number of pods while the node reports their processes."""
    operator.node()
    operator.agent()
    operator.limit()
    uids = [f"gone-{number}" for number in range(count)]
    for uid in uids:
        operator.pod(uid)
    await operator.until(lambda: len(limited_pods(operator)) == count)
    operator.report()
    for uid in uids:
        operator.store.remove_pod(uid)
    assert all(operator.store.cluster.pod(uid) for uid in uids)


def calls(act: Callable[[], object]) -> int:
    """Return the number of Python calls and resumed generators in `act`."""
    count = 0

    def counted(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


def test_pod_event_with_many_deleted_pods_costs_the_same() -> None:
    """With 4,096 deleted pods of a node, an event of a pod once took seconds."""
    costs: dict[str, list[int]] = {"new": [], "mirror": [], "gone": [], "report": []}

    async def work(operator: Operator, count: int) -> None:
        await gone_pods(operator, count)
        store = operator.store
        costs["new"].append(calls(lambda: operator.pod("new")))
        costs["mirror"].append(calls(lambda: store.put_pod(Pod("ns", "m", "m", "hash", "n1"))))
        costs["gone"].append(calls(lambda: store.remove_pod("gone-0")))
        view = replace(store.view("n1"), denied=1)
        costs["report"].append(calls(lambda: store._update_view(view)))

    counts = (10, 30, 90)
    for count in counts:
        scenario(lambda operator, count=count: work(operator, count))  # type: ignore[misc]
    for event in ("new", "mirror", "gone"):
        assert max(costs[event]) - min(costs[event]) < counts[0], event
    few, more, most = costs["report"]
    assert most - more <= 4 * (more - few), "a report costs its own length"


def test_deleted_node_removes_its_ended_pods() -> None:
    async def work(operator: Operator) -> None:
        await operator.limit_pod()
        operator.report()
        operator.store.remove_pod("p1")
        assert operator.store.cluster.pod("p1") is not None
        operator.store.remove_config("n1")
        assert operator.store.cluster.pod("p1") is not None, "a recreated object removes no pod"
        operator.store.remove_node("n1")
        await operator.until(lambda: operator.store.cluster.pod("p1") is None)

    scenario(work)
