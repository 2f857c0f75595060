"""Work inside the namespaces of another process, such as those of the node.

The node is seen through /proc/1, so a container in the node's PID namespace needs no mounts of the
node. setns(2) changes a process for good, and accepts a mount namespace only from a process with
one thread. Therefore a forked child does the work.
"""

import ctypes
import os
import pickle
import re
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from pinwarden.node.linux.libc import libc, opened
from pinwarden.node.linux.procfs import GONE

NEWNS, NEWIPC, NEWCGROUP = 0x00020000, 0x08000000, 0x02000000
CHILD_SECONDS: Final = 300
_NUMBER: Final = re.compile(r"\[(\d+)\]")
_Result = TypeVar("_Result")


def ipc_namespace(process: Path | str) -> int | None:
    """Return the inode number of a process's IPC namespace; None if the process is gone.

    Raises PermissionError.
    """
    try:
        link = _NUMBER.search(os.readlink(f"{process}/ns/ipc"))
    except GONE:
        return None
    return int(link[1]) if link else None


def run_in_namespaces(
    namespaces: Iterable[tuple[Path, int]],
    work: Callable[[], _Result],
    *,
    before: Callable[[], None] | None = None,
) -> _Result:
    """Run `work` in a child inside these namespaces, and return its result.

    A namespace is a file such as /proc/1/ns/mnt with its CLONE_ flag. The child runs `before`
    first. `work` must import nothing, because the child may see other files. Raises OSError if the
    child raised one, with the same number, or if the child died.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run(writing, namespaces, work, before)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            data = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    if not data:
        raise OSError(f"the child process ended with status {status}")
    result: Any = pickle.loads(data)  # noqa: S301 - from the child, which is this very program
    if isinstance(result, OSError):
        raise result
    return result  # type: ignore[no-any-return]


def enter_namespace(namespace: Path, kind: int) -> None:
    """Move this process into a namespace for good; for the child only. Raises OSError."""
    with opened(str(namespace)) as descriptor:
        _setns(descriptor, kind)


def _setns(descriptor: int, kind: int) -> None:
    if libc.setns(descriptor, kind):
        number = ctypes.get_errno()
        raise OSError(number, f"entering a namespace: {os.strerror(number)}")


def _run(
    writing: int,
    namespaces: Iterable[tuple[Path, int]],
    work: Callable[[], object],
    before: Callable[[], None] | None,
) -> NoReturn:
    """Run the child's whole life. The child must skip its parent's exit handlers."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(CHILD_SECONDS)
        result: object
        try:
            descriptors = [
                (os.open(path, os.O_RDONLY | os.O_CLOEXEC), kind) for path, kind in namespaces
            ]
            if before:
                before()
            for descriptor, kind in descriptors:
                _setns(descriptor, kind)
            result = work()
        except OSError as error:
            result = OSError(error.errno, error.strerror or str(error), error.filename)
        with suppress(OSError), os.fdopen(writing, "wb") as pipe:
            pickle.dump(result, pipe)
    finally:
        os._exit(0)
