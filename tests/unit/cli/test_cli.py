"""The command line: exit codes and output as kubectl users expect them."""

import json
import logging
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from pinwarden.api.nodepinconfig import (
    BorrowReport,
    GroupReport,
    LimitDenials,
    NodePinConfigStatus,
    OvershootReport,
    PodReport,
    UnsupportedReport,
)
from pinwarden.api.pinlimit import Level
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.cli.log_format import JsonFormatter, TextFormatter
from pinwarden.cli.main import main
from pinwarden.cli.status import to_text
from pinwarden.common.table import render
from pinwarden.node.agent.status_socket import StatusSocket
from pinwarden.node.agent.threads import Snapshot, SnapshotBoard
from pinwarden.node.state.config import Configuration

SPEC = {
    "limits": [
        {"name": "ns/a", "uid": "u1", "scope": "Pod", "limit": 4096},
        {"name": "b", "uid": "u2", "scope": "Pod", "limit": 8192, "enforcement": "Audit"},
    ],
    "pods": [{"uid": "p1", "limits": ["ns/a", "b"]}],
    "groups": [
        {
            "name": "ns/cache",
            "uid": "g1",
            "backing": {"tmpfs": {}},
            "management": "Create",
            "accounting": "Borrow",
            "fairShare": "Borrow",
            "members": [
                {"pods": ["p1"], "borrowLimit": 8192},
                {"pods": ["p1"], "borrowLimit": 4096},
            ],
        }
    ],
}
REPORT = NodePinConfigStatus(
    observed_generation=7,
    agent_version="0.1.0",
    cgroup_version="v2",
    pods=[
        PodReport(
            uid="p1",
            vm_lck=0,
            vm_pin=4096,
            peak=8192,
            processes=1,
            level=Level.OBSERVE,
            reason="Why",
            denials=[LimitDenials(uid="u1", count=12)],
        )
    ],
    groups=[
        GroupReport(
            uid="g1",
            phase=Phase.ACTIVE,
            objects=1,
            charge=16384,
            borrowers=[
                BorrowReport(
                    pod="p1",
                    member=True,
                    borrowed=4096,
                    mapped=8192,
                    level=Level.CONVERGE,
                    denials=3,
                ),
                BorrowReport(pod="p7", member=False, borrowed=4096, mapped=4096),
            ],
        )
    ],
    unsupported_limits=[
        UnsupportedReport(uid="u9", reason="Unsupported", message="burst: unknown")
    ],
    overshoots=[
        OvershootReport.model_validate(
            {
                "limit": "u1",
                "pod": "p1",
                "peak": 4096,
                "seconds": 0.5,
                "count": 2,
                "lastTime": "2026-01-01T00:00:00Z",
            }
        )
    ],
)


def test_a_table_is_aligned_and_says_what_is_absent() -> None:
    assert render(("A", "LONG"), [("x", None), ("yyy", 0)]) == "A     LONG\nx     -\nyyy   0\n"


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    board = SnapshotBoard()
    board.publish(
        Snapshot(REPORT, Configuration.parse(SPEC, "uid-1", 7), limit_names={"p1": ("ns/a", "b")})
    )
    path = tmp_path / "agent.sock"
    threading.Thread(target=StatusSocket(path, "node-1", board).run, daemon=True).start()
    return path


def cells(text: str, first: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(first)]


def test_status_prints_each_limit_of_each_subject(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--socket", str(agent)]) == 0
    text = capsys.readouterr().out
    assert cells(text, "p1") == [
        ["p1", "ns/a", "Pod", "4Ki", "Enforce", "0", "4Ki", "8Ki", "1", "12", "Observe", "Why"],
        ["p1", "b", "Pod", "8Ki", "Audit", "0", "4Ki", "8Ki", "1", "0", "Observe", "Why"],
    ]
    assert cells(text, "Generation:") == [["Generation:", "7"]]
    assert cells(text, "u9") == [["u9", "Unsupported", "burst:", "unknown"]]
    assert cells(text, "u1") == [["u1", "p1", "4Ki", "0.5", "2", "2026-01-01T00:00:00Z"]]


@pytest.mark.rule("M3", "H2")
def test_status_prints_charge_and_borrows(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--socket", str(agent)]) == 0
    assert cells(capsys.readouterr().out, "ns/cache") == [
        ["ns/cache", "tmpfs", "Active", "1", "16Ki", "-", "-", "-", "-"],
        ["ns/cache", "p1", "yes", "4Ki", "8Ki", "4Ki", "3", "Converge", "-"],
        ["ns/cache", "p7", "no", "4Ki", "4Ki", "-", "-", "-", "-"],
    ]


@pytest.mark.rule("H2")
def test_status_labels_samples_and_lower_bounds(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--socket", str(agent)]) == 0
    (sampled,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("Sampled:")
    ]
    assert sampled.endswith("s ago; peaks and overshoots are lower bounds")


def test_status_as_json(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--socket", str(agent), "-o", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"]["pods"][0]["vmPin"] == 4096


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"node": "n"}, "Node n: the agent has not sampled yet\n"),
        (
            {"node": "n", "report": {}, "sampledSecondsAgo": 0.1},
            "No governed subject exists on this node.",
        ),
        ({"node": "n", "report": {"truncated": True}, "sampledSecondsAgo": 0.1}, "Truncated:"),
        (
            {"node": "n", "report": {}, "sampledSecondsAgo": 0.1, "problem": "spec.mode"},
            "Problem:     spec.mode",
        ),
    ],
)
def test_status_of_an_agent_that_knows_little(answer: dict[str, Any], text: str) -> None:
    assert text in to_text(answer)


def test_status_without_an_agent_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--socket", str(tmp_path / "none.sock")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err == f"pinwarden status: no agent answers at {tmp_path}/none.sock: "
        "No such file or directory\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["agent", "--gates", "x"],
        ["agent", "--kubeconfig", "a", "--config", "b"],
        ["status", "-o", "yaml"],
        ["operator", "--namespace", "a", "--unknown-pods", "0"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def record(message: str, *arguments: object, **more: Any) -> logging.LogRecord:
    return logging.LogRecord(
        "pinwarden.x", logging.WARNING, "f", 1, message, arguments, more.get("exc_info")
    )


def test_a_log_line_as_json_is_one_object_also_with_a_trace() -> None:
    error = ValueError("broken")
    line = JsonFormatter().format(record("a %s", "b\nc", exc_info=(ValueError, error, None)))
    entry = json.loads(line)
    assert "\n" not in line
    assert (entry["level"], entry["logger"], entry["message"]) == (
        "warning",
        "pinwarden.x",
        "a b\nc",
    )
    assert entry["time"].endswith("Z")
    assert "ValueError: broken" in entry["exception"]


def test_a_log_line_as_text() -> None:
    assert TextFormatter().format(record("a %s", "b")).endswith("Z WARNING pinwarden.x: a b")


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("agent", "pinwarden.node.agent.daemon.run"),
        ("gate", "pinwarden.node.gate.daemon.run"),
        ("holder", "pinwarden.node.holder.daemon.run"),
        ("accountant", "pinwarden.node.accountant.daemon.run"),
    ],
)
def test_a_program_on_a_node_may_have_all_the_descriptors_that_it_could(
    command: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container runtime's soft limit is 1024, and a node has more processes than that."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    found: list[tuple[int, int]] = []

    def run(*_: object) -> bool:
        found.append(resource.getrlimit(resource.RLIMIT_NOFILE))
        return True

    monkeypatch.setattr(where, run)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
    try:
        assert main([command]) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found == [(before[1], before[1])]


def test_uninstall_from_nodes_that_require_the_nri_plugin_fails_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    assert main(["uninstall", "--nri-required"]) == 1
    error = capsys.readouterr().err
    assert "take required_plugins out of containerd's configuration" in error
    assert "gate.nri.tolerationAnnotation to empty" in error
