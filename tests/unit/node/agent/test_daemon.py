"""A failed start prints one line with the option or file, and exits with code 1."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinwarden.cli.main import main


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """The command sends this process's log to where stderr is now."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    cgroups = tmp_path / "cgroup"
    cgroups.mkdir()
    (cgroups / "cgroup.controllers").write_text("")
    (cgroups / "cgroup.procs").write_text("")
    (tmp_path / "config").mkdir()
    return [
        "agent",
        "--node=n",
        "--gates=none",
        "--metrics-port=-1",
        f"--state-dir={tmp_path / 'state'}",
        f"--socket={tmp_path / 'agent.sock'}",
        f"--cgroup-root={cgroups}",
        f"--config={tmp_path / 'config'}",
    ]


def refusal(options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(options) == 1
    (line,) = [
        one for one in capsys.readouterr().err.splitlines() if one.startswith("pinwarden agent: ")
    ]
    return line


def test_a_port_in_use_is_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal([*options, "--metrics-address=127.0.0.1", f"--metrics-port={port}"], capsys)
    assert line == f"pinwarden agent: --metrics-port {port}: Address already in use"


def test_a_failed_socket_is_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal([*options, "--socket=/proc/none/agent.sock"], capsys)
    assert line.startswith("pinwarden agent: --socket /proc/none/agent.sock: ")


def test_a_missing_cgroup_hierarchy_is_named(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal([*options, f"--cgroup-root={tmp_path / 'config'}"], capsys)
    assert "no cgroup hierarchy is mounted there" in line


def test_a_missing_api_server_is_named(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "use --kubeconfig or --config" in refusal(options[:-1], capsys)


def test_release_without_the_rlimit_gate_fails(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal([*options, "--release"], capsys)
    assert (
        line == "pinwarden agent: cannot restore any process: "
        "the rlimit gate is turned off (--gates none)"
    )


def test_a_failed_state_folder_is_named(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "/proc/none" in refusal([*options, "--state-dir=/proc/none"], capsys)
