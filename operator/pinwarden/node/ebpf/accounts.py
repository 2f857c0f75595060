"""The maps of `bpf/ledger.bpf.c` that user space reads and writes: accounts and lost charges.

The layout mirrors `bpf/pinwarden.h`, and a unit test compares the two. An account belongs to a
cgroup of the default hierarchy. Its key is the id of the cgroup, which is the inode number of its
directory (`kernfs_node.id`). Programs add to the bytes of an account at any time, so an account
is inserted once and never written again.
"""

import errno
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final

from pinwarden.node.linux import bpf
from pinwarden.node.linux.bpf import Map


class PinSource(IntEnum):
    """The sources of pinned memory: `enum source`. The value is the index in an account."""

    MLOCK = 0
    SHM_LOCK = 1
    IO_URING = 2


class LostReason(IntEnum):
    """Why a charge is missing in its account: `enum lost_reason`."""

    ADDRESS_SPACE_NOT_STORED = 0
    OBJECT_NOT_STORED = 1
    ACCOUNT_GONE = 2
    RELEASE_UNSEEN = 3


ACCOUNT: Final = struct.Struct(f"={len(PinSource)}q")
"""`struct account`: bytes by source."""
ACCOUNT_KEY: Final = struct.Struct("=Q")
LOST_KEY: Final = struct.Struct("=I")
LOST_COUNT: Final = struct.Struct("=Q")
ACCOUNT_LEVELS: Final = 32
"""A cgroup this deep or deeper is charged to an ancestor. The root has level 0."""


class Accounts:
    """The bytes that cgroups pin, by source."""

    def __init__(self, accounts: int, lost: int) -> None:
        """Read and write through the file descriptors of the two maps, which stay the caller's."""
        self._accounts = Map(accounts, ACCOUNT_KEY.size, ACCOUNT.size)
        self._lost = Map(lost, LOST_KEY.size, LOST_COUNT.size)

    def open(self, cgroup: int) -> None:
        """Begin to count for a cgroup, by its id. An existing account stays.

        Raises OSError: E2BIG if the map is full.
        """
        zeros = ACCOUNT.pack(*(0 for _ in PinSource))
        with suppress(FileExistsError):
            self._accounts.set(ACCOUNT_KEY.pack(cgroup), zeros, bpf.NO_EXIST)

    def close(self, cgroup: int) -> bool:
        """Delete the account of a removed cgroup, unless something is still pinned for it (P6).

        Return whether the account is gone. Raises OSError.
        """
        account = self.read(cgroup)
        if account is None or any(account.values()):
            return account is None
        return self._accounts.delete(ACCOUNT_KEY.pack(cgroup))

    def read(self, cgroup: int) -> Mapping[PinSource, int] | None:
        """Return the pinned bytes of a cgroup; None if it has no account. Raises OSError.

        Two changes at once can make an amount negative for a moment.
        """
        value = self._accounts.get(ACCOUNT_KEY.pack(cgroup))
        return None if value is None else dict(zip(PinSource, ACCOUNT.unpack(value), strict=True))

    def lost(self) -> Mapping[LostReason, int]:
        """Return how many charges are missing in their accounts. Raises OSError."""
        counts = {}
        for reason in LostReason:
            value = self._lost.get(LOST_KEY.pack(reason))
            if value is None:
                raise OSError(errno.ENOENT, f"the map of lost charges has no {reason.name}")
            counts[reason] = LOST_COUNT.unpack(value)[0]
        return counts


def cgroup_id(cgroup: Path) -> int:
    """Return the id of a cgroup of the default hierarchy. Raises OSError."""
    return os.stat(cgroup).st_ino
