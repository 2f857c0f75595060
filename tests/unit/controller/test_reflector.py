"""List and watch: pages, gaps in the history, failures; and the census of the limits."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from pinwarden.common.backoff import Backoff
from pinwarden.controller import reflector as watch_module
from pinwarden.controller import resync as census_module
from pinwarden.controller.client import ApiError
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.reflector import Reflector, ReflectorConfig
from pinwarden.controller.resync import Resync


class OverError(Exception):
    """The script is at its end."""


class Script:
    """An API whose lists and watches are given; an exception in a watch breaks it there."""

    def __init__(self, lists: list[Any], watches: list[list[Any]]) -> None:
        self.lists = lists
        self.watches = watches
        self.asked: list[str] = []

    async def get(self, path: str, **query: Any) -> dict[str, Any]:
        self.asked.append(f"list {query.get('continue', '')}".strip())
        if not self.lists:
            raise OverError
        page = self.lists.pop(0)
        if isinstance(page, Exception):
            raise page
        items, version, token = page
        return {
            "metadata": {"resourceVersion": version, "continue": token},
            "items": [thing(name, version) for name in items] or None,
        }

    async def watch(self, path: str, **query: Any) -> AsyncGenerator[bytes, None]:
        self.asked.append(f"watch {query['resourceVersion']}")
        if not self.watches:
            raise OverError
        for item in self.watches.pop(0):
            if isinstance(item, Exception):
                raise item
            yield item if isinstance(item, bytes) else json.dumps(item).encode()


def thing(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}}


def event(kind: str, name: str, version: str) -> dict[str, Any]:
    return {"type": kind, "object": thing(name, version)}


def run(script: Script, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a watch over the script handed on."""
    handed: list[str] = []
    monkeypatch.setattr(watch_module, "Backoff", lambda: Backoff(0.0, 0.0))

    async def scenario() -> None:
        source: ReflectorConfig[str] = ReflectorConfig(
            "pods",
            "Pod",
            "/things",
            lambda raw: (raw["metadata"]["name"], raw["metadata"]["name"]),
            lambda name: handed.append(f"+{name}"),
            lambda name: handed.append(f"-{name}"),
            by_name=True,
        )
        metrics = Metrics()
        watch = Reflector(script, source, metrics, Items(metrics))  # type: ignore[arg-type]
        with pytest.raises(OverError):
            await watch.run()

    asyncio.run(scenario())
    return handed


def test_pages_are_followed_and_the_watch_goes_on_from_the_first_pages_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script([(["a", "b"], "5", "more"), (["c"], "5", "")], [[event("ADDED", "d", "6")]])
    assert run(script, monkeypatch) == ["+a", "+b", "+c", "+d"]
    assert script.asked == ["list", "list more", "watch 5", "watch 6"]


def test_an_object_that_fails_ends_no_watch_also_when_its_handler_fails() -> None:
    """What the handler meets ended the watch, and the operator with it."""
    told: list[str] = []
    handed: list[str] = []

    def put(name: str) -> None:
        if name == "bad":
            raise ValueError(name)
        handed.append(name)

    def failed(_: Any, problem: str) -> None:
        told.append(problem)
        raise RuntimeError("the handler")

    async def scenario() -> None:
        script = Script([(["bad", "b"], "5", "")], [[event("ADDED", "c", "6")]])
        prune = lambda raw: (raw["metadata"]["name"], raw["metadata"]["name"])  # noqa: E731
        source = ReflectorConfig("pods", "Pod", "/things", prune, put, lambda _: None, by_name=True)
        metrics = Metrics()
        watch = Reflector(script, source, metrics, Items(metrics), failed)  # type: ignore[arg-type]
        with pytest.raises(OverError):
            await watch.run()

    asyncio.run(scenario())
    assert told == ["ValueError: bad"]
    assert handed == ["b", "c"]


def test_a_bookmark_moves_the_version_and_hands_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
    script = Script(
        [([], "5", "")], [[event("ADDED", "a", "6"), event("DELETED", "a", "7"), bookmark]]
    )
    assert run(script, monkeypatch) == ["+a", "-a"]
    assert script.asked[-1] == "watch 9"


@pytest.mark.parametrize(
    "gone",
    [
        {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}},
        ApiError("gone", 410),
        ApiError("Too large resource version", 504),
    ],
)
def test_after_a_gap_what_is_not_listed_any_more_is_removed(
    gone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watches = [[event("ADDED", "c", "6"), gone], []]
    script = Script([(["a", "b"], "5", ""), (["b", "d"], "20", "")], watches)
    handed = run(script, monkeypatch)
    assert handed[:3] == ["+a", "+b", "+c"]
    assert sorted(handed[3:]) == ["+b", "+d", "-a", "-c"]
    assert script.asked == ["list", "watch 5", "list", "watch 20", "watch 20"]


@pytest.mark.parametrize(
    "failure",
    [
        ApiError("no answer"),
        ApiError("slow down", 429, retry_after=0.0),
        {"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd"}},
        b'{"type": "ADD',
    ],
)
def test_a_watch_that_breaks_goes_on_where_it_was(
    failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(
        [(["a"], "5", "")], [[event("ADDED", "b", "6"), failure], [event("ADDED", "c", "7")]]
    )
    assert run(script, monkeypatch) == ["+a", "+b", "+c"]
    assert script.asked == ["list", "watch 5", "watch 6", "watch 7"]


def test_a_list_that_fails_halfway_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [(["a", "b"], "5", ""), (["a"], "9", "more"), ApiError("gone", 410), (["a"], "10", "")]
    script = Script(lists, [[ApiError("gone", 410)]])
    handed = run(script, monkeypatch)
    assert handed == ["+a", "+b", "+a", "+a", "-b"]


class Listing:
    """An API that lists the metadata of limits, and tells when it is asked."""

    def __init__(self, uids: set[str], on_list: Callable[[], None] = lambda: None) -> None:
        self.uids = uids
        self.on_list = on_list
        self.failures = 0

    async def get_metadata(self, path: str, **_: Any) -> dict[str, Any]:
        if self.failures:
            self.failures -= 1
            raise ApiError("no answer")
        uids = sorted(self.uids) if "cluster" in path else []
        self.on_list()
        return {"metadata": {}, "items": [{"metadata": {"uid": uid}} for uid in uids]}


def census(api: Listing, known: set[str], rounds: Callable[[Resync], bool]) -> list[str]:
    """Runs a census until `rounds` says that it is enough; the UIDs that it found gone."""
    gone: list[str] = []

    def forget(uid: str) -> None:
        gone.append(uid)
        known.discard(uid)

    async def scenario() -> None:
        metrics = Metrics()
        counting = Resync(api, [], metrics, lambda: known, forget, Items(metrics))  # type: ignore[arg-type]
        task = asyncio.create_task(counting.run())
        async with asyncio.timeout(60):
            while not rounds(counting):
                await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(scenario())
    return gone


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census_module, "PERIOD_SECONDS", 0.001)
    monkeypatch.setattr(census_module, "_SYNC_SECONDS", 0.001)
    monkeypatch.setattr(census_module, "_SHARE_OF_TIME", 1.0)
    monkeypatch.setattr(census_module, "Backoff", lambda: Backoff(0.001, 0.001))


def test_a_limit_that_was_deleted_unseen_is_found_gone() -> None:
    assert census(Listing({"a"}), {"a", "b"}, lambda counting: counting.synced.is_set()) == ["b"]


def test_a_limit_that_came_after_the_question_is_not_gone() -> None:
    known = {"a"}
    api = Listing({"a"}, on_list=lambda: known.add("new"))
    assert census(api, known, lambda counting: counting.synced.is_set()) == []
    assert known == {"a", "new"}


def test_the_limits_are_synced_once_all_that_are_listed_are_known() -> None:
    known: set[str] = set()
    listed = 0

    def count() -> None:
        nonlocal listed
        listed += 1
        if listed == 6:
            known.add("a")

    api = Listing({"a"}, on_list=count)
    assert census(api, known, lambda counting: counting.synced.is_set()) == []
    assert listed >= 6


def test_a_first_comparison_that_took_long_does_not_put_off_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(census_module, "_SHARE_OF_TIME", 1e-9)
    known: set[str] = set()
    api = Listing({"a"}, on_list=lambda: known.add("a") if asked() else None)
    rounds = 0

    def asked() -> bool:
        nonlocal rounds
        rounds += 1
        time.sleep(0.01)
        return rounds > 6

    assert census(api, known, lambda counting: counting.synced.is_set()) == []


def test_an_api_server_that_is_away_is_no_news() -> None:
    api = Listing({"a"})
    api.failures = 3
    assert census(api, {"a"}, lambda counting: counting.synced.is_set()) == []


def test_a_limit_that_no_event_tells_of_is_counted_until_one_does() -> None:
    known = {"a"}
    api = Listing({"a"})

    def missed_then_told(counting: Resync) -> bool:
        if counting.synced.is_set():
            api.uids.add("b")
        if counting.missed:
            known.add("b")
        return "b" in known and not counting.missed

    assert census(api, known, missed_then_told) == []
