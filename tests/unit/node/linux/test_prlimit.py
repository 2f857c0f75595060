"""RLIMIT_MEMLOCK of child processes, on the running kernel."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinwarden.node.linux.prlimit import (
    UNLIMITED,
    GateAbility,
    Limits,
    ProcessHandle,
    prlimit_memlock,
    probe,
)
from pinwarden.node.linux.procfs import StatusReader

PROC = Path("/proc")
IPC_LOCK = 1 << 14
SYS_RESOURCE = 1 << 24
IDENTITY = "         0          0 4294967295\n"
PAGE = resource.getpagesize()


def start_child() -> subprocess.Popen[bytes]:
    """Waits until its standard input ends."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = start_child()
    yield process
    end(process)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = start_child()
    yield process
    end(process)


def kernel_view(pid: int) -> list[str]:
    text = (PROC / str(pid) / "limits").read_text()
    line = next(line for line in text.splitlines() if line.startswith("Max locked memory"))
    return line.split()[3:5]


def children() -> set[str]:
    return set((PROC / "self/task" / str(os.getpid()) / "children").read_text().split())


def lower_soft(limits: Limits) -> Limits:
    assert limits.hard >= 2 * PAGE, "the test needs a hard limit of two pages"
    return Limits(PAGE, limits.hard)


def test_set_changes_the_process_and_returns_the_previous_limits(
    child: subprocess.Popen[bytes],
) -> None:
    with StatusReader(PROC, child.pid) as reader, ProcessHandle(reader) as handle:
        assert handle.key == reader.key
        before = handle.get()
        wanted = lower_soft(before)
        assert handle.set(wanted) == before
        assert handle.get() == wanted
        hard = "unlimited" if before.hard == UNLIMITED else str(before.hard)
        assert kernel_view(child.pid) == [str(PAGE), hard]
        assert handle.set(before) == wanted
        assert handle.get() == before


def test_unlimited_is_set_and_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def record(pid: int, which: int, limits: tuple[int, int]) -> tuple[int, int]:
        seen.append(limits)
        return (4096, resource.RLIM_INFINITY)

    monkeypatch.setattr(resource, "prlimit", record)
    assert prlimit_memlock(1, Limits(8192, UNLIMITED)) == Limits(4096, UNLIMITED)
    assert seen == [(8192, resource.RLIM_INFINITY)]


def test_gone_process_is_not_opened(child: subprocess.Popen[bytes]) -> None:
    with StatusReader(PROC, child.pid) as reader:
        end(child)
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ProcessLookupError):
            ProcessHandle(reader)
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_reused_id_is_not_opened(
    child: subprocess.Popen[bytes], bystander: subprocess.Popen[bytes]
) -> None:
    with StatusReader(PROC, child.pid) as reader:
        end(child)
        reader.key = reader.key._replace(pid=bystander.pid)
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ProcessLookupError):
            ProcessHandle(reader)
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_gone_process_is_not_changed(child: subprocess.Popen[bytes]) -> None:
    calls: list[int] = []

    def count(pid: int, limits: Limits | None) -> Limits:
        calls.append(pid)
        return Limits(0, 0)

    with StatusReader(PROC, child.pid) as reader, ProcessHandle(reader, count) as handle:
        end(child)
        with pytest.raises(ProcessLookupError):
            handle.get()
        with pytest.raises(ProcessLookupError):
            handle.set(Limits(0, 0))
    assert calls == []


@pytest.mark.rule("P14")
def test_process_with_a_reused_id_has_its_limits_restored(
    child: subprocess.Popen[bytes], bystander: subprocess.Popen[bytes]
) -> None:
    """The process exits during the call, and the bystander has its id from then on."""
    before = prlimit_memlock(bystander.pid)
    wanted = lower_soft(before)
    calls: list[Limits | None] = []

    def reused(pid: int, limits: Limits | None) -> Limits:
        assert pid == child.pid
        if not calls:
            end(child)
        calls.append(limits)
        return prlimit_memlock(bystander.pid, limits)

    with (
        StatusReader(PROC, child.pid) as reader,
        ProcessHandle(reader, reused) as handle,
        pytest.raises(ProcessLookupError),
    ):
        handle.set(wanted)
    assert calls == [wanted, None, before]
    assert prlimit_memlock(bystander.pid) == before


@pytest.mark.rule("P14")
def test_unchanged_process_with_a_reused_id_keeps_its_limits(
    child: subprocess.Popen[bytes], bystander: subprocess.Popen[bytes]
) -> None:
    """The process exits just after the call, and the bystander has its id at the undo."""
    start = prlimit_memlock(bystander.pid)
    own = Limits(0, start.hard)
    prlimit_memlock(bystander.pid, own)

    def reused(pid: int, limits: Limits | None) -> Limits:
        if child.returncode is None:
            previous = prlimit_memlock(pid, limits)
            end(child)
            return previous
        return prlimit_memlock(bystander.pid, limits)

    with (
        StatusReader(PROC, child.pid) as reader,
        ProcessHandle(reader, reused) as handle,
        pytest.raises(ProcessLookupError),
    ):
        handle.set(lower_soft(start))
    assert prlimit_memlock(bystander.pid) == own


def test_denial_for_another_process_is_reported_as_gone(child: subprocess.Popen[bytes]) -> None:
    def refused(pid: int, limits: Limits | None) -> Limits:
        end(child)
        raise PermissionError

    with (
        StatusReader(PROC, child.pid) as reader,
        ProcessHandle(reader, refused) as handle,
        pytest.raises(ProcessLookupError),
    ):
        handle.get()


@pytest.mark.rule("H1")
def test_probe_agrees_with_the_capabilities() -> None:
    before = children()
    status = (PROC / "self/status").read_text()
    effective = int(
        next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16
    )
    initial = (PROC / "self/uid_map").read_text().split() == IDENTITY.split()
    ability = probe()
    assert ability.available == (bool(effective & SYS_RESOURCE) and initial)
    assert ("CAP_SYS_RESOURCE" in ability.reason) == (not ability.available)
    assert children() == before


@pytest.mark.rule("H1")
def test_probe_with_a_working_raise_is_available() -> None:
    limits = Limits(PAGE, UNLIMITED)

    def permitted(pid: int, wanted: Limits | None) -> Limits:
        nonlocal limits
        previous, limits = limits, wanted or limits
        return previous

    assert probe(permitted) == GateAbility(True)


@pytest.mark.rule("H1")
def test_probe_without_an_effect_is_not_available() -> None:
    before = children()
    ability = probe(lambda pid, wanted: Limits(PAGE, PAGE))
    assert not ability.available
    assert "do not change" in ability.reason
    assert children() == before


def test_probe_that_fails_leaves_no_child() -> None:
    before = children()

    def broken(pid: int, wanted: Limits | None) -> Limits:
        raise OSError("no such call")

    with pytest.raises(OSError, match="no such call"):
        probe(broken)
    assert children() == before
