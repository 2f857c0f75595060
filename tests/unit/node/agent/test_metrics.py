"""The agent's metrics of its node: few by default, per pod on request, and no unknown value."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring import catalogue
from pinwarden.api.nodepinconfig import (
    BorrowReport,
    FairReport,
    GroupReport,
    LimitDenials,
    NodePinConfigStatus,
    PodReport,
    SourceLevel,
)
from pinwarden.api.pinlimit import Level, Source
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.controller.metrics_totals import REASONS
from pinwarden.node.agent.metrics import Metrics
from pinwarden.node.agent.threads import Snapshot, SnapshotBoard
from pinwarden.node.pods.policy import reported_name
from pinwarden.node.state.config import Configuration

Found = dict[tuple[str, ...], float]


def pod(uid: str, reason: str = "Audit", denials: list[LimitDenials] | None = None) -> PodReport:
    held = {"level": Level.OBSERVE, "reason": reason, "denials": denials}
    return PodReport(uid=uid, vm_lck=4096, vm_pin=1, peak=9000, processes=2, **held)


def snapshot(*pods: PodReport) -> Snapshot:
    borrow = BorrowReport(pod="p0", member=True, borrowed=5)
    report = NodePinConfigStatus(
        pods=list(pods),
        sources=[
            SourceLevel(source=each, counted=True, level=Level.OBSERVE, reason="X")
            for each in Source
        ],
        groups=[
            GroupReport(
                uid="g", phase=Phase.ACTIVE, charge=1, orphaned=1, dead=1, borrowers=[borrow]
            )
        ],
        fair_view=[FairReport(pod="p0", current=10, anonymous=4, shared=3)],
        denials_dropped=0,
        sampled_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return Snapshot(report, Configuration.parse({"limits": [], "pods": []}, "uid", 7))


def rendered(metrics: Metrics) -> Found:
    """By name and values of labels, in the order of the labels' names."""
    families = text_string_to_metric_families(metrics.render().decode())
    samples = (sample for family in families for sample in family.samples)
    return {
        (each.name.removeprefix("pinwarden_agent_"), *each.labels.values()): each.value
        for each in samples
    }


def test_a_full_node_has_under_a_hundred_series(tmp_path: Path) -> None:
    records = {name: tmp_path / name for name in ("gate", "accountant")}
    for path in records.values():
        path.touch()
    board = SnapshotBoard()
    metrics = Metrics(board, records)
    board.publish(
        snapshot(*(pod(f"p{number}", REASONS[number % len(REASONS)]) for number in range(500)))
    )
    assert len(rendered(metrics)) < 100


def test_per_pod_metrics_are_optional() -> None:
    board = SnapshotBoard()
    metrics = Metrics(board, pods=True)
    board.publish(snapshot(pod("p0", denials=[LimitDenials(uid="u", count=2)]), pod("p1")))
    told = rendered(metrics)
    assert told["pod_pinned_bytes", "locked", "p0"] == 4096
    assert told["pod_pinned_bytes", "pinned", "p1"] == 1
    assert told["pod_level", "Observe", "Audit", "p0"] == 1
    assert told["pod_denials_total", "p0"] == 2
    assert ("pod_denials_total", "p1") not in told, "no gate holds it"
    assert told["pod_borrowed_bytes", "g", "p0"] == 5
    assert not [key for key in told if key[0] == "pod_mapped_bytes"]
    assert told["pod_fair_bytes", "shared", "p0"] == told["fair_bytes", "shared"] == 3


def test_a_directory_of_any_bytes_has_series() -> None:
    board = SnapshotBoard()
    metrics = Metrics(board, pods=True)
    board.publish(snapshot(pod(reported_name(os.fsdecode(b"x/\xff")))))
    ((uid, count),) = [
        (key[1], value) for key, value in rendered(metrics).items() if key[0] == "pod_processes"
    ]
    assert uid.startswith(r"x/\udcff~")
    assert count == 2


def test_heard_timestamps_are_the_times_of_the_state_files(tmp_path: Path) -> None:
    gate = tmp_path / "gate.json"
    metrics = Metrics(SnapshotBoard(), {"gate": gate, "accountant": tmp_path / "none"})
    assert not [key for key in rendered(metrics) if key[0] == "heard_timestamp_seconds"]
    gate.touch()
    os.utime(gate, (1000, 1000))
    heard = {
        key[1]: value
        for key, value in rendered(metrics).items()
        if key[0] == "heard_timestamp_seconds"
    }
    assert heard == {"gate": 1000}


@pytest.mark.rule("H2")
def test_a_missing_snapshot_leaves_only_the_agents_own_counters() -> None:
    told = {
        key[0]
        for key in rendered(Metrics(SnapshotBoard(), pods=True))
        if not key[0].startswith("process_")
    }
    assert told == {
        "build_info",
        "failures_total",
        "status_writes_total",
        *(f"tick_seconds_{each}" for each in ("bucket", "count", "sum")),
    }


def test_all_metrics_are_in_the_catalogue() -> None:
    board = SnapshotBoard()
    metrics = Metrics(board, pods=True)
    board.publish(snapshot(pod("p0", denials=[])))
    families = text_string_to_metric_families(metrics.render().decode())
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("pinwarden_"):
            known = catalogue.labels_of(sample.name)
            assert sample.labels.keys() == known.keys(), sample.name
            for label, value in sample.labels.items():
                assert isinstance(known[label], str) or value in known[label], (
                    sample.name,
                    label,
                    value,
                )
