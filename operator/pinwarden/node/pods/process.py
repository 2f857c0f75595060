"""The processes that are followed: one open status descriptor each, and what was last sampled.

A process belongs to the node and not to a pod, because it may move, and because two subjects may both hold it.

Capabilities are a thread's, and so is NoNewPrivs: what the first thread gave up, another one may have still. But no thread ever gains what
none of its process has within reach: a new one has what its maker had, and what an execve may bring is counted in. So all threads are read
where there are others than a first one that obeys the limit, and again only while one does not obey (each `JUDGE_SECONDS`), or when there
are more or fewer (`JUDGE_AGAIN_SECONDS`).
"""

import errno
import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from pinwarden.node.linux.procfs import ProcessKey, ProcessStatus, StatusReader, read_thread_status
from pinwarden.node.pods.privileges import HeldBackReason, held_back

JUDGE_SECONDS, JUDGE_AGAIN_SECONDS = 5.0, 60.0


class Knowledge(Enum):
    """What a sample tells of a process's use."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    """Its first thread has ended while others run, so that the kernel shows no amounts: never taken for zero (H2)."""
    ENDED = "ended"
    """It has no address space any more: it can pin nothing, and is only waited for."""


class Followed:
    """One process.

    `held` is why the gate cannot hold it: its first thread, or another one as `judge` found. It is judged anew when the first thread's
    capabilities change: a process that leaves the initial user namespace with all of them goes on being named, which errs on the side of
    not claiming enforcement, and none comes back.
    """

    __slots__ = (
        "_first",
        "_judge_due",
        "_judged",
        "_others",
        "_privileges",
        "_proc_root",
        "_scan",
        "gone",
        "key",
        "knowledge",
        "reader",
        "status",
    )

    def __init__(self, proc_root: Path, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self._proc_root = proc_root
        self.reader = StatusReader(proc_root, pid)
        self.key = self.reader.key
        self._first: HeldBackReason | None = None
        self._others: HeldBackReason | None = None
        self._judged = 1  # of how many threads `_others` was told
        self._judge_due = float("-inf")
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
        """VmLck in bytes; 0 where it is not known, or has ended."""
        return self.status.locked or 0 if self.knowledge is Knowledge.KNOWN else 0

    @property
    def pinned(self) -> int:
        """VmPin in bytes; 0 where it is not known, or has ended."""
        return self.status.pinned or 0 if self.knowledge is Knowledge.KNOWN else 0

    @property
    def use(self) -> int:
        """Bytes that it adds to a constraint's sum (P2), as far as they are known."""
        return self.locked + self.pinned

    def look(self) -> bool:
        """Samples; whether its use changed. Raises ProcessLookupError when it is gone, and is ENDED from then on; else OSError."""
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
    def held(self) -> HeldBackReason | None:
        """Why the gate cannot hold it, or None when it can; THREADS_UNREAD until `judge` has read all threads that it has to."""
        return self._first or self._others

    def judge(self, now: float, most: int) -> int:
        """Finds out what its other threads may do, where that is not known; how many it read, `most` at most. Raises OSError.

        Where that is not enough, what was known before stays, and the next call goes on. `now` is in seconds, monotonic.
        """
        threads = self.status.threads
        known = self._others is None and threads == self._judged
        if known or self._first or self.gone or now < self._judge_due or not most:
            return 0
        scan = self._scan = self._scan or _ThreadScan(self._proc_root, self.key.pid)
        before = len(scan.obey)
        try:
            found = scan.go_on(self._uid_map(), most) if threads > 1 else None
        except ProcessLookupError:  # the next sample says so
            return 0
        if found is not HeldBackReason.THREADS_UNREAD:
            self._others, self._judged, self._scan = found, threads, None
            self._judge_due = now + (JUDGE_SECONDS if found else JUDGE_AGAIN_SECONDS)
        return len(scan.obey) - before

    def close(self) -> None:
        """Follows it no longer; may be called again."""
        self.gone = True
        self.knowledge = Knowledge.ENDED
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
            self._judge_due = float("-inf")
            self._privileges = privileges
        self.status = status
        if status.locked is not None and status.pinned is not None:
            self.knowledge = Knowledge.KNOWN
        else:
            self.knowledge = Knowledge.UNKNOWN if status.threads > 1 else Knowledge.ENDED

    def _uid_map(self) -> str:
        try:
            return (self._proc_root / str(self.key.pid) / "uid_map").read_text()
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessLookupError(error.errno, f"process {self.key.pid} is gone") from error


class _ThreadScan:
    """Goes through all threads of a process, over as many calls as it takes. `obey` are those that were read, or have ended."""

    def __init__(self, proc_root: Path, pid: int) -> None:
        self._threads = f"{proc_root}/{pid}/task"
        self.obey: set[str] = set()

    def go_on(self, uid_map: str, most: int) -> HeldBackReason | None:
        """What was found: None when all obey, THREADS_UNREAD when there are more than `most` to read.

        They are listed again afterwards: one that had a capability may have made another one and ended. Raises ProcessLookupError.
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
    """All followed processes. One that ended stays, with no use, until it is dropped."""

    def __init__(self, proc_root: Path) -> None:
        self._proc_root = proc_root
        self._by_key: dict[ProcessKey, Followed] = {}
        self._by_pid: dict[int, Followed] = {}

    def __iter__(self) -> Iterator[Followed]:
        return iter(list(self._by_key.values()))

    def __getitem__(self, key: ProcessKey) -> Followed:
        return self._by_key[key]

    def get(self, pid: int) -> Followed | None:
        """The process that had this number last."""
        return self._by_pid.get(pid)

    def look(self, pid: int) -> tuple[Followed | None, bool]:
        """Samples the process with this number, newly followed if need be; and whether it is new or its use changed.

        None when it is gone. Raises OSError when it cannot be read, as when there is no descriptor left.
        """
        if (process := self._by_pid.get(pid)) is not None:
            try:
                return process, process.look()
            except ProcessLookupError:
                pass  # the number may be another process's by now
        try:
            process = Followed(self._proc_root, pid)
        except ProcessLookupError:
            return None, True
        self._by_pid[pid] = self._by_key[process.key] = process
        return process, True

    def lives(self, key: ProcessKey) -> bool:
        """Samples; whether it has an address space still, as far as that can be told."""
        process = self._by_key[key]
        try:
            process.look()
        except ProcessLookupError:
            return False
        except OSError:
            return process.knowledge is not Knowledge.ENDED
        return process.knowledge is not Knowledge.ENDED

    def drop(self, process: Followed) -> None:
        """Follows it no longer."""
        process.close()
        del self._by_key[process.key]
        if self._by_pid.get(process.key.pid) is process:
            del self._by_pid[process.key.pid]

    def close(self) -> None:
        """Gives all descriptors back."""
        for process in self:
            self.drop(process)
