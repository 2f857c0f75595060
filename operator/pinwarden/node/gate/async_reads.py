"""Reads of a pod's files and memory in threads, so a hanging read delays only its own pod.

A read of `smaps` or of `/proc/PID/mem` waits for the lock of the address space. The threads of the
process can keep this lock for long: a fork of much memory, a page on a hanging file system.

A pool has no maximum of its own, because pods that share one could use up the threads of others.
`ThreadPoolExecutor` starts a thread only if none is idle.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

READS_PER_POD = 8
_UNBOUNDED = 2**31
_MOMENT_SECONDS = 0.0005
_Result = TypeVar("_Result")


class ReadPool:
    """Threads for reads. A pod may occupy at most READS_PER_POD of them."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(_UNBOUNDED, name)
        self._running: dict[str, set[Future[Any]]] = {}

    def submit(self, pod: str, read: Callable[[], _Result]) -> "Future[_Result] | None":
        """Start a read and return its future, or None while the pod occupies all of its threads."""
        running = {future for future in self._running.get(pod, ()) if not future.done()}
        if len(running) >= READS_PER_POD:
            return None
        future = self._executor.submit(read)
        self._running[pod] = running | {future}
        return future

    def forget(self, pod: str) -> None:
        """Forget a pod without notifications. Its hanging reads stay counted."""
        if all(future.done() for future in self._running.get(pod, ())):
            self._running.pop(pod, None)

    def close(self) -> None:
        """Cancel the queued reads, and do not wait for the running reads."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class AsyncRead(Generic[_Result]):
    """A pod's read in a `ReadPool`, one at a time."""

    __slots__ = ("_future", "_pod", "_pool")

    def __init__(self, pool: ReadPool, pod: str) -> None:
        self._pool = pool
        self._pod = pod
        self._future: Future[_Result] | None = None

    def get(self, read: Callable[[], _Result]) -> _Result | None:
        """Return the result of `read`, or None while the read takes longer than a moment.

        After None, call again with the same read. Raises the exceptions of `read`.
        """
        if self._future is None:
            self._future = self._pool.submit(self._pod, read)
        if self._future is None or not wait([self._future], _MOMENT_SECONDS).done:
            return None
        future, self._future = self._future, None
        return future.result()
