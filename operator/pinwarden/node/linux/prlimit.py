"""RLIMIT_MEMLOCK of one process: read and set, without ever leaving another process changed.

prlimit(2) takes a process id, and the kernel reuses ids. Start times cannot distinguish two
processes with one id for certain, because a clock tick is 10 ms. Comparing start times also leaves
a gap before the call. A pidfd is bound to one process and shows when the process has exited. So:

1. A handle opens a pidfd by id, and then reads through the `StatusReader`. The reader was opened
   earlier and is bound to its process as well. If the read succeeds, the process has had the id
   since the reader was opened. So the pidfd and the key belong to one process.
2. Before prlimit the pidfd is polled. The pidfd is readable once all threads have exited. Then
   prlimit is not called.
3. After prlimit the pidfd is polled again. If still not readable, the process has not exited. An
   id is free only after the exit, and after the zombie is reaped. So the id belonged to this
   process during the call. This second poll is the proof; the first makes step 4 rare.
4. If the process has exited, the id may have belonged to another process during the call. The
   change is undone with the returned limits, and the process is reported as gone.

One gap is left, in step 4. The process must exit and be reaped, and the kernel must reuse the id,
all between two adjacent polls. The kernel goes through all ids before it reuses one. The other
process then has the wrong limits until the change is undone. The change is undone only if the id
still has the set limits. So an unchanged new process keeps its limits. Two
cases cannot be distinguished: a process with the same limits by chance, and a process with
the id only since this check.

An id may also belong to a thread, which prlimit accepts and pidfd_open rejects.
"""

import errno
import os
import resource
import select
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from pinwarden.node.linux.procfs import StatusReader

UNLIMITED = 2**64 - 1
"""RLIM_INFINITY of the kernel (rlim64). Larger than every other limit, for min and max."""


class Limits(NamedTuple):
    """The two limits of RLIMIT_MEMLOCK, in bytes."""

    soft: int
    hard: int


Prlimit = Callable[[int, Limits | None], Limits]
"""`prlimit_memlock`, or a replacement in a test."""

_MODULUS = 2**64


def prlimit_memlock(pid: int, limits: Limits | None = None) -> Limits:
    """Return the current RLIMIT_MEMLOCK of a process, and replace it by `limits` if given.

    RLIM_INFINITY is `UNLIMITED`. Raises ProcessLookupError if no process has the id,
    PermissionError if the kernel denies the call, and ValueError if soft exceeds hard.
    """
    if limits is None:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
    else:
        soft, hard = resource.prlimit(
            pid, resource.RLIMIT_MEMLOCK, (_signed(limits.soft), _signed(limits.hard))
        )
    return Limits(soft % _MODULUS, hard % _MODULUS)


def _signed(amount: int) -> int:
    """Return the amount as the `resource` module has it: signed, -1 for RLIM_INFINITY."""
    return amount - _MODULUS if amount >= _MODULUS // 2 else amount


@dataclass(frozen=True, slots=True)
class GateAbility:
    """Whether this process can lower and raise a hard limit; if not, the `reason`."""

    available: bool
    reason: str = ""


def probe(prlimit: Prlimit = prlimit_memlock) -> GateAbility:
    """Try to lower and restore the limits of a child process, and return the result.

    An irreversible change must not be made, so the trial needs its own child (H1). The
    child is reaped on return, and also ends if this process is killed. Call this before any thread
    starts, because of the fork.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(write_end)
            os.read(read_end, 1)
        finally:
            os._exit(0)
    try:
        return _try_on(child, prlimit)
    finally:
        os.close(read_end)
        os.close(write_end)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _try_on(child: int, prlimit: Prlimit) -> GateAbility:
    lowered = Limits(0, 0)
    try:
        before = prlimit(child, lowered)
    except PermissionError:
        return GateAbility(
            False, "lowering RLIMIT_MEMLOCK of a child process is not permitted (EPERM)"
        )
    raised = Limits(before.soft, max(before.hard, 1))
    try:
        was_lowered = prlimit(child, raised) == lowered
    except PermissionError:
        return GateAbility(
            False,
            "raising a hard limit again is not permitted (EPERM): "
            "lacks CAP_SYS_RESOURCE in the initial user namespace",
        )
    if not was_lowered or prlimit(child, None) != raised:
        return GateAbility(False, "prlimit succeeds, but the limits do not change")
    return GateAbility(True)


class ProcessHandle:
    """RLIMIT_MEMLOCK of the process of `reader`; close it, or use it as a context manager.

    The reader must read a /proc of this process's own PID namespace. The handle needs the reader
    only for opening, and the caller keeps it. Opening and every call raise ProcessLookupError if
    the process has exited.
    """

    __slots__ = ("_pidfd", "_poll", "_prlimit", "key")

    def __init__(self, reader: StatusReader, prlimit: Prlimit = prlimit_memlock) -> None:
        self.key = reader.key
        self._prlimit = prlimit
        try:
            self._pidfd = os.pidfd_open(self.key.pid)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # a thread has the id now
                raise self._gone() from error
            raise
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            reader.read()
            on_failure.pop_all()
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)

    def get(self) -> Limits:
        """Return the current limits. Raises PermissionError if the kernel denies the call."""
        return self._call(None)

    def set(self, limits: Limits) -> Limits:
        """Set the limits and return the previous ones.

        Raises PermissionError if the kernel denies the call.
        """
        return self._call(limits)

    def close(self) -> None:
        """Close the descriptor; may be called again."""
        descriptor, self._pidfd = self._pidfd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, limits: Limits | None) -> Limits:
        if self._exited():
            raise self._gone()
        try:
            previous = self._prlimit(self.key.pid, limits)
        except PermissionError as error:
            if self._exited():
                raise self._gone() from error
            raise
        if not self._exited():
            return previous
        if limits is not None:
            self._undo(limits, previous)
        raise self._gone()

    def _undo(self, limits: Limits, previous: Limits) -> None:
        """Undo a change of another process (step 4). Raises ProcessLookupError for a free id."""
        if self._prlimit(self.key.pid, None) == limits:
            self._prlimit(self.key.pid, previous)

    def _exited(self) -> bool:
        if self._pidfd < 0:
            raise ValueError("the handle is closed")
        return bool(self._poll.poll(0))

    def _gone(self) -> ProcessLookupError:
        return ProcessLookupError(errno.ESRCH, f"process {self.key.pid} is gone")
