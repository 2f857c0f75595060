"""What an agent lists as refused is told on the pod: once, by the replica that may write, and never as a flood."""

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
from pinwarden.plan.limit_compiler import Settings
from pinwarden.plan.types import Pod

Json = dict[str, Any]
QUIET = 0.1


class Server:
    """Takes Events as the API server does: one of a name."""

    def __init__(self) -> None:
        self.events: list[Json] = []
        self.times: list[float] = []
        self.refused = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def has(self, count: int) -> None:
        """Wait for so many Events, and whether more come meanwhile."""
        async with asyncio.timeout(60):
            while len(self.events) < count:
                await asyncio.sleep(0.005)
        await asyncio.sleep(QUIET / 5)
        assert len(self.events) == count

    async def create(self, path: str, body: Json) -> Json:
        await asyncio.sleep(0)
        assert path == f"/apis/events.k8s.io/v1/namespaces/{body['metadata']['namespace']}/events"
        if body["metadata"]["name"] in {each["metadata"]["name"] for each in self.events}:
            self.refused += 1
            raise ApiError("there is one", 409)
        self.events.append(body)
        self.times.append(monotonic())
        return body


class Replica:
    """A replica of the operator, as far as it tells of refusals."""

    def __init__(self, server: Server, *, leading: bool = True, known: bool = True) -> None:
        self.leading = leading
        metrics = Metrics()
        items = Items(metrics)
        self.metrics = metrics
        self.store = Store(
            Settings(),
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
        made = Pod(**{**fields, **changes})
        self.store.put_pod(made)
        return made

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
        """The node's agent lists these refusals, and the watch tells of it."""
        metadata = {"name": node, "uid": f"uid-{node}", "generation": 1}
        config = {"metadata": metadata, "spec": {}, "status": {"recentDenials": list(listed)}}
        self.store.put_config(transform.node_pin_config(config)[1])

    def leads(self, leading: bool) -> None:
        self.leading = leading
        self.renewed.set()


def refusal(number: int = 1, ago: float = 0.0, **changes: Any) -> Json:
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


def told(server: Server) -> list[int]:
    """By Event, how many refusals it tells of."""
    more = [
        re.search(r"; and (\d+) more in the last minute$", each["note"]) for each in server.events
    ]
    return [1 + (int(found[1]) if found else 0) for found in more]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(denial_events, "QUIET_SECONDS", QUIET)
        yield


def test_a_refusal_is_told_once_on_the_pod_with_the_limit_beside_it() -> None:
    async def work(server: Server) -> None:
        replica, listed = Replica(server), refusal()
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


def test_a_static_pod_is_known_by_the_hash_that_kubectl_looks_for() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.pod("mirror-uid", cgroup_uid="hash", name="etcd-n1")
        replica.report(refusal(pod="hash"))
        await server.has(1)

    (event,) = scenario(work).events
    assert (event["regarding"]["name"], event["regarding"]["uid"]) == ("etcd-n1", "hash")


def test_a_limit_that_is_not_known_is_named_as_the_agent_named_it_and_one_of_elsewhere_is_not() -> (
    None
):
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.limit("secret-uid", "other", "secret")
        replica.limit("top-uid", None, "top")
        replica.report(
            refusal(1, uid="unknownPods", name="unknownPods"),
            refusal(2, uid="secret-uid", name="ns/mine\n"),
            refusal(3, uid="top-uid"),
            refusal(4, uid="gone-uid", name=""),
        )
        await server.has(4)

    server = scenario(work)
    assert [each["note"].rpartition(", limit ")[2] for each in server.events] == [
        "unknownPods",
        "ns/mine?",
        "ClusterPinLimit top",
        "unknown",
    ]
    assert ["related" in each for each in server.events] == [False, False, True, False]


def test_what_was_refused_before_the_operator_started_is_told_if_it_is_a_minute_old_at_most() -> (
    None
):
    async def work(server: Server) -> None:
        replica = Replica(server, known=False)
        replica.pod("p2", "n2")
        old = [refusal(1, ago=3600), refusal(2, ago=61, source="ShmLock")]
        replica.report(*old, refusal(3, ago=50, source="IoUring"))
        replica.report(refusal(4, ago=3600, source="Vfio", pod="p2"), node="n2")
        await server.has(1)

    assert [each["note"].split()[0] for each in scenario(work).events] == ["io_uring"]


def test_a_journal_that_began_anew_is_told_from_its_first() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.report(refusal(7))
        await server.has(1)
        replica.report(refusal(1))
        await server.has(2)

    assert told(scenario(work)) == [1, 1]


def test_repeats_are_counted_in_the_next_event() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        listed = [refusal(1)]
        replica.report(*listed)
        await server.has(1)
        for number in range(2, 44):
            listed.append(refusal(number))
            replica.report(*listed[-32:])
        await server.has(2)
        assert told(server) == [1, 42]
        assert server.times[1] - server.times[0] >= QUIET
        replica.report(refusal(44), refusal(45), refusal(50))
        await server.has(3)
        assert server.events[-1]["note"].endswith("; and at least 2 more in the last minute")

    scenario(work)


def test_pods_limits_and_sources_do_not_wait_for_each_other() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.pod("p2")
        replica.report(
            refusal(1),
            refusal(2, pod="p2"),
            refusal(3, uid="other-uid"),
            refusal(4, source="IoUring"),
            refusal(5),
        )
        await server.has(4)

    assert sorted(told(scenario(work))) == [1, 1, 1, 2]


@settings(max_examples=10)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=20), max_size=6))
def test_every_refusal_is_in_one_event(bursts: list[list[str]]) -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        for pod in "abc":
            replica.pod(pod)
        number = 0
        for burst in bursts:
            listed = [refusal(number + index, pod=pod) for index, pod in enumerate(burst, start=1)]
            number += len(burst)
            replica.report(*listed)
            await asyncio.sleep(QUIET / 4)
        async with asyncio.timeout(60):
            while replica.denial_events._pending:
                await asyncio.sleep(0.005)
        await asyncio.sleep(QUIET / 5)
        counts = dict.fromkeys("abc", 0)
        for count, event in zip(told(server), server.events, strict=True):
            counts[event["regarding"]["uid"]] += count
        assert counts == {pod: sum(burst.count(pod) for burst in bursts) for pod in "abc"}

    scenario(work)


def test_a_pod_that_is_gone_is_told_nothing_and_one_that_its_refusal_ended_is() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.pod("p2")
        replica.store.remove_pod("p2")
        replica.pod("p3", terminal=True)
        replica.pod("p4", "n2")
        replica.report(*(refusal(number, pod=f"p{number}") for number in (2, 3, 4, 5)))
        await server.has(2)

    assert [each["regarding"]["uid"] for each in scenario(work).events] == ["p2", "p3"]


def test_pods_that_ended_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinwarden.controller.store._ENDED_PODS", 3)

    async def work(server: Server) -> None:
        replica = Replica(server)
        for number in range(2, 7):
            replica.pod(f"p{number}")
            replica.store.remove_pod(f"p{number}")
        found = [replica.store.pod_at("n1", f"p{number}") for number in range(1, 7)]
        assert [each is not None for each in found] == [True, False, False, True, True, True]

    scenario(work)


def test_mirror_pods_that_ended_are_remembered_up_to_the_same_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has two UIDs."""
    monkeypatch.setattr("pinwarden.controller.store._ENDED_PODS", 4)

    async def work(server: Server) -> None:
        store = Replica(server).store
        for number in range(20):
            store.put_pod(Pod("ns", "m", f"m{number}", f"hash-{number}", "n1"))
            store.remove_pod(f"m{number}")
        assert len(store._ended) == 4

    scenario(work)


@pytest.mark.rule("H1")
def test_a_cgroup_that_several_pods_name_is_nobodys_also_after_a_pod_that_ended() -> None:
    async def work(server: Server) -> None:
        store = Replica(server).store
        for name in ("m1", "m2", "m3"):
            if name == "m2":
                store.remove_pod("m1")
                assert store.pod_at("n1", "hash") is not None, "it ended lately"
            store.put_pod(Pod("ns", name, name, "hash", "n1"))
        assert store.pod_at("n1", "hash") is None
        store.remove_pod("m3")
        found = store.pod_at("n1", "hash")
        assert found is not None
        assert found.name == "m2"

    scenario(work)


def test_one_pod_has_an_allowance_and_what_waits_for_it_is_counted_on() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.report(*(refusal(number, uid=f"limit-{number}") for number in range(1, 21)))
        await server.has(events._BURST)
        waiting = replica.denial_events._pending
        assert len(waiting) == 20 - events._BURST
        replica.report(*(refusal(20 + number, uid=f"limit-{number}") for number in range(1, 21)))
        assert sum(1 + each.repeated for each in waiting.values()) == 20 - events._BURST + 20

    scenario(work)


def test_what_waits_is_bounded_and_what_is_dropped_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(denial_events, "_MOST_PENDING", 10)

    async def work(server: Server) -> None:
        replica = Replica(server)
        for number in range(1, 31):
            replica.report(refusal(number, uid=f"limit-{number}"))
        assert len(replica.denial_events._pending) == 10
        assert "events_dropped_total 20.0" in replica.metrics.render().decode()
        for number in range(3000):
            replica.report(refusal(1), node=f"n{number}")
            replica.store.stored.pop(f"n{number}")
        assert len(replica.denial_events._seen) < 1100

    scenario(work)


def test_the_replica_that_takes_over_tells_the_last_minute_and_the_server_has_none_of_it_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(denial_events, "FRESH", timedelta(seconds=QUIET * 5))
    caplog.set_level(logging.WARNING)

    async def work(server: Server) -> None:
        old, new = both = Replica(server), Replica(server, leading=False)
        listed: list[Json] = []

        async def refused(number: int) -> None:
            listed.append(refusal(number, pod=f"p{number}"))
            for replica in both:
                replica.pod(f"p{number}")
                replica.report(*listed)
            await asyncio.sleep(QUIET / 2)

        await refused(1)
        await asyncio.sleep(QUIET * 6)
        await refused(2)
        old.leads(False)
        await refused(3)
        assert told(server) == [1, 1], "neither may tell now"
        new.leads(True)
        await asyncio.sleep(QUIET)
        assert [each["regarding"]["uid"] for each in server.events] == ["p1", "p2", "p3"]
        assert server.refused == 1, "the second, which the old one had told within the time"

    scenario(work)
    assert not caplog.records


def test_nobody_is_harmed_by_a_clock_that_is_far_off_or_a_time_that_says_nothing() -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.report(refusal(1, time="2026-11-24T12:00:00"))
        replica.report(
            refusal(2, time="0001-01-01T00:00:00+14:00"),
            refusal(3, time="9999-12-31T23:59:59-12:00", uid="other-uid"),
            refusal(4, uid="yet-another-uid", process='\u202e\n"', message="x" * 256),
        )
        await server.has(3)

    server = scenario(work)
    times = [datetime.fromisoformat(each["eventTime"]) for each in server.events]
    assert len(times) == 3
    assert all(abs(time - datetime.now(UTC)) < timedelta(minutes=1) for time in times)
    assert all(each["note"].isprintable() for each in server.events)


@pytest.mark.parametrize("name", ["x" * 253, f"{'x' * 230}.{'y' * 22}", f"{'x' * 235}.{'y' * 17}"])
def test_an_events_name_and_note_are_as_long_as_the_server_takes(name: str) -> None:
    async def work(server: Server) -> None:
        replica = Replica(server)
        replica.pod("p2", name=name)
        replica.report(refusal(pod="p2", process="語" * 16, message="語" * 256, name="語" * 384))
        await server.has(1)

    (event,) = scenario(work).events
    assert len(event["metadata"]["name"]) <= 253
    assert re.fullmatch(r"[a-z0-9]([a-z0-9]|[-.](?=[a-z0-9]))*", event["metadata"]["name"])
    assert len(event["note"].encode()) <= 1024
