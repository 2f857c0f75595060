"""Queues and paces: nothing is lost, nothing is done twice at once, nothing before its time."""

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
    """What `work` gives without waiting, None when it waits."""
    task = asyncio.ensure_future(work)
    for _ in range(3):
        await asyncio.sleep(0)
    if task.done():
        return task.result()
    task.cancel()
    return None


def test_a_name_that_waits_is_worked_on_once() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        for _ in range(3):
            queue.add("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert queue.idle
        assert await ready(queue.get()) is None

    asyncio.run(scenario())


def test_a_name_added_while_it_is_worked_on_comes_again_and_never_to_two_workers() -> None:
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


def test_a_name_rests_after_its_work_but_no_longer() -> None:
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


def test_the_soonest_of_several_times_counts() -> None:
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


def test_names_that_come_and_are_discarded_leave_nothing_behind() -> None:
    queue = WorkQueue()
    for number in range(10_000):
        queue.add(f"name-{number}")
        queue.discard(f"name-{number}")
    assert queue.idle
    assert len(queue._heap) < 3000


def test_failed_work_comes_again_after_a_pause_that_grows() -> None:
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


def test_a_waiting_worker_is_woken_by_what_is_added() -> None:
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
def test_what_was_added_last_is_always_worked_on_after_it(steps: list[tuple[str, str]]) -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = WorkQueue(clock)
        owed: set[str] = set()
        for name, step in steps:
            if step == "add":
                queue.add(name)
                owed.add(name)
            elif step == "wait":
                clock.now += 0.1
            elif (got := await ready(queue.get())) is not None:
                owed.discard(got)
                if step == "fail":
                    queue.failed(got)
                    owed.add(got)
                else:
                    queue.done(got, quiet=0.3)
        for _ in range(len(owed)):
            clock.now += 10.0
            got = await ready(queue.get())
            assert got is not None
            owed.discard(got)
            queue.done(got)
        assert not owed

    asyncio.run(scenario())


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=0.2, burst=3, clock=clock)
    for _ in range(3):
        assert bucket.delay() == 0.0
        bucket.take()
    assert 4.9 < bucket.delay() <= 5.0
    assert 9.9 < bucket.delay(spare=1.0) <= 10.0
    clock.now += 5.0
    assert bucket.delay() == 0.0


def test_all_writers_stop_when_the_server_had_enough() -> None:
    async def scenario() -> None:
        limiter = RateLimiter(rate=1000.0, burst=10.0)
        limiter.pause(0.05)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(limiter.acquire() for _ in range(3)))
        assert loop.time() - started >= 0.049

    asyncio.run(scenario())


def test_a_backoff_grows_to_its_cap_starts_anew_and_believes_the_server_up_to_a_limit() -> None:
    backoff = Backoff(0.1, 4.0, uniform=lambda low, high: high)
    assert [backoff.failed() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0]
    assert backoff.failed(at_least=7.0) == 7.0
    assert backoff.failed(at_least=1e9) == RETRY_AFTER_CAP_SECONDS
    backoff.succeeded()
    assert backoff.failed() == 0.1
