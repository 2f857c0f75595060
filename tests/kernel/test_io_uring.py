"""How the kernel counts io_uring, and per which user: facts of docs/how-to/io-uring-databases.md.

Runs inside the guest (`make test-kernel`), as root with every capability.
"""

import ctypes
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pinwarden.node.linux.procfs import read_thread_status

MIB = 1 << 20
SETUP, REGISTER, REGISTER_BUFFERS, NEWUSER = 425, 427, 0, 0x10000000
UID, APART = 4242, 104242
_libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def register(most: int, size: int) -> int:
    """Register buffers of this size, each with a ring, or only rings; return their number."""
    kept = []
    for _ in range(most):
        params = (ctypes.c_uint8 * 120)()
        ring = _libc.syscall(SETUP, 4, ctypes.byref(params))
        if ring < 0:
            break
        if size:
            area = mmap.mmap(-1, size)
            vector = Iovec(ctypes.addressof(ctypes.c_char.from_buffer(area)), size)
            if _libc.syscall(REGISTER, ring, REGISTER_BUFFERS, ctypes.byref(vector), 1):
                break
            kept.append(area)
        else:
            kept.append(ring)
    globals()["_kept"] = kept
    return len(kept)


Start = Callable[..., tuple[int, int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that keep their buffers: `start(uid, most, size)` gives pid and count."""
    with ExitStack() as stack:

        def run(uid: int, most: int, size: int, *, namespace: bool = False) -> tuple[int, int]:
            reading, writing = os.pipe()
            mapped_reading, mapped_writing = os.pipe()
            pid = os.fork()
            if not pid:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (6 * MIB, 6 * MIB))
                if namespace:
                    _libc.unshare(NEWUSER)
                    os.write(writing, b"u")
                    os.read(mapped_reading, 1)
                os.setuid(uid)
                os.write(writing, bytes([register(most, size)]))
                os.read(mapped_reading, 1)  # until it is killed
                os._exit(0)
            stack.callback(os.waitpid, pid, 0)
            stack.callback(os.kill, pid, 9)
            if namespace:
                os.read(reading, 1)
                with open(f"/proc/{pid}/uid_map", "w") as file:
                    file.write(f"{uid} {APART} 1")
                os.write(mapped_writing, b"m")
            return pid, os.read(reading, 1)[0]

        yield run


def test_buffers_are_compared_with_the_sum_of_the_user_and_shown_for_each_process(
    start: Start,
) -> None:
    """https://github.com/axboe/liburing/issues/93."""
    first, count = start(UID, 4, MIB)
    assert count == 4
    second, more = start(UID, 5, MIB)
    assert more < 3, "6 MiB are the user's, not each process's"
    shown = [read_thread_status(f"/proc/{pid}") for pid in (first, second)]
    assert [each and each.pinned for each in shown] == [4 * MIB, more * MIB]


def test_user_namespace_makes_another_user_of_the_same_uid(start: Start) -> None:
    assert start(UID, 4, MIB)[1] == 4
    assert start(UID, 5, MIB, namespace=True)[1] == 5


def test_rings_themselves_are_in_no_counter_of_a_process(start: Start) -> None:
    """Linux 7.2 compares them with the user's sum all the same, which 6.12 does not."""
    pid, count = start(UID, 100, 0)
    assert count == 100
    shown = read_thread_status(f"/proc/{pid}")
    assert shown is not None
    assert shown.pinned == 0
    assert start(UID, 6, MIB)[1] == 5, "of 6 MiB the rings took some"
