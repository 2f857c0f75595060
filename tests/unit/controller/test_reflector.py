"""List and watch: pages, gaps in the history and failures; and the resync of limits."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from pinwarden.common.backoff import Backoff
from pinwarden.controller import reflector as reflector_module
from pinwarden.controller import resync as resync_module
from pinwarden.controller.client import ApiError
from pinwarden.controller.items import Items
from pinwarden.controller.metrics import Metrics
from pinwarden.controller.reflector import Reflector, ReflectorConfig
from pinwarden.controller.resync import Resync


class OverError(Exception):
    """The script has ended."""


class Script:
    """A fake API with given lists and watches; an exception breaks the watch."""

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
    """Return the objects that a reflector of the script put and removed."""
    handed: list[str] = []
    monkeypatch.setattr(reflector_module, "Backoff", lambda: Backoff(0.0, 0.0))

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


def test_list_with_pages_starts_the_watch_at_the_first_pages_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script([(["a", "b"], "5", "more"), (["c"], "5", "")], [[event("ADDED", "d", "6")]])
    assert run(script, monkeypatch) == ["+a", "+b", "+c", "+d"]
    assert script.asked == ["list", "list more", "watch 5", "watch 6"]


def test_watch_bad_object_and_bad_failure_handler_do_not_end_the_watch() -> None:
    """A failure of the failure handler once ended the operator."""
    problems: list[str] = []
    handed: list[str] = []

    def put(name: str) -> None:
        if name == "bad":
            raise ValueError(name)
        handed.append(name)

    def failed(_: Any, problem: str) -> None:
        problems.append(problem)
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
    assert problems == ["ValueError: bad"]
    assert handed == ["b", "c"]


def test_watch_bookmark_only_moves_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_list_after_a_gap_removes_missing_objects(
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
def test_watch_broken_continues_at_its_version(
    failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(
        [(["a"], "5", "")], [[event("ADDED", "b", "6"), failure], [event("ADDED", "c", "7")]]
    )
    assert run(script, monkeypatch) == ["+a", "+b", "+c"]
    assert script.asked == ["list", "watch 5", "watch 6", "watch 7"]


def test_list_failed_halfway_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [(["a", "b"], "5", ""), (["a"], "9", "more"), ApiError("gone", 410), (["a"], "10", "")]
    script = Script(lists, [[ApiError("gone", 410)]])
    handed = run(script, monkeypatch)
    assert handed == ["+a", "+b", "+a", "+a", "-b"]


class Listing:
    """A fake API with the metadata of limits; `on_list` is called for each list."""

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


def resync(api: Listing, known: set[str], rounds: Callable[[Resync], bool]) -> list[str]:
    """Run a resync until `rounds` returns True, and return the removed UIDs."""
    gone: list[str] = []

    def forget(uid: str) -> None:
        gone.append(uid)
        known.discard(uid)

    async def scenario() -> None:
        metrics = Metrics()
        items = Items(metrics)
        running = Resync(api, [], metrics, lambda: known, forget, items)  # type: ignore[arg-type]
        task = asyncio.create_task(running.run())
        async with asyncio.timeout(60):
            while not rounds(running):
                await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(scenario())
    return gone


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_module, "PERIOD_SECONDS", 0.001)
    monkeypatch.setattr(resync_module, "_SYNC_SECONDS", 0.001)
    monkeypatch.setattr(resync_module, "_SHARE_OF_TIME", 1.0)
    monkeypatch.setattr(resync_module, "Backoff", lambda: Backoff(0.001, 0.001))


def test_resync_unreported_deletion_removes_the_limit() -> None:
    assert resync(Listing({"a"}), {"a", "b"}, lambda running: running.synced.is_set()) == ["b"]


def test_resync_limit_created_during_the_list_stays() -> None:
    known = {"a"}
    api = Listing({"a"}, on_list=lambda: known.add("new"))
    assert resync(api, known, lambda running: running.synced.is_set()) == []
    assert known == {"a", "new"}


def test_resync_all_listed_limits_known_sets_synced() -> None:
    known: set[str] = set()
    listed = 0

    def count() -> None:
        nonlocal listed
        listed += 1
        if listed == 6:
            known.add("a")

    api = Listing({"a"}, on_list=count)
    assert resync(api, known, lambda running: running.synced.is_set()) == []
    assert listed >= 6


def test_resync_slow_first_list_does_not_delay_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resync_module, "_SHARE_OF_TIME", 1e-9)
    known: set[str] = set()
    api = Listing({"a"}, on_list=lambda: known.add("a") if asked() else None)
    rounds = 0

    def asked() -> bool:
        nonlocal rounds
        rounds += 1
        time.sleep(0.01)
        return rounds > 6

    assert resync(api, known, lambda running: running.synced.is_set()) == []


def test_resync_unreachable_api_server_changes_nothing() -> None:
    api = Listing({"a"})
    api.failures = 3
    assert resync(api, {"a"}, lambda running: running.synced.is_set()) == []


def test_resync_unreported_limit_is_missed_until_reported() -> None:
    known = {"a"}
    api = Listing({"a"})

    def missed_then_reported(running: Resync) -> bool:
        if running.synced.is_set():
            api.uids.add("b")
        if running.missed:
            known.add("b")
        return "b" in known and not running.missed

    assert resync(api, known, missed_then_reported) == []
