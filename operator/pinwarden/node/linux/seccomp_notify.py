"""Seccomp user notification: a listener, its notifications and their answers.

See `seccomp_unotify(2)` and `kernel/seccomp.c`. A thread with a gated call sleeps until the
notification is answered. `receive` makes the kernel write a notification directly to an address. If
the receiver is killed, the memory there contains the whole notification or nothing. No other
`receive` returns the notification again, and an answer needs its id.

An accepted answer does not prove the execution of the call. A signal may have interrupted the
thread first. The thread then makes the call again with a new id, or the call ends with EINTR.
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from pinwarden.node.linux.libc import libc

_RECV = 0xC0502100
_SEND = 0xC0182101
_ID_VALID = 0x40082102
_SET_FLAGS = 0x40082104
_SYNC_WAKE_UP = 1
_CONTINUE = 1
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ID = struct.Struct("=Q")

SIZE = _NOTIFICATION.size
"""Bytes of `struct seccomp_notif`."""


class Notification(NamedTuple):
    """A system call without an answer.

    `tid` is the thread id in the receiver's PID namespace, or 0 without one. `arch` is an
    AUDIT_ARCH value. `arguments` are the six registers, unsigned.
    """

    id: int
    tid: int
    number: int
    arch: int
    arguments: tuple[int, int, int, int, int, int]


def parse(data: bytes) -> Notification:
    """Return the notification in a `struct seccomp_notif`."""
    notification_id, tid, _, number, arch, _, *arguments = _NOTIFICATION.unpack(data)
    return Notification(notification_id, tid, number, arch, tuple(arguments))


class Listener:
    """The descriptor of a listener. The object owns the descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        # Linux 6.6 wakes tasks on the same CPU; an older kernel answers EINVAL.
        libc.ioctl(descriptor, _SET_FLAGS, _SYNC_WAKE_UP)

    def fileno(self) -> int:
        """Return the descriptor for `poll(2)`.

        It is readable if a notification can be received, and hung up once no process can send one.
        """
        return self._fd

    def receive(self, address: int) -> bool:
        """Make the kernel write the next notification to `address`, where `SIZE` bytes are zero.

        Return False if the notification is gone. Blocks without a notification, so call this when
        the descriptor is readable. Raises OSError.
        """
        number = self._ioctl(_RECV, address)
        if number == errno.ENOENT:
            return False
        if number:
            raise OSError(number, os.strerror(number))
        return True

    def continue_(self, notification_id: int) -> bool:
        """Make the kernel execute the call. Return False if no thread waits. Raises OSError."""
        return self._answer(_RESPONSE.pack(notification_id, 0, 0, _CONTINUE))

    def fail(self, notification_id: int, error: int) -> bool:
        """Make the call fail with an errno value; False if no thread waits. Raises OSError."""
        return self._answer(_RESPONSE.pack(notification_id, 0, -error, 0))

    def is_valid(self, notification_id: int) -> bool:
        """Return whether a received notification still waits for its answer.

        If so, everything read about its thread before is valid.
        """
        return self._ioctl(_ID_VALID, _ID.pack(notification_id)) == 0

    def close(self) -> None:
        """Close the descriptor, at most once. Without any copy, gated calls end with ENOSYS."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _answer(self, response: bytes) -> bool:
        number = self._ioctl(_SEND, response)
        # EINPROGRESS: the notification was answered already.
        if number in (errno.ENOENT, errno.EINPROGRESS):
            return False
        if number:
            raise OSError(number, os.strerror(number))
        return True

    def _ioctl(self, request: int, argument: int | bytes) -> int:
        """Return the errno of an ioctl, 0 on success.

        A signal may interrupt the kernel's wait for its lock (`mutex_lock_interruptible`); then the
        call is repeated.
        """
        while libc.ioctl(self._fd, request, argument):
            if (number := ctypes.get_errno()) != errno.EINTR:
                return number
        return 0
