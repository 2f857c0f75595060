"""Which objects a group stands for on this node now, and what they hold (M1, M3): looked up anew each time, so that an object that was
replaced under its path (another inode) or has gone is seen as that.

| backing | found by | charge |
| --- | --- | --- |
| tmpfs, hugetlbfs | the mount at a path | statfs(2): blocks in use; none for one that was mounted without a size |
| file | a path, with a pattern in its last part | pages in the page cache |
| posixShm | a name, also one that was unlinked (`posix`), in /dev/shm of the node, or of each member pod | blocks (st_blocks) |
| sysvShm | keys in the IPC namespace of the node, or of each member pod | resident and swapped out, as /proc/sysvipc/shm shows them |
| memfd | a name among what processes of member pods have open or mapped | blocks |
| dmabuf | an exporter among what processes of member pods have open | its size: all of it is there |

Blocks of tmpfs count pages that are swapped out too, those of hugetlbfs also pages that are reserved for a mapping. What lies in a pod's
own namespaces is looked for from one process of each container.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.api.sharedmemorygroup import IpcNamespace
from pinwarden.node.accountant import posix_shm
from pinwarden.node.accountant.round_time import RoundTime
from pinwarden.node.linux import openat2, sysvshm
from pinwarden.node.linux.mountinfo import Mount, read_mountinfo
from pinwarden.node.linux.namespaces import ipc_namespace
from pinwarden.node.linux.pagecache import cached_bytes
from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.shm.regions import ProcessMaps

MOST_OBJECTS = 1024
_BLOCK = posix_shm.BLOCK
_TMPFS, _HUGETLBFS = "tmpfs", "hugetlbfs"
_SHM = posix_shm.SHM
_OTHERS_PAGES = ("overlay", "btrfs")  # whose pages, or device in /proc/PID/maps, are not those of stat(2)
_MOUNT_ID = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)
_EXPORTER = re.compile(r"^exp_name:\s*(.*)$", re.MULTILINE)
_SIZE = re.compile(r"^size:\s*(\d+)$", re.MULTILINE)
_MAPPED_MEMFD = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+ \d+) +/memfd:(.*?)(?: \(deleted\))?$"
)  # start, end, device and inode, name
_MEMFD, _DMABUF, _DELETED = "/memfd:", "/dmabuf:", " (deleted)"
_GONE = posix_shm.GONE
_UNSEEN = "a /dev/shm holds bytes that have no name and that no member's process shows"
_UNREAD = "a member's processes cannot be read"
_LATE = "the time was too short to read all processes that may have an object"

Pids = Mapping[str, Sequence[int]]
"""By the UID of a member pod: its processes."""


class NotFoundError(Exception):
    """There is no object that the group may stand for: a reason in one word, and why, for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Instance:
    """What a group stands for now: `charge` in bytes, None where it cannot be known. `whole` are devices of dma-bufs.

    `room` is how many objects it may have. `truncated`: there are more than are looked at, so that the charge is a lower bound (H2).
    `why` says in words that some of its objects may be unknown, and is empty where only their number is too large.
    `other` is what was found in their place, and is no object.
    """

    room: int = MOST_OBJECTS
    devices: set[int] = field(default_factory=set)
    objects: dict[ObjectId, int] = field(default_factory=dict)
    sizes: dict[ObjectId, int] = field(default_factory=dict)
    mounted: int | None = None
    truncated: bool = False
    why: str = ""
    whole: set[int] = field(default_factory=set)
    other: str = ""

    @property
    def extent(self) -> ObjectSet:
        """What it is in /proc/PID/maps."""
        return ObjectSet(frozenset(self.devices), frozenset(self.objects), frozenset(self.sizes.items()))

    @property
    def count(self) -> int:
        """How many objects there are; a file system is one."""
        return len(self.devices) + len(self.objects)

    @property
    def charge(self) -> int | None:
        """What they hold in bytes (M3); None where a file system does not tell."""
        if self.devices:
            return self.mounted
        return sum(self.objects.values())

    def add(self, one: ObjectId, held: int) -> None:
        """An object and the bytes that it holds, unless there are too many."""
        if len(self.objects) < self.room or one in self.objects:
            self.objects[one] = held
        else:
            self.truncated = True


class Finder:
    """Finds on the node whose first process is `first`.

    Needs CAP_SYS_PTRACE, and CAP_SYS_ADMIN for System V and for memfds that are mapped only.
    """

    def __init__(self, proc_root: Path, first: int = 1) -> None:
        self._proc_root = proc_root
        self._first = proc_root / str(first)
        self._volumes = posix_shm.PodVolumes(proc_root, self._first)
        self._hidden = posix_shm.HiddenObjects(proc_root)
        self._time = RoundTime(posix_shm.ROUND_SECONDS)
        self._on_node: Sequence[int] = ()

    def begin(self, groups: Iterable[NodeGroup], pids: Pids) -> None:
        """Begin a round with these groups and the processes of all their pods: what groups have in common is read anew."""
        self._volumes.begin(pids)
        self._hidden.begin()
        shm = {group.uid: group for group in groups if group.backing.posix_shm}
        self._time.begin(list(shm))
        pods = sorted(frozenset[str]().union(*(group.pods() for group in shm.values() if _is_on_node(group))))
        self._on_node = list(posix_shm.by_pod({uid: pids[uid] for uid in pods if uid in pids}))

    def find(
        self,
        group: NodeGroup,
        pids: Pids,
        *,
        path: str | None = None,
        room: int = MOST_OBJECTS,
        unread: bool = False,
    ) -> Instance:
        """The instance of a group with these member processes, and at most `room` objects; `path` is where pinwarden mounted it.

        `unread`: members have more processes, which cannot be read.

        Raises NotFoundError, and OSError where the node cannot be looked at. The error's reason is `NotThere` only if no object can be
        there, and `NotReadable` if objects may be there that are not known.
        """
        self._time.enter(group.uid)
        backing, found = group.backing, Instance(room)
        if unread and not (backing.tmpfs or backing.hugetlbfs or backing.file):
            found.truncated, found.why = True, _UNREAD
        if mount := backing.tmpfs or backing.hugetlbfs:
            kind = _TMPFS if backing.tmpfs else _HUGETLBFS
            where = path or mount.path
            if where is None:
                raise NotFoundError("NotThere", "it is not made yet")
            self._mount(found, where, "/" if path else group.allowed, kind)
        elif backing.file:
            self._files(found, backing.file.path, group.allowed)
        elif backing.posix_shm:
            self._posix(found, backing.posix_shm.name, backing.posix_shm.ipc_namespace, pids)
        elif backing.sysv_shm:
            self._sysv(found, backing.sysv_shm.keys, backing.sysv_shm.ipc_namespace, pids)
        elif backing.memfd:
            self._memfds(found, backing.memfd.name, pids)
        elif backing.dmabuf:
            self._dmabufs(found, backing.dmabuf.exporter, pids)
        if not found.count and found.truncated:
            why = found.why or "there are more objects than are looked at"
            raise NotFoundError("NotReadable", f"no such object is known: {why}")
        if found.other and not found.count:
            raise NotFoundError("WrongType", f"{found.other} is not a regular file")
        if not found.count:
            raise NotFoundError("NotThere", "no such object is there now")
        return found

    def files(self, group: NodeGroup, *, path: str | None = None) -> Iterator[int]:
        """Descriptors for reading of the files that an instance has by a name, one at a time and at most `MOST_OBJECTS`.

        These are those of tmpfs, file, and posixShm of the node. Raises NotFoundError, also of another backing and where there are more,
        and OSError.
        """
        backing = group.backing
        if backing.tmpfs and (where := path or backing.tmpfs.path):
            with (
                self._at(where, "/" if path else group.allowed) as (at, rest),
                openat2.opened_below(at, rest) as top,
            ):
                for count, descriptor in enumerate(openat2.walk_files(top)):
                    if count == MOST_OBJECTS:
                        raise NotFoundError(
                            "TooMany",
                            f"{where} has more than {MOST_OBJECTS} files, and no more are looked at",
                        )
                    yield descriptor
        elif backing.file:
            above, _, pattern = backing.file.path.rpartition("/")
            with (
                self._at(above or "/", group.allowed) as (at, rest),
                openat2.opened_below(at, rest) as folder,
            ):
                for name in openat2.matching_names(folder, pattern, MOST_OBJECTS)[0]:
                    yield from openat2.open_regular(folder, name)
        elif backing.posix_shm and _is_on_node(group):
            with self._at(f"{_SHM}/x", _SHM) as (folder, _):
                for name in openat2.matching_names(folder, backing.posix_shm.name, MOST_OBJECTS)[0]:
                    yield from openat2.open_regular(folder, name)
        else:
            raise NotFoundError("NotSupported", "its objects have no name on the node to open them by")

    # -- by a path -------------------------------------------------------------------------------------------------

    @contextmanager
    def _at(self, path: str, allowed: str | None) -> Iterator[tuple[int, str]]:
        """The allowed folder, and the rest of the path below it. Raises NotFoundError."""
        if allowed is None or not _is_below(path, allowed):
            raise NotFoundError("NotAllowed", f"{path} is not below a folder that an administrator allowed")
        try:
            with openat2.opened_folder(f"{self._first}/root", allowed, links=True) as opened:
                yield opened, path[len(allowed.rstrip("/")) :].strip("/")
        except OSError as error:
            raise _not_found(path, error) from error

    def _mount(self, found: Instance, path: str, allowed: str | None, kind: str) -> None:
        with self._at(path, allowed) as (at, rest), openat2.opened_below(at, rest) as descriptor:
            mount = self._mounted(descriptor)
            if mount is None or mount.type != kind:
                raise NotFoundError("WrongType", f"{path} is not on a {kind}")
            if mount.root != "/" or mount.point != path:
                raise NotFoundError("WrongType", f"{path} is not where a whole {kind} is mounted")
            found.devices.add(mount.device)
            space = os.fstatvfs(descriptor)
            if space.f_blocks:
                found.mounted = (space.f_blocks - space.f_bfree) * space.f_frsize

    def _mounted(self, descriptor: int) -> Mount | None:
        """The mount that a file is on, among those of the node itself."""
        shown = _MOUNT_ID.search(Path(f"/proc/self/fdinfo/{descriptor}").read_text())
        number = int(shown[1]) if shown else -1
        return next((one for one in read_mountinfo(self._first) if one.id == number), None)

    def _files(self, found: Instance, path: str, allowed: str | None) -> None:
        above, _, pattern = path.rpartition("/")
        with self._at(above or "/", allowed) as (at, rest), openat2.opened_below(at, rest) as folder:
            mount = self._mounted(folder)
            if mount and mount.type in _OTHERS_PAGES:
                raise NotFoundError(
                    "NotSupported", f"{path}: mappings on {mount.type} show another file's pages"
                )
            self._each(found, folder, pattern, path, _cached)

    def _each(
        self,
        found: Instance,
        folder: int,
        pattern: str,
        path: str,
        held: Callable[[int, os.stat_result], int],
    ) -> None:
        """Each regular file of a folder that the pattern matches. Others are passed over, and alone they are a wrong type."""
        names, more = openat2.matching_names(folder, pattern, MOST_OBJECTS)
        found.truncated |= more
        for name in names:
            try:
                with openat2.opened_below(folder, name) as descriptor:
                    about = os.fstat(descriptor)
                    if stat.S_ISREG(about.st_mode):
                        found.add(ObjectId(about.st_dev, about.st_ino), held(descriptor, about))
                    else:
                        found.other = f"{path}: {name}"
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                if error.errno == errno.ELOOP:
                    found.other = f"{path}: {name}"

    # -- in IPC namespaces -----------------------------------------------------------------------------------------

    def _posix(self, found: Instance, name: str, where: IpcNamespace, pids: Pids) -> None:
        if where is IpcNamespace.HOST:
            try:
                everyone = list(posix_shm.by_pod(pids))
                self._shm(found, self._first, _SHM, name, everyone, self._on_node)
            except OSError as error:
                raise _not_found(f"{_SHM}/{name}", error) from error
            return
        node = self._shm_device()
        for uid, members in pids.items():
            shown: dict[int, int] = {}
            for pid in self._one_each("mnt", {uid: members}):
                with suppress(OSError):  # an image without /dev/shm, or a process that ended
                    device = self._shm(found, self._proc_root / str(pid), _SHM, name, members, but=node)
                    shown |= {pid: device} if device else {}
            for point in self._volumes.left(uid, members, shown):
                with suppress(OSError):  # the pod's end
                    self._shm(found, self._first, point, name, members)

    def _shm(
        self,
        found: Instance,
        process: Path,
        path: str,
        name: str,
        pids: Sequence[int],
        others: Sequence[int] = (),
        but: int | None = None,
    ) -> int | None:
        """Add the objects of a /dev/shm, at a path that a process sees, and return its device. Raises OSError.

        That of the device `but`, and what is on no tmpfs, is left out. Objects without a name are the group's if one of its processes
        `pids` shows them; those that only the processes `others` show are known not to be. Without any `pids` there are none.
        """
        with posix_shm.opened(f"{process}/root", path) as folder:
            device = posix_shm.device(folder)
            if device is None or device == but:
                return None
            self._each(found, folder, name, f"{_SHM}/{name}", _blocks)
            if not pids:
                return device
            with self._time.spend(posix_shm.SECONDS) as seconds:
                hidden = self._hidden.find(folder, pids, others, seconds)
            for unlinked in hidden.objects:
                if unlinked.name and openat2.matches(unlinked.name, name):
                    found.add(unlinked.object, unlinked.held)
            if not hidden.complete:
                found.truncated = True
                found.why = _LATE if hidden.late else _UNSEEN
            return device

    def _shm_device(self) -> int | None:
        try:
            return os.stat(f"{self._first}/root{_SHM}").st_dev
        except FileNotFoundError:
            return None

    def _sysv(self, found: Instance, keys: tuple[int, int], where: IpcNamespace, pids: Pids) -> None:
        node = ipc_namespace(self._first)
        spaces = {node: self._first}
        if where is IpcNamespace.POD:
            spaces = {
                ipc_namespace(process): process
                for pid in self._one_each("ipc", pids)
                for process in [self._proc_root / str(pid)]
            }
            spaces.pop(node, None)
        for space, process in spaces.items():
            if space is None:
                continue
            try:
                listed = sysvshm.segments_of(process)
            except _GONE:
                continue
            for each in listed:
                if keys[0] <= each.key <= keys[1]:
                    one = ObjectId(sysvshm.device(), each.id, space)
                    found.add(one, each.held)
                    found.sizes[one] = each.size

    def _one_each(self, kind: str, pids: Pids) -> list[int]:
        """One process for each namespace of this kind that member pods have."""
        found: dict[str, int] = {}
        for pid in posix_shm.by_pod(pids):
            with suppress(OSError):
                found.setdefault(os.readlink(self._proc_root / str(pid) / "ns" / kind), pid)
        return list(found.values())

    # -- among descriptors -----------------------------------------------------------------------------------------

    def _memfds(self, found: Instance, name: str, pids: Pids) -> None:
        pattern = openat2.fnmatch_pattern(name)
        for pid in self._in_time(found, pids):
            for _, path, target in self._descriptors(pid):
                if target.startswith(_MEMFD) and fnmatchcase(_named(target), pattern):
                    with suppress(*_GONE):
                        about = os.stat(path)
                        found.add(ObjectId(about.st_dev, about.st_ino), about.st_blocks * _BLOCK)
            self._mapped_memfds(found, pid, pattern)

    def _mapped_memfds(self, found: Instance, pid: int, pattern: str) -> None:
        """A list of mappings fills addresses up with zeros, and the names in map_files have none."""
        process = ProcessMaps(self._proc_root, pid)
        seen: set[bytes] = set()
        for line in process.lines():
            mapped = _MAPPED_MEMFD.match(line)
            if mapped and mapped[3] not in seen and fnmatchcase(os.fsdecode(mapped[4]), pattern):
                thread = os.path.basename(process.folder)  # any thread's number is a folder of /proc
                name = f"{int(mapped[1], 16):x}-{int(mapped[2], 16):x}"
                with suppress(*_GONE):
                    about = os.stat(self._proc_root / thread / "map_files" / name)
                    found.add(ObjectId(about.st_dev, about.st_ino), about.st_blocks * _BLOCK)
                    seen.add(mapped[3])

    def _dmabufs(self, found: Instance, exporter: str, pids: Pids) -> None:
        """Those that are open: one that is mapped only does not tell its exporter."""
        for pid in self._in_time(found, pids):
            for number, path, target in self._descriptors(pid):
                if not target.startswith(_DMABUF):
                    continue
                with suppress(*_GONE):
                    about = os.stat(path)
                    fdinfo = self._proc_root / str(pid) / "fdinfo" / number
                    shown = fdinfo.read_text(errors="surrogateescape")  # a dma-buf may have any name
                    name, size = _EXPORTER.search(shown), _SIZE.search(shown)
                    if name and size and name[1] == exporter:
                        found.add(ObjectId(about.st_dev, about.st_ino), int(size[1]))
                        found.whole.add(about.st_dev)

    def _descriptors(self, pid: int) -> Iterator[tuple[str, str, str]]:
        return posix_shm.descriptors(self._proc_root, pid)

    @staticmethod
    def _in_time(found: Instance, pids: Pids) -> Iterator[int]:
        """The processes, until `SECONDS` have passed: a pod may have any number of descriptors."""
        deadline = time.monotonic() + posix_shm.SECONDS
        for pid in posix_shm.by_pod(pids):
            if time.monotonic() > deadline:
                found.truncated, found.why = True, _LATE
                return
            yield pid


def _is_on_node(group: NodeGroup) -> bool:
    shm = group.backing.posix_shm
    return shm is not None and shm.ipc_namespace is IpcNamespace.HOST


def _named(target: str) -> str:
    return target.removeprefix(_MEMFD).removesuffix(_DELETED)


def _cached(descriptor: int, _: os.stat_result) -> int:
    with openat2.reopened(descriptor) as opened:
        return cached_bytes(opened)


def _blocks(_: int, about: os.stat_result) -> int:
    return about.st_blocks * _BLOCK


def _is_below(path: str, folder: str) -> bool:
    above = folder.rstrip("/")
    return path == (above or "/") or path.startswith(f"{above}/")


def _not_found(path: str, error: OSError) -> NotFoundError:
    match error.errno:
        case errno.ENOENT:
            return NotFoundError("NotThere", f"{path} is not there")
        case errno.ELOOP:
            return NotFoundError(
                "SymbolicLink", f"{path}: a symbolic link is in the way, and none is followed"
            )
        case errno.EXDEV:
            return NotFoundError(
                "NotAllowed", f"{path} leads out of the folder that an administrator allowed"
            )
        case errno.ENOTDIR:
            return NotFoundError("WrongType", f"{path}: a part of it is not a folder")
    return NotFoundError("NotReadable", f"{path}: {error.strerror or error}")
