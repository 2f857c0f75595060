"""The process of the plugin, with a holder and a runtime that are only sockets."""

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinwarden.cli.probe import _nri_failure
from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.nri.adjustment import GateMode, Rules
from pinwarden.node.nri.daemon import NriSettings, _NriProcess
from pinwarden.node.nri.protocol import PLUGIN, REQUEST, RUNTIME, Decoder, Message, encode
from pinwarden.node.nri.wire import encode as message
from pinwarden.node.state import nri_status
from pinwarden.node.state.nri_status import LoweredLimits, NriStatus
from pinwarden.node.state.statefile import StateFile

from ....waiting import until


@pytest.fixture
def settings(tmp_path: Path) -> NriSettings:
    return NriSettings(
        tmp_path / "nri.sock",
        tmp_path / "nodepinconfig.json",
        tmp_path,
        Rules(GateMode.GOVERNED, "pinwarden-system", "x86_64"),
    )


@pytest.fixture
def process(settings: NriSettings) -> Iterator[_NriProcess]:
    made = _NriProcess(settings)
    yield made
    made.close()


def listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(5)
    return listener


def turn_until(process: _NriProcess, holds: Callable[[], bool]) -> None:
    def holds_after_a_turn() -> bool:
        process.turn()
        return holds()

    until(holds_after_a_turn, "the process is so far", 20)


def status(settings: NriSettings) -> NriStatus:
    return nri_status.load(settings.run_dir / "nri.json")


@pytest.mark.rule("H1")
def test_plugin_without_a_holder_does_not_connect_and_says_why(
    process: _NriProcess, settings: NriSettings
) -> None:
    with listen(settings.socket, socket.SOCK_STREAM) as runtime:
        for _ in range(8):
            process.turn()
        runtime.setblocking(False)
        with pytest.raises(BlockingIOError):
            runtime.accept()
    assert "no holder answers" in status(settings).failure
    assert "no holder answers" in _nri_failure(settings.run_dir)


def test_plugin_with_a_holder_registers_and_leaves_with_it(
    process: _NriProcess, settings: NriSettings
) -> None:
    holder = listen(settings.run_dir / "holder.sock", socket.SOCK_SEQPACKET)
    with listen(settings.socket, socket.SOCK_STREAM) as runtime:
        process.turn()
        connection, _ = runtime.accept()
        (sent,) = Decoder().feed(connection.recv(4096))
        assert isinstance(sent, Message)
        assert sent.connection == RUNTIME
        assert "has not configured" in _nri_failure(settings.run_dir)
        holder.close()
        turn_until(process, lambda: bool(status(settings).failure))
        assert connection.recv(4096) == b""
        connection.close()


def test_plugin_connects_as_soon_as_a_holder_listens_again(
    process: _NriProcess, settings: NriSettings
) -> None:
    for _ in range(20):
        process.turn()
    assert process._next_connect == float("-inf")
    with listen(settings.run_dir / "holder.sock", socket.SOCK_SEQPACKET):
        process._next_check = float("-inf")
        with listen(settings.socket, socket.SOCK_STREAM) as runtime:
            process.turn()
            runtime.accept()[0].close()


def test_plugin_whose_runtime_restarts_connects_again(
    process: _NriProcess, settings: NriSettings
) -> None:
    with listen(settings.run_dir / "holder.sock", socket.SOCK_SEQPACKET):
        process.turn()
        assert "cannot connect" in status(settings).failure
        with listen(settings.socket, socket.SOCK_STREAM) as runtime:
            turn_until(process, lambda: process._plugin is not None)
            assert "cannot connect" in status(settings).failure
            runtime.accept()[0].close()
            turn_until(process, lambda: "disconnected" in status(settings).failure)
            turn_until(process, lambda: process._plugin is not None)


@pytest.mark.rule("H1")
def test_runtime_that_is_too_old_is_named_by_probe_and_log(
    process: _NriProcess, settings: NriSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """containerd 2.1 sends no NRI version. It never gets an answer, and so asks nothing more."""
    request = message({2: "Configure", 3: message({2: "containerd", 3: "v2.1.4"})})
    with (
        listen(settings.run_dir / "holder.sock", socket.SOCK_SEQPACKET),
        listen(settings.socket, socket.SOCK_STREAM) as runtime,
    ):
        process.turn()
        for _ in range(2):
            turn_until(process, lambda: bool(select.select([runtime], [], [], 0)[0]))
            connection, _ = runtime.accept()
            with connection:
                connection.sendall(encode(Message(PLUGIN, 1, REQUEST, request)))
                turn_until(process, lambda: process._plugin is None)
    expected = "containerd v2.1.4 does not pass the seccomp policies of containers to its plugins"
    assert expected in _nri_failure(settings.run_dir)
    assert caplog.text.count(expected) == 1


def test_configuration_that_changes_is_followed_and_a_damaged_one_ignored(
    process: _NriProcess, settings: NriSettings
) -> None:
    file = StateFile(settings.configuration, 1)
    file.save({"uid": "u", "generation": 1, "spec": {"pods": [{"uid": "a", "limits": ["x"]}]}})
    process.turn()
    assert process._node.governed == {"a"}
    settings.configuration.write_text("{")
    process.turn()
    assert process._node.governed == {"a"}
    assert settings.configuration.exists()


@pytest.mark.rule("H3")
def test_next_plugin_keeps_the_lowered_limits_of_containers(settings: NriSettings) -> None:
    lowered = {"id": LoweredLimits("uid", Limits(8, 8), Limits(4, 4))}
    nri_status.save(settings.run_dir / "nri.json", NriStatus("containerd", lowered=lowered))
    process = _NriProcess(settings)
    process.turn()
    assert status(settings).lowered == lowered
    process.close()
    assert status(settings).lowered == lowered
    (settings.run_dir / "nri.json").write_text("{")
    assert not _NriProcess(settings)._lowered


@pytest.mark.rule("H1")
def test_probe_of_a_node_without_a_living_plugin_says_so(tmp_path: Path) -> None:
    assert "no NRI plugin runs" in _nri_failure(tmp_path)
    nri_status.save(tmp_path / "nri.json", NriStatus("containerd 2.4.2"))
    assert _nri_failure(tmp_path) == ""
    old = time.time() - 60
    os.utime(tmp_path / "nri.json", (old, old))
    assert "does not run" in _nri_failure(tmp_path)
