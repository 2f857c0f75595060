"""The sampled processes of this node, each with an open `/proc/PID/status` and its last sample.

A process belongs to the node and not to a pod: a process can move, and two subjects can share one.

Capabilities and `NoNewPrivs` belong to a thread: a thread can have a capability that the first
thread dropped. A new thread has the capabilities of its creator, and `privileges` includes those
that an `execve` can bring. So no thread gains a capability that no thread of its process can reach.

All threads are read if the first thread obeys the rlimit and others exist. They are read again
every `CHECK_SECONDS` while a thread does not obey. Otherwise they are read again every
`RECHECK_SECONDS`, and only if their number changed.
"""

import errno
import os
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from pinwarden.node.linux.procfs import ProcessKey, ProcessStatus, StatusReader, read_thread_status
from pinwarden.node.pods.privileges import HeldBackReason, held_back

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
CHECK_SECONDS, RECHECK_SECONDS = 5.0, 60.0


class UsageState(Enum):
    """Whether a sample shows the use of a process."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    """The first thread ended, others run, and the kernel shows no use: unknown, not zero (H2)."""
    ENDED = "ended"
    """The process has no address space any more, so it can pin nothing."""


class Process:
    """One process and its last sample.

    The threads are checked again when the capabilities of the first thread change. A process can
    leave the initial user namespace with all its capabilities: `held_back` stays then, so that no
    enforcement is claimed in error.
    """

    __slots__ = (
        "_check_due",
        "_checked_threads",
        "_first",
        "_others",
        "_privileges",
        "_proc_root",
        "_scan",
        "gone",
        "key",
        "reader",
        "status",
        "usage_state",
    )

    def __init__(self, proc_root: Path, pid: int) -> None:
        """Raises ProcessLookupError if there is no such process."""
        self._proc_root = proc_root
        self.reader = StatusReader(proc_root, pid)
        self.key = self.reader.key
        self._first: HeldBackReason | None = None
        self._others: HeldBackReason | None = None
        self._checked_threads = 1  # the number of threads behind `_others`
        self._check_due = float("-inf")
        self._scan: _ThreadScan | None = None
        self._privileges: tuple[int, int, int, bool] | None = None
        self.gone = False
        try:
            self._take(self.reader.read())
        except BaseException:
            self.reader.close()
            raise

    @property
    def locked(self) -> int:
        """`VmLck` in bytes, 0 if unknown or ended."""
        return self.status.locked or 0 if self.usage_state is UsageState.KNOWN else 0

    @property
    def pinned(self) -> int:
        """`VmPin` in bytes, 0 if unknown or ended."""
        return self.status.pinned or 0 if self.usage_state is UsageState.KNOWN else 0

    @property
    def use(self) -> int:
        """The known bytes that count against a constraint (P2)."""
        return self.locked + self.pinned

    @property
    def age(self) -> float:
        """Seconds since the start of the process."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.key.start_ticks / _TICKS_PER_SECOND

    def sample(self) -> bool:
        """Sample the process and return whether its use changed.

        Raises ProcessLookupError if the process is gone (then its state is ENDED), or OSError.
        """
        if self.gone:
            raise ProcessLookupError(errno.ESRCH, f"process {self.key.pid} is gone")
        before = self.status
        try:
            status = self.reader.read()
            if status is before:
                return False
            self._take(status)
        except ProcessLookupError:
            self.close()
            raise
        return (status.locked, status.pinned) != (before.locked, before.pinned)

    @property
    def held_back(self) -> HeldBackReason | None:
        """Why the process does not obey its rlimit, None if it obeys.

        THREADS_UNREAD until `check_privileges` has read all necessary threads.
        """
        return self._first or self._others

    def check_privileges(self, now: float, most: int) -> int:
        """Read at most `most` threads with unknown privileges. Return how many were read.

        If more threads remain, the earlier result stays, and the next call continues. `now` is in
        seconds, monotonic. Raises OSError.
        """
        threads = self.status.threads
        checked = self._others is None and threads == self._checked_threads
        if checked or self._first or self.gone or now < self._check_due or not most:
            return 0
        scan = self._scan = self._scan or _ThreadScan(self._proc_root, self.key.pid)
        before = len(scan.obey)
        try:
            reason = scan.read(self._uid_map(), most) if threads > 1 else None
        except ProcessLookupError:  # the next sample reports this
            return 0
        if reason is not HeldBackReason.THREADS_UNREAD:
            self._others, self._checked_threads, self._scan = reason, threads, None
            self._check_due = now + (CHECK_SECONDS if reason else RECHECK_SECONDS)
        return len(scan.obey) - before

    def close(self) -> None:
        """Stop sampling the process; may be called again."""
        self.gone = True
        self.usage_state = UsageState.ENDED
        self.reader.close()

    def _take(self, status: ProcessStatus) -> None:
        privileges = (
            status.cap_permitted,
            status.cap_inheritable,
            status.cap_bounding,
            status.no_new_privs,
        )
        if privileges != self._privileges:
            self._first = held_back(status, self._uid_map())
            self._others = HeldBackReason.THREADS_UNREAD if status.threads > 1 else None
            self._check_due = float("-inf")
            self._privileges = privileges
        self.status = status
        if status.locked is not None and status.pinned is not None:
            self.usage_state = UsageState.KNOWN
        else:
            self.usage_state = UsageState.UNKNOWN if status.threads > 1 else UsageState.ENDED

    def _uid_map(self) -> str:
        try:
            return (self._proc_root / str(self.key.pid) / "uid_map").read_text()
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessLookupError(error.errno, f"process {self.key.pid} is gone") from error


class _ThreadScan:
    """Reads all threads of a process, over several calls.

    `obey` are the threads without a reason, including ended ones.
    """

    def __init__(self, proc_root: Path, pid: int) -> None:
        self._threads = f"{proc_root}/{pid}/task"
        self.obey: set[str] = set()

    def read(self, uid_map: str, most: int) -> HeldBackReason | None:
        """Return why a thread does not obey, None if all obey.

        Return THREADS_UNREAD if more than `most` threads remain. The threads are listed again
        afterwards: a thread with a capability may have started a new thread and ended. Raises
        ProcessLookupError.
        """
        enough = len(self.obey) + most
        while unread := self._listed() - self.obey:
            for thread in unread:
                if len(self.obey) == enough:
                    return HeldBackReason.THREADS_UNREAD
                status = read_thread_status(f"{self._threads}/{thread}")
                if status and (reason := held_back(status, uid_map)):
                    return reason
                self.obey.add(thread)
        return None

    def _listed(self) -> set[str]:
        try:
            return set(os.listdir(self._threads))
        except FileNotFoundError as error:
            raise ProcessLookupError(error.errno, str(error)) from error


class ProcessTable:
    """All sampled processes. An ended process stays, without use, until it is dropped."""

    def __init__(self, proc_root: Path) -> None:
        self._proc_root = proc_root
        self._by_key: dict[ProcessKey, Process] = {}
        self._by_pid: dict[int, Process] = {}

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._by_key.values()))

    def __getitem__(self, key: ProcessKey) -> Process:
        return self._by_key[key]

    def get(self, pid: int) -> Process | None:
        """Return the latest process with this process id."""
        return self._by_pid.get(pid)

    def sample(self, pid: int) -> tuple[Process | None, bool]:
        """Sample the process with this process id.

        Return the process, None if gone, and whether it is new or its use changed. Raises OSError.
        """
        if (process := self._by_pid.get(pid)) is not None:
            try:
                return process, process.sample()
            except ProcessLookupError:
                pass  # another process may have the id now
        try:
            process = Process(self._proc_root, pid)
        except ProcessLookupError:
            return None, True
        self._by_pid[pid] = self._by_key[process.key] = process
        return process, True

    def lives(self, key: ProcessKey) -> bool:
        """Sample the process and return whether it has an address space; True if unknown."""
        process = self._by_key[key]
        try:
            process.sample()
        except ProcessLookupError:
            return False
        except OSError:
            return process.usage_state is not UsageState.ENDED
        return process.usage_state is not UsageState.ENDED

    def drop(self, process: Process) -> None:
        """Remove the process and close its descriptor."""
        process.close()
        del self._by_key[process.key]
        if self._by_pid.get(process.key.pid) is process:
            del self._by_pid[process.key.pid]

    def close(self) -> None:
        """Drop all processes."""
        for process in self:
            self.drop(process)
