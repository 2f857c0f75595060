"""Received notifications in memory with a longer life than the gate.

An answer needs the id of a notification, and no other receiver gets the notification again. So the
kernel writes each notification directly into a slot of a shared file mapping. If a gate is killed
at any moment, its successor finds the notification there. A slot is

- *free*: its id is 0. The kernel's ids count up from a random number.
- *received*: the notification waits for an answer, or its thread was interrupted.
- *tracked*: the gate continued the call or was about to, and its bytes may not be visible yet. An
  amount of 0 is a mapping of a group's object (`borrow_gate`).

The file is in a tmpfs, and ends with the boot. One process at a time has the file open.
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
_TAIL = struct.Struct("=QQ")  # the listener's number; amount + 1 of a tracked call, else 0
_TAIL_AT = 96
_EMPTY = bytes(seccomp_notify.SIZE)
_FREE = bytes(8)


class Journal:
    """The mapped file. Close it after use."""

    def __init__(self, path: Path) -> None:
        """Open the file. Create a missing file, and replace a file of another version.

        Raises OSError, and BlockingIOError while another process has the file open.
        """
        size = _HEADER + SLOTS * _SLOT
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            set_aside(path, "not a regular file")
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

    def receive(
        self, listener: seccomp_notify.Listener, number: int
    ) -> tuple[int, Notification] | None:
        """Receive a notification of a listener into a slot, and return both.

        Return None if the notification is gone or no slot is free. Raises OSError.
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
        """Whether no slot is free."""
        return not self._free

    def track(self, slot: int, amount: int) -> None:
        """Mark a slot before its call is continued. The call adds at most `amount` bytes."""
        at = _HEADER + slot * _SLOT + _TAIL_AT
        number, _ = _TAIL.unpack_from(self._memory, at)
        _TAIL.pack_into(self._memory, at, number, amount + 1)

    def free(self, slot: int) -> None:
        """Free a slot."""
        at = _HEADER + slot * _SLOT
        self._memory[at : at + 8] = _FREE
        self._free.append(slot)

    def left(self) -> Iterator[tuple[int, Notification, int, int | None]]:
        """Yield each used slot: slot, notification, listener's number, and amount.

        The amount is None unless the call is tracked.
        """
        for slot in range(SLOTS):
            if not self._is_free(slot):
                at = _HEADER + slot * _SLOT
                number, amount = _TAIL.unpack_from(self._memory, at + _TAIL_AT)
                notification = seccomp_notify.parse(self._memory[at : at + seccomp_notify.SIZE])
                yield slot, notification, number, amount - 1 if amount else None

    def close(self) -> None:
        """Release the file to another process. The memory stays mapped."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)

    def _is_free(self, slot: int) -> bool:
        at = _HEADER + slot * _SLOT
        return self._memory[at : at + 8] == _FREE
