"""Configuration from local files: fields, conflicts, and invalid files, which change nothing."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from pinwarden.api.nodepinconfig import Mode
from pinwarden.api.pinlimit import Scope
from pinwarden.node.agent import config_files
from pinwarden.node.agent.config_files import ConfigFileWatcher, read_files, signature
from pinwarden.node.state.config import ConfigFile, Configuration, ConfigurationError, Problem

QEMU = """
limits:
- name: qemu
  limit: 64Mi
  cgroupPattern: machine.slice/*.scope
"""


def limit(name: str, amount: object = 4096, **more: Any) -> dict[str, Any]:
    return {"name": name, "limit": amount, "cgroupPattern": f"{name}.slice", **more}


def write(folder: Path, **files: Any) -> Path:
    """Each as a JSON file in `folder`, replaced in one step as a careful editor does."""
    for name, content in files.items():
        beside = folder / f".{name}"
        beside.write_text(json.dumps(content))
        beside.replace(folder / f"{name}.json")
    return folder


def names(configuration: Configuration) -> list[str]:
    return [one.name for one in configuration.spec.limits]


def test_missing_fields_get_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(QEMU)
    configuration = read_files(path)
    (one,) = configuration.spec.limits
    assert (one.name, one.uid, one.limit, one.scope) == ("qemu", "qemu", 64 << 20, Scope.POD)
    assert one.cgroup_pattern == "machine.slice/*.scope"
    assert (configuration.uid, configuration.generation, configuration.unsupported) == (
        None,
        None,
        (),
    )


def test_a_long_name_gets_a_short_uid(tmp_path: Path) -> None:
    (one,) = read_files(write(tmp_path, a={"limits": [limit("n" * 384)]})).spec.limits
    assert len(one.uid) == 64


def test_a_file_has_a_whole_object_or_several_documents(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    whole = (
        "apiVersion: pinwarden.io/v1alpha1\nkind: NodePinConfig\nmetadata: {name: n}\n"
        "spec: {mode: Release}\n"
    )
    path.write_text(f"{QEMU}\n---\n{whole}---\n")
    configuration = read_files(path)
    assert names(configuration) == ["qemu"]
    assert configuration.spec.mode is Mode.RELEASE


def test_a_directory_stands_for_all_its_configuration_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        b={"limits": [limit("b")], "unknownPods": "1Ki"},
        a={"limits": [limit("a")], "unknownPods": 1024},
    )
    (tmp_path / "c.yaml").write_text(QEMU)
    (tmp_path / "README").write_text("limits: ]")
    (tmp_path / ".hidden.json").write_text("]")
    configuration = read_files(tmp_path)
    assert names(configuration) == ["a", "b", "qemu"]
    assert configuration.spec.unknown_pods == 1024


def test_an_empty_directory_is_an_empty_configuration(tmp_path: Path) -> None:
    assert names(read_files(tmp_path)) == []


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"limits": [limit("a")]},
            {"limits": [limit("a")]},
            "two.json: limit 'a' is already in one.json",
        ),
        (
            {"limits": [limit("a"), limit("a")]},
            {},
            "one.json: limit 'a' is already in one.json",
        ),
        (
            {"pods": [{"uid": "p"}]},
            {"pods": [{"uid": "p"}]},
            "two.json: pod 'p' is already in one.json",
        ),
        (
            {"mode": "Active"},
            {"mode": "Release"},
            "two.json: field 'mode' is already in one.json",
        ),
    ],
)
def test_a_conflict_names_both_files(tmp_path: Path, first: Any, second: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_files(write(tmp_path, one=first, two=second))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"limits": [{"name": "a"', r"a\.json: not JSON"),
        ('"text"', r"a\.json: not an object"),
        ('{"kind": "PinLimit"}', r"a\.json: kind: not NodePinConfig"),
        ('{"kind": "NodePinConfig"}', r"a\.json: spec: not an object"),
        (
            json.dumps({"limits": [limit("a", "64Q")]}),
            r"a\.json: limits\[0\]\.limit: '64Q' is not a quantity",
        ),
        (
            json.dumps({"limits": [limit("a", -1)]}),
            r"a\.json: limits\[0\]\.limit: Input should be greater",
        ),
        (
            json.dumps({"limits": [limit("a", burst=1)]}),
            r"a\.json: limits\[0\]\.burst: Extra inputs",
        ),
        (json.dumps({"limits": [1]}), r"a\.json: limits\[0\]: Input should be"),
        (json.dumps({"limits": {}}), r"a\.json: limits: Input should be a valid list"),
        ('{"unknownPods": "1.5"}', r"a\.json: unknownPods: 1.5: must be 0 or at least a page"),
        (
            '{"kind": "NodePinConfig", "spec": {"mode": "x"}}',
            r"a\.json: spec\.mode: Input should be",
        ),
    ],
)
def test_an_invalid_file_is_an_error_with_file_and_field(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        read_files(tmp_path)


def test_invalid_yaml_bytes_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    with pytest.raises(ConfigurationError, match=r"a\.yaml: No such file"):
        read_files(path)
    path.write_text("a: [")
    with pytest.raises(ConfigurationError, match=r"a\.yaml: not YAML: while parsing"):
        read_files(path)
    path.write_bytes(b"a: \xff")
    with pytest.raises(ConfigurationError, match=r"a\.yaml: not UTF-8"):
        read_files(path)


def test_the_signature_changes_with_every_kind_of_change(tmp_path: Path) -> None:
    seen = [signature(tmp_path / "none"), signature(write(tmp_path, a={}))]
    seen.append(signature(write(tmp_path, a={"limits": []})))
    seen.append(signature(write(tmp_path, b={})))
    (tmp_path / "a.json").unlink()
    seen.append(signature(tmp_path))
    assert len(set(seen)) == len(seen)


class EndedError(Exception):
    """Ends the loop of a watcher."""


class Posts(list[Configuration | Problem]):
    """What a watcher that runs in a thread posted; `sees` waits for the last post to be as told."""

    def __init__(self, path: Path, state: Path) -> None:
        super().__init__()
        self.failed: list[str] = []
        self.memory = ConfigFile(state)
        self._ended = threading.Event()
        watcher = ConfigFileWatcher(
            path, self.memory, post=self.append, failed=self.failed.append, sleep=self._sleep
        )

        def run() -> None:
            with suppress(EndedError):
                watcher.run()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _sleep(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise EndedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread, which opens files as long as it runs."""
        self._ended.set()
        self._thread.join()

    def sees(self, holds: Callable[[Configuration | Problem], bool]) -> None:
        deadline = time.monotonic() + 20
        while not (self and holds(self[-1])):
            assert time.monotonic() < deadline, f"last: {self[-1:]}"
            time.sleep(0.01)

    def sees_names(self, *wanted: str) -> None:
        self.sees(lambda last: isinstance(last, Configuration) and names(last) == list(wanted))


@pytest.mark.rule("H3")
def test_an_invalid_change_is_logged_and_leaves_the_last_good_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    write(folder, a={"limits": [limit("a")]})
    with caplog.at_level(logging.ERROR), Posts(folder, tmp_path / "last.json") as posts:
        posts.sees_names("a")
        write(folder, b={"limits": [limit("b")]})
        posts.sees_names("a", "b")
        (folder / "b.json").write_text('{"limits": [{"name": "b", "limit": -1}]}')
        posts.sees(
            lambda last: isinstance(last, Problem) and "b.json: limits[0].limit" in last.message
        )
        assert posts.failed == ["local"]
        assert "b.json: limits[0].limit" in caplog.text
        assert "the last good state stays in force" in caplog.text
        kept = posts.memory.load()
        assert kept is not None
        assert names(kept) == ["a", "b"]
        (folder / "b.json").unlink()
        posts.sees_names("a")


def test_a_repaired_file_ends_the_problem(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.json"
    write(tmp_path, a={"limits": [limit("a")]})
    with Posts(path, tmp_path / "last") as posts:
        posts.sees_names("a")
        path.write_text("{")
        posts.sees(lambda last: isinstance(last, Problem))
        write(tmp_path, a={"limits": [limit("a")]})
        posts.sees_names("a")


def test_a_full_disk_is_logged_and_the_configuration_is_saved_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_files, "SAVE_AGAIN_SECONDS", 0.1)
    (tmp_path / "last.new").mkdir()
    with Posts(write(tmp_path, a={"limits": [limit("a")]}), tmp_path / "last") as posts:
        posts.sees_names("a")
        deadline = time.monotonic() + 20
        while "remember" not in posts.failed:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (tmp_path / "last.new").rmdir()
        while ConfigFile(tmp_path / "last").load() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


UNFORESEEN = {
    "deep.json": b"[" * 100_000,
    "deep.yaml": b"[" * 5000,
    "month.yaml": b"unknownPods: 2001-99-99",
    "digits.json": b'{"unknownPods": ' + b"9" * 5000 + b"}",
    "digits.yaml": b"unknownPods: " + b"9" * 5000,
    "timestamp.yaml": b"unknownPods: !!timestamp x",
    "integer.yaml": b"unknownPods: !!int x",
    "truth.yaml": b"unknownPods: !!bool x",
    "surrogate.json": b'{"limits": [{"name": "\\ud800"}]}',
    "half.json": b'{"pods": [{"uid": "p", "limits": ["\\ud800"]}]}',
    "itself.yaml": b"limits: &a [*a]",
    "keys.yaml": b"1: 2",
    "binary.yaml": b"\xff\xfe",
}


@pytest.mark.rule("H3")
@pytest.mark.parametrize("name", UNFORESEEN)
def test_a_file_of_any_bytes_is_an_error_with_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(UNFORESEEN[name])
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        read_files(tmp_path)


def test_a_fifo_is_an_error_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigurationError, match=r"pipe\.yaml: not a regular file"):
        read_files(tmp_path)


def test_a_name_of_any_bytes_gives_a_problem_of_one_line(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\n\xff.yaml")).write_text("limits: lots" + "!" * 5000)
    posted: list[Configuration | Problem] = []
    watcher = ConfigFileWatcher(
        tmp_path,
        ConfigFile(tmp_path / "state"),
        post=posted.append,
        failed=lambda _: None,
        sleep=pause(2),
    )
    with suppress(InterruptedError):
        watcher.run()
    (problem,) = posted
    assert isinstance(problem, Problem)
    assert problem.message.startswith("a\\n\\udcff.yaml: limits: ")
    assert problem.message.isprintable()
    assert len(problem.message) <= 1024


@pytest.mark.rule("H3")
def test_a_changed_copy_on_disk_is_saved_again(tmp_path: Path) -> None:
    source = tmp_path / "limits.yaml"
    source.write_text(QEMU)
    memory = ConfigFile(tmp_path / "state" / "local.json")
    (tmp_path / "state").mkdir()

    def tear() -> None:
        (tmp_path / "state" / "local.json").write_text("torn")

    watcher = ConfigFileWatcher(
        source, memory, post=lambda _: None, failed=lambda _: None, sleep=pause(4, after={2: tear})
    )
    with suppress(InterruptedError):
        watcher.run()
    kept = memory.load()
    assert kept is not None
    assert names(kept) == ["qemu"]


def pause(
    times: int, after: dict[int, Callable[[], None]] | None = None
) -> Callable[[float], None]:
    """A sleep that returns some times, calls a function in some of them, and then raises."""
    count = 0

    def sleep(_: float) -> None:
        nonlocal count
        count += 1
        if count > times:
            raise InterruptedError
        (after or {}).get(count, lambda: None)()

    return sleep
