"""The Lease: one holder at a time by each replica's own clock, and no write without the Lease."""

import asyncio
import copy
from typing import Any

import pytest

from pinwarden.controller import leader_election as leader_module
from pinwarden.controller.client import ApiError
from pinwarden.controller.leader_election import DURATION_SECONDS, RENEW_SECONDS, LeaderElector
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.ratelimit import RateLimiter
from pinwarden.controller.write_guard import WriteGuard


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Leases:
    """A fake API server with one Lease; `away` and `slowness` simulate outages."""

    def __init__(self, clock: Clock) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.away = False
        self.slowness = 0.0
        self._clock = clock

    async def get(self, path: str, *_: Any) -> dict[str, Any]:
        self._answer()
        if self.lease is None:
            raise ApiError("not found", 404)
        return copy.deepcopy(self.lease)

    async def create(self, path: str, body: dict[str, Any], *_: Any) -> dict[str, Any]:
        self._answer()
        if self.lease is not None:
            raise ApiError("exists", 409)
        return self._store(body)

    async def replace(self, path: str, body: dict[str, Any], *_: Any) -> dict[str, Any]:
        self._answer()
        if body["metadata"]["resourceVersion"] != self.version:
            raise ApiError("changed", 409)
        return self._store(body)

    def _answer(self) -> None:
        self._clock.now += self.slowness
        if self.away:
            raise ApiError("no answer")

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = self.version
        return self.lease


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(leader_module, "monotonic", clock)
    return clock


@pytest.fixture
def leases(clock: Clock) -> Leases:
    return Leases(clock)


def candidate(leases: Leases) -> LeaderElector:
    return LeaderElector(leases, "ns", Metrics())  # type: ignore[arg-type]


def turn(leader: LeaderElector) -> None:
    """Run one round and ignore its failure."""

    async def scenario() -> None:
        try:
            await leader._try_once()
        except ApiError:
            return

    asyncio.run(scenario())


def test_lease_free_goes_to_the_first_candidate(leases: Leases) -> None:
    first, second = candidate(leases), candidate(leases)
    turn(first)
    turn(second)
    assert first.leading()
    assert not second.leading()


def test_leader_without_renewal_stops_before_the_lease_expires(
    leases: Leases, clock: Clock
) -> None:
    first, second = candidate(leases), candidate(leases)
    turn(first)
    turn(second)
    leases.away = True
    clock.now += RENEW_SECONDS - 0.01
    assert first.leading()
    clock.now += 0.02
    assert not first.leading()
    leases.away = False
    turn(second)
    assert not second.leading()
    clock.now += DURATION_SECONDS - RENEW_SECONDS
    turn(second)
    assert second.leading()
    turn(first)
    assert not first.leading()


def test_renewal_answered_late_counts_from_its_sending(leases: Leases, clock: Clock) -> None:
    leases.slowness = RENEW_SECONDS
    first = candidate(leases)
    turn(first)
    assert leases.lease
    assert not first.leading()


def test_lease_renewed_by_the_holder_is_never_taken(leases: Leases, clock: Clock) -> None:
    first, second = candidate(leases), candidate(leases)
    for _ in range(20):
        turn(first)
        turn(second)
        clock.now += 2.0
        assert first.leading()
        assert not second.leading()


def test_lease_expired_goes_to_one_of_two_candidates(leases: Leases, clock: Clock) -> None:
    dead = candidate(leases)
    turn(dead)
    rivals = [candidate(leases), candidate(leases)]
    for rival in rivals:
        turn(rival)
    clock.now += DURATION_SECONDS + 1

    async def together() -> None:
        await asyncio.gather(*(rival._try_once() for rival in rivals))

    asyncio.run(together())
    assert sum(rival.leading() for rival in rivals) == 1


def test_lease_released_is_taken_at_once(leases: Leases) -> None:
    first, second = candidate(leases), candidate(leases)
    turn(first)
    turn(second)
    asyncio.run(first.release())
    assert not first.leading()
    turn(second)
    assert second.leading()
    assert leases.lease
    assert leases.lease["spec"]["leaseTransitions"] == 2


def test_release_of_a_lease_of_another_replica_changes_nothing(
    leases: Leases, clock: Clock
) -> None:
    first, second = candidate(leases), candidate(leases)
    turn(first)
    assert leases.lease
    leases.lease["spec"]["holderIdentity"] = second.identity
    asyncio.run(first.release())
    assert leases.lease["spec"]["holderIdentity"] == second.identity


def test_writers_after_renewal_of_an_expired_lease_continue(leases: Leases, clock: Clock) -> None:
    """A leader that was suspended past its deadline renews its own Lease without a rival."""

    async def scenario() -> None:
        leader = LeaderElector(leases, "ns", Metrics())  # type: ignore[arg-type]
        guard = WriteGuard(leader.leading, leader.renewed, RateLimiter(1000.0, 10.0))
        guard.synced.set()
        await leader._try_once()
        await guard.acquire()
        clock.now += RENEW_SECONDS + 1
        waiting = asyncio.create_task(guard.acquire())
        await asyncio.sleep(0)
        assert not waiting.done()
        await leader._try_once()
        async with asyncio.timeout(60):
            await waiting

    asyncio.run(scenario())


def test_write_guard_before_everything_is_listed_blocks() -> None:
    async def scenario() -> None:
        guard = WriteGuard(lambda: True, asyncio.Event(), RateLimiter(1000.0, 10.0))
        waiting = asyncio.create_task(guard.acquire())
        await asyncio.sleep(0)
        assert not waiting.done()
        guard.synced.set()
        async with asyncio.timeout(60):
            await waiting

    asyncio.run(scenario())
