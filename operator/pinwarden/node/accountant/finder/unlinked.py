"""Objects of a tmpfs without a name.

Object stores and data loaders unlink an object at once and continue with descriptors and mappings.
The kernel shows these as `/dev/shm/NAME (deleted)`. They are searched only while the tmpfs uses
more bytes (statfs(2)) than its named files. If bytes are still missing afterwards, the figure is a
lower bound (H2).
"""

import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from pinwarden.node.accountant.finder.paths import used_bytes
from pinwarden.node.accountant.finder.processes import (
    BLOCK,
    DELETED,
    before,
    descriptors,
    mapping_path,
)
from pinwarden.node.linux import openat2
from pinwarden.node.linux.procfs import GONE
from pinwarden.node.shm.objects import ObjectId
from pinwarden.node.shm.regions import ProcessMaps, printed_device

SHM: Final = "/dev/shm"  # noqa: S108 - shm_open(3) has its objects there


class UnlinkedObject(NamedTuple):
    """An object without a name, with its former name and its bytes.

    The name is empty if the object was not directly in /dev/shm.
    """

    object: ObjectId
    name: str
    used: int


class UnlinkedObjects(NamedTuple):
    """The objects without a name in a tmpfs.

    `complete`: named and unlinked objects explain all bytes of the tmpfs. `late`: there was not
    enough time to read all processes.
    """

    objects: Sequence[UnlinkedObject]
    complete: bool
    late: bool = False


class UnlinkedFinder:
    """Finds objects without a name. In a round each process is read once for each tmpfs."""

    def __init__(self, proc_root: Path) -> None:
        self._proc_root = proc_root
        self._read: dict[tuple[int, int], Sequence[UnlinkedObject]] = {}

    def begin(self) -> None:
        """Begin a round: forget all processes."""
        self._read = {}

    def find(
        self, folder: int, pids: Sequence[int], others: Sequence[int], seconds: float
    ) -> UnlinkedObjects:
        """Return the unlinked objects, open or mapped in the processes `pids`.

        Objects shown only by `others` belong to other groups. They explain bytes of the tmpfs,
        and are not returned. Processes are read only until all bytes are explained, and for at
        most `seconds`. A tmpfs without a size does not show its bytes; then all `pids` are read.
        Raises OSError.
        """
        before, linked = used_bytes(folder), named_bytes(folder)
        if before is not None and before <= linked:
            return UnlinkedObjects((), complete=True)
        own: dict[ObjectId, UnlinkedObject] = {}
        every: dict[ObjectId, UnlinkedObject] = {}
        deadline = time.monotonic() + seconds
        used = 0
        late = False
        for is_own, pid in _own_first(pids, () if before is None else others):
            if late or (before is not None and before <= linked + used):
                break
            shown, late = self._shown(pid, os.fstat(folder).st_dev, deadline)
            for unlinked in shown:
                every.setdefault(unlinked.object, unlinked)
                if is_own:
                    own.setdefault(unlinked.object, unlinked)
            used = sum(unlinked.used for unlinked in every.values())
        after = used_bytes(folder)
        total = None if before is None or after is None else min(before, after)
        complete = not late and (
            total is None or total <= linked + used or total <= linked + used + nested_bytes(folder)
        )
        return UnlinkedObjects(tuple(own.values()), complete, late)

    def _shown(
        self, pid: int, device: int, deadline: float
    ) -> tuple[Sequence[UnlinkedObject], bool]:
        """Return the unlinked objects of a process, and whether the deadline ended the read."""
        if (known := self._read.get((device, pid))) is not None:
            return known, False
        shown: list[UnlinkedObject] = []
        try:
            for unlinked in _unlinked(self._proc_root, pid, device, deadline):
                shown.append(unlinked)
        except TimeoutError:
            return shown, True
        self._read[device, pid] = shown
        return shown, False


def named_bytes(folder: int) -> int:
    """Return the bytes of all files directly in a folder, each once. Raises OSError."""
    seen: set[int] = set()
    total = 0
    with openat2.reopened(folder) as readable, os.scandir(readable) as entries:
        for entry in islice(entries, openat2.MOST_NAMES):
            with suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                if about.st_nlink == 1 or about.st_ino not in seen:
                    seen.add(about.st_ino)
                    total += about.st_blocks * BLOCK
    return total


def nested_bytes(folder: int) -> int:
    """Return the bytes of the files in subfolders, each once."""
    blocks = {about.st_ino: about.st_blocks for about in map(os.fstat, openat2.walk_files(folder))}
    return sum(blocks.values()) * BLOCK - named_bytes(folder)


def _own_first(pids: Sequence[int], others: Sequence[int]) -> Iterator[tuple[bool, int]]:
    yield from ((True, pid) for pid in pids)
    own = frozenset(pids)
    yield from ((False, pid) for pid in others if pid not in own)


def _unlinked(proc_root: Path, pid: int, device: int, deadline: float) -> Iterator[UnlinkedObject]:
    """Yield the unlinked objects of a device, open or mapped in a process.

    Raises TimeoutError at the deadline.
    """
    for _, path, target in before(deadline, descriptors(proc_root, pid)):
        if target.endswith(DELETED):
            yield from _object(path, target, device)
    process, wanted = ProcessMaps(proc_root, pid), printed_device(device)
    seen: set[bytes] = set()
    for line in before(deadline, process.lines()):
        fields = line.split(b" ", 5)
        if len(fields) < 6 or fields[3] != wanted or fields[4] in seen:
            continue
        target = os.fsdecode(fields[5].strip())
        if target.endswith(DELETED):
            start, _, end = fields[0].partition(b"-")
            path = mapping_path(proc_root, process.folder, start, end)
            for unlinked in _object(path, target, device):
                seen.add(fields[4])
                yield unlinked


def _object(path: str, target: str, device: int) -> Iterator[UnlinkedObject]:
    with suppress(*GONE):
        about = os.stat(path)
        if about.st_dev == device and about.st_nlink == 0 and stat.S_ISREG(about.st_mode):
            name = target.removesuffix(DELETED)
            name = name[len(SHM) + 1 :] if name.startswith(f"{SHM}/") else os.path.basename(name)
            identity = ObjectId(about.st_dev, about.st_ino)
            yield UnlinkedObject(identity, "" if "/" in name else name, about.st_blocks * BLOCK)
