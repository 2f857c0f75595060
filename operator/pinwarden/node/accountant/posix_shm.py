"""POSIX shared memory as programs really use it: what is in a /dev/shm now, with a name or without.

A name is not all that there is. Object stores and data loaders unlink an object at once and go on with descriptors and mappings; the
kernel shows these as `/dev/shm/NAME (deleted)`. They are looked for only while the tmpfs holds more (statfs) than the files with a name.
What is still missing then makes the figure a lower bound (H2).

A volume of medium Memory at /dev/shm outlives its container, and is full just while the container restarts over and over. Then no
process shows it, but the kubelet has it mounted on the node. Which of a pod's volumes it is was seen earlier, by its device; of a pod
that was never seen with a process of its own, it is the only one.
"""

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from pinwarden.node.linux import openat2
from pinwarden.node.linux.mountinfo import Mount, read_mountinfo
from pinwarden.node.shm.objects import ObjectId
from pinwarden.node.shm.regions import ProcessMaps, printed_device

SHM: Final = "/dev/shm"  # noqa: S108 - where shm_open(3) has its objects
MOST_DESCRIPTORS: Final = 1 << 14
SECONDS: Final = 3.0
ROUND_SECONDS: Final = 30.0
BLOCK: Final = 512  # bytes of st_blocks, whatever the file system's own
GONE: Final = (FileNotFoundError, ProcessLookupError)
_TMPFS: Final = "tmpfs"
_DELETED: Final = " (deleted)"
_VOLUME: Final = re.compile(r"/pods/([^/]+)/volumes/kubernetes\.io~empty-dir/[^/]+")
_SANDBOX: Final = "pause"
_RUNTIMES: Final = ("runc", "crun")
_Item = TypeVar("_Item")


class Unlinked(NamedTuple):
    """An object without a name: the name that it had, and its bytes. The name is empty where it was not directly in /dev/shm."""

    object: ObjectId
    name: str
    held: int


class Hidden(NamedTuple):
    """The objects of a tmpfs that have no name any more.

    `complete`: the processes that were read account for all bytes of the tmpfs. `late`: not all processes could be read in time.
    """

    objects: Sequence[Unlinked]
    complete: bool
    late: bool = False


class PodVolumes:
    """Finds the tmpfs of each pod's /dev/shm while no process of its containers is there, on the node whose first process is `first`."""

    def __init__(self, proc_root: Path, first: Path) -> None:
        self._proc_root = proc_root
        self._first = first
        self._shown: dict[str, set[int]] = {}
        self._volumes: dict[str, list[Mount]] | None = None

    def begin(self, uids: Iterable[str]) -> None:
        """Begin a round with these pods: what the node has mounted is read anew, and all other pods are forgotten."""
        self._volumes = None
        self._shown = {uid: self._shown[uid] for uid in uids if uid in self._shown}

    def left(self, uid: str, pids: Iterable[int], shown: Mapping[int, int]) -> list[str]:
        """Return where the volumes are mounted that are the pod's /dev/shm, and that no process shows.

        `shown` are the devices that some of its processes `pids` have at /dev/shm now.
        """
        own = {device for pid, device in shown.items() if not self._is_runtimes(pid)}
        if own:
            self._shown.setdefault(uid, set()).update(own)
        known = self._shown.get(uid)
        if known is None:
            candidates = self._of_pod(uid) if all(map(self._is_runtimes, pids)) else ()
            return [candidates[0].point] if len(candidates) == 1 else []
        if known <= own:
            return []
        there = {mount.device: mount.point for mount in self._of_pod(uid)}
        known &= there.keys() | own
        return [there[device] for device in sorted(known - own)]

    def _of_pod(self, uid: str) -> Sequence[Mount]:
        if self._volumes is None:
            self._volumes = {}
            for mount in read_mountinfo(self._first):
                found = _VOLUME.search(mount.point)
                if mount.type == _TMPFS and mount.root == "/" and found and found.end() == len(mount.point):
                    self._volumes.setdefault(found[1], []).append(mount)
        return self._volumes.get(uid, ())

    def _is_runtimes(self, pid: int) -> bool:
        """Whether it is the sandbox's process, or one that is about to be a container's; a pod that names its own so fools itself."""
        with suppress(*GONE):
            name = (self._proc_root / str(pid) / "comm").read_text(errors="replace").strip()
            return name == _SANDBOX or name.startswith(_RUNTIMES)
        return True


def device(folder: int) -> int | None:
    """Return the device of a tmpfs; None of another file system. Raises OSError."""
    return os.fstat(folder).st_dev if openat2.filesystem_magic(folder) == openat2.TMPFS else None


def used(folder: int) -> int | None:
    """Return the bytes in use of the file system of a folder; None where it was mounted without a size. Raises OSError."""
    space = os.fstatvfs(folder)
    return (space.f_blocks - space.f_bfree) * space.f_frsize if space.f_blocks else None


def named(folder: int) -> int:
    """Return the bytes of all files directly in a folder, each once. Raises OSError."""
    seen: set[int] = set()
    total = 0
    with openat2.reopened(folder) as opened, os.scandir(opened) as entries:
        for entry in islice(entries, openat2.MOST_NAMES):
            with suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                if about.st_nlink == 1 or about.st_ino not in seen:
                    seen.add(about.st_ino)
                    total += about.st_blocks * BLOCK
    return total


def nested(folder: int) -> int:
    """Return the bytes of files in the folders of a folder, each once."""
    every = {about.st_ino: about.st_blocks for about in map(os.fstat, openat2.walk_files(folder))}
    return sum(every.values()) * BLOCK - named(folder)


class HiddenObjects:
    """Finds the objects of a tmpfs that have no name. In a round each process is read once for each tmpfs, whoever asks."""

    def __init__(self, proc_root: Path) -> None:
        self._proc_root = proc_root
        self._read: dict[tuple[int, int], Sequence[Unlinked]] = {}

    def begin(self) -> None:
        """Begin a round: all processes are read anew."""
        self._read = {}

    def find(self, folder: int, pids: Sequence[int], others: Sequence[int], seconds: float) -> Hidden:
        """Return the objects that the processes `pids` have open or mapped. Raises OSError.

        Bytes that only `others` show belong to somebody else: they explain what the tmpfs holds, and are not returned. Processes are
        read only while the tmpfs holds more than what has been found, and for so many seconds at most. A tmpfs without a size does not
        say what it holds, and all `pids` are read.
        """
        before, linked = used(folder), named(folder)
        if before is not None and before <= linked:
            return Hidden((), complete=True)
        own: dict[ObjectId, Unlinked] = {}
        every: dict[ObjectId, Unlinked] = {}
        deadline = time.monotonic() + seconds
        held = 0
        late = False
        for mine, pid in _mine_first(pids, () if before is None else others):
            if late or (before is not None and before <= linked + held):
                break
            shown, late = self._of(pid, os.fstat(folder).st_dev, deadline)
            for unlinked in shown:
                every.setdefault(unlinked.object, unlinked)
                if mine:
                    own.setdefault(unlinked.object, unlinked)
            held = sum(unlinked.held for unlinked in every.values())
        after = used(folder)
        total = None if before is None or after is None else min(before, after)
        complete = not late and (
            total is None or total <= linked + held or total <= linked + held + nested(folder)
        )
        return Hidden(tuple(own.values()), complete, late)

    def _of(self, pid: int, device: int, deadline: float) -> tuple[Sequence[Unlinked], bool]:
        """Return what a process shows, and whether the time was too short to read all of it."""
        if (known := self._read.get((device, pid))) is not None:
            return known, False
        found: list[Unlinked] = []
        try:
            for unlinked in _unlinked(self._proc_root, pid, device, deadline):
                found.append(unlinked)
        except TimeoutError:
            return found, True
        self._read[device, pid] = found
        return found, False


def _mine_first(pids: Sequence[int], others: Sequence[int]) -> Iterator[tuple[bool, int]]:
    yield from ((True, pid) for pid in pids)
    mine = frozenset(pids)
    yield from ((False, pid) for pid in others if pid not in mine)


def _in_time(items: Iterable[_Item], deadline: float) -> Iterator[_Item]:
    """Yield the items. Raises TimeoutError at the deadline, also before the first item."""
    for item in chain([None], items):
        if time.monotonic() >= deadline:
            raise TimeoutError
        if item is not None:
            yield item


def descriptors(proc_root: Path, pid: int) -> Iterator[tuple[str, str, str]]:
    """Number, path and target of each open file of a process; none when it is gone."""
    with suppress(*GONE), os.scandir(f"{proc_root}/{pid}/fd") as listed:
        for entry in islice(listed, MOST_DESCRIPTORS):
            with suppress(*GONE):
                yield entry.name, entry.path, os.readlink(entry.path)


def _unlinked(proc_root: Path, pid: int, of: int, deadline: float) -> Iterator[Unlinked]:
    """Yield what one process has of the device, open or mapped, without a name. Raises TimeoutError at the deadline."""
    for _, path, target in _in_time(descriptors(proc_root, pid), deadline):
        if target.endswith(_DELETED):
            yield from _object(path, target, of)
    process, wanted = ProcessMaps(proc_root, pid), printed_device(of)
    seen: set[bytes] = set()
    for line in _in_time(process.lines(), deadline):
        fields = line.split(b" ", 5)
        if len(fields) < 6 or fields[3] != wanted or fields[4] in seen:
            continue
        target = os.fsdecode(fields[5].strip())
        if target.endswith(_DELETED):
            start, _, end = fields[0].partition(b"-")
            thread = os.path.basename(process.folder)  # any thread's number is a folder of /proc
            mapping = f"{proc_root}/{thread}/map_files/{int(start, 16):x}-{int(end, 16):x}"
            for unlinked in _object(mapping, target, of):
                seen.add(fields[4])
                yield unlinked


def _object(path: str, target: str, of: int) -> Iterator[Unlinked]:
    with suppress(*GONE):
        about = os.stat(path)
        if about.st_dev == of and about.st_nlink == 0 and stat.S_ISREG(about.st_mode):
            name = target.removesuffix(_DELETED)
            name = name[len(SHM) + 1 :] if name.startswith(f"{SHM}/") else os.path.basename(name)
            one = ObjectId(about.st_dev, about.st_ino)
            yield Unlinked(one, "" if "/" in name else name, about.st_blocks * BLOCK)


@contextmanager
def opened(root: str, path: str) -> Iterator[int]:
    """A folder below a root such as /proc/1/root, no link followed. Raises OSError."""
    with openat2.opened_folder(root, path, links=False) as folder:
        yield folder


def by_pod(pids: Mapping[str, Sequence[int]]) -> Iterator[int]:
    """All processes, pod by pod."""
    return (pid for members in pids.values() for pid in members)
