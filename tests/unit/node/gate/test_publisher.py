"""The status file of the gate."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import DenialReport, NodeLimit
from pinwarden.api.pinlimit import Scope, Source
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.gate.publisher import (
    BEAT_SECONDS,
    BETWEEN_WRITES_SECONDS,
    Denial,
    GatePublisher,
)
from pinwarden.node.state.gate_status import GateStatus, load

ID = "a1" * 32
ONE = GatedContainer(ID, ContainerRef("pod-1", "main"), "b2" * 32, b"")
TWO = GatedContainer("c3" * 32, ContainerRef("pod-2", "main"), "", b"")
LIMIT = NodeLimit(name="ns/l", uid="uid-l", scope=Scope.POD, limit=4096)


def denial(
    process: str = "db",
    asked: int | None = 4096,
    limit: NodeLimit | None = LIMIT,
    message: str = "",
) -> Denial:
    return Denial(ONE.ref, 4242, process, Source.MLOCK, asked, 0, limit, message)


def told(path: Path) -> GateStatus:
    found = load(path)
    assert found is not None
    return found


@pytest.mark.rule("H1", "H3")
def test_a_new_gate_goes_on_from_what_was_told(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    before = GatePublisher(path)
    before.set_containers([ONE, TWO])
    before.finish_recovery()
    before.mark_inexact("pod-1", "why")
    before.record_denial(denial())
    before.flush(0)
    after = GatePublisher(path)
    after.set_containers([ONE])
    after.finish_recovery()
    after.record_denial(denial())
    after.flush(0)
    found = told(path)
    assert found.containers == {ID: ("pod-1", "main", "b2" * 32)}
    assert found.lost == {TWO.id}
    assert found.inexact == {"pod-1": ("why",)}
    assert found.denials == {"pod-1": {"uid-l": 2}}
    assert [each["number"] for each in found.recent] == [1, 2]


@pytest.mark.rule("H1")
def test_only_a_gate_that_held_and_lost_nothing_takes_its_file_away(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    publisher = GatePublisher(path)
    publisher.set_containers([ONE])
    publisher.finish_recovery()
    publisher.flush(0)
    publisher.remove_if_unused()
    assert told(path).containers.keys() == {ID}
    loses = GatePublisher(path)
    loses.set_containers([])
    loses.finish_recovery()
    loses.flush(0)
    loses.remove_if_unused()
    assert told(path).lost == {ID}
    path.unlink()
    idle = GatePublisher(path)
    idle.set_containers([])
    idle.finish_recovery()
    idle.flush(0)
    idle.remove_if_unused()
    assert not path.exists()
    idle.remove_if_unused()


@pytest.mark.rule("H1")
def test_what_loosens_a_pod_is_news_until_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    record = GatePublisher(path)
    (tmp_path / "gate.json.new").mkdir()
    for _ in range(2):
        with pytest.raises(OSError, match="directory"):
            record.mark_inexact("pod-1", "why")
    (tmp_path / "gate.json.new").rmdir()
    record.mark_inexact("pod-1", "why")
    assert told(path).inexact == {"pod-1": ("why",)}


@pytest.mark.rule("H1")
def test_what_loosened_a_pod_is_forgotten_with_the_pod_and_not_with_its_containers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gate.json"
    record = GatePublisher(path)
    record.set_containers([ONE])
    record.mark_inexact("pod-1", "why")
    for there, known in ((["pod-1"], {"pod-1": ("why",)}), ([], {})):
        record.set_containers([], there)
        record.flush(float("inf"))
        assert told(path).inexact == known


@pytest.mark.rule("H1")
def test_a_container_whose_descriptor_is_lost_stays_so_though_an_exec_brings_another(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gate.json"
    before = GatePublisher(path)
    before.set_containers([ONE])
    before.finish_recovery()
    before.flush(0)
    after = GatePublisher(path)
    after.finish_recovery()
    after.set_containers([ONE])
    after.flush(0)
    assert told(path).lost == {ID}
    last = GatePublisher(path)
    last.set_containers([ONE])
    last.finish_recovery()
    last.flush(0)
    assert told(path).lost == {ID}


@pytest.mark.rule("H1")
def test_by_what_the_gate_holds_a_pod_is_told_without_delay(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    record = GatePublisher(path)
    record.flush(0)
    record.set_fingerprints({"pod-1": "print"})
    record.flush(0)
    assert told(path).fingerprints == {"pod-1": "print"}


@pytest.mark.rule("M8", "H2")
def test_refused_mappings_are_counted_by_group_and_pod_and_beside_all_else(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    before = GatePublisher(path)
    before.set_containers([replace(ONE, version=2), TWO])
    for group, pod in (("g", "pod-1"), ("g", "pod-1"), ("g", "pod-2"), ("h", "pod-2")):
        before.record_group_denial(group, pod)
    before.flush(0)
    assert told(path).group_denials == {"g": {"pod-1": 2, "pod-2": 1}, "h": {"pod-2": 1}}
    assert told(path).mapping == {ONE.id}
    assert (told(path).denials, told(path).recent, told(path).number) == ({}, (), 0)
    after = GatePublisher(path)
    after.set_containers([ONE])
    after.record_group_denial("g", "pod-1")
    after.flush(0)
    assert told(path).group_denials == {"g": {"pod-1": 3}}
    assert told(path).mapping == frozenset()


def test_a_record_of_a_gate_that_knew_no_groups_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    GatePublisher(path).flush(0)
    content = json.loads(path.read_bytes())
    del content["groupDenials"], content["mapping"]
    path.write_text(json.dumps(content))
    assert (told(path).group_denials, told(path).mapping) == ({}, frozenset())


@pytest.mark.rule("H1")
def test_what_was_lost_last_is_told_whatever_was_lost_before(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    for gated in ([f"{number:064x}" for number in range(1024)], ["f" * 64], []):
        record = GatePublisher(path)
        record.set_containers([GatedContainer(each, ONE.ref, "", b"") for each in gated])
        record.finish_recovery()
        record.flush(0)
    assert "f" * 64 in told(path).lost


@pytest.mark.rule("H1")
def test_what_loosens_a_pod_is_told_at_once_and_once(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    record = GatePublisher(path)
    record.mark_inexact("pod-1", "why")
    assert told(path).inexact == {"pod-1": ("why",)}
    written = path.stat().st_mtime_ns
    record.mark_inexact("pod-1", "why")
    assert path.stat().st_mtime_ns == written


def test_the_file_is_renewed_while_the_gate_answers(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    record = GatePublisher(path)
    record.flush(0)
    written = path.stat().st_mtime_ns
    time.sleep(0.01)
    record.flush(1)
    record.flush(1 + BEAT_SECONDS)
    assert path.stat().st_mtime_ns > written


def test_the_latest_refusals_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    record = GatePublisher(tmp_path / "gate.json")
    record.set_containers([ONE])
    for _ in range(100):
        record.record_denial(denial())
    record.flush(0)
    found = told(tmp_path / "gate.json")
    assert [each["number"] for each in found.recent] == list(range(69, 101))
    assert found.denials["pod-1"]["uid-l"] == found.number == 100


def test_a_change_that_waits_for_its_turn_outlasts_a_renewal(tmp_path: Path) -> None:
    record = GatePublisher(tmp_path / "gate.json")
    record.set_containers([ONE])
    record.flush(0)
    record.record_denial(denial())
    record.flush(BETWEEN_WRITES_SECONDS / 2)
    record.flush(BETWEEN_WRITES_SECONDS)
    assert told(tmp_path / "gate.json").number == 1


@given(
    process=st.text(max_size=40),
    asked=st.none() | st.integers(0, 2**70),
    limit=st.sampled_from([None, LIMIT]),
    message=st.text(max_size=400),
)
def test_every_refusal_fits_into_its_report(
    tmp_path_factory: pytest.TempPathFactory,
    process: str,
    asked: int | None,
    limit: NodeLimit | None,
    message: str,
) -> None:
    path = tmp_path_factory.mktemp("r") / "gate.json"
    record = GatePublisher(path)
    record.record_denial(denial(process, asked, limit, message))
    record.flush(0)
    (one,) = told(path).recent
    report = DenialReport.model_validate(one)
    assert report.pid == 4242
    assert report.limit == (limit.limit if limit else None)


def test_a_status_file_keeps_its_bytes_after_load_and_dump(tmp_path: Path) -> None:
    content = (
        '{"version": 1, "containers": {"c": ["p", "main", ""]}, "lost": ["a", "b"], '
        '"loosened": {"p": ["why"]}, "denials": {"p": {"u": 1}}, "recent": [{"name": "\\ud800"}], '
        '"number": 1, "groupDenials": {"g": {"p": 2}}, "mapping": ["c"], "held": {"p": "print"}, '
        '"failures": {"call": 3}}'
    )
    (tmp_path / "gate.json").write_text(content)
    assert told(tmp_path / "gate.json").dump().decode() == content


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 2}', '{"version": 1}', '{"version": 1, "containers": 5}']
)
def test_a_file_that_is_not_understood_tells_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "gate.json").write_text(content)
    assert load(tmp_path / "gate.json") is None
    GatePublisher(tmp_path / "gate.json").flush(0)
    assert load(tmp_path / "gate.json") is not None
