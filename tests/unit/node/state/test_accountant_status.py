"""What the accountant of shared memory tells, and how the agent reports it."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import (
    BorrowReport,
    FairReport,
    GroupReport,
    NodeGroup,
    NodePinConfigStatus,
)
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.node.agent.accountant_reader import AccountantReader
from pinwarden.node.agent.status_writer import worth_writing
from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.state.accountant_status import SILENT_SECONDS, AccountantStatus, load, save

GROUP = NodeGroup.model_validate(
    {
        "name": "ns/g",
        "uid": "g",
        "backing": {"tmpfs": {"path": "/x"}},
        "management": "Adopt",
        "accounting": "Borrow",
        "fairShare": "Borrow",
    }
)
NUMBER = st.integers(0, 2**63)
EXTENTS = st.builds(
    ObjectSet,
    st.frozensets(NUMBER, max_size=3),
    st.frozensets(st.builds(ObjectId, NUMBER, NUMBER, NUMBER), max_size=3),
)


def report(**fields: object) -> GroupReport:
    return GroupReport.model_validate(
        {"uid": "g", "hash": GROUP.hash, "phase": "Active", "charge": 1 << 30, **fields}
    )


@given(extents=st.dictionaries(st.text(max_size=8), EXTENTS, max_size=3))
def test_a_saved_status_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, extents: dict[str, ObjectSet]
) -> None:
    path = tmp_path_factory.mktemp("run") / "shared.json"
    told = AccountantStatus(
        extents, (report(),), (FairReport(pod="p", current=3, anonymous=2, shared=1),)
    )
    save(path, told)
    assert load(path) == told


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2}',
        b'{"version": 1}',
        b'{"version": 1, "extents": {"g": 1}}',
    ],
)
def test_an_invalid_file_gives_no_status(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "shared.json").write_bytes(text)
    assert load(tmp_path / "shared.json") is None
    record = AccountantReader(tmp_path / "shared.json")
    record.poll()
    assert record.groups([GROUP])[0].phase is Phase.PENDING


@pytest.mark.rule("H2")
def test_a_group_without_an_accountant_is_pending() -> None:
    (found,) = AccountantReader(None).groups([GROUP])
    assert (found.phase, found.reason, found.hash, found.charge) == (
        Phase.PENDING,
        "AccountantSilent",
        "",
        None,
    )


@pytest.mark.rule("H2")
def test_figures_of_a_silent_accountant_are_reported_as_old(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    save(path, AccountantStatus(groups=(report(),)))
    record = AccountantReader(path)
    record.poll()
    assert record.groups([GROUP]) == [report()]
    past = time.time() - SILENT_SECONDS - 1
    os.utime(path, (past, past))
    record.poll()
    (found,) = record.groups([GROUP])
    assert (found.reason, found.charge) == ("AccountantSilent", 1 << 30)
    assert record.groups([]) == []


@pytest.mark.parametrize(
    ("change", "worth"),
    [
        ({}, False),
        ({"charge": (1 << 30) + (1 << 20)}, False),
        ({"charge": (1 << 30) + (1 << 26)}, True),
        ({"charge": None}, True),
        ({"phase": "Draining"}, True),
        ({"reason": "InUse"}, True),
        ({"borrowers": [BorrowReport(pod="p", member=True, borrowed=0, mapped=0)]}, True),
        ({"orphaned": 5}, True),
    ],
)
def test_a_relevant_change_of_a_group_is_written(change: dict[str, object], worth: bool) -> None:
    before = NodePinConfigStatus(groups=[report()])
    assert worth_writing(before, NodePinConfigStatus(groups=[report(**change)]), {}) is worth
