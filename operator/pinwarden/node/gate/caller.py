"""Whether a continued system call has returned, as `/proc/TID` shows it."""

import os
from pathlib import Path

from pinwarden.node.linux.procfs import GONE
from pinwarden.node.linux.seccomp_notify import Notification

_USER_TIME = 11  # utime of proc_pid_stat(5), counted from the field after the name
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class SyscallExit:
    """Detects the return of a continued system call. From then on the kernel counts its bytes.

    A sleeping thread shows its current system call (`task_current_syscall`). A running thread shows
    nothing. The thread may enter the call, spin on the lock of its address space, fault in counted
    pages, or run in user mode again. Only user mode raises its user time. User time is an estimate
    (`cputime_adjust`), and a program can bend the estimate at a cost. So user time must rise by a
    second, which is longer than a call takes to count its bytes.

    A locked range proves nothing. Another thread may have locked the range, and may move the range
    away before this call takes effect.
    """

    __slots__ = ("_directory", "_notification", "_user_ticks")

    def __init__(self, proc_root: Path, notification: Notification) -> None:
        self._directory = proc_root / str(notification.tid)
        self._notification = notification
        self._user_ticks: int | None = None

    def returned(self) -> bool:
        """Return whether the call has returned or its thread has ended."""
        try:
            current = self._current_syscall()
            stat = (self._directory / "stat").read_bytes()
        except GONE:
            return True
        user_ticks = int(stat.rpartition(b")")[2].split()[_USER_TIME])
        expected = (self._notification.number, self._notification.arguments)
        if current is not None and current != expected:
            return True
        if self._user_ticks is None:
            self._user_ticks = user_ticks
        return user_ticks - self._user_ticks >= _TICKS_PER_SECOND

    def _current_syscall(self) -> tuple[int, tuple[int, ...]] | None:
        """Return number and registers of the call in which the thread sleeps.

        Return None while the thread runs, or if the kernel denies the read.
        """
        try:
            number, *words = (self._directory / "syscall").read_bytes().split()
        except PermissionError:  # yama's ptrace_scope 3 denies everyone
            return None
        if number == b"running":
            return None
        return int(number), tuple(int(word, 16) for word in words[:6])
