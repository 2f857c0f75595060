"""A holder, and a gate's connection to a holder, in a process without free descriptors."""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinwarden.common.guard import Guard
from pinwarden.node.gate.daemon import GateSettings, _GateProcess
from pinwarden.node.gate.dispatcher import Dispatcher
from pinwarden.node.holder import daemon, protocol
from pinwarden.node.holder.daemon import Holder
from pinwarden.node.holder.protocol import MESSAGE_BYTES, Packet, PacketKind

ROOM = 32


@contextmanager
def full() -> Iterator[list[int]]:
    """Use up all descriptors. The test closes those in the list to make room."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + ROOM, before[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken:
            os.close(descriptor)


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holder]:
    monkeypatch.setattr(daemon, "PAUSE_SECONDS", 0.0)
    holder = Holder(tmp_path / "runtime", tmp_path / "gates")
    yield holder
    holder.close()


def test_listener_without_room_for_a_descriptor_waits_for_room(
    holder: Holder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as resources:
        read, write = os.pipe()
        resources.callback(os.close, read)
        with full() as taken:
            os.close(taken.pop())
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as runtime:
                runtime.connect(str(tmp_path / "runtime"))
                socket.send_fds(runtime, [b"{}"], [write])
                holder.turn(0)
                assert "has to wait" in caplog.text
            os.close(write)  # the only copy is on its way
            for _ in range(3):
                holder.turn(0)
            assert "its listener cannot be received" in caplog.text
            assert holder.listener_count == 0
        for _ in range(3):
            holder.turn(0)
    assert holder.listener_count == 1
    assert "lost" not in caplog.text


def test_gate_without_room_for_a_descriptor_waits_for_room(holder: Holder, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gate:
        with full():
            gate.connect(str(tmp_path / "gates"))
            holder.turn(0)
        protocol.send(gate, Packet(PacketKind.GATE))
        holder.turn(0)
        packet = protocol.receive(gate)
    assert packet is not None
    assert packet.kind is PacketKind.COMPLETE


def test_packet_without_its_descriptor_is_rejected() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        protocol.send(here, Packet(PacketKind.LISTENER, 1, b"{}", (0,)))
        with full(), pytest.raises(OSError, match="no room"):
            protocol.receive(there)


def test_listener_without_its_descriptor_is_logged_by_the_gate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = GateSettings(tmp_path / "configuration", tmp_path, tmp_path, tmp_path)
    _GateProcess(where, cast(Dispatcher, None), Guard(["packet"]))._take(
        Packet(PacketKind.LISTENER, 1, b"{}")
    )
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def send_as_runtime(path: Path, data: bytes, files: list[int]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as runtime:
        runtime.connect(str(path))
        socket.send_fds(runtime, [data], files)


def test_descriptor_that_is_not_a_listener_is_closed(
    holder: Holder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read, write = os.pipe()
    with (tmp_path / "file").open("w") as file, ExitStack() as resources:
        resources.callback(os.close, read)
        before = open_files()
        send_as_runtime(tmp_path / "runtime", b"{}", [file.fileno()])
        send_as_runtime(tmp_path / "runtime", b"{}", [write])
        os.close(write)
        for _ in range(6):
            holder.turn(0)
        assert holder.listener_count == 1
    assert "not a listener" in caplog.text
    for _ in range(3):
        holder.turn(0)
    assert holder.listener_count == 0, "a pipe without a reader is reported as an error"
    assert open_files() == before - 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=100)
    | st.sampled_from([b"x" * (MESSAGE_BYTES + 1), b"\x03" + bytes(8), b"\x01"]),
    files=st.integers(0, 8),
    runtime=st.booleans(),
)
def test_any_data_ends_no_holder_and_leaks_no_descriptor(
    holder: Holder, data: bytes, files: int, runtime: bool
) -> None:
    kept, before = holder.listener_count, open_files()
    with Path("/dev/null").open() as null:
        kind = socket.SOCK_STREAM if runtime else socket.SOCK_SEQPACKET
        address = (holder._runtime if runtime else holder._gates).getsockname()
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(address)
            with suppress(OSError):
                socket.send_fds(client, [data], [null.fileno()] * files)
        for _ in range(6):
            holder.turn(0)
    holder._drop_gate()
    assert open_files() == before
    assert holder.listener_count == kept
