"""Objects with a path on the node: mounted file systems and files.

The path must be below a folder allowed by an administrator. No symbolic link below this folder is
followed.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pinwarden.api.reasons import NOT_ALLOWED, NOT_READABLE, NOT_THERE
from pinwarden.node.accountant.finder.result import MOST_OBJECTS, GroupObjects, ObjectsNotFoundError
from pinwarden.node.linux import openat2
from pinwarden.node.linux.mountinfo import Mount, read_mountinfo
from pinwarden.node.linux.pagecache import cached_bytes
from pinwarden.node.shm.objects import ObjectId

_MOUNT_ID: Final = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)
_OTHERS_PAGES: Final = ("overlay", "btrfs")
"""File systems whose mappings show another file's pages or another device than stat(2)."""


class NodePaths:
    """Finds objects by their path, as the node's first process sees the path (/proc/`first`)."""

    def __init__(self, first: Path) -> None:
        self._first = first

    def find_mount(self, objects: GroupObjects, path: str, allowed: str | None, kind: str) -> None:
        """Add the whole file system of this kind at a path.

        Raises ObjectsNotFoundError and OSError.
        """
        with self._opened(path, allowed) as descriptor:
            mount = self._mount_of(descriptor)
            if mount is None or mount.type != kind:
                raise ObjectsNotFoundError("WrongType", f"{path} is not on a {kind}")
            if mount.root != "/" or mount.point != path:
                raise ObjectsNotFoundError(
                    "WrongType", f"{path} is not the mount point of a whole {kind}"
                )
            objects.devices.add(mount.device)
            objects.filesystem_bytes = used_bytes(descriptor)

    def find_files(self, objects: GroupObjects, path: str, allowed: str | None) -> None:
        """Add the regular files at a path with a pattern in its last component.

        Raises ObjectsNotFoundError and OSError.
        """
        folder, _, pattern = path.rpartition("/")
        with self._opened(folder or "/", allowed) as descriptor:
            mount = self._mount_of(descriptor)
            if mount and mount.type in _OTHERS_PAGES:
                raise ObjectsNotFoundError(
                    "NotSupported", f"{path}: mappings on {mount.type} show another file's pages"
                )
            add_matching(objects, descriptor, pattern, path, _page_cache_bytes)

    def open_mount(self, path: str, allowed: str | None) -> Iterator[int]:
        """Yield each file of the file system at a path, opened for reading.

        Raises ObjectsNotFoundError, also if there are more than `MOST_OBJECTS`, and OSError.
        """
        with self._opened(path, allowed) as top:
            for count, descriptor in enumerate(openat2.walk_files(top)):
                if count == MOST_OBJECTS:
                    raise ObjectsNotFoundError(
                        "TooMany",
                        f"{path} has more than {MOST_OBJECTS} files",
                    )
                yield descriptor

    def open_files(self, path: str, allowed: str | None) -> Iterator[int]:
        """Yield each file at a path with a pattern, opened for reading.

        Raises ObjectsNotFoundError and OSError.
        """
        folder, _, pattern = path.rpartition("/")
        with self._opened(folder or "/", allowed) as descriptor:
            for name in openat2.matching_names(descriptor, pattern, MOST_OBJECTS)[0]:
                yield from openat2.open_regular(descriptor, name)

    @contextmanager
    def _opened(self, path: str, allowed: str | None) -> Iterator[int]:
        """Yield the file or folder at a path below the allowed folder.

        Raises ObjectsNotFoundError and OSError.
        """
        if allowed is None or not _is_below(path, allowed):
            raise ObjectsNotFoundError(
                NOT_ALLOWED, f"{path} is not below a folder that an administrator allowed"
            )
        try:
            with (
                openat2.opened_folder(f"{self._first}/root", allowed, links=True) as folder,
                openat2.opened_below(
                    folder, path[len(allowed.rstrip("/")) :].strip("/")
                ) as descriptor,
            ):
                yield descriptor
        except OSError as error:
            raise not_found(path, error) from error

    def _mount_of(self, descriptor: int) -> Mount | None:
        """Return the mount of a file among the mounts of the node itself."""
        number = _MOUNT_ID.search(Path(f"/proc/self/fdinfo/{descriptor}").read_text())
        mount_id = int(number[1]) if number else -1
        return next((mount for mount in read_mountinfo(self._first) if mount.id == mount_id), None)


def add_matching(
    objects: GroupObjects,
    folder: int,
    pattern: str,
    path: str,
    object_bytes: Callable[[int, os.stat_result], int],
) -> None:
    """Add each regular file of a folder whose name matches. Raises OSError.

    Anything else with a matching name is skipped, and noted as `not_regular`.
    """
    names, more = openat2.matching_names(folder, pattern, MOST_OBJECTS)
    objects.truncated |= more
    for name in names:
        try:
            with openat2.opened_below(folder, name) as descriptor:
                about = os.fstat(descriptor)
                if stat.S_ISREG(about.st_mode):
                    objects.add(
                        ObjectId(about.st_dev, about.st_ino), object_bytes(descriptor, about)
                    )
                else:
                    objects.not_regular = f"{path}: {name}"
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            if error.errno == errno.ELOOP:
                objects.not_regular = f"{path}: {name}"


def used_bytes(descriptor: int) -> int | None:
    """Return the bytes in use of a file system; None if it was mounted without a size.

    Raises OSError.
    """
    space = os.fstatvfs(descriptor)
    return (space.f_blocks - space.f_bfree) * space.f_frsize if space.f_blocks else None


def not_found(path: str, error: OSError) -> ObjectsNotFoundError:
    """Return the exception for a failure to open a path."""
    match error.errno:
        case errno.ENOENT:
            return ObjectsNotFoundError(NOT_THERE, f"{path} does not exist")
        case errno.ELOOP:
            return ObjectsNotFoundError(
                "SymbolicLink", f"{path}: a component is a symbolic link, which is not followed"
            )
        case errno.EXDEV:
            return ObjectsNotFoundError(
                NOT_ALLOWED, f"{path} leads out of the folder that an administrator allowed"
            )
        case errno.ENOTDIR:
            return ObjectsNotFoundError("WrongType", f"{path}: a component is not a folder")
    return ObjectsNotFoundError(NOT_READABLE, f"{path}: {error.strerror or error}")


def _page_cache_bytes(descriptor: int, _: os.stat_result) -> int:
    with openat2.reopened(descriptor) as readable:
        return cached_bytes(readable)


def _is_below(path: str, folder: str) -> bool:
    above = folder.rstrip("/")
    return path == (above or "/") or path.startswith(f"{above}/")
