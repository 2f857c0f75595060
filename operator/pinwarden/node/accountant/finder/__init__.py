"""The objects of a group on this node now, and their bytes (M1, M3).

Every round searches again. So a replaced object (another inode under its path) or a removed one
is seen at once.

| backing | found by | charge |
| --- | --- | --- |
| tmpfs, hugetlbfs | the mount at a path (`paths`) | statfs(2): blocks in use; none without a size |
| file | a path, with a pattern in its last component (`paths`) | pages in the page cache |
| posixShm | a name in /dev/shm (`posix_shm`), also an unlinked one (`unlinked`) | `st_blocks` |
| sysvShm | keys in an IPC namespace (`sysv`) | resident and swapped out, by /proc/sysvipc/shm |
| memfd | a name among open files and mappings of member pods (`memfd`) | `st_blocks` |
| dmabuf | an exporter among open files of member pods (`dmabuf`) | its size, all resident |

Blocks of tmpfs include swapped out pages. Blocks of hugetlbfs include pages reserved
for a mapping. In a pod's own namespaces the search starts from one process of each
container.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.api.reasons import NOT_THERE
from pinwarden.node.accountant.finder import dmabuf, memfd, sysv
from pinwarden.node.accountant.finder.paths import NodePaths
from pinwarden.node.accountant.finder.posix_shm import PosixShm, is_on_node
from pinwarden.node.accountant.finder.result import (
    MOST_OBJECTS,
    GroupObjects,
    ObjectsNotFoundError,
    Pids,
)
from pinwarden.node.accountant.finder.unlinked import SHM

_UNREAD = "a member's processes cannot be read"


class Finder:
    """Finds objects on the node whose first process is `first`.

    Needs CAP_SYS_PTRACE. System V segments and memfds without an open file need CAP_SYS_ADMIN.
    """

    def __init__(self, proc_root: Path, first: int = 1) -> None:
        self._proc_root = proc_root
        self._first = proc_root / str(first)
        self._paths = NodePaths(self._first)
        self._posix_shm = PosixShm(proc_root, self._first)

    def begin(self, groups: Iterable[NodeGroup], pids: Pids) -> None:
        """Begin a round with these groups and the processes of all their pods."""
        self._posix_shm.begin(groups, pids)

    def find(
        self,
        group: NodeGroup,
        pids: Pids,
        *,
        path: str | None = None,
        room: int = MOST_OBJECTS,
        unread: bool = False,
    ) -> GroupObjects:
        """Return at most `room` objects of a group with these member processes.

        `path` is the mount point of a group with `management: Create`. `unread`: some processes of
        members cannot be read.

        Raises OSError if the node cannot be searched, else ObjectsNotFoundError. The reason is
        `NotThere` only if no object can be there, and `NotReadable` if objects may be unknown.
        """
        backing, objects = group.backing, GroupObjects(room)
        if unread and not (backing.tmpfs or backing.hugetlbfs or backing.file):
            objects.miss(_UNREAD)
        if mount := backing.tmpfs or backing.hugetlbfs:
            point = path or mount.path
            if point is None:
                raise ObjectsNotFoundError(NOT_THERE, "the object is not created yet")
            kind = "tmpfs" if backing.tmpfs else "hugetlbfs"
            self._paths.find_mount(objects, point, "/" if path else group.allowed, kind)
        elif backing.file:
            self._paths.find_files(objects, backing.file.path, group.allowed)
        elif shm := backing.posix_shm:
            self._posix_shm.find(objects, group.uid, shm.name, shm.ipc_namespace, pids)
        elif segment := backing.sysv_shm:
            sysv.find(
                objects, self._proc_root, self._first, segment.keys, segment.ipc_namespace, pids
            )
        elif backing.memfd:
            memfd.find(objects, self._proc_root, backing.memfd.name, pids)
        elif backing.dmabuf:
            dmabuf.find(objects, self._proc_root, backing.dmabuf.exporter, pids)
        objects.check()
        return objects

    def open_files(self, group: NodeGroup, *, path: str | None = None) -> Iterator[int]:
        """Yield each named file of a group, opened for reading, at most `MOST_OBJECTS`.

        Only tmpfs, file, and posixShm of the node have such files. Raises OSError, and
        ObjectsNotFoundError for other backings and for more files.
        """
        backing = group.backing
        if backing.tmpfs and (point := path or backing.tmpfs.path):
            return self._paths.open_mount(point, "/" if path else group.allowed)
        if backing.file:
            return self._paths.open_files(backing.file.path, group.allowed)
        if backing.posix_shm and is_on_node(group):
            return self._paths.open_files(f"{SHM}/{backing.posix_shm.name}", SHM)
        raise ObjectsNotFoundError(
            "NotSupported", "its objects cannot be opened by a name on the node"
        )
