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


def loaded(path: Path) -> GateStatus:
    status = load(path)
    assert status is not None
    return status


@pytest.mark.rule("H1", "H3")
def test_new_gate_continues_from_the_status_file(tmp_path: Path) -> None:
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
    status = loaded(path)
    assert status.containers == {ID: ("pod-1", "main", "b2" * 32)}
    assert status.lost == {TWO.id}
    assert status.inexact == {"pod-1": ("why",)}
    assert status.denials == {"pod-1": {"uid-l": 2}}
    assert [report["number"] for report in status.recent] == [1, 2]


@pytest.mark.rule("H1")
def test_status_file_is_removed_only_without_gated_and_lost_containers(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    publisher = GatePublisher(path)
    publisher.set_containers([ONE])
    publisher.finish_recovery()
    publisher.flush(0)
    publisher.remove_if_unused()
    assert loaded(path).containers.keys() == {ID}
    loses = GatePublisher(path)
    loses.set_containers([])
    loses.finish_recovery()
    loses.flush(0)
    loses.remove_if_unused()
    assert loaded(path).lost == {ID}
    path.unlink()
    idle = GatePublisher(path)
    idle.set_containers([])
    idle.finish_recovery()
    idle.flush(0)
    idle.remove_if_unused()
    assert not path.exists()
    idle.remove_if_unused()


@pytest.mark.rule("H1")
def test_inexact_mark_is_repeated_until_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    publisher = GatePublisher(path)
    (tmp_path / "gate.json.new").mkdir()
    for _ in range(2):
        with pytest.raises(OSError, match="directory"):
            publisher.mark_inexact("pod-1", "why")
    (tmp_path / "gate.json.new").rmdir()
    publisher.mark_inexact("pod-1", "why")
    assert loaded(path).inexact == {"pod-1": ("why",)}


@pytest.mark.rule("H1")
def test_inexact_mark_is_forgotten_with_the_pod_and_not_with_its_containers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gate.json"
    publisher = GatePublisher(path)
    publisher.set_containers([ONE])
    publisher.mark_inexact("pod-1", "why")
    for existing, known in ((["pod-1"], {"pod-1": ("why",)}), ([], {})):
        publisher.set_containers([], existing)
        publisher.flush(float("inf"))
        assert loaded(path).inexact == known


@pytest.mark.rule("H1")
def test_lost_container_stays_lost_after_an_exec_with_a_listener(
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
    assert loaded(path).lost == {ID}
    last = GatePublisher(path)
    last.set_containers([ONE])
    last.finish_recovery()
    last.flush(0)
    assert loaded(path).lost == {ID}


@pytest.mark.rule("H1")
def test_changed_fingerprint_is_written_without_delay(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    publisher = GatePublisher(path)
    publisher.flush(0)
    publisher.set_fingerprints({"pod-1": "print"})
    publisher.flush(0)
    assert loaded(path).fingerprints == {"pod-1": "print"}


@pytest.mark.rule("M8", "H2")
def test_denied_mappings_are_counted_by_group_and_pod_only(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    before = GatePublisher(path)
    before.set_containers([replace(ONE, version=2), TWO])
    for group, pod in (("g", "pod-1"), ("g", "pod-1"), ("g", "pod-2"), ("h", "pod-2")):
        before.record_group_denial(group, pod)
    before.flush(0)
    assert loaded(path).group_denials == {"g": {"pod-1": 2, "pod-2": 1}, "h": {"pod-2": 1}}
    assert loaded(path).mapping == {ONE.id}
    assert (loaded(path).denials, loaded(path).recent, loaded(path).number) == ({}, (), 0)
    after = GatePublisher(path)
    after.set_containers([ONE])
    after.record_group_denial("g", "pod-1")
    after.flush(0)
    assert loaded(path).group_denials == {"g": {"pod-1": 3}}
    assert loaded(path).mapping == frozenset()


def test_status_file_without_groups_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    GatePublisher(path).flush(0)
    content = json.loads(path.read_bytes())
    del content["groupDenials"], content["mapping"]
    path.write_text(json.dumps(content))
    assert (loaded(path).group_denials, loaded(path).mapping) == ({}, frozenset())


@pytest.mark.rule("H1")
def test_latest_lost_container_is_listed_beside_many_earlier(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    for gated in ([f"{number:064x}" for number in range(1024)], ["f" * 64], []):
        publisher = GatePublisher(path)
        publisher.set_containers([GatedContainer(name, ONE.ref, "", b"") for name in gated])
        publisher.finish_recovery()
        publisher.flush(0)
    assert "f" * 64 in loaded(path).lost


@pytest.mark.rule("H1")
def test_inexact_mark_is_written_at_once_and_once(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    publisher = GatePublisher(path)
    publisher.mark_inexact("pod-1", "why")
    assert loaded(path).inexact == {"pod-1": ("why",)}
    written = path.stat().st_mtime_ns
    publisher.mark_inexact("pod-1", "why")
    assert path.stat().st_mtime_ns == written


def test_status_file_time_is_renewed_while_the_gate_answers(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    publisher = GatePublisher(path)
    publisher.flush(0)
    written = path.stat().st_mtime_ns
    time.sleep(0.01)
    publisher.flush(1)
    publisher.flush(1 + BEAT_SECONDS)
    assert path.stat().st_mtime_ns > written


def test_latest_denials_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    publisher = GatePublisher(tmp_path / "gate.json")
    publisher.set_containers([ONE])
    for _ in range(100):
        publisher.record_denial(denial())
    publisher.flush(0)
    status = loaded(tmp_path / "gate.json")
    assert [report["number"] for report in status.recent] == list(range(69, 101))
    assert status.denials["pod-1"]["uid-l"] == status.number == 100


def test_pending_change_is_written_after_a_renewal(tmp_path: Path) -> None:
    publisher = GatePublisher(tmp_path / "gate.json")
    publisher.set_containers([ONE])
    publisher.flush(0)
    publisher.record_denial(denial())
    publisher.flush(BETWEEN_WRITES_SECONDS / 2)
    publisher.flush(BETWEEN_WRITES_SECONDS)
    assert loaded(tmp_path / "gate.json").number == 1


@given(
    process=st.text(max_size=40),
    asked=st.none() | st.integers(0, 2**70),
    limit=st.sampled_from([None, LIMIT]),
    message=st.text(max_size=400),
)
def test_any_denial_fits_into_its_report(
    tmp_path_factory: pytest.TempPathFactory,
    process: str,
    asked: int | None,
    limit: NodeLimit | None,
    message: str,
) -> None:
    path = tmp_path_factory.mktemp("r") / "gate.json"
    publisher = GatePublisher(path)
    publisher.record_denial(denial(process, asked, limit, message))
    publisher.flush(0)
    (wire,) = loaded(path).recent
    report = DenialReport.model_validate(wire)
    assert report.pid == 4242
    assert report.limit == (limit.limit if limit else None)


def test_status_file_keeps_its_bytes_after_load_and_dump(tmp_path: Path) -> None:
    content = (
        '{"version": 1, "containers": {"c": ["p", "main", ""]}, "lost": ["a", "b"], '
        '"loosened": {"p": ["why"]}, "denials": {"p": {"u": 1}}, "recent": [{"name": "\\ud800"}], '
        '"number": 1, "groupDenials": {"g": {"p": 2}}, "mapping": ["c"], "held": {"p": "print"}, '
        '"failures": {"call": 3}}'
    )
    (tmp_path / "gate.json").write_text(content)
    assert loaded(tmp_path / "gate.json").dump().decode() == content


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 2}', '{"version": 1}', '{"version": 1, "containers": 5}']
)
def test_unparsable_status_file_is_ignored_and_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "gate.json").write_text(content)
    assert load(tmp_path / "gate.json") is None
    GatePublisher(tmp_path / "gate.json").flush(0)
    assert load(tmp_path / "gate.json") is not None
