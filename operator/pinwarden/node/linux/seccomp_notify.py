"""The kernel's side of seccomp user notification (seccomp_unotify(2), kernel/seccomp.c): one listener, its calls and their answers.

A thread of a filtered process that makes a gated call sleeps until the call is answered. `receive` has the kernel write the call straight
into memory of the caller's choice, so that a receiver that is killed leaves either nothing or all of it there: once a call was received,
no other `receive` returns it, and only who knows its id can answer.

An answer that was taken does not prove that the call ran. A signal may have come first; then the call is made again by itself, with a
new id, or ends with EINTR.
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple

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

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


class Notification(NamedTuple):
    """A system call that waits for an answer. `tid` is the thread's id in the receiver's PID namespace, 0 where it has none there.

    `arch` is an AUDIT_ARCH value, `arguments` are the six registers, unsigned.
    """

    id: int
    tid: int
    number: int
    arch: int
    arguments: tuple[int, int, int, int, int, int]


def parse(data: bytes) -> Notification:
    """Reads a `struct seccomp_notif`."""
    notification_id, tid, _, number, arch, _, *arguments = _NOTIFICATION.unpack(data)
    return Notification(notification_id, tid, number, arch, tuple(arguments))


class Listener:
    """A listener's descriptor, which it owns."""

    __slots__ = ("_fd",)

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        # Since Linux 6.6; a kernel without it answers EINVAL, and wakes its tasks as it always did.
        _libc.ioctl(descriptor, _SET_FLAGS, _SYNC_WAKE_UP)

    def fileno(self) -> int:
        """For poll: readable when a call waits to be received, hung up when no process is left that could make one."""
        return self._fd

    def receive(self, address: int) -> bool:
        """Has the kernel write the next call to `address`, where `SIZE` bytes are zero; False when the one that waited is gone.

        Waits when none does: to be called when poll says that it is readable. Raises OSError.
        """
        while _libc.ioctl(self._fd, _RECV, address):
            number = ctypes.get_errno()
            if number == errno.ENOENT:
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        return True

    def continue_(self, notification_id: int) -> bool:
        """Has the kernel make the call. False when nobody waits for the answer any more. Raises OSError."""
        return self._answer(_RESPONSE.pack(notification_id, 0, 0, _CONTINUE))

    def fail(self, notification_id: int, error: int) -> bool:
        """Has the call fail with `error` of errno. False when nobody waits for the answer any more. Raises OSError."""
        return self._answer(_RESPONSE.pack(notification_id, 0, -error, 0))

    def is_valid(self, notification_id: int) -> bool:
        """Whether the call was received and still waits for its answer; what was read of its thread before is then of that thread."""
        return not _libc.ioctl(self._fd, _ID_VALID, _ID.pack(notification_id))

    def close(self) -> None:
        """Gives the descriptor back; may be called again. With its last copy gone, gated calls end with ENOSYS."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _answer(self, response: bytes) -> bool:
        if not _libc.ioctl(self._fd, _SEND, response):
            return True
        number = ctypes.get_errno()
        # EINPROGRESS: it was answered already.
        if number in (errno.ENOENT, errno.EINPROGRESS):
            return False
        raise OSError(number, os.strerror(number))
