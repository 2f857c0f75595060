"""Events of denials on pods: once, from the leader only, and within budgets."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinwarden.api.pinlimit import ClusterPinLimit, PinLimit
from pinwarden.controller import denial_events, events, resources, transform
from pinwarden.controller.client import ApiError
from pinwarden.controller.denial_events import DenialEvents
from pinwarden.controller.events import EventRecorder
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.ratelimit import RateLimiter
from pinwarden.controller.store import Store
from pinwarden.controller.workqueue import WorkQueue
from pinwarden.controller.write_guard import WriteGuard
from pinwarden.plan.limit_compiler import LimitSettings
from pinwarden.plan.types import Pod

Json = dict[str, Any]
QUIET = 0.1


class Server:
    """Store Events, and reject a second Event with the same name."""

    def __init__(self) -> None:
        self.events: list[Json] = []
        self.times: list[float] = []
        self.rejected = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def has(self, count: int) -> None:
        """Wait for this number of Events, and check for no more."""
        async with asyncio.timeout(60):
            while len(self.events) < count:
                await asyncio.sleep(0.005)
        await asyncio.sleep(QUIET / 5)
        assert len(self.events) == count

    async def create(self, path: str, body: Json) -> Json:
        await asyncio.sleep(0)
        assert path == f"/apis/events.k8s.io/v1/namespaces/{body['metadata']['namespace']}/events"
        if body["metadata"]["name"] in {event["metadata"]["name"] for event in self.events}:
            self.rejected += 1
            raise ApiError("exists", 409)
        self.events.append(body)
        self.times.append(monotonic())
        return body


class Replica:
    """The part of a replica that sends denials."""

    def __init__(self, server: Server, *, leading: bool = True, known: bool = True) -> None:
        self.leading = leading
        metrics = Metrics()
        items = Items(metrics)
        self.metrics = metrics
        self.store = Store(
            LimitSettings(),
            WorkQueue(),
            WorkQueue(),
            metrics,
        )
        self.renewed = asyncio.Event()
        self.guard = WriteGuard(lambda: self.leading, self.renewed, RateLimiter(10_000.0, 10_000.0))
        self.guard.synced.set()
        self.recorder = EventRecorder(server, metrics, items)  # type: ignore[arg-type]
        self.denial_events = DenialEvents(self.store, self.guard, self.recorder, metrics, items)
        server.tasks.append(asyncio.create_task(self.denial_events.run()))
        self.pod()
        if known:
            self.report()

    def pod(self, uid: str = "p1", node: str = "n1", **changes: Any) -> Pod:
        fields = {
            "namespace": "ns",
            "name": f"pod-{uid}",
            "uid": uid,
            "cgroup_uid": uid,
            "node": node,
        }
        pod = Pod(**{**fields, **changes})
        self.store.put_pod(pod)
        return pod

    def limit(self, uid: str = "limit-uid", namespace: str | None = "ns", name: str = "db") -> None:
        metadata = {"name": name, "uid": uid, "generation": 1, "resourceVersion": "1"}
        kind = PinLimit if namespace else ClusterPinLimit
        raw = {
            "kind": kind.__name__,
            "metadata": {**metadata, **({"namespace": namespace} if namespace else {})},
            "spec": {"limit": "64Mi", "podSelector": {}},
        }
        self.store.put_resource(resources.read(kind, raw))

    def report(self, *listed: Json, node: str = "n1") -> None:
        """Report these denials, and deliver the report."""
        metadata = {"name": node, "uid": f"uid-{node}", "generation": 1}
        config = {"metadata": metadata, "spec": {}, "status": {"recentDenials": list(listed)}}
        self.store.put_config(transform.node_pin_config(config)[1])

    def leads(self, leading: bool) -> None:
        self.leading = leading
        self.renewed.set()


def denial(number: int = 1, ago: float = 0.0, **changes: Any) -> Json:
    fields = {
        "number": number,
        "time": (datetime.now(UTC) - timedelta(seconds=ago)).isoformat(),
        "pod": "p1",
        "container": "main",
        "process": "db",
        "pid": 4242,
        "source": "Mlock",
        "asked": 4194304,
        "used": 62914560,
        "limit": 67108864,
        "name": "ns/db",
        "uid": "limit-uid",
    }
    return {**fields, **changes}


def scenario(work: Callable[[Server], Awaitable[None]]) -> Server:
    async def run() -> Server:
        server = Server()
        await work(server)
        assert not [task.exception() for task in server.tasks if task.done()]
        return server

    return asyncio.run(run())


def denials_by_event(server: Server) -> list[int]:
    """Return the number of denials in each Event."""
    more = [
        re.search(r"; and (\d+) more in the last minute$", event["note"]) for event in server.events
    ]
    return [1 + (int(count[1]) if count else 0) for count in more]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(denial_events, "QUIET_SECONDS", QUIET)
        yield


def test_denial_new_sends_one_event_on_the_pod_related_to_the_limit() -> None:
    async def work(server: Server) -> None:
        replica, listed = Replica(server), denial()
        replica.limit()
        for _ in range(3):
            replica.report(listed)
            await asyncio.sleep(QUIET * 1.5)

    (event,) = scenario(work).events
    assert event["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "ns",
        "name": "pod-p1",
        "uid": "p1",
    }
    assert event["related"] == {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": "PinLimit",
        "namespace": "ns",
        "name": "db",
        "uid": "limit-uid",
    }
    assert (event["type"], event["reason"], event["action"]) == ("Warning", "PinRefused", "Refuse")
    assert event["note"] == (
        'mlock of 4Mi by process "db" (pid 4242) in container main denied: '
        "60Mi of 64Mi used, limit PinLimit ns/db"
    )


def test_denial_of_static_pod_regards_the_hash_that_kubectl_uses() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.pod("mirror-uid", cgroup_uid="hash", name="etcd-n1")
        replica.report(denial(pod="hash"))
        await server.has(1)

    (event,) = scenario(work).events
    assert (event["regarding"]["name"], event["regarding"]["uid"]) == ("etcd-n1", "hash")


def test_denial_unknown_limit_has_the_agents_name_and_foreign_limit_has_no_relation() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.limit("secret-uid", "other", "secret")
        replica.limit("top-uid", None, "top")
        replica.report(
            denial(1, uid="unknownPods", name="unknownPods"),
            denial(2, uid="secret-uid", name="ns/mine\n"),
            denial(3, uid="top-uid"),
            denial(4, uid="gone-uid", name=""),
        )
        await server.has(4)

    server = scenario(work)
    assert [event["note"].rpartition(", limit ")[2] for event in server.events] == [
        "unknownPods",
        "ns/mine?",
        "ClusterPinLimit top",
        "unknown",
    ]
    assert ["related" in event for event in server.events] == [False, False, True, False]


def test_denial_before_the_start_sends_an_event_only_within_a_minute() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server, known=False)
        replica.pod("p2", "n2")
        old = [denial(1, ago=3600), denial(2, ago=61, source="ShmLock")]
        replica.report(*old, denial(3, ago=50, source="IoUring"))
        replica.report(denial(4, ago=3600, source="Vfio", pod="p2"), node="n2")
        await server.has(1)

    assert [event["note"].split()[0] for event in scenario(work).events] == ["io_uring"]


def test_denial_in_a_new_journal_sends_events_from_the_first_number() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.report(denial(7))
        await server.has(1)
        replica.report(denial(1))
        await server.has(2)

    assert denials_by_event(scenario(work)) == [1, 1]


def test_denial_repeated_is_counted_in_the_next_event() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        listed = [denial(1)]
        replica.report(*listed)
        await server.has(1)
        for number in range(2, 44):
            listed.append(denial(number))
            replica.report(*listed[-32:])
        await server.has(2)
        assert denials_by_event(server) == [1, 42]
        assert server.times[1] - server.times[0] >= QUIET
        replica.report(denial(44), denial(45), denial(50))
        await server.has(3)
        assert server.events[-1]["note"].endswith("; and at least 2 more in the last minute")

    scenario(work)


def test_denials_of_other_pods_limits_and_sources_do_not_wait() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.pod("p2")
        replica.report(
            denial(1),
            denial(2, pod="p2"),
            denial(3, uid="other-uid"),
            denial(4, source="IoUring"),
            denial(5),
        )
        await server.has(4)

    assert sorted(denials_by_event(scenario(work))) == [1, 1, 1, 2]


@settings(max_examples=10)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=20), max_size=6))
def test_denials_in_any_bursts_are_each_in_one_event(bursts: list[list[str]]) -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        for pod in "abc":
            replica.pod(pod)
        number = 0
        for burst in bursts:
            listed = [denial(number + index, pod=pod) for index, pod in enumerate(burst, start=1)]
            number += len(burst)
            replica.report(*listed)
            await asyncio.sleep(QUIET / 4)
        async with asyncio.timeout(60):
            while replica.denial_events._pending:
                await asyncio.sleep(0.005)
        await asyncio.sleep(QUIET / 5)
        counts = dict.fromkeys("abc", 0)
        for count, event in zip(denials_by_event(server), server.events, strict=True):
            counts[event["regarding"]["uid"]] += count
        assert counts == {pod: sum(burst.count(pod) for burst in bursts) for pod in "abc"}

    scenario(work)


def test_denial_of_deleted_pod_sends_nothing_and_of_ended_pod_an_event() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.pod("p2")
        replica.store.remove_pod("p2")
        replica.pod("p3", terminal=True)
        replica.pod("p4", "n2")
        replica.report(*(denial(number, pod=f"p{number}") for number in (2, 3, 4, 5)))
        await server.has(2)

    assert [event["regarding"]["uid"] for event in scenario(work).events] == ["p2", "p3"]


def test_ended_pods_above_the_bound_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinwarden.controller.store._ENDED_PODS", 3)

    async def work(server: Server) -> None:
        replica = Replica(server)
        for number in range(2, 7):
            replica.pod(f"p{number}")
            replica.store.remove_pod(f"p{number}")
        pods = [replica.store.pod_at("n1", f"p{number}") for number in range(1, 7)]
        assert [pod is not None for pod in pods] == [True, False, False, True, True, True]

    scenario(work)


def test_ended_mirror_pods_above_the_bound_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mirror pod has two UIDs."""
    monkeypatch.setattr("pinwarden.controller.store._ENDED_PODS", 4)

    async def work(server: Server) -> None:
        store = Replica(server).store
        for number in range(20):
            store.put_pod(Pod("ns", "m", f"m{number}", f"hash-{number}", "n1"))
            store.remove_pod(f"m{number}")
        assert len(store._ended) == 4

    scenario(work)


@pytest.mark.rule("H1")
def test_cgroup_claimed_by_several_pods_has_no_pod() -> None:
    async def work(server: Server) -> None:
        store = Replica(server).store
        for name in ("m1", "m2", "m3"):
            if name == "m2":
                store.remove_pod("m1")
                assert store.pod_at("n1", "hash") is not None, "the pod ended recently"
            store.put_pod(Pod("ns", name, name, "hash", "n1"))
        assert store.pod_at("n1", "hash") is None
        store.remove_pod("m3")
        pod = store.pod_at("n1", "hash")
        assert pod is not None
        assert pod.name == "m2"

    scenario(work)


def test_denials_above_the_budget_of_a_pod_wait_and_are_counted() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.report(*(denial(number, uid=f"limit-{number}") for number in range(1, 21)))
        await server.has(events._BURST)
        waiting = replica.denial_events._pending
        assert len(waiting) == 20 - events._BURST
        replica.report(*(denial(20 + number, uid=f"limit-{number}") for number in range(1, 21)))
        assert sum(1 + denials.repeated for denials in waiting.values()) == 20 - events._BURST + 20

    scenario(work)


def test_denials_above_the_bound_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(denial_events, "_MOST_PENDING", 10)

    async def work(server: Server) -> None:
        replica = Replica(server)
        for number in range(1, 31):
            replica.report(denial(number, uid=f"limit-{number}"))
        assert len(replica.denial_events._pending) == 10
        assert "events_dropped_total 20.0" in replica.metrics.render().decode()
        for number in range(3000):
            replica.report(denial(1), node=f"n{number}")
            replica.store.stored.pop(f"n{number}")
        assert len(replica.denial_events._seen) < 1100

    scenario(work)


def test_denials_after_a_failover_are_sent_for_the_last_minute_and_never_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(denial_events, "FRESH", timedelta(seconds=QUIET * 5))
    caplog.set_level(logging.WARNING)

    async def work(server: Server) -> None:
        old, new = both = Replica(server), Replica(server, leading=False)
        listed: list[Json] = []

        async def denied(number: int) -> None:
            listed.append(denial(number, pod=f"p{number}"))
            for replica in both:
                replica.pod(f"p{number}")
                replica.report(*listed)
            await asyncio.sleep(QUIET / 2)

        await denied(1)
        await asyncio.sleep(QUIET * 6)
        await denied(2)
        old.leads(False)
        await denied(3)
        assert denials_by_event(server) == [1, 1], "no replica leads now"
        new.leads(True)
        await asyncio.sleep(QUIET)
        assert [event["regarding"]["uid"] for event in server.events] == ["p1", "p2", "p3"]
        assert server.rejected == 1, "the old leader had sent the second denial"

    scenario(work)
    assert not caplog.records


def test_denial_with_incredible_time_gets_the_operators_time() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.report(denial(1, time="2026-11-24T12:00:00"))
        replica.report(
            denial(2, time="0001-01-01T00:00:00+14:00"),
            denial(3, time="9999-12-31T23:59:59-12:00", uid="other-uid"),
            denial(4, uid="yet-another-uid", process='\u202e\n"', message="x" * 256),
        )
        await server.has(3)

    server = scenario(work)
    times = [datetime.fromisoformat(event["eventTime"]) for event in server.events]
    assert len(times) == 3
    assert all(abs(time - datetime.now(UTC)) < timedelta(minutes=1) for time in times)
    assert all(event["note"].isprintable() for event in server.events)


@pytest.mark.parametrize("name", ["x" * 253, f"{'x' * 230}.{'y' * 22}", f"{'x' * 235}.{'y' * 17}"])
def test_event_with_long_name_and_note_is_cut_to_the_servers_bounds(name: str) -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.pod("p2", name=name)
        replica.report(denial(pod="p2", process="語" * 16, message="語" * 256, name="語" * 384))
        await server.has(1)

    (event,) = scenario(work).events
    assert len(event["metadata"]["name"]) <= 253
    assert re.fullmatch(r"[a-z0-9]([a-z0-9]|[-.](?=[a-z0-9]))*", event["metadata"]["name"])
    assert len(event["note"].encode()) <= 1024
