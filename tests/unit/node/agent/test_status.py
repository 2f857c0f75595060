"""What a status says: overshoots as sampled lower bounds, and lists cut at their longest length."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pinwarden import __version__
from pinwarden.api.nodepinconfig import NodePinConfigSpec, NodePinConfigStatus, UnsupportedReport
from pinwarden.api.pinlimit import Level
from pinwarden.node.agent.enforcer import RlimitEnforcer
from pinwarden.node.agent.gate_reader import GateReader
from pinwarden.node.agent.lowered_reader import LoweredReader
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.overshoots import LISTED, Overshoots
from pinwarden.node.agent.status import StatusBuilder
from pinwarden.node.linux.prlimit import GateAbility, prlimit_memlock
from pinwarden.node.pods.policy import NodePolicy, SubjectPolicy
from pinwarden.node.pods.process import ProcessTable
from pinwarden.node.pods.subject import Subject

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def sample(
    overshoots: Overshoots, now: float, excess: int, pod: str | None = "p", limit: str = "l"
) -> None:
    overshoots.sample(limit, pod, None, excess, now, NOON + timedelta(seconds=now))


@pytest.mark.rule("H2")
def test_an_overshoot_counts_the_time_between_samples_above() -> None:
    overshoots = Overshoots()
    for now, excess in (
        (0.0, 0),
        (0.5, 100),
        (1.0, 300),
        (1.25, 200),
        (1.5, 0),
        (2.0, 50),
        (2.5, -1),
    ):
        sample(overshoots, now, excess)
    ([found], cut) = overshoots.reports()
    assert (found.limit, found.pod, found.peak, found.seconds, found.count) == (
        "l",
        "p",
        300,
        0.75,
        2,
    )
    assert found.last_time == NOON + timedelta(seconds=2)
    assert not cut


@pytest.mark.rule("H2")
def test_a_time_without_samples_is_not_counted() -> None:
    overshoots = Overshoots()
    sample(overshoots, 0.0, 1)
    sample(overshoots, 60.0, 1)
    ([found], _) = overshoots.reports()
    assert (found.seconds, found.count) == (0.0, 2)


def test_a_status_without_overshoots_lists_none() -> None:
    overshoots = Overshoots()
    sample(overshoots, 0.0, 0)
    assert overshoots.reports() == ([], False)


@pytest.mark.rule("H2")
def test_the_latest_overshoots_are_listed_and_a_cut_is_reported() -> None:
    overshoots = Overshoots()
    for number in range(LISTED + 1):
        sample(overshoots, float(number), 1, pod=str(number))
    found, cut = overshoots.reports()
    assert [each.pod for each in found] == [str(number) for number in range(LISTED, 0, -1)]
    assert cut


def test_memory_is_bounded_while_many_pods_come_and_go() -> None:
    overshoots = Overshoots()
    for number in range(2000):
        sample(overshoots, float(number), 1, pod=str(number))
        overshoots.end(str(number))
    found, cut = overshoots.reports()
    assert found[0].pod == "1999"
    assert cut


def test_the_overshoot_of_a_deleted_limit_is_forgotten() -> None:
    overshoots = Overshoots()
    sample(overshoots, 0.0, 1, limit="gone")
    sample(overshoots, 0.0, 1, limit="stays")
    overshoots.keep({"stays"})
    assert [each.limit for each in overshoots.reports()[0]] == ["stays"]


def status(pods: int = 0, policy: NodePolicy | None = None) -> NodePinConfigStatus:
    subjects = [Subject(f"{number:04}", (), SubjectPolicy(())) for number in range(pods)]
    table = ProcessTable(Path("/proc"))
    enforcer = RlimitEnforcer(
        table,
        RlimitRecordStore(Path("/nonexistent"), ""),
        prlimit_memlock,
        4096,
        LoweredReader(None),
    )
    return StatusBuilder(GateAbility(True), "v2", GateReader(None)).build(
        policy, subjects, table, enforcer, Overshoots(), None
    )


def test_a_status_describes_the_node() -> None:
    found = status()
    assert found.agent_version == __version__
    assert found.cgroup_version == "v2"
    assert found.kernel_version
    assert found.sources


@pytest.mark.rule("H2")
def test_a_status_before_the_first_tick_has_no_numbers() -> None:
    found = status().to_wire()
    assert "sampledAt" not in found
    assert "observedGeneration" not in found


@pytest.mark.rule("H2")
def test_a_too_long_list_of_pods_is_cut_and_reported() -> None:
    found = status(pods=4097)
    assert len(found.pods) == 4096
    assert found.truncated
    assert NodePinConfigStatus.model_validate(found.to_wire()) == found


@pytest.mark.rule("H1")
def test_a_pod_without_an_enforceable_limit_is_observed() -> None:
    assert {pod.level for pod in status(pods=1).pods} == {Level.OBSERVE}


def test_a_policy_is_acknowledged_by_the_hashes_of_its_limits() -> None:
    spec = NodePinConfigSpec.model_validate(
        {"limits": [{"name": "l", "uid": "u", "scope": "Pod", "limit": 1}], "pods": []}
    )
    found = status(policy=NodePolicy(spec, [], 3))
    assert [(one.uid, one.hash) for one in found.applied_limits] == [("u", spec.limits[0].hash)]
    assert found.observed_generation == 3


@pytest.mark.rule("H2")
def test_a_text_too_long_for_the_object_is_cut_visibly() -> None:
    report = UnsupportedReport(uid="u", reason="NotSupported", message="x" * 5000)
    assert len(report.message) == 4096
    assert report.message.endswith("x ... (cut)")
    assert (
        UnsupportedReport(uid="u", reason="NotSupported", message="x/\udcff").message == "x/\udcff"
    )
