"""Samples of real child processes that lock memory, end, and become zombies."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.linux.procfs import ProcessKey, StatusReader, parse_start_ticks, parse_status

PROC = Path("/proc")
PR_SET_NO_NEW_PRIVS = 38

# For each line of input: unlocks all, locks as many pages as the line says, and writes a line.
LOCKER = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
print("ready", flush=True)
for line in sys.stdin:
    libc.munlock(ctypes.c_void_p(start), ctypes.c_size_t(64 * mmap.PAGESIZE))
    if libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(int(line) * mmap.PAGESIZE)):
        sys.exit(f"mlock: errno {ctypes.get_errno()}")
    print("locked", flush=True)
"""

Child = subprocess.Popen[str]


@pytest.fixture
def locker() -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert _answer(child) == "ready"
            yield child
        finally:
            child.kill()


def _answer(child: Child) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _lock(child: Child, count: int) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{count}\n")
    child.stdin.flush()
    assert _answer(child) == "locked"


@pytest.mark.rule("P8")
def test_locked_bytes_follow_mlock_and_munlock(locker: Child) -> None:
    with StatusReader(PROC, locker.pid) as reader:
        for count in (0, 7, 64, 3):
            _lock(locker, count)
            assert reader.read().locked == count * os.sysconf("SC_PAGESIZE")
        assert reader.read().pinned == 0


def test_status_has_parent_threads_and_key(locker: Child) -> None:
    with StatusReader(PROC, locker.pid) as reader, StatusReader(PROC, os.getpid()) as own:
        status = reader.read()
        assert status.parent == os.getpid()
        assert status.threads == 1
        assert reader.key.pid == locker.pid
        assert reader.key.start_ticks >= own.key.start_ticks > 0


def test_capabilities_agree_with_the_kernel() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    pr_capbset_read, pr_get_no_new_privs = 23, 39
    bounding = sum(1 << cap for cap in range(64) if libc.prctl(pr_capbset_read, cap, 0, 0, 0) == 1)
    with StatusReader(PROC, os.getpid()) as reader:
        status = reader.read()
    assert status.cap_permitted == data[1] | data[4] << 32
    assert status.cap_inheritable == data[2] | data[5] << 32
    assert status.cap_bounding == bounding
    assert status.no_new_privs == bool(libc.prctl(pr_get_no_new_privs, 0, 0, 0, 0))


def test_no_new_privs_of_a_child_is_read() -> None:
    set_it = f"ctypes.CDLL(None).prctl({PR_SET_NO_NEW_PRIVS}, 1, 0, 0, 0)"
    code = f"import ctypes, sys; print({set_it}, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert _answer(child) == "0"
        with StatusReader(PROC, child.pid) as reader:
            assert reader.read().no_new_privs is True


@pytest.mark.rule("H2")
def test_zombie_has_no_locked_bytes_and_then_is_gone(locker: Child) -> None:
    _lock(locker, 5)
    with StatusReader(PROC, locker.pid) as reader:
        assert reader.read().locked == 5 * os.sysconf("SC_PAGESIZE")
        locker.kill()
        os.waitid(os.P_PID, locker.pid, os.WEXITED | os.WNOWAIT)
        zombie = reader.read()
        assert (zombie.locked, zombie.pinned) == (None, None)
        locker.wait()
        with pytest.raises(ProcessLookupError):
            reader.read()
    with pytest.raises(ProcessLookupError):
        StatusReader(PROC, locker.pid)


@pytest.mark.rule("H2")
def test_kernel_thread_has_no_locked_bytes() -> None:
    text = (
        b"Name:\tkthreadd\nPPid:\t0\nThreads:\t1\n"
        b"CapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\n"
        b"NoNewPrivs:\t0\n"
    )
    status = parse_status(text)
    assert (status.locked, status.pinned) == (None, None)
    assert status.cap_permitted == (1 << 41) - 1


def test_hostile_name_forges_no_line() -> None:
    code = (
        "import ctypes, sys\n"
        "print(ctypes.CDLL(None).prctl(15, b') R 9\\nVmLck:9', 0, 0, 0), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child,
        StatusReader(PROC, child.pid) as before,
    ):
        assert _answer(child) == "0"
        assert (PROC / str(child.pid) / "comm").read_bytes() == b") R 9\nVmLck:9\n"
        assert before.read().locked == 0
        with StatusReader(PROC, child.pid) as after:
            assert after.key == before.key


def test_status_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    groups = b" ".join(str(group).encode() for group in range(20000))
    own = (PROC / "self" / "status").read_bytes()
    process = tmp_path / "77"
    process.mkdir()
    (process / "stat").write_bytes((PROC / "self" / "stat").read_bytes())
    (process / "status").write_bytes(
        own.replace(b"\nVmLck:\t", b"\nGroups:\t" + groups + b"\nVmLck:\t")
    )
    with StatusReader(tmp_path, 77) as reader:
        assert reader.read() == parse_status(own)


def test_second_close_closes_no_other_descriptor() -> None:
    reader = StatusReader(PROC, os.getpid())
    reader.close()
    with open("/dev/null") as other:
        reader.close()
        os.fstat(other.fileno())


@pytest.mark.parametrize(
    "missing", [b"PPid", b"Threads", b"CapInh", b"CapPrm", b"CapBnd", b"NoNewPrivs"]
)
def test_missing_line_is_an_error(missing: bytes) -> None:
    own = (PROC / "self" / "status").read_bytes()
    with pytest.raises(ValueError, match=missing.decode()):
        parse_status(own.replace(b"\n" + missing + b":", b"\nOther:"))


@given(name=st.binary(max_size=15), start=st.integers(0, 2**63))
def test_start_time_is_found_after_any_name(name: bytes, start: int) -> None:
    fields = [b"S", *[b"1"] * 18, str(start).encode(), b"5", b"6"]
    text = b"12 (" + name + b") " + b" ".join(fields) + b"\n"
    assert ProcessKey(12, parse_start_ticks(text)) == (12, start)
