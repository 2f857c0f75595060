"""Calls that were received and not yet dealt with, in memory that outlives whoever received them.

A call that was received can be answered only by who knows its id, and no other receiver ever gets it. So the kernel writes it straight into
a slot of a file that is mapped and shared: a gate that is killed at any moment leaves it there for its successor. A slot is

- *free*: its id is 0 (the kernel's ids begin at a random number and count up; 0 is passed over here),
- *received*: the call waits for an answer, or its thread was interrupted,
- *let through*: the answer was about to be sent or was sent, and what the call adds may not be visible yet. An amount of 0 is a mapping of
  a group's object (`lending`).

The file lies in a tmpfs, so that it ends with the boot whose calls it tells of. One process at a time has it open.
"""

import ctypes
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from pinwarden.node.linux import seccomp_notify
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.state.statefile import set_aside

SLOTS = 16384
_MAGIC = b"pinwarden-gate-1"
_HEADER = 64
_SLOT = 128
_TAIL = struct.Struct("=QQ")  # the listener's number; amount + 1 once it was let through
_TAIL_AT = 96
_EMPTY = bytes(seccomp_notify.SIZE)
_FREE = bytes(8)


class Journal:
    """The mapped file; to be closed."""

    def __init__(self, path: Path) -> None:
        """Creates the file when there is none, or none of this version. Raises OSError; BlockingIOError while another process has it."""
        size = _HEADER + SLOTS * _SLOT
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            set_aside(path, "it is no regular file")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.pread(self._fd, len(_MAGIC), 0) != _MAGIC or os.fstat(self._fd).st_size != size:
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, size)
                os.pwrite(self._fd, _MAGIC, 0)
            self._memory = mmap.mmap(self._fd, size)
        except OSError:
            os.close(self._fd)
            raise
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._free = [slot for slot in range(SLOTS - 1, -1, -1) if self._is_free(slot)]

    def receive(self, listener: seccomp_notify.Listener, number: int) -> tuple[int, Notification] | None:
        """Receives a call of the listener with this number into a slot; None when the call is gone, or when no slot is free.

        Raises OSError.
        """
        if not self._free:
            return None
        slot = self._free[-1]
        at = _HEADER + slot * _SLOT
        memory = self._memory
        memory[at : at + seccomp_notify.SIZE] = _EMPTY
        _TAIL.pack_into(memory, at + _TAIL_AT, number, 0)
        if not listener.receive(self._address + at):
            return None
        self._free.pop()
        return slot, seccomp_notify.parse(memory[at : at + seccomp_notify.SIZE])

    @property
    def full(self) -> bool:
        """Whether nothing can be received."""
        return not self._free

    def track(self, slot: int, amount: int) -> None:
        """The call in the slot is about to be let through, to add at most `amount` bytes."""
        at = _HEADER + slot * _SLOT + _TAIL_AT
        number, _ = _TAIL.unpack_from(self._memory, at)
        _TAIL.pack_into(self._memory, at, number, amount + 1)

    def free(self, slot: int) -> None:
        """The call in the slot is over."""
        at = _HEADER + slot * _SLOT
        self._memory[at : at + 8] = _FREE
        self._free.append(slot)

    def left(self) -> Iterator[tuple[int, Notification, int, int | None]]:
        """What is in the slots that are not free: the slot, the call, its listener's number, and the amount if it was let through."""
        for slot in range(SLOTS):
            if not self._is_free(slot):
                at = _HEADER + slot * _SLOT
                number, amount = _TAIL.unpack_from(self._memory, at + _TAIL_AT)
                call = seccomp_notify.parse(self._memory[at : at + seccomp_notify.SIZE])
                yield slot, call, number, amount - 1 if amount else None

    def close(self) -> None:
        """Lets another process have it; the memory stays mapped, and with it a copy of the descriptor."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)

    def _is_free(self, slot: int) -> bool:
        at = _HEADER + slot * _SLOT
        return self._memory[at : at + 8] == _FREE
