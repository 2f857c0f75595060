"""Memfds by their name, among the open files and mappings of member pods."""

import os
import re
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from pinwarden.node.accountant.finder.processes import (
    BLOCK,
    DELETED,
    before,
    by_pod,
    descriptors,
    limited_time,
    mapping_path,
)
from pinwarden.node.accountant.finder.result import GroupObjects, Pids
from pinwarden.node.linux import openat2
from pinwarden.node.linux.procfs import GONE
from pinwarden.node.shm.objects import ObjectId
from pinwarden.node.shm.regions import ProcessMaps

_MEMFD: Final = "/memfd:"
_MAPPED: Final = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+ \d+) +/memfd:(.*?)(?: \(deleted\))?$"
)  # start, end, device and inode, name


def find(objects: GroupObjects, proc_root: Path, name: str, pids: Pids) -> None:
    """Add the memfds whose name matches. Raises OSError."""
    pattern = openat2.fnmatch_pattern(name)
    with limited_time(objects) as deadline:
        for pid in by_pod(pids):
            for _, path, target in before(deadline, descriptors(proc_root, pid)):
                if target.startswith(_MEMFD) and fnmatchcase(_name(target), pattern):
                    with suppress(*GONE):
                        _add(objects, path)
            _find_mapped(objects, proc_root, pid, pattern, deadline)


def _find_mapped(
    objects: GroupObjects, proc_root: Path, pid: int, pattern: str, deadline: float
) -> None:
    process = ProcessMaps(proc_root, pid)
    seen: set[bytes] = set()
    for line in before(deadline, process.lines()):
        mapping = _MAPPED.match(line)
        if mapping and mapping[3] not in seen and fnmatchcase(os.fsdecode(mapping[4]), pattern):
            with suppress(*GONE):
                _add(objects, mapping_path(proc_root, process.folder, mapping[1], mapping[2]))
                seen.add(mapping[3])


def _add(objects: GroupObjects, path: str) -> None:
    about = os.stat(path)
    objects.add(ObjectId(about.st_dev, about.st_ino), about.st_blocks * BLOCK)


def _name(target: str) -> str:
    return target.removeprefix(_MEMFD).removesuffix(DELETED)
