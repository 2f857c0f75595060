"""The processes of member pods, their open files and mappings, read within a limit of time.

A pod may have any number of them, so only time bounds a read. A read that ends early is reported:
the objects that it found are a lower bound (H2).
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

from pinwarden.node.accountant.finder.result import GroupObjects, Pids
from pinwarden.node.linux.procfs import GONE

SECONDS: Final = 3.0
BLOCK: Final = 512  # bytes of `st_blocks` in every file system
DELETED: Final = " (deleted)"
LATE: Final = "the time was too short to read all processes that may have an object"
_Item = TypeVar("_Item")


def by_pod(pids: Pids) -> Iterator[int]:
    """Yield all processes, pod by pod."""
    return (pid for members in pids.values() for pid in members)


@contextmanager
def limited_time(objects: GroupObjects) -> Iterator[float]:
    """Give the block a deadline in `SECONDS`, and note a TimeoutError as missed objects."""
    try:
        yield time.monotonic() + SECONDS
    except TimeoutError:
        objects.miss(LATE)


def before(deadline: float, items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the items. Raises TimeoutError at the deadline, also before the first item."""
    for item in chain([None], items):
        if time.monotonic() >= deadline:
            raise TimeoutError
        if item is not None:
            yield item


def one_per_namespace(proc_root: Path, kind: str, pids: Pids) -> list[int]:
    """Return one process for each namespace of this kind, such as `mnt` or `ipc`."""
    found: dict[str, int] = {}
    for pid in by_pod(pids):
        with suppress(OSError):
            found.setdefault(os.readlink(proc_root / str(pid) / "ns" / kind), pid)
    return list(found.values())


def descriptors(proc_root: Path, pid: int) -> Iterator[tuple[str, str, str]]:
    """Yield number, path and target of each open file of a process; none if it is gone."""
    with suppress(*GONE), os.scandir(f"{proc_root}/{pid}/fd") as entries:
        for entry in entries:
            with suppress(*GONE):
                yield entry.name, entry.path, os.readlink(entry.path)


def mapping_path(proc_root: Path, folder: str, start: str | bytes, end: str | bytes) -> str:
    """Return the link in map_files of a mapping, for the process or thread of a folder in /proc.

    /proc has a folder for the id of every thread. The list of mappings pads an address with
    zeros, and the names in map_files have no zeros.
    """
    thread = os.path.basename(folder)
    return f"{proc_root}/{thread}/map_files/{int(start, 16):x}-{int(end, 16):x}"
