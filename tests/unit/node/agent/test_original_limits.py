"""The original limits of processes: kept over restarts, and never read from a damaged file."""

import json
import logging
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.agent.original_limits import RlimitRecord, RlimitRecordStore
from pinwarden.node.linux.prlimit import UNLIMITED, Limits
from pinwarden.node.linux.procfs import ProcessKey

KEY = ProcessKey(12, 3456)
SAVED = RlimitRecord(original=Limits(4096, UNLIMITED), applied=Limits(0, 8192))

amounts = st.integers(0, UNLIMITED)
pairs = st.tuples(amounts, amounts).map(lambda pair: Limits(min(pair), max(pair)))
saved_values = st.builds(RlimitRecord, original=pairs, applied=pairs)
keys = st.builds(ProcessKey, st.integers(1, 2**22), st.integers(0, 2**63))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "saved.json"


@given(processes=st.dictionaries(keys, saved_values))
def test_saved_records_are_loaded_by_the_next_agent(
    processes: dict[ProcessKey, RlimitRecord],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        RlimitRecordStore(Path(folder) / "saved.json", "boot-1").save(processes)
        assert RlimitRecordStore(Path(folder) / "saved.json", "boot-1").load() == processes


WRITTEN = (
    '{"version": 1, "bootId": "boot-1", "digest": '
    '"fca618d074dbffc62fbfcf42b558cf7a38b516f9c5b25fb39ea2aad53d143611", '
    '"processes": [[12, 3456, 4096, 18446744073709551615, 0, 8192]]}'
)


@pytest.mark.rule("H3")
def test_a_file_of_an_earlier_agent_is_loaded_and_saved_in_its_format(path: Path) -> None:
    path.write_text(WRITTEN)
    store = RlimitRecordStore(path, "boot-1")
    assert store.load() == {KEY: SAVED}
    store.save({KEY: SAVED})
    assert json.loads(path.read_bytes()) == json.loads(WRITTEN)


def test_a_missing_file_is_empty(path: Path) -> None:
    assert RlimitRecordStore(path, "boot-1").load() == {}


def test_a_file_of_another_boot_is_empty(path: Path) -> None:
    RlimitRecordStore(path, "boot-1").save({KEY: SAVED})
    assert RlimitRecordStore(path, "boot-2").load() == {}
    assert path.exists()


@given(position=st.integers(min_value=0), cut=st.booleans(), flip=st.integers(1, 127))
def test_a_damaged_file_is_never_loaded(position: int, cut: bool, flip: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.json"
        store = RlimitRecordStore(path, "boot-1")
        store.save({KEY: SAVED})
        data = bytearray(path.read_bytes())
        position %= len(data)
        if cut:
            del data[position:]
        else:
            data[position] ^= flip
        path.write_bytes(data)
        assert store.load() in (
            {},
            {KEY: SAVED},
        )  # a changed space between two fields changes nothing


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1}', b"\xff\xfe"]
)
def test_a_corrupt_file_is_set_aside_with_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    store = RlimitRecordStore(path, "boot-1")
    for number in (1, 2):
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert store.load() == {}
        assert not path.exists()
        aside = path.with_name(f"saved.json.corrupt-{number}")
        assert aside.read_bytes() == content
        assert str(aside) in caplog.text
    store.save({KEY: SAVED})
    assert store.load() == {KEY: SAVED}


def test_a_failed_write_leaves_the_earlier_file(path: Path) -> None:
    store = RlimitRecordStore(path, "boot-1")
    store.save({KEY: SAVED})
    path.with_name("saved.json.new").mkdir()
    with pytest.raises(IsADirectoryError):
        store.save({})
    assert store.load() == {KEY: SAVED}


def test_a_file_is_readable_for_its_owner_only(path: Path) -> None:
    RlimitRecordStore(path, "boot-1").save({KEY: SAVED})
    assert path.stat().st_mode & 0o777 == 0o600


@given(saved=saved_values)
def test_applied_limits_do_not_become_original_ones(saved: RlimitRecord) -> None:
    assert saved.updated(saved.applied) == saved


@pytest.mark.parametrize(
    ("current", "before"),
    [
        (Limits(100, 8192), Limits(100, UNLIMITED)),  # its own soft limit
        (Limits(0, 2048), Limits(2048, 2048)),  # lowered for good, which takes the soft one along
        (Limits(50, 2048), Limits(50, 2048)),
        (Limits(0, 1 << 30), Limits(4096, 1 << 30)),  # raised with CAP_SYS_RESOURCE
    ],
)
def test_a_limit_set_by_the_program_becomes_original(current: Limits, before: Limits) -> None:
    assert SAVED.updated(current).original == before


@given(saved=saved_values, current=pairs)
def test_restored_limits_are_always_valid_for_the_kernel(
    saved: RlimitRecord, current: Limits
) -> None:
    before = saved.updated(current).original
    assert before.soft <= before.hard


@given(saved=saved_values, current=pairs)
def test_a_child_has_the_original_limits_of_its_parent(
    saved: RlimitRecord, current: Limits
) -> None:
    child = saved.for_child(current)
    assert child.original == saved.original
    assert child.updated(current).original == saved.original
