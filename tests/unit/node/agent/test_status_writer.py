"""When a report is written: at once for relevant changes, seldom for small ones."""

import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import (
    AppliedLimit,
    ContainerReport,
    DenialReport,
    LimitDenials,
    NodePinConfigSpec,
    NodePinConfigStatus,
    OvershootReport,
    PodReport,
    SourceLevel,
    UnsupportedReport,
)
from pinwarden.api.pinlimit import Level, Source
from pinwarden.node.agent.api_client import ApiError, NodePinConfigClient
from pinwarden.node.agent.status_writer import (
    BETWEEN_WRITES_SECONDS,
    HEARTBEAT_SECONDS,
    PAGE_BYTES,
    StatusWriter,
    WritePolicy,
    report_on,
    smallest_limits,
    worth_writing,
)
from pinwarden.node.agent.threads import Snapshot, SnapshotBoard
from pinwarden.node.state.config import Configuration

LIMIT = 1 << 20
ROUNDING = 1e-6  # of sums of seconds
LIMITS = {"p1": LIMIT}
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def pod(**changes: Any) -> PodReport:
    fields = {
        "uid": "p1",
        "vm_lck": 0,
        "vm_pin": 0,
        "peak": 0,
        "processes": 1,
        "level": Level.CONVERGE,
    }
    return PodReport(**{**fields, **changes})


def overshoot(**changes: Any) -> OvershootReport:
    fields = {"limit": "u1", "pod": "p1", "peak": 1, "seconds": 0.1, "count": 1, "last_time": NOON}
    return OvershootReport(**{**fields, **changes})


def denial(**changes: Any) -> DenialReport:
    fields = {"number": 1, "time": NOON, "pod": "p1", "container": "c", "process": "db", "pid": 7}
    return DenialReport(**{**fields, "source": Source.MLOCK, **changes})


def status(**fields: Any) -> NodePinConfigStatus:
    return NodePinConfigStatus(
        **{"observed_generation": 1, "pods": [pod()], "sampled_at": NOON, **fields}
    )


BASE = status()
OBSERVED = SourceLevel(source=Source.MLOCK, counted=True, level=Level.OBSERVE, reason="r")


@pytest.mark.parametrize(
    "report",
    [
        status(observed_generation=2),
        status(applied_limits=[AppliedLimit(uid="u1", hash="h")]),
        status(unsupported_limits=[UnsupportedReport(uid="u1", reason="r", message="m")]),
        status(sources=[OBSERVED]),
        status(pods=[pod(level=Level.OBSERVE)]),
        status(pods=[pod(reason="CapIPCLock")]),
        status(pods=[]),
        status(pods=[pod(containers=[ContainerReport(name="c", pinned=0, peak=0)])]),
        status(pods=[pod(), pod(uid="p2")]),
        status(overshoots=[overshoot()]),
        status(recent_denials=[denial()]),
        status(denials_dropped=1),
        status(gated_pods=[]),
        status(pods=[pod(denials=[])]),
        status(pods=[pod(denials=[LimitDenials(uid="u1", count=1)])]),
        status(truncated=True),
    ],
)
def test_a_change_of_a_statement_is_written(report: NodePinConfigStatus) -> None:
    assert worth_writing(BASE, report, LIMITS)


@pytest.mark.parametrize(
    "report",
    [
        BASE,
        status(sampled_at=NOON.replace(hour=13)),
        status(pods=[pod(processes=9)]),
        status(pods=[pod(message="other words")]),
    ],
)
def test_a_minor_change_is_not_written(report: NodePinConfigStatus) -> None:
    assert not worth_writing(BASE, report, LIMITS)


def test_another_reason_for_an_inexact_pod_is_written_and_other_words_are_not() -> None:
    """Other messages name processes, and so change often."""
    before = status(pods=[pod(reason="RlimitGate", message="no NRI plugin is connected")])
    after = status(pods=[pod(reason="RlimitGate", message="a restart gates it")])
    assert worth_writing(before, after, LIMITS)
    before = status(pods=[pod(reason="CapIPCLock", message="process 7")])
    assert not worth_writing(before, status(pods=[pod(reason="CapIPCLock", message="8")]), LIMITS)


def test_a_further_overshoot_is_written_and_the_same_is_not() -> None:
    before = status(overshoots=[overshoot()])
    assert not worth_writing(before, status(overshoots=[overshoot(seconds=3, peak=2)]), LIMITS)
    assert worth_writing(before, status(overshoots=[overshoot(count=2)]), LIMITS)


def test_a_further_denial_is_written_and_an_equal_list_is_not() -> None:
    before = status(recent_denials=[denial(), denial(number=2)])
    assert not worth_writing(before, status(recent_denials=[denial(), denial(number=2)]), LIMITS)
    assert worth_writing(
        before, status(recent_denials=[denial(number=2), denial(number=3)]), LIMITS
    )
    again = denial(number=2, time=NOON.replace(hour=13))
    assert worth_writing(before, status(recent_denials=[denial(), again]), LIMITS), (
        "a journal that began anew"
    )


@given(
    limit=st.integers(0, 1 << 40),
    before=st.integers(0, 1 << 40),
    now=st.integers(0, 1 << 40),
    counter=st.sampled_from(["vm_lck", "vm_pin", "peak"]),
)
def test_an_amount_moved_by_more_than_two_percent_and_a_page_is_written(
    limit: int, before: int, now: int, counter: str
) -> None:
    moved = worth_writing(
        status(pods=[pod(**{counter: before})]), status(pods=[pod(**{counter: now})]), {"p1": limit}
    )
    assert moved == (abs(now - before) > max(PAGE_BYTES, limit * 0.02))


def test_an_amount_of_a_container_counts_like_an_amount_of_the_pod() -> None:
    def of(pinned: int) -> NodePinConfigStatus:
        return status(pods=[pod(containers=[ContainerReport(name="c", pinned=pinned, peak=0)])])

    assert worth_writing(of(0), of(LIMIT // 10), LIMITS)
    assert not worth_writing(of(0), of(LIMIT // 100), LIMITS)


def test_the_smallest_limit_of_a_pod_counts_and_free_pods_have_none() -> None:
    def limit(name: str, amount: int) -> dict[str, Any]:
        return {"name": name, "uid": name, "scope": "Pod", "limit": amount}

    spec = NodePinConfigSpec.model_validate(
        {
            "limits": [limit("a", 10), limit("b", 5)],
            "pods": [{"uid": "p1", "limits": ["a", "b", "unknown"]}, {"uid": "p2"}],
        }
    )
    assert smallest_limits(spec) == {"p1": 5}


reports = st.sampled_from(
    [
        BASE,
        status(observed_generation=2),
        status(pods=[pod(vm_lck=LIMIT)]),
        status(recent_denials=[denial()], denials_dropped=0),
    ]
)
steps = st.lists(st.tuples(st.floats(0, 400), reports, st.booleans()), max_size=60)


@given(steps=steps, share=st.floats(0, 1))
def test_two_writes_are_a_second_apart(
    steps: list[tuple[float, NodePinConfigStatus, bool]], share: float
) -> None:
    policy = WritePolicy(lambda low, high: low + share * (high - low))
    now, last, said = 0.0, None, None
    for passed, report, works in steps:
        now += passed
        wait = policy.wait(now, "uid-1", report, LIMITS)
        if last is None or worth_writing(said or report, report, LIMITS):
            assert wait <= max(BETWEEN_WRITES_SECONDS, 5.0) + ROUNDING
        assert wait <= HEARTBEAT_SECONDS[1] + ROUNDING
        if wait > 0:
            continue
        if works:
            assert last is None or now - last >= BETWEEN_WRITES_SECONDS - ROUNDING
            policy.written(now, "uid-1", report)
            last, said = now, report
        else:
            policy.failed(now, 5.0)


def test_an_unchanged_status_is_written_within_five_minutes() -> None:
    policy = WritePolicy(max)
    policy.written(0, "uid-1", BASE)
    assert policy.wait(299, "uid-1", BASE, LIMITS) == pytest.approx(1)
    assert policy.wait(300, "uid-1", BASE, LIMITS) == 0


def test_a_recreated_object_gets_the_report() -> None:
    policy = WritePolicy()
    policy.written(0, "uid-1", BASE)
    assert policy.wait(2, "uid-2", BASE, LIMITS) == 0


def test_a_failed_write_stays_due() -> None:
    policy = WritePolicy()
    policy.failed(0, 2)
    assert policy.wait(1, "uid-1", BASE, LIMITS) == 1
    assert policy.wait(2, "uid-1", BASE, LIMITS) == 0


@pytest.mark.rule("H2")
def test_the_generation_of_an_earlier_object_is_not_reported_for_a_new_one() -> None:
    configuration = Configuration.parse({}, "uid-1", 7)
    snapshot = Snapshot(status(observed_generation=7), configuration)
    assert report_on(snapshot, "uid-1").observed_generation == 7
    assert "observedGeneration" not in report_on(snapshot, "uid-2").to_wire()


class Client:
    """Fails as often as told, then remembers what it is given."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.written: list[tuple[str, Mapping[str, Any]]] = []

    def replace_status(self, uid: str, status: Mapping[str, Any]) -> None:
        if self.failures:
            self.failures -= 1
            raise ApiError("refused")
        self.written.append((uid, status))


def eventually(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running(client: Client) -> tuple[StatusWriter, SnapshotBoard, list[str]]:
    board, events = SnapshotBoard(), list[str]()
    reporter = StatusWriter(
        cast(NodePinConfigClient, client),
        board,
        failed=lambda: events.append("failed"),
        succeeded=lambda: events.append("written"),
    )
    threading.Thread(target=reporter.run, daemon=True).start()
    return reporter, board, events


def test_the_thread_writes_to_an_existing_object_until_it_succeeds() -> None:
    client = Client(failures=2)
    reporter, board, events = running(client)
    board.publish(Snapshot(BASE, Configuration.parse({}, "uid-1", 1)))
    assert not client.written
    reporter.announce("uid-1")
    eventually(lambda: client.written)
    assert client.written[0] == ("uid-1", BASE.to_wire())
    assert events == ["failed", "failed", "written"]


def test_the_thread_writes_nothing_without_an_object_or_a_configuration() -> None:
    client = Client()
    reporter, board, _ = running(client)
    reporter.announce("uid-1")
    board.publish(Snapshot(BASE))
    board.publish(Snapshot(BASE, Configuration.parse({}, "uid-1", 1)))
    eventually(lambda: client.written)
    reporter.announce(None)
    changed = status(observed_generation=2)
    board.publish(Snapshot(changed, Configuration.parse({}, "uid-1", 2)))
    reporter.announce("uid-1")
    eventually(lambda: len(client.written) == 2)
    assert [body["observedGeneration"] for _, body in client.written] == [1, 2]
