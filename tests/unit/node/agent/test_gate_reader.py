"""Which pods the gate enforces exactly, from the gate's state file, and their level (H1)."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pinwarden.api.nodepinconfig import (
    NodeLimit,
    NodePinConfigSpec,
    NodePinConfigStatus,
    NodePod,
    PodReport,
)
from pinwarden.api.pinlimit import Enforcement, Level, Scope, Source
from pinwarden.node.agent.enforcer import RlimitEnforcer
from pinwarden.node.agent.gate_reader import (
    BEHIND,
    BEHIND_SECONDS,
    SILENT_SECONDS,
    UNGATED,
    GateReader,
)
from pinwarden.node.agent.lowered_reader import LoweredReader
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.overshoots import Overshoots
from pinwarden.node.agent.status import StatusBuilder
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.gate.publisher import Denial, GatePublisher
from pinwarden.node.linux.prlimit import GateAbility, prlimit_memlock
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.policy import NodePolicy, SubjectPolicy
from pinwarden.node.pods.process import ProcessTable
from pinwarden.node.pods.subject import GateCoverage, Subject
from pinwarden.node.state import nri_status
from pinwarden.node.state.nri_status import NriStatus

POD, MAIN, SIDE, SANDBOX = "pod", "a1" * 32, "b2" * 32, "c3" * 32
LIMIT = NodeLimit(name="ns/l", uid="uid-l", scope=Scope.POD, limit=4096)
AUDIT = LIMIT.model_copy(update={"enforcement": Enforcement.AUDIT})


def key(pid: int) -> frozenset[ProcessKey]:
    return frozenset({ProcessKey(pid, pid)})


def subject(
    containers: Mapping[str, frozenset[ProcessKey]], *limits: NodeLimit, more: int = 0
) -> Subject:
    made = Subject(POD, (), SubjectPolicy(limits or (LIMIT,)))
    made.by_container = containers
    made.keys = frozenset[ProcessKey]().union(*containers.values()) | (
        key(more) if more else frozenset()
    )
    return made


def recorded(folder: Path, *gated: str) -> GatePublisher:
    record = GatePublisher(folder / "gate.json")
    record.set_containers(
        [GatedContainer(each, ContainerRef(POD, "main"), SANDBOX, b"") for each in gated or (MAIN,)]
    )
    record.finish_recovery()
    record.flush(time.monotonic())
    return record


def reading(folder: Path) -> GateReader:
    gate = GateReader(folder / "gate.json")
    gate.poll()
    return gate


def coverage(gate: GateReader, one: Subject) -> GateCoverage:
    gate.observe([one], [one])
    return one.coverage


def test_a_missing_file_gives_no_coverage(tmp_path: Path) -> None:
    for gate in (GateReader(None), reading(tmp_path)):
        seen = coverage(gate, subject({MAIN: key(1)}))
        assert seen == GateCoverage()
        assert not gate.silent


@pytest.mark.rule("H2")
def test_an_invalid_file_gives_no_coverage_and_no_denials(tmp_path: Path) -> None:
    recorded(tmp_path)
    gate = reading(tmp_path)
    (tmp_path / "gate.json").write_text('{"version": 2}')
    gate.poll()
    assert gate.status is None
    one = subject({MAIN: key(1)})
    assert coverage(gate, one) == GateCoverage()
    assert whole(gate, one).denials_dropped is None


@pytest.mark.rule("H1")
def test_a_pod_with_a_listener_in_each_container_is_exact(tmp_path: Path) -> None:
    recorded(tmp_path)
    seen = coverage(reading(tmp_path), subject({MAIN: key(1) | key(2), SANDBOX: key(3)}))
    assert seen.exact
    assert not seen.why


@pytest.mark.rule("H1")
@pytest.mark.parametrize(
    ("containers", "more", "why"),
    [
        ({SIDE: key(1)}, 0, UNGATED),
        ({MAIN: key(1), SIDE: key(2)}, 0, "lacks the gate's profile"),
        ({MAIN: key(1)}, 9, "lacks the gate's profile"),
    ],
)
def test_a_process_without_the_gate_makes_its_pod_inexact(
    tmp_path: Path, containers: Any, more: int, why: str
) -> None:
    recorded(tmp_path)
    seen = coverage(reading(tmp_path), subject(containers, more=more))
    assert not seen.exact
    assert why in seen.why


@pytest.mark.rule("H1")
def test_reason_of_the_nri_plugin_is_given_for_its_container_only(tmp_path: Path) -> None:
    recorded(tmp_path)
    gate, ungated = reading(tmp_path), subject({SIDE: key(1)})
    assert coverage(gate, ungated).why == UNGATED
    nri_status.save(tmp_path / "nri.json", NriStatus("containerd", ungated={SIDE: "it is older"}))
    gate.poll()
    gate.observe([ungated], [])
    assert ungated.coverage.why == "it is older"
    assert coverage(gate, subject({MAIN: key(1)})).exact
    assert coverage(gate, subject({MAIN: key(1), SIDE: key(2)})).why.endswith("; it is older")
    nri_status.save(tmp_path / "nri.json", NriStatus("containerd"))
    gate.poll()
    assert "a restart gates it" in coverage(gate, ungated).why


@pytest.mark.rule("H1")
def test_failure_of_a_living_nri_plugin_is_given_for_ungated_containers(tmp_path: Path) -> None:
    recorded(tmp_path)
    nri_status.save(tmp_path / "nri.json", NriStatus(failure="no socket"))
    gate, ungated = reading(tmp_path), subject({SIDE: key(1)})
    assert (
        coverage(gate, ungated).why == f"{UNGATED}; new containers do not get the gate: no socket"
    )
    old = time.time() - 60
    os.utime(tmp_path / "nri.json", (old, old))
    gate.poll()
    assert coverage(gate, ungated).why == UNGATED


def test_renewed_file_of_the_nri_plugin_changes_no_coverage(tmp_path: Path) -> None:
    recorded(tmp_path)
    status = NriStatus("containerd", ungated={SIDE: "it is older"})
    nri_status.save(tmp_path / "nri.json", status)
    gate, ungated = reading(tmp_path), subject({SIDE: key(1)})
    before = coverage(gate, ungated)
    nri_status.save(tmp_path / "nri.json", status)
    gate.poll()
    assert gate.observe([ungated], []) == []
    assert ungated.coverage is before


@pytest.mark.rule("H1")
def test_an_inexact_call_or_a_pinning_driver_makes_a_pod_inexact(tmp_path: Path) -> None:
    record = recorded(tmp_path)
    pinning = subject({MAIN: key(1)})
    pinning.pinned = 4096
    assert "driver" in coverage(reading(tmp_path), pinning).why
    record.mark_inexact(POD, "it grows")
    record.mark_inexact(POD, "and more")
    seen = coverage(reading(tmp_path), pinning)
    assert (seen.exact, seen.why) == (False, "it grows; and more")


def report(gate: GateReader, one: Subject, ability: GateAbility | None = None) -> PodReport:
    return whole(gate, one, ability).pods[0]


def whole(
    gate: GateReader, one: Subject, ability: GateAbility | None = None
) -> NodePinConfigStatus:
    one.keys = frozenset()  # what its processes are is judged elsewhere
    gate.observe([one], [one])
    builder = StatusBuilder(ability or GateAbility(True), "v2", gate)
    return built(builder, None, one)


def built(builder: StatusBuilder, policy: NodePolicy | None, one: Subject) -> NodePinConfigStatus:
    table = ProcessTable(Path("/proc"))
    enforcer = RlimitEnforcer(
        table,
        RlimitRecordStore(Path("/nonexistent"), ""),
        prlimit_memlock,
        4096,
        LoweredReader(None),
    )
    return builder.build(policy, [one], table, enforcer, Overshoots(), None)


@pytest.mark.rule("H1")
def test_an_exact_pod_is_at_deny_even_without_rlimits(tmp_path: Path) -> None:
    recorded(tmp_path)
    gate = reading(tmp_path)
    for ability in (GateAbility(True), GateAbility(False, "no capability")):
        found = report(gate, subject({MAIN: key(1)}), ability)
        assert (found.level, found.reason, found.message) == (Level.DENY, "SeccompGate", "")


@pytest.mark.rule("H1")
def test_an_audited_pod_is_never_at_deny(tmp_path: Path) -> None:
    recorded(tmp_path)
    found = report(reading(tmp_path), subject({MAIN: key(1)}, AUDIT))
    assert (found.level, found.reason) == (Level.OBSERVE, "Audit")


@pytest.mark.rule("H1")
def test_an_inexact_pod_is_at_converge_with_the_reason(tmp_path: Path) -> None:
    recorded(tmp_path).mark_inexact(POD, "it grows")
    found = report(reading(tmp_path), subject({MAIN: key(1)}))
    assert (found.level, found.message) == (Level.CONVERGE, "not exactly: it grows")


@pytest.mark.rule("H1")
def test_a_lost_descriptor_is_reported(tmp_path: Path) -> None:
    recorded(tmp_path)
    after = GatePublisher(tmp_path / "gate.json")
    after.set_containers([])
    after.finish_recovery()
    after.flush(0)
    found = report(reading(tmp_path), subject({MAIN: key(1)}))
    assert (found.level, found.reason) == (Level.OBSERVE, "GateLost")
    assert "ENOSYS" in found.message


@pytest.mark.rule("H1")
def test_a_directory_with_a_gated_container_is_not_gated(
    tmp_path: Path,
) -> None:
    recorded(tmp_path)
    directory = subject({MAIN: key(1)})
    directory.uid = "docker"
    assert coverage(reading(tmp_path), directory) == GateCoverage(why=UNGATED)


@pytest.mark.rule("H1")
def test_a_limit_unknown_to_the_gate_is_not_acknowledged_and_later_inexact(
    tmp_path: Path,
) -> None:
    record = recorded(tmp_path)
    now = 0.0
    gate = GateReader(tmp_path / "gate.json", lambda: now)
    gate.poll()
    policy = NodePolicy(
        NodePinConfigSpec(limits=[LIMIT], pods=[NodePod(uid=POD, limits=[LIMIT.name])]), (), 1
    )
    held = policy.of_pod(POD)
    assert held is not None
    one = subject({MAIN: key(1)})
    one.policy = held

    def applied() -> list[str]:
        builder = StatusBuilder(GateAbility(True), "v2", gate)
        one.keys = frozenset()
        gate.observe([one], [one])
        found = built(builder, policy, one)
        return [each.uid for each in found.applied_limits]

    assert applied() == []
    assert coverage(gate, one) == GateCoverage(True, exact=True, behind=True)
    now = BEHIND_SECONDS + 1
    assert coverage(gate, one) == GateCoverage(True, why=BEHIND)
    record.set_fingerprints({POD: held.fingerprint})
    record.flush(0)
    gate.poll()
    assert coverage(gate, one) == GateCoverage(True, exact=True)
    assert applied() == [LIMIT.uid]


@pytest.mark.rule("H1")
def test_a_silent_gate_stays_exact_with_older_limits(tmp_path: Path) -> None:
    recorded(tmp_path)
    long_ago = time.time() - 2 * SILENT_SECONDS
    os.utime(tmp_path / "gate.json", (long_ago, long_ago))
    now = 0.0
    gate = GateReader(tmp_path / "gate.json", lambda: now)
    gate.poll()
    one = subject({MAIN: key(1)})
    one.policy = SubjectPolicy((LIMIT,), fingerprint="newer")
    first = coverage(gate, one)
    now = 1000.0
    for found in (first, coverage(gate, one)):
        assert (found.exact, found.behind) == (True, True), "no call is answered before it has"


@pytest.mark.rule("H1", "H2")
def test_a_silent_gate_is_reported_at_deny(tmp_path: Path) -> None:
    recorded(tmp_path)
    long_ago = time.time() - 2 * SILENT_SECONDS
    os.utime(tmp_path / "gate.json", (long_ago, long_ago))
    found = report(reading(tmp_path), subject({MAIN: key(1)}))
    assert found.level is Level.DENY
    assert "does not answer" in found.message


@pytest.mark.rule("H2")
def test_denials_are_reported_by_limit_and_absent_without_a_gate(tmp_path: Path) -> None:
    record = recorded(tmp_path)
    assert report(reading(tmp_path), subject({MAIN: key(1)})).denials == []
    assert report(reading(tmp_path), subject({SIDE: key(1)})).denials is None
    other = LIMIT.model_copy(update={"uid": "another"})
    for limit in (LIMIT, LIMIT, other):
        record.record_denial(
            Denial(ContainerRef(POD, "main"), 7, "db", Source.MLOCK, 4096, 0, limit)
        )
    record.flush(float("inf"))
    found = whole(reading(tmp_path), subject({MAIN: key(1)}))
    (pod,) = found.pods
    assert pod.denials is not None
    assert [(each.uid, each.count) for each in pod.denials] == [("uid-l", 2)]
    assert [each.number for each in found.recent_denials] == [1, 2, 3]
    assert found.denials_dropped == 0
    assert whole(GateReader(None), subject({MAIN: key(1)})).denials_dropped is None


@pytest.mark.rule("H2")
def test_pods_with_a_listener_are_reported_with_or_without_limits(tmp_path: Path) -> None:
    unlimited = ContainerRef("another", "main")
    record = recorded(tmp_path)
    assert gated_pods(reading(tmp_path)) == [POD]
    record.set_containers(
        [
            *(GatedContainer(name, ContainerRef(POD, name), SANDBOX, b"") for name in (MAIN, SIDE)),
            GatedContainer("d4" * 32, unlimited, SANDBOX, b""),
        ]
    )
    record.flush(float("inf"))
    assert gated_pods(reading(tmp_path)) == ["another", POD]
    record.set_containers([])
    record.flush(float("inf"))
    assert gated_pods(reading(tmp_path)) == []
    (tmp_path / "gate.json").unlink()
    assert gated_pods(reading(tmp_path)) is None


@pytest.mark.rule("H2")
def test_too_long_list_of_gated_pods_is_cut_and_reported(tmp_path: Path) -> None:
    record = recorded(tmp_path)
    record.set_containers(
        GatedContainer(str(number), ContainerRef(f"{number:04}", "main"), SANDBOX, b"")
        for number in range(1025)
    )
    record.flush(float("inf"))
    found = whole(reading(tmp_path), subject({MAIN: key(1)}))
    assert found.gated_pods == [f"{number:04}" for number in range(1024)]
    assert found.truncated
    assert NodePinConfigStatus.model_validate(found.to_wire()) == found


def gated_pods(gate: GateReader) -> list[str] | None:
    return whole(gate, subject({MAIN: key(1)})).gated_pods


def test_sources_name_deny_only_with_a_gate(tmp_path: Path) -> None:
    recorded(tmp_path)
    for gate, said in ((reading(tmp_path), True), (GateReader(None), False)):
        (mlock,) = (
            each
            for each in whole(gate, subject({MAIN: key(1)})).sources
            if each.source is Source.MLOCK
        )
        assert ("Deny" in mlock.message) == said
        assert mlock.level is Level.CONVERGE
