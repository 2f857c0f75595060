"""Privileges with which a process does not obey its RLIMIT_MEMLOCK."""

from enum import StrEnum
from typing import Final

from pinwarden.node.linux.procfs import ProcessStatus

_CAP_IPC_LOCK: Final = 14
_CAP_SYS_RESOURCE: Final = 24
_FULL_IDENTITY: Final = ["0", "0", "4294967295"]


class HeldBackReason(StrEnum):
    """Why a process does not obey its RLIMIT_MEMLOCK."""

    CAP_IPC_LOCK = "CapIPCLock"
    CAP_SYS_RESOURCE = "CapSysResource"
    THREADS_UNREAD = "ThreadsUnread"
    """The process may obey: the capabilities of some threads are not known yet."""


def held_back(status: ProcessStatus, uid_map: str) -> HeldBackReason | None:
    """Return why the thread of this status does not obey the rlimit, None if it obeys.

    A process with a reason must not be reported as enforced (H1). `CAP_IPC_LOCK` ignores the
    rlimit, and `CAP_SYS_RESOURCE` raises the rlimit. Both count in the initial user namespace only,
    because the kernel checks `capable`.

    A capability counts if permitted, or if `execve` can bring it (`cap_bprm_creds_from_file`). This
    requires an unset `NoNewPrivs`, and the capability in the bounding set or inheritable. `execve`
    restores an inheritable capability for uid 0, or for a file with the capability. The bounding
    set does not matter then.

    `uid_map` is the text of `/proc/PID/uid_map`, read from the initial user namespace. The full
    identity shows the initial user namespace. Another namespace with the full identity counts as
    initial too, so that no enforcement is claimed in error.
    """
    if uid_map.split() != _FULL_IDENTITY:
        return None
    by_exec = status.cap_bounding | status.cap_inheritable
    within_reach = status.cap_permitted | (0 if status.no_new_privs else by_exec)
    if within_reach >> _CAP_IPC_LOCK & 1:
        return HeldBackReason.CAP_IPC_LOCK
    if within_reach >> _CAP_SYS_RESOURCE & 1:
        return HeldBackReason.CAP_SYS_RESOURCE
    return None
