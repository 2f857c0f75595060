"""The processes that are followed: one open status descriptor each, what was last sampled, and what is kept of their limits.

A process belongs to the node and not to a pod, because it may move, and because two subjects may both hold it.
"""

import errno
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from pinwarden.agent.gates.rlimit import HeldBackReason, Prlimit, ProcessHandle, held_back
from pinwarden.agent.ledger import ProcessKey
from pinwarden.agent.ledger.procfs import Status, StatusReader
from pinwarden.agent.saved import Saved


class Knowledge(Enum):
    """What a sample tells of a process's use."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    """Its first thread has ended while others run, so that the kernel shows no amounts: never taken for zero (H2)."""
    ENDED = "ended"
    """It has no address space any more: it can pin nothing, and is only waited for."""


class Followed:
    """One process. `saved` is None while nothing was dealt to it; `failure` is why it could not be dealt to, or empty.

    `held` is why the gate cannot hold it. It is judged anew when its capabilities change: one that leaves the initial user namespace with
    all of them goes on being named, which errs on the side of not claiming enforcement, and none comes back.
    """

    __slots__ = (
        "_gone",
        "_privileges",
        "_proc_root",
        "failure",
        "held",
        "key",
        "knowledge",
        "reader",
        "saved",
        "status",
    )

    def __init__(self, proc_root: Path, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self._proc_root = proc_root
        self.reader = StatusReader(proc_root, pid)
        self.key = self.reader.key
        self.saved: Saved | None = None
        self.failure = ""
        self.held: HeldBackReason | None = None
        self._privileges: tuple[int, int, int, bool] | None = None
        self._gone = False
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
        """Samples; whether its use changed. Raises ProcessLookupError when it is gone, and is ENDED from then on."""
        if self._gone:
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

    def handle(self, prlimit: Prlimit) -> ProcessHandle:
        """A handle on its limits. Raises ProcessLookupError when it is gone."""
        if self._gone:
            raise ProcessLookupError(errno.ESRCH, f"process {self.key.pid} is gone")
        return ProcessHandle(self.reader, prlimit)

    def close(self) -> None:
        """Follows it no longer; may be called again."""
        self._gone = True
        self.knowledge = Knowledge.ENDED
        self.reader.close()

    def _take(self, status: Status) -> None:
        self.status = status
        if status.locked is not None and status.pinned is not None:
            self.knowledge = Knowledge.KNOWN
        else:
            self.knowledge = Knowledge.UNKNOWN if status.threads > 1 else Knowledge.ENDED
        privileges = (
            status.cap_permitted,
            status.cap_inheritable,
            status.cap_bounding,
            status.no_new_privs,
        )
        if privileges != self._privileges:
            self.held = held_back(status, self._uid_map())
            self._privileges = privileges

    def _uid_map(self) -> str:
        try:
            return (self._proc_root / str(self.key.pid) / "uid_map").read_text()
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessLookupError(error.errno, f"process {self.key.pid} is gone") from error


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

        None when it is gone.
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
        """Samples; whether it has an address space still."""
        process = self._by_key[key]
        try:
            process.look()
        except ProcessLookupError:
            return False
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
