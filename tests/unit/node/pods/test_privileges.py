"""Which privileges keep a process from obeying its RLIMIT_MEMLOCK."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pinwarden.node.linux.procfs import ProcessStatus, parse_status
from pinwarden.node.pods.privileges import HeldBackReason, held_back

IDENTITY = "         0          0 4294967295\n"
MAPPED = "         0     100000      65536\n"
IPC_LOCK = 1 << 14
SYS_RESOURCE = 1 << 24


RECLAIM = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
ipc_lock = 1 << 14
assert libc.capget(header, data) == 0
data[2] |= ipc_lock
assert libc.capset(header, data) == 0
assert libc.prctl(24, 14, 0, 0, 0) == 0  # PR_CAPBSET_DROP
data[0] &= ~ipc_lock
data[1] &= ~ipc_lock
assert libc.capset(header, data) == 0
print(open("/proc/self/status").read(), flush=True)
os.execvp("cat", ["cat", "/proc/self/status"])
"""


@pytest.mark.rule("H1")
def test_an_inheritable_capability_counts_because_of_exec() -> None:
    own = parse_status(Path("/proc/self/status").read_bytes())
    if os.geteuid() or not own.cap_permitted & IPC_LOCK or own.no_new_privs:
        pytest.skip("needs root with CAP_IPC_LOCK, to drop it and get it back")
    text = subprocess.run([sys.executable, "-c", RECLAIM], capture_output=True, check=True).stdout
    before, after = (parse_status(b"Name:" + part) for part in text.split(b"Name:")[1:])
    assert not (before.cap_permitted | before.cap_bounding) & IPC_LOCK
    assert after.cap_permitted & IPC_LOCK
    assert held_back(before, IDENTITY) is HeldBackReason.CAP_IPC_LOCK


def sample(
    permitted: int = 0, bounding: int = 0, no_new_privs: bool = False, inheritable: int = 0
) -> ProcessStatus:
    return ProcessStatus(
        parent=1,
        locked=0,
        pinned=0,
        stack=0,
        threads=1,
        cap_permitted=permitted,
        cap_inheritable=inheritable,
        cap_bounding=bounding,
        no_new_privs=no_new_privs,
    )


@pytest.mark.rule("H1")
@pytest.mark.parametrize(
    ("status", "uid_map", "reason"),
    [
        (sample(), IDENTITY, None),
        (sample(~(IPC_LOCK | SYS_RESOURCE) & (1 << 41) - 1), IDENTITY, None),
        (sample(permitted=IPC_LOCK, no_new_privs=True), IDENTITY, HeldBackReason.CAP_IPC_LOCK),
        (
            sample(permitted=SYS_RESOURCE, no_new_privs=True),
            IDENTITY,
            HeldBackReason.CAP_SYS_RESOURCE,
        ),
        (sample(bounding=IPC_LOCK), IDENTITY, HeldBackReason.CAP_IPC_LOCK),
        (sample(bounding=SYS_RESOURCE), IDENTITY, HeldBackReason.CAP_SYS_RESOURCE),
        (sample(bounding=IPC_LOCK | SYS_RESOURCE, no_new_privs=True), IDENTITY, None),
        (sample(inheritable=IPC_LOCK), IDENTITY, HeldBackReason.CAP_IPC_LOCK),
        (sample(inheritable=SYS_RESOURCE), IDENTITY, HeldBackReason.CAP_SYS_RESOURCE),
        (sample(inheritable=IPC_LOCK | SYS_RESOURCE, no_new_privs=True), IDENTITY, None),
        (sample(permitted=IPC_LOCK | SYS_RESOURCE), IDENTITY, HeldBackReason.CAP_IPC_LOCK),
        (sample(permitted=IPC_LOCK | SYS_RESOURCE), MAPPED, None),
    ],
)
def test_privileges_decide_whether_a_process_obeys(
    status: ProcessStatus, uid_map: str, reason: HeldBackReason | None
) -> None:
    assert held_back(status, uid_map) == reason
