"""What the agent serves: metrics and health over HTTP, and its status over a root-only socket."""

import json
import socket
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pinwarden.api.nodepinconfig import (
    BorrowReport,
    GroupReport,
    NodePinConfigStatus,
    PodReport,
    SourceLevel,
)
from pinwarden.api.pinlimit import Level, Source
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.cli.status import ask
from pinwarden.node.agent.http_server import Pulse, WebServer
from pinwarden.node.agent.metrics import Metrics
from pinwarden.node.agent.status_socket import StatusSocket
from pinwarden.node.agent.threads import Snapshot, SnapshotBoard
from pinwarden.node.state.config import Configuration, Problem

LIMIT = {"name": "ns/a", "uid": "u1", "scope": "Pod", "limit": 4096}
CONFIGURATION = Configuration.parse(
    {"limits": [LIMIT], "pods": [{"uid": "p1", "limits": ["ns/a"]}, {"uid": "free"}]}, "uid-1", 7
)
BORROWERS = [BorrowReport(pod=uid, member=True, borrowed=4096, mapped=8192) for uid in ("p1", "p2")]
REPORT = NodePinConfigStatus(
    observed_generation=7,
    sources=[
        SourceLevel(source=source, counted=True, level=Level.CONVERGE, reason="RlimitGate")
        for source in Source
    ],
    pods=[
        PodReport(
            uid="p1", vm_lck=4096, vm_pin=8192, peak=12288, processes=2, level=Level.CONVERGE
        ),
        PodReport(uid="p2", vm_lck=1, vm_pin=0, peak=1, processes=1, level=Level.OBSERVE),
    ],
    groups=[
        GroupReport(uid="g", phase=Phase.ACTIVE, charge=8192, orphaned=0, borrowers=BORROWERS),
        GroupReport(uid="h", phase=Phase.PENDING),
    ],
    sampled_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def pod_report(uid: str) -> PodReport:
    return PodReport(uid=uid, vm_lck=0, vm_pin=0, peak=0, processes=1, level=Level.CONVERGE)


@pytest.fixture
def board() -> SnapshotBoard:
    return SnapshotBoard()


def values(text: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Each series by its name and the values of its labels, in the order of the labels' names."""
    families = text_string_to_metric_families(text.decode())
    return {
        (s.name, tuple(value for _, value in sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
    }


def test_metrics_show_the_snapshot(board: SnapshotBoard) -> None:
    metrics = Metrics(board)
    board.publish(Snapshot(REPORT, CONFIGURATION, Problem("x")))
    metrics.failed("watch")
    metrics.status_written()
    metrics.ticked(0.002)
    found = values(metrics.render())
    expected = {
        ("governed_pinned_bytes", ("locked",)): 4097,
        ("governed_pinned_bytes", ("pinned",)): 8192,
        ("governed_pods", ("Converge",)): 1,
        ("governed_pods", ("Deny",)): 0,
        ("governed_processes", ()): 3,
        ("shared_groups", ("Active",)): 1,
        ("shared_groups", ("Pending",)): 1,
        ("shared_groups", ("Draining",)): 0,
        ("shared_charge_bytes", ()): 8192,
        ("shared_orphaned_bytes", ()): 0,
        ("shared_borrowed_bytes", ()): 8192,
        ("source_level", ("true", "Converge", "Rdma")): 1,
        ("configuration_generation", ()): 7,
        ("configuration_problem", ()): 1,
        ("failures_total", ("watch",)): 1,
        ("failures_total", ("list",)): 0,
        ("status_writes_total", ()): 1,
        ("tick_seconds_count", ()): 1,
        ("sampled_timestamp_seconds", ()): REPORT.sampled_at.timestamp()
        if REPORT.sampled_at
        else None,
    }
    for (name, labels), value in expected.items():
        assert found[f"pinwarden_agent_{name}", labels] == value, name
    assert ("pinwarden_agent_shared_dead_cgroup_bytes", ()) not in found, "nothing tells it"
    assert len(found) < 100


@pytest.mark.rule("H2")
def test_unknown_values_are_absent(board: SnapshotBoard) -> None:
    found = {name for name, _ in values(Metrics(board).render())}
    assert "pinwarden_agent_failures_total" in found
    assert not {
        name for name in found if "pinned" in name or "generation" in name or "sampled" in name
    }


@pytest.fixture
def web(board: SnapshotBoard) -> Iterator[WebServer]:
    with WebServer("127.0.0.1", 0, Pulse(), Metrics(board).render) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(web: WebServer, path: str) -> int:
    url = f"{web.url}{path}"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def test_health_follows_the_main_loop(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (get(web, "/readyz"), get(web, "/healthz")) == (503, 503)
    web.pulse.beat()
    assert (get(web, "/readyz"), get(web, "/healthz?verbose")) == (200, 200)
    monkeypatch.setattr("pinwarden.node.agent.http_server.READY_SECONDS", 0.0)
    assert (get(web, "/readyz"), get(web, "/healthz")) == (503, 200)
    assert (get(web, "/metrics"), get(web, "/")) == (200, 404)


def test_silent_clients_do_not_block_others(web: WebServer) -> None:
    web.pulse.beat()
    address = cast(tuple[str, int], web.server_address[:2])
    silent = [socket.create_connection(address) for _ in range(8)]
    assert get(web, "/healthz") == 200
    for one in silent:
        one.close()


def test_an_own_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bytes:
        raise ValueError("no such metric")

    with WebServer("127.0.0.1", 0, Pulse(), broken) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with pytest.raises(ConnectionError):
            get(server, "/metrics")
        server.shutdown()
        thread.join()
    assert "no such metric" in caplog.text


@pytest.mark.parametrize(("address", "client"), [("", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")])
def test_all_addresses_are_served_by_default(
    board: SnapshotBoard, address: str, client: str
) -> None:
    with WebServer(address, 0, Pulse(), Metrics(board).render) as server:
        socket.create_connection((client, server.socket.getsockname()[1])).close()
        assert server.url.startswith("http://")


@pytest.fixture
def status_path(tmp_path: Path, board: SnapshotBoard) -> Path:
    path = tmp_path / "run" / "agent.sock"
    threading.Thread(target=StatusSocket(path, "node-1", board).run, daemon=True).start()
    return path


def test_the_socket_answers_with_the_report_and_the_configuration(
    status_path: Path, board: SnapshotBoard
) -> None:
    assert ask(status_path) == {"node": "node-1"}
    board.publish(
        Snapshot(REPORT, CONFIGURATION, Problem("generation 8: no"), limit_names={"p1": ("ns/a",)})
    )
    answer = ask(status_path)
    assert answer["report"] == json.loads(json.dumps(REPORT.to_wire()))
    assert (answer["generation"], answer["problem"]) == (7, "generation 8: no")
    assert answer["configuration"]["pods"] == [{"uid": "p1", "limits": ["ns/a"], "containers": []}]
    assert answer["limitsOf"] == {"p1": ["ns/a"], "p2": []}
    assert answer["sampledSecondsAgo"] >= 0


def test_the_socket_is_for_root_and_replaces_an_earlier_one(
    status_path: Path, board: SnapshotBoard
) -> None:
    assert stat.S_IMODE(status_path.stat().st_mode) == 0o600
    StatusSocket(status_path, "node-2", board)
    assert stat.S_IMODE(status_path.stat().st_mode) == 0o600


def test_a_missing_agent_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask(tmp_path / "none.sock")
    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "dead.sock"))
    with pytest.raises(ConnectionRefusedError):
        ask(tmp_path / "dead.sock")
