"""Queues and rates: no name is lost, run twice at once, or run too early."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pinwarden.common.backoff import RETRY_AFTER_CAP_SECONDS, Backoff
from pinwarden.controller.ratelimit import RateLimiter, TokenBucket
from pinwarden.controller.workqueue import WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def ready(work: Coroutine[Any, Any, str]) -> str | None:
    """Return the result of `work`, None if it waits."""
    task = asyncio.ensure_future(work)
    for _ in range(3):
        await asyncio.sleep(0)
    if task.done():
        return task.result()
    task.cancel()
    return None


def test_queue_name_added_twice_is_processed_once() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        for _ in range(3):
            queue.add("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert queue.idle
        assert await ready(queue.get()) is None

    asyncio.run(scenario())


def test_queue_name_added_during_its_run_is_processed_again_later() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        assert len(queue) == 1
        assert await ready(queue.get()) is None
        queue.done("a")
        assert await ready(queue.get()) == "a"

    asyncio.run(scenario())


def test_queue_name_after_its_run_waits_for_its_quiet_time() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = WorkQueue(clock)
        queue.add("a")
        await queue.get()
        queue.done("a", quiet=0.2)
        queue.add("a")
        queue.add("b")
        assert await ready(queue.get()) == "b"
        clock.now += 0.19
        assert await ready(queue.get()) is None
        clock.now += 0.02
        assert await ready(queue.get()) == "a"

    asyncio.run(scenario())


def test_queue_name_added_with_several_delays_takes_the_earliest() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = WorkQueue(clock)
        queue.add("a", 5.0)
        queue.add("a", 1.0)
        queue.add("a", 3.0)
        clock.now += 1.01
        assert await ready(queue.get()) == "a"
        queue.done("a")
        clock.now += 10.0
        assert await ready(queue.get()) is None

    asyncio.run(scenario())


def test_queue_discarded_names_use_no_memory() -> None:
    queue = WorkQueue()
    for number in range(10_000):
        queue.add(f"name-{number}")
        queue.discard(f"name-{number}")
    assert queue.idle
    assert len(queue._heap) < 3000


def test_queue_failed_name_is_retried_after_a_growing_pause() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = WorkQueue(clock)
        queue.add("a")
        pauses = []
        for _ in range(8):
            started = clock.now
            while await ready(queue.get()) is None:
                clock.now += 0.01
            pauses.append(clock.now - started)
            queue.failed("a")
        assert pauses[0] == 0.0
        assert pauses[-1] > pauses[1]
        assert max(pauses) <= 4.05

    asyncio.run(scenario())


def test_queue_add_wakes_a_waiting_worker() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        workers = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0)
        for name in "abc":
            queue.add(name)
        async with asyncio.timeout(60):
            assert sorted(await asyncio.gather(*workers)) == ["a", "b", "c"]

    asyncio.run(scenario())


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "work", "fail", "wait"])))
)
def test_queue_last_add_is_always_processed_after_the_add(steps: list[tuple[str, str]]) -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = WorkQueue(clock)
        pending: set[str] = set()
        for name, step in steps:
            if step == "add":
                queue.add(name)
                pending.add(name)
            elif step == "wait":
                clock.now += 0.1
            elif (due := await ready(queue.get())) is not None:
                pending.discard(due)
                if step == "fail":
                    queue.failed(due)
                    pending.add(due)
                else:
                    queue.done(due, quiet=0.3)
        for _ in range(len(pending)):
            clock.now += 10.0
            due = await ready(queue.get())
            assert due is not None
            pending.discard(due)
            queue.done(due)
        assert not pending

    asyncio.run(scenario())


def test_token_bucket_allows_a_burst_and_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=0.2, burst=3, clock=clock)
    for _ in range(3):
        assert bucket.delay() == 0.0
        bucket.take()
    assert 4.9 < bucket.delay() <= 5.0
    assert 9.9 < bucket.delay(spare=1.0) <= 10.0
    clock.now += 5.0
    assert bucket.delay() == 0.0


def test_rate_limiter_pause_stops_all_writers() -> None:
    async def scenario() -> None:
        limiter = RateLimiter(rate=1000.0, burst=10.0)
        limiter.pause(0.05)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(limiter.acquire() for _ in range(3)))
        assert loop.time() - started >= 0.049

    asyncio.run(scenario())


def test_backoff_grows_to_its_cap_and_follows_the_server_up_to_a_bound() -> None:
    backoff = Backoff(0.1, 4.0, uniform=lambda low, high: high)
    assert [backoff.failed() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0]
    assert backoff.failed(at_least=7.0) == 7.0
    assert backoff.failed(at_least=1e9) == RETRY_AFTER_CAP_SECONDS
    backoff.succeeded()
    assert backoff.failed() == 0.1
