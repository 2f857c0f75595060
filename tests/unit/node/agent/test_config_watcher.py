"""Following the NodePinConfig: failures change nothing (H3), and each configuration is saved."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pinwarden.common.guard import Guard
from pinwarden.node.agent.api_client import ApiError, Event, NodePinConfigClient, Object
from pinwarden.node.agent.config_watcher import KINDS, ConfigWatcher
from pinwarden.node.state.config import ConfigFile, Configuration, Problem

LIMIT = {"name": "ns/a", "uid": "u1", "scope": "Pod", "limit": 4096}
ONE = Object("uid-1", 1, {"limits": [LIMIT]})
TWO = Object("uid-1", 2, {"limits": [{**LIMIT, "limit": 8192}]})
BROKEN = Object("uid-1", 3, {"mode": "Sideways"})


class Over(BaseException):
    """Ends the thread of a test: the watcher itself never ends."""


class Script:
    """A client with a prepared answer to each list and watch. An exception breaks a watch."""

    def __init__(self, lists: list[Any], watches: list[list[Any]] | None = None) -> None:
        self.lists = lists
        self.watches = watches or []
        self.asked_from: list[str] = []

    def list_own(self) -> tuple[Object | None, str]:
        if not self.lists:
            raise Over
        item = self.lists.pop(0)
        if isinstance(item, Exception):
            raise item
        return item, "100"

    def watch_own(self, resource_version: str) -> Iterator[Event]:
        self.asked_from.append(resource_version)
        for item in self.watches.pop(0) if self.watches else []:
            if isinstance(item, Exception):
                raise item
            yield item


class Run:
    """What one run of a watcher over a script did."""

    def __init__(
        self,
        script: Script,
        folder: Path,
        retain: Callable[[Configuration], Configuration] = lambda new: new,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.guard = Guard(KINDS, clock)
        self.posted: list[Configuration | Problem] = []
        self.announced: list[str | None] = []
        self.failed: list[str] = []
        self.slept: list[float] = []
        self.memory = ConfigFile(folder / "last.json")
        watcher = ConfigWatcher(
            cast(NodePinConfigClient, script),
            self.memory,
            post=self.posted.append,
            announce=self.announced.append,
            failed=self.failed.append,
            retain=retain,
            guard=self.guard,
            sleep=self.slept.append,
        )
        with pytest.raises(Over):
            watcher.run()

    @property
    def generations(self) -> list[object]:
        return [
            one.generation if isinstance(one, Configuration) else "problem" for one in self.posted
        ]


def test_a_listed_or_watched_configuration_is_posted_once_and_saved(tmp_path: Path) -> None:
    run = Run(Script([ONE], [[Event("101", ONE), Event("102", TWO), Event("103", TWO)]]), tmp_path)
    assert run.generations == [1, 2]
    kept = run.memory.load()
    assert kept is not None
    assert (kept.uid, kept.generation, kept.spec.limits[0].limit) == ("uid-1", 2, 8192)


@pytest.mark.rule("H3")
def test_a_missing_or_deleted_object_posts_nothing(tmp_path: Path) -> None:
    run = Run(Script([ONE, None], [[Event("101", deleted=True)]]), tmp_path)
    assert run.generations == [1]
    assert run.announced == ["uid-1", None, None]
    assert run.memory.load() is not None


def test_a_recreated_object_of_an_old_generation_is_posted(tmp_path: Path) -> None:
    again = Object("uid-2", 1, ONE.spec)
    run = Run(Script([ONE], [[Event("101", deleted=True), Event("102", again)]]), tmp_path)
    assert [one.uid for one in run.posted] == ["uid-1", "uid-2"]
    assert run.announced == ["uid-1", None, "uid-2"]


@pytest.mark.rule("H3")
def test_an_invalid_spec_leaves_the_last_good_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        run = Run(Script([ONE], [[Event("101", BROKEN)]]), tmp_path)
    assert run.generations == [1, "problem"]
    problem = run.posted[1]
    assert isinstance(problem, Problem)
    assert problem.uid == "uid-1"
    assert problem.message.startswith("generation 3: spec.mode: ")
    assert "spec.mode" in caplog.text
    kept = run.memory.load()
    assert kept is not None
    assert kept.generation == 1


@pytest.mark.rule("H3")
@pytest.mark.parametrize("error", [KeyError("pods"), RecursionError(), OSError(5, "I/O error")])
def test_a_failed_retain_leaves_the_last_good_configuration(
    tmp_path: Path, error: Exception
) -> None:
    def retain(new: Configuration) -> Configuration:
        if new.generation == 2:
            raise error
        return new

    run = Run(Script([ONE], [[Event("101", TWO)]]), tmp_path, retain)
    assert run.generations == [1, "problem"]
    problem = run.posted[1]
    assert isinstance(problem, Problem)
    assert problem.uid == "uid-1"
    assert problem.message.startswith(f"generation 2: {type(error).__name__}: ")
    assert run.guard.failures["configuration"] == 1
    kept = run.memory.load()
    assert kept is not None
    assert kept.generation == 1


def test_a_failed_retain_is_tried_again_after_its_backoff(tmp_path: Path) -> None:
    tries = itertools.count()

    def retain(new: Configuration) -> Configuration:
        if next(tries) == 0:
            raise KeyError("pods")
        return new

    times = iter([0.0, 0.0, 60.0])
    watched = [Event("101", ONE), Event("102", ONE), Event("103", ONE)]
    run = Run(Script([ONE], [watched]), tmp_path, retain, lambda: next(times))
    assert run.generations == ["problem", 1]


@pytest.mark.parametrize("error", [ApiError("too old", 410), ApiError("gone"), ApiError("no", 500)])
def test_a_broken_watch_waits_and_lists_again(tmp_path: Path, error: ApiError) -> None:
    run = Run(Script([ONE, TWO], [[Event("101", ONE), error]]), tmp_path)
    assert run.generations == [1, 2]
    assert run.failed[0] == "watch"
    assert 0 < run.slept[0] <= 0.1


def test_a_watch_continues_from_the_last_bookmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinwarden.node.agent.config_watcher._SHORT_WATCH_SECONDS", 0.0)
    script = Script([ONE], [[Event("150")], [Event("160", TWO)], [ApiError("gone")]])
    assert Run(script, tmp_path).generations == [1, 2]
    assert script.asked_from == ["100", "150", "160"]


def test_an_outage_is_counted_each_time_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = [ApiError("refused") for _ in range(8)]
    with caplog.at_level(logging.INFO, "pinwarden.node.agent.config_watcher"):
        run = Run(Script([*refused, ONE]), tmp_path)
    assert run.failed[:8] == ["list"] * 8
    assert [record.levelname for record in caplog.records[:2]] == ["WARNING", "INFO"]
    assert max(run.slept) <= 4.0
    assert run.slept[6] >= 2.0


def test_a_server_ending_each_watch_at_once_gets_a_backoff(tmp_path: Path) -> None:
    run = Run(Script([ONE, ONE, ONE], [[], [], []]), tmp_path)
    assert len(run.slept) == 3
    assert run.generations == [1]


def test_a_retry_after_of_the_server_is_waited(tmp_path: Path) -> None:
    run = Run(Script([ApiError("busy", 429, retry_after=3), ONE]), tmp_path)
    assert run.slept[0] == 3


def test_a_failed_save_is_logged_and_tried_again_with_the_next_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = tmp_path / "last.json.new"
    blocker.mkdir()

    class Cleared(Script):
        def watch_own(self, resource_version: str) -> Iterator[Event]:
            blocker.rmdir()
            yield Event("101")
            yield from super().watch_own(resource_version)

    run = Run(Cleared([ONE]), tmp_path)
    assert run.failed[0] == "remember"
    assert "cannot save the configuration in force for a restart" in caplog.text
    kept = run.memory.load()
    assert kept is not None
    assert kept.generation == 1
