"""The table of sources: every one is there, and nothing is claimed for what is not counted."""

import pytest

from pinwarden.api.pinlimit import Level, Source
from pinwarden.node.agent.source_levels import source_levels
from pinwarden.node.linux.prlimit import GateAbility

NOT_COUNTED = {Source.SHM_LOCK, Source.XDP, Source.PERF, Source.UDMABUF, Source.ZERO_COPY}


@pytest.mark.rule("H1")
def test_counted_sources_converge_and_others_are_observed() -> None:
    table = source_levels(GateAbility(True))
    assert [each.source for each in table] == list(Source)
    for each in table:
        counted = each.source not in NOT_COUNTED
        assert each.counted == counted
        assert each.level is (Level.CONVERGE if counted else Level.OBSERVE)
        assert counted or each.reason == "NotCounted"


@pytest.mark.rule("H1")
def test_all_sources_are_observed_without_the_gate() -> None:
    for each in source_levels(GateAbility(False, "no capability")):
        assert each.level is Level.OBSERVE
        assert each.source in NOT_COUNTED or "no capability" in each.message


def test_io_uring_names_the_shared_counter() -> None:
    (entry,) = (each for each in source_levels(GateAbility(True)) if each.source is Source.IO_URING)
    assert "uid" in entry.message
