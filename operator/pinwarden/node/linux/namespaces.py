"""The node as its first process sees it: its files, its mounts, and work that is done inside its namespaces.

Everything goes through /proc/1, so a container with the node's PID namespace needs no mounts of the node. Entering a namespace changes a
process for good, and a mount namespace takes a process with one thread (setns(2)): such work is done by a child that is forked for it.
"""

import ctypes
import errno
import os
import pickle
import re
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

NEWNS, NEWIPC, NEWCGROUP = 0x00020000, 0x08000000, 0x02000000
CHILD_SECONDS = 300
_MOUNT = re.compile(
    r"(?P<id>\d+) \d+ (?P<major>\d+):(?P<minor>\d+) (?P<root>[^ ]+) (?P<point>[^ ]+) \S+(?: \S+:\S+| unbindable)* - (?P<type>\S+) "
)
_ESCAPED = re.compile(r"\\([0-7]{3})")
_libc = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/PID/mountinfo: `root` is the folder of the file system that is mounted at `point`."""

    id: int
    device: int
    root: str
    point: str
    type: str


def read_mountinfo(process: Path) -> list[Mount]:
    """The mounts that a process sees, in its order; none when it is gone. Raises OSError."""
    try:
        text = os.fsdecode((process / "mountinfo").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return []
    except OSError as error:
        if error.errno == errno.EINVAL:  # a zombie has none (mounts_open_common)
            return []
        raise
    return [
        Mount(
            int(found["id"]),
            os.makedev(int(found["major"]), int(found["minor"])),
            _unescape(found["root"]),
            _unescape(found["point"]),
            found["type"],
        )
        for line in text.split("\n")  # nothing else that ends a line in Unicode is escaped
        if (found := _MOUNT.match(line))
    ]


def list_pids(proc_root: Path) -> list[int]:
    """All process ids."""
    return sorted(int(name) for name in os.listdir(proc_root) if name.isdecimal())


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)


def run_in_namespaces(
    namespaces: Iterable[tuple[Path, int]],
    work: Callable[[], _Result],
    *,
    before: Callable[[], None] | None = None,
) -> _Result:
    """What `work` returns in a child that has entered these namespaces (files such as /proc/1/ns/mnt with their CLONE_ flags).

    `before` is done in the child first. What it raises, this raises: OSError with its number, also when the child dies. `work` must import
    nothing: the child may see other files.
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
        raise OSError(f"the child for it ended with status {status}")
    result: Any = pickle.loads(data)  # noqa: S301 - from the child, which is this very program
    if isinstance(result, OSError):
        raise result
    return result  # type: ignore[no-any-return]


def enter_namespace(namespace: Path, kind: int) -> None:
    """Has this process enter a namespace for good: for a child of `inside`. Raises OSError."""
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(descriptor, kind)
    finally:
        os.close(descriptor)


def _enter(descriptor: int, kind: int) -> None:
    if _libc.setns(descriptor, kind):
        number = ctypes.get_errno()
        raise OSError(number, f"entering a namespace: {os.strerror(number)}")


def _run(
    writing: int,
    namespaces: Iterable[tuple[Path, int]],
    work: Callable[[], object],
    before: Callable[[], None] | None,
) -> NoReturn:
    """The child's whole life; it must not run what its parent would at its end."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(CHILD_SECONDS)
        result: object
        try:
            opened = [(os.open(path, os.O_RDONLY | os.O_CLOEXEC), kind) for path, kind in namespaces]
            if before:
                before()
            for descriptor, kind in opened:
                _enter(descriptor, kind)
            result = work()
        except OSError as error:
            result = OSError(error.errno, error.strerror or str(error), error.filename)
        with suppress(OSError), os.fdopen(writing, "wb") as pipe:
            pickle.dump(result, pipe)
    finally:
        os._exit(0)
