"""The failure of one object ends at this object: it is logged, counted and retried."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from pinwarden.api.pinlimit import PinLimit
from pinwarden.controller import resources, spec_reconciler, status_reconciler, store, transform
from pinwarden.controller.items import Items, RetryError
from pinwarden.controller.metrics import LOOPS, Metrics
from pinwarden.controller.metrics_collector import ClusterCollector
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.plan import cluster, limit_compiler, limit_status
from pinwarden.plan.conditions import UntimedCondition, with_times
from pinwarden.plan.limit_compiler import LimitSet
from pinwarden.plan.limited_namespaces import NamespaceScope
from pinwarden.plan.node_spec import assemble
from pinwarden.plan.node_view import NodeView
from pinwarden.plan.types import Pod

from ..plan.test_limit_compiler import pinlimit
from ..plan.test_limit_status import condition, limit, outcome, pod, status_of, use, view
from . import test_reconcile as reconcile
from .test_reconcile import Operator, config_path, scenario


def sample(metrics: Metrics, name: str) -> float:
    lines = metrics.render().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


class Loop:
    """A queue whose names fail as long as they are among `bad`."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.items = Items(self.metrics)
        self.queue = WorkQueue()
        self.bad: dict[str, Exception] = {}
        self.done: list[str] = []
        self.reported: list[tuple[str, str]] = []
        self.broken: Exception | None = None

    def report(self, name: str, problem: str) -> None:
        self.reported.append((name, problem))
        if self.broken:
            raise self.broken

    async def work(self, name: str) -> float:
        await asyncio.sleep(0)
        if name in self.bad:
            raise self.bad[name]
        self.done.append(name)
        return 0.0

    def run(self, then: Callable[[], Awaitable[None]]) -> None:
        async def both() -> None:
            worker = asyncio.create_task(
                self.items.process_queue("compile", self.queue, self.work, self.report)
            )
            async with asyncio.timeout(60):
                await then()
            assert not worker.done()
            worker.cancel()

        asyncio.run(both())


def test_queue_failed_name_is_logged_counted_and_retried_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = Loop()
    loop.bad["bad"] = ValueError("this one")

    async def then() -> None:
        for name in ("bad", "good"):
            loop.queue.add(name)
        while len(loop.reported) < 2:
            await asyncio.sleep(0.01)
        assert loop.done == ["good"]
        assert set(loop.reported) == {("bad", "ValueError: this one")}
        assert loop.items.failing("compile") == 1
        del loop.bad["bad"]
        while "bad" not in loop.done:
            await asyncio.sleep(0.01)
        assert loop.items.failing("compile") == 0

    loop.run(then)
    assert sample(loop.metrics, 'pinwarden_operator_item_failures_total{loop="compile"}') >= 2
    assert sample(loop.metrics, 'pinwarden_operator_items_failing{loop="compile"}') == 0
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        "compile: bad failed, others continue: ValueError: this one"
    ]


def test_queue_failed_failure_handler_does_not_end_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = Loop()
    loop.bad["bad"] = ValueError("this one")
    loop.broken = RuntimeError("the handler")

    async def then() -> None:
        for name in ("bad", "good"):
            loop.queue.add(name)
        while len(loop.reported) < 2 or not loop.done:
            await asyncio.sleep(0.01)
        assert loop.items.failing("compile") == 2
        del loop.bad["bad"]
        while "bad" not in loop.done:
            await asyncio.sleep(0.01)
        assert loop.items.failing("compile") == 0

    loop.run(then)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [
        "compile: bad failed, others continue: ValueError: this one",
        "compile: bad, handling its failure failed, others continue: RuntimeError: the handler",
    ]


def test_queue_retry_error_is_no_failure() -> None:
    loop = Loop()
    loop.bad["later"] = RetryError(0.0)

    async def then() -> None:
        loop.queue.add("later")
        await asyncio.sleep(0.05)
        loop.bad.clear()
        while not loop.done:
            await asyncio.sleep(0.01)

    loop.run(then)
    assert not loop.reported
    assert loop.items.failing("compile") == 0


def test_queue_with_failed_name_is_idle() -> None:
    """Statuses wait until no node waits to be compiled."""
    queue = WorkQueue()
    queue.add("bad")
    assert not queue.idle
    assert asyncio.run(queue.get()) == "bad"
    queue.failed("bad")
    assert queue.idle
    queue.add("good")
    assert not queue.idle


def test_items_above_the_bound_forget_the_oldest_failure() -> None:
    items = Items(Metrics())
    for number in range(5000):
        with items.item("watch", f"pods {number}"):
            raise KeyError(number)
    assert items.failing("watch") == 4096
    assert items.failing("spec") == 0


def test_item_cancelled_is_no_failure() -> None:
    items = Items(Metrics())
    with pytest.raises(asyncio.CancelledError), items.item("events", "e"):
        raise asyncio.CancelledError
    assert items.failing("events") == 0


def test_loops_each_have_series_of_failures() -> None:
    metrics = Metrics()
    Items(metrics)
    for loop in LOOPS:
        assert sample(metrics, f'pinwarden_operator_item_failures_total{{loop="{loop}"}}') == 0
        assert sample(metrics, f'pinwarden_operator_items_failing{{loop="{loop}"}}') == 0


# -- the operator's own loops ------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_reconciler, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(status_reconciler, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(store, "COALESCE_SECONDS", 0.005)


@pytest.mark.rule("H1")
def test_compilation_failed_is_reported_and_other_nodes_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = cluster.Cluster.compiled
    broken = {"n1"}

    def compiled(world: cluster.Cluster, node: str) -> Any:
        if node in broken:
            raise RuntimeError("a defect")
        return whole(world, node)

    monkeypatch.setattr(cluster.Cluster, "compiled", compiled)

    async def work(operator: Operator) -> None:
        for number in (1, 2):
            operator.node(f"n{number}", f"uid-{number}")
            operator.pod(f"p{number}", f"n{number}")
            operator.agent(node=f"n{number}")
        operator.limit()
        await operator.until(lambda: operator.spec("n2").get("limits"))
        operator.report(node="n2")
        await operator.until(lambda: operator.condition("Applied") == "NotCompiled")
        conditions = {condition["type"]: condition for condition in operator.status()["conditions"]}
        applied = conditions["Applied"]
        assert "node n1 (NotCompiled: RuntimeError: a defect)" in applied["message"]
        broken.clear()
        await operator.until(lambda: operator.spec("n1").get("limits"))
        operator.report(node="n1")
        await operator.until(lambda: operator.condition("Enforced") == "Enforced")

    scenario(work)


def test_aggregation_failed_sends_an_event_and_other_statuses_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(limit: PinLimit, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"a defect with {limit.metadata.name}")

    whole = limit_status.aggregate
    monkeypatch.setattr(
        status_reconciler,
        "aggregate",
        lambda limit, *rest, **more: (fails if limit.metadata.name == "bad" else whole)(
            limit, *rest, **more
        ),
    )

    async def work(operator: Operator) -> None:
        operator.node()
        operator.pod()
        bad = reconcile.limit(1, 1)
        bad["metadata"] |= {"name": "bad", "uid": "bad-uid"}
        operator.store.put_resource(resources.read(PinLimit, bad))
        operator.limit()
        await operator.until(operator.status)

        def failures() -> list[dict[str, Any]]:
            return [event for event in operator.server.events if event["reason"] == "StatusFailed"]

        await operator.until(failures)
        (event,) = failures()
        assert event["regarding"]["name"] == "bad"
        assert "a defect with bad" in event["note"]

    scenario(work)


@pytest.mark.rule("H2")
def test_report_with_huge_texts_affects_only_its_node() -> None:
    """From a CRD without bounds: https://github.com/elastic/cloud-on-k8s/issues/2034"""

    async def work(operator: Operator) -> None:
        for number in (1, 2):
            operator.node(f"n{number}", f"uid-{number}")
            operator.pod(f"p{number}", f"n{number}")
            operator.agent(node=f"n{number}")
        operator.limit()
        await operator.until(
            lambda: operator.spec("n1").get("limits") and operator.spec("n2").get("limits")
        )
        hostile = operator.server.objects[config_path("n1")]
        bad = {"uid": "p1", "vmLck": 0, "vmPin": 0, "peak": 0, "processes": 1, "level": "Observe"}
        raw = {
            **hostile,
            "status": {"observedGeneration": 1, "pods": [bad | {"reason": "x" * 1025}]},
        }
        operator.store.put_config(transform.node_pin_config(raw)[1])
        operator.report(node="n2")
        await operator.until(lambda: operator.status().get("pinnedBytes") == 4096)
        assert operator.store.unreadable == {"n1"}

    scenario(work)


def test_scrape_with_failed_limit_includes_the_other_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(operator: Operator) -> None:
        bad = reconcile.limit(1, 1)
        bad["metadata"] |= {"name": "bad", "uid": "bad-uid"}
        operator.store.put_resource(resources.read(PinLimit, bad))
        operator.limit()
        monkeypatch.setattr(operator.store.counters, "denials", lambda uid: {"limit-uid": 7}[uid])
        operator.metrics.include(
            ClusterCollector(operator.store, lambda: True, operator.items, pods=True)
        )
        text = operator.metrics.render().decode()
        assert [line for line in text.splitlines() if 'limit="l"' in line and line.endswith(" 7.0")]
        assert operator.items.failing("metrics") == 1

    scenario(work)


# -- bounds ------------------------------------------------------------


def test_status_with_huge_figures_of_nodes_fits_the_api() -> None:
    huge = limit()
    pods = [pod(str(number), f"n{number}") for number in range(3)]
    most = {"vmLck": 2**62, "vmPin": 2**62, "peak": 2**62}
    views = [view([member], [huge], [use(member.uid) | most]) for member in pods]
    status = status_of(huge, pods, *views)
    assert status.pinned_bytes == 2**63 - 1
    assert status.top_pods[0].pinned_bytes == 2**63 - 1
    assert status.recommendation is None, "no limit may be so large"
    assert outcome(status, "Complete") == ("False", "FiguresCut")


@pytest.mark.rule("H2")
def test_condition_with_long_message_is_cut_with_a_mark() -> None:
    (condition_cut,) = with_times(
        [UntimedCondition("Enforced", "False", "R" * 2000, "m" * 40000)], (), datetime.now(UTC), 1
    )
    assert (len(condition_cut.reason), len(condition_cut.message)) == (1024, 32768)
    assert condition_cut.message.endswith("...cut")


@pytest.mark.rule("H1")
@pytest.mark.parametrize("count", [4096, 4097, 10_000])
def test_spec_with_too_many_pods_keeps_governed_pods_first(count: int) -> None:
    """https://github.com/liqotech/liqo/issues/1101"""
    free = LimitSet({}, by_container=False)
    held = LimitSet.of([limit()])
    pods = [Pod("b", f"free-{n}", f"free-{n:032}", f"free-{n:032}", "n1") for n in range(count)]
    ours = [
        Pod("a", f"p-{n}", f"ours-{n}", f"ours-{n}", "n1", containers={"main": "id"})
        for n in range(100)
    ]
    both = [*((pod, free) for pod in pods), *((pod, held) for pod in ours)]
    spec, overflow = assemble(both, [], limit_compiler.LimitSettings(), NamespaceScope())
    assert len(spec.pods) == 4096
    assert {pod.uid for pod in ours} <= {entry.uid for entry in spec.pods}
    assert len(overflow.unlisted) == count + 100 - 4096

    crowd = [
        Pod("a", f"p-{n}", f"u-{n:05}", f"u-{n:05}", "n1", containers={"main": "id"})
        for n in range(5000)
    ]
    spec, overflow = assemble(
        ((pod, held) for pod in crowd), [], limit_compiler.LimitSettings(), NamespaceScope()
    )
    status = status_of(limit(), crowd, NodeView("n1", silent=False).with_desired(spec, overflow))
    assert outcome(status, "Applied") == ("False", "TooManyPods")
    assert outcome(status, "Enforced")[0] == "False"
    assert "a node has room for 4096 pods" in condition(status, "Applied").message
    assert limit_status.aggregate(
        limit(), crowd, {}, None, status.conditions[0].last_transition_time
    )


def test_spec_with_long_names_of_one_namespace_keeps_other_namespaces() -> None:
    def named(number: int) -> PinLimit:
        metadata = {
            "name": "l" * 60 + f"{number:03}",
            "namespace": "n" * 63,
            "uid": f"uid-{number}",
        }
        spec = {"podSelector": {}, "limit": "1Mi", "scope": "Container"}
        return PinLimit.model_validate({"metadata": metadata, "spec": spec})

    many = [named(number) for number in range(32)]
    wide = LimitSet.of(many)
    containers = {f"{'c' * 50}-{n:03}": "i" * 64 for n in range(100)}
    greedy = [
        Pod("n" * 63, f"p{n}", f"g-{n:030}", f"g-{n:030}", "n1", {}, containers) for n in range(500)
    ]
    small = Pod("a", "p", "u1", "u1", "n1", {}, {"main": "id"})
    spec, overflow = assemble(
        [*((pod, wide) for pod in greedy), (small, LimitSet.of([pinlimit("x")]))],
        [],
        limit_compiler.LimitSettings(),
        NamespaceScope(),
    )
    assert len(transform.canonical(spec.to_wire())) < 1 << 20
    assert "u1" in {entry.uid for entry in spec.pods}
    assert overflow.unlisted
