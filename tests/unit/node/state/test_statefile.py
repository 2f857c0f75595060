"""Files for the next agent: the state file, the lock, and the last configuration (H3)."""

import errno
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pinwarden
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.state import accountant_status as shared_record
from pinwarden.node.state import gate_status
from pinwarden.node.state.config import ConfigFile, Configuration, ConfigurationError
from pinwarden.node.state.statefile import PolledFile, StateFile, _digest, file_lock

LIMIT = {"name": "ns/a", "uid": "u1", "scope": "Pod", "limit": 4096}
SPEC = {"limits": [LIMIT], "pods": [{"uid": "p1", "limits": ["ns/a"]}]}


def load(path: Path) -> Any:
    return StateFile(path, 1).load(lambda content: content)


contents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


@given(content=contents)
def test_saved_content_is_loaded(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = StateFile(Path(folder) / "state.json", 1)
        file.save(content)
        assert file.load(lambda content: content) == content


@given(position=st.integers(min_value=0), cut=st.booleans(), flip=st.integers(1, 127))
def test_a_damaged_file_is_never_loaded(position: int, cut: bool, flip: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.json"
        file = StateFile(path, 1)
        file.save(SPEC)
        data = bytearray(path.read_bytes())
        position %= len(data)
        if cut:
            del data[position:]
        else:
            data[position] ^= flip
        path.write_bytes(data)
        assert file.load(lambda content: content) in (
            None,
            SPEC,
        )  # a changed space between two fields changes nothing


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1}', b"\xff"]
)
def test_a_corrupt_file_is_set_aside_with_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file = StateFile(path, 1)
    for number in (1, 2):
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert file.load(lambda content: content) is None
        assert path.with_name(f"state.json.corrupt-{number}").read_bytes() == content
        assert f"state.json.corrupt-{number}" in caplog.text
    assert not path.exists()


def test_a_file_of_another_version_is_set_aside(path: Path) -> None:
    StateFile(path, 2).save(SPEC)
    assert load(path) is None
    assert path.with_name("state.json.corrupt-1").exists()


def test_a_failed_write_leaves_the_earlier_file(path: Path) -> None:
    file = StateFile(path, 1)
    file.save(SPEC)
    path.with_name("state.json.new").mkdir()
    with pytest.raises(IsADirectoryError):
        file.save({})
    assert file.load(lambda content: content) == SPEC


def test_a_file_is_readable_for_its_owner_only(path: Path) -> None:
    StateFile(path, 1).save(SPEC)
    assert path.stat().st_mode & 0o777 == 0o600


HOLDER = """
import sys
from pathlib import Path
from pinwarden.node.state.statefile import file_lock
with file_lock(Path(sys.argv[1]), 0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_rejects_a_second_owner_until_the_first_ends(tmp_path: Path) -> None:
    lock = tmp_path / "agent.lock"
    source = Path(pinwarden.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        env=os.environ | {"PYTHONPATH": str(source)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError, match="another process has locked"), file_lock(lock, 0):
            pass
        other.kill()
    with file_lock(lock, 0):
        pass


def test_a_waiting_process_locks_the_existing_file_and_not_a_removed_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = tmp_path / "agent.lock"
    caplog.set_level(logging.INFO)
    with (
        file_lock(lock, 0),
        file_lock(lock, 60, waiting="stands by", on_wait=lambda: lock.unlink(missing_ok=True)),
        pytest.raises(TimeoutError),
        file_lock(lock, 0),
    ):
        pass
    assert caplog.messages == ["stands by"]


@pytest.mark.rule("H3")
def test_a_saved_configuration_is_loaded(path: Path) -> None:
    newer = {**SPEC, "limits": [LIMIT, {**LIMIT, "name": "ns/b", "burst": 1}]}
    configuration = Configuration.parse(newer, "uid-1", 7)
    ConfigFile(path).save(configuration)
    loaded = ConfigFile(path).load()
    assert loaded == configuration
    assert loaded is not None
    assert [limit.name for limit in loaded.unsupported] == ["ns/b"]


def test_a_missing_file_gives_no_configuration(path: Path) -> None:
    assert ConfigFile(path).load() is None


@pytest.mark.parametrize(
    "content", [{}, [], {"uid": "u", "generation": 1, "spec": {"mode": "Sideways"}}]
)
def test_an_invalid_configuration_is_set_aside(path: Path, content: Any) -> None:
    StateFile(path, 1).save(content)
    assert ConfigFile(path).load() is None
    assert path.with_name("state.json.corrupt-1").exists()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "spec: not an object"),
        ({"limits": {}}, "spec.limits: not a list"),
        ({"mode": "Sideways"}, "spec.mode: Input should be"),
        ({"pods": [{"uid": 1}]}, r"spec.pods\[0\].uid: Input should be a valid string"),
        ({"surprise": 1}, "spec.surprise: Extra inputs are not permitted"),
    ],
)
def test_an_invalid_spec_names_the_field(raw: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Configuration.parse(raw, "uid-1", 7)


def test_an_unreadable_file_is_read_again_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "told"
    glance = PolledFile(path)

    def full(_: Path) -> str:
        raise OSError(errno.EMFILE, "too many open files")

    assert glance.read_if_changed(Path.read_text) is None, "there is none"
    path.write_text("news")
    for _ in range(3):
        assert glance.read_if_changed(full) is None
    assert len(caplog.messages) == 1
    assert glance.read_if_changed(Path.read_text) == "news"
    assert glance.read_if_changed(Path.read_text) is None
    assert glance.read_if_changed(full) is None, "it is not read where it is the same"
    assert len(caplog.messages) == 1


DEEP = b"[" * 100_000
BAD = [
    b"",
    b"{",
    DEEP,
    b'{"version": 1, "digest": "',
    b"\xff\xfe",
    b"null",
    b"9" * 5000,
    b'{"version": [], "content": {}}',
]


@pytest.mark.rule("H3")
@pytest.mark.parametrize("data", BAD)
def test_a_file_of_any_bytes_is_set_aside(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert load(path) is None
    assert path.with_name("state.json.corrupt-1").exists()
    assert RlimitRecordStore(path, "boot").load() == {}
    assert gate_status.load(path) is None
    assert shared_record.load(path) is None


def test_a_fifo_directory_or_link_is_set_aside_without_a_wait(path: Path) -> None:
    for make in (os.mkfifo, os.mkdir, lambda where: os.symlink(where, where)):
        make(path)
        assert load(path) is None
        assert not os.path.lexists(path)
        make(path)
        assert RlimitRecordStore(path, "boot").load() == {}
        assert not os.path.lexists(path)


def test_a_huge_file_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert load(path) is None


def test_files_set_aside_do_not_fill_the_disk(path: Path) -> None:
    for number in range(20):
        path.write_text(f"{number}")
        assert load(path) is None
    assert len(list(path.parent.iterdir())) == 8


@pytest.mark.parametrize(
    "rows",
    [
        None,
        1,
        [1],
        [[]],
        [["a", 1, 2, 3, 4, 5]],
        [[1, 2, 3]],
        [[-1, 0, 0, 0, 0, 0]],
        [[1.5] * 6],
        {"a": 1},
    ],
)
def test_processes_of_other_types_are_set_aside(path: Path, rows: object) -> None:
    path.write_text(
        json.dumps(
            {"version": 1, "bootId": "boot", "digest": _digest(["boot", rows]), "processes": rows}
        )
    )
    assert RlimitRecordStore(path, "boot").load() == {}
    assert path.with_name("state.json.corrupt-1").exists()


RECORD: dict[str, Any] = {
    "version": 1,
    "containers": {},
    "lost": [],
    "loosened": {},
    "denials": {},
    "recent": [],
    "number": 0,
}


@pytest.mark.parametrize(
    "change",
    [
        {"denials": []},
        {"denials": {"p": {"l": "x"}}},
        {"denials": {"p": 1}},
        {"number": "x"},
        {"number": -1},
        {"recent": [1]},
        {"containers": {"c": ["p"]}},
        {"held": {"p": 1}},
        {"groupDenials": {"g": {"p": None}}},
        {"lost": [[]]},
        {"version": 2},
    ],
)
def test_a_gate_status_of_other_types_is_rejected(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(RECORD))
    assert gate_status.load(path) is not None
    path.write_text(json.dumps({**RECORD, **change}))
    assert gate_status.load(path) is None


def test_the_status_of_a_newer_gate_is_loaded(path: Path) -> None:
    path.write_text(json.dumps({**RECORD, "weather": "fine"}))
    assert gate_status.load(path) is not None


@pytest.mark.rule("H3")
def test_a_removed_configuration_is_noticed(path: Path) -> None:
    last = ConfigFile(path)
    assert last.intact
    last.save(Configuration.parse(SPEC, "uid", 1))
    assert last.intact
    path.write_text("torn")
    assert not last.intact
