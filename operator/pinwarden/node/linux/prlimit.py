"""The rlimit gate's edge: reads and sets RLIMIT_MEMLOCK of one process, and never leaves another one changed in its place.

prlimit(2) takes a number, and numbers come again. Start ticks cannot tell two holders of a number apart with certainty, since they
are 10 ms coarse, and comparing them leaves a gap before the call. A pidfd is bound to one process and tells when that has exited. So:

1. A handle opens a pidfd by number, and then reads through the `StatusReader`, which was open before and is bound to its process
   likewise. When that read succeeds, its process held the number at all times since the reader was opened, so that the pidfd
   is of the same process as the key.
2. Before prlimit the pidfd is polled. It is readable once all threads have exited; then nothing is called.
3. After prlimit it is polled again. When it is still not readable, the process has not exited. A number is free only after the exit,
   and only once the zombie is reaped too, so that the number was this process's during the call. This second check is the proof;
   the first makes it rare that there is something to undo.
4. When it has exited by then, the number may have been another's during the call. What the call changed is put back, with the value
   that the call itself returned, and the process is reported as gone.

What remains is in step 4 alone: the process must exit, be reaped and its number be handed out again (the kernel hands them out in a
circle) all between two adjacent polls. The other process then has the wrong limit until it is put back. So that a number's new holder
that the call did not change keeps its own, the value is put back only where the number's limits are still those that were set; a
holder that has the very same limits by chance, or that gets the number between that look and the putting back, cannot be told apart.

A number can also be a thread's, which prlimit accepts and pidfd_open refuses.
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
"""RLIM_INFINITY as the kernel has it (rlim64): larger than every other limit, so that min and max need no special case."""


class Limits(NamedTuple):
    """A pair for prlimit(RLIMIT_MEMLOCK), in bytes."""

    soft: int
    hard: int


Prlimit = Callable[[int, Limits | None], Limits]
"""`prlimit_memlock` or what stands for it."""

_MODULUS = 2**64


def prlimit_memlock(pid: int, limits: Limits | None = None) -> Limits:
    """prlimit(2) for RLIMIT_MEMLOCK: the limits until now, in bytes; with `limits`, sets those.

    RLIM_INFINITY is `UNLIMITED`. Raises ProcessLookupError when no process has the number, PermissionError when the kernel
    refuses, ValueError when soft is above hard.
    """
    if limits is None:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
    else:
        soft, hard = resource.prlimit(
            pid, resource.RLIMIT_MEMLOCK, (_signed(limits.soft), _signed(limits.hard))
        )
    return Limits(soft % _MODULUS, hard % _MODULUS)


def _signed(amount: int) -> int:
    """Python's resource module shows rlim_t, which is unsigned, as a signed number: RLIM_INFINITY is -1."""
    return amount - _MODULUS if amount >= _MODULUS // 2 else amount


@dataclass(frozen=True, slots=True)
class GateAbility:
    """Whether this process can lower a hard limit and raise it again; if not, `reason` says why, for people."""

    available: bool
    reason: str = ""


def probe(prlimit: Prlimit = prlimit_memlock) -> GateAbility:
    """Tries on a child process of its own, since what cannot be given back must not be taken (H1).

    The child is ended and reaped before this returns, and ends by itself when this process is killed. To be called before threads
    are started, since it forks.
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
        return GateAbility(False, "lowering RLIMIT_MEMLOCK of a child process is not permitted (EPERM)")
    raised = Limits(before.soft, max(before.hard, 1))
    try:
        was_lowered = prlimit(child, raised) == lowered
    except PermissionError:
        return GateAbility(
            False,
            "raising a hard limit again is not permitted (EPERM): lacks CAP_SYS_RESOURCE in the initial user namespace",
        )
    if not was_lowered or prlimit(child, None) != raised:
        return GateAbility(False, "prlimit succeeds, but the limits do not change")
    return GateAbility(True)


class ProcessHandle:
    """RLIMIT_MEMLOCK of the process that `reader` follows. `key` says which; close it, or use it as a context manager.

    The reader must read a /proc of this process's own pid namespace; it is needed for opening alone and stays the caller's.
    Raises ProcessLookupError, on opening and on every call, when the process has exited.
    """

    __slots__ = ("_pidfd", "_poll", "_prlimit", "key")

    def __init__(self, reader: StatusReader, prlimit: Prlimit = prlimit_memlock) -> None:
        self.key = reader.key
        self._prlimit = prlimit
        try:
            self._pidfd = os.pidfd_open(self.key.pid)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # by now a thread's number
                raise self._gone() from error
            raise
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            reader.read()
            on_failure.pop_all()
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)

    def get(self) -> Limits:
        """The limits of now, in bytes. Raises PermissionError when the kernel refuses."""
        return self._call(None)

    def set(self, limits: Limits) -> Limits:
        """Sets the limits, in bytes, and returns those until now. Raises PermissionError when the kernel refuses."""
        return self._call(limits)

    def close(self) -> None:
        """Gives the descriptor back; may be called again."""
        descriptor, self._pidfd = self._pidfd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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
            self._put_back(limits, previous)
        raise self._gone()

    def _put_back(self, limits: Limits, previous: Limits) -> None:
        """Step 4 of the module's account. Raises ProcessLookupError where the number is nobody's."""
        if self._prlimit(self.key.pid, None) == limits:
            self._prlimit(self.key.pid, previous)

    def _exited(self) -> bool:
        if self._pidfd < 0:
            raise ValueError("the handle is closed")
        return bool(self._poll.poll(0))

    def _gone(self) -> ProcessLookupError:
        return ProcessLookupError(errno.ESRCH, f"process {self.key.pid} is gone")
