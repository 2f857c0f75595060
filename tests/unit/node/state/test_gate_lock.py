"""Whether a gate runs, by the lock of its journal."""

from contextlib import closing
from pathlib import Path

import pytest

from pinwarden.node.gate.journal import Journal
from pinwarden.node.state.gate_lock import JOURNAL, gate_runs


@pytest.mark.rule("H1")
def test_gate_runs_from_the_first_to_the_last_moment_of_its_journal(tmp_path: Path) -> None:
    assert not gate_runs(tmp_path)
    with closing(Journal(tmp_path / JOURNAL)):
        assert gate_runs(tmp_path)
        assert gate_runs(tmp_path)
    assert not gate_runs(tmp_path)
    Journal(tmp_path / JOURNAL).close()
