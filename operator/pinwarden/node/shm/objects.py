"""The identity of an object of shared memory, as in /proc/PID/maps, and the objects of a group.

A mapping shows the device and the inode of its file. This identifies a file, a memfd or a dma-buf.
A System V segment has its id as inode number. All IPC namespaces share the segments' file system,
so the namespace distinguishes segments of one number.
"""

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pinwarden.node.linux.libc import last_error, libc

_AT_FDCWD, _AT_STATX_DONT_SYNC, _STATX_INO = -100, 0x4000, 0x100
_STATX: Final = struct.Struct("=32xQ96xII")  # stx_ino, stx_dev_major and stx_dev_minor


class ObjectId(NamedTuple):
    """One object: the device of `os.makedev`, the inode number, and the IPC namespace.

    `space` is the inode number of the IPC namespace of a System V segment, and 0 otherwise.
    """

    device: int
    inode: int
    space: int = 0


@dataclass(frozen=True, slots=True)
class ObjectSet:
    """The objects of a group on this node: all inodes of some devices, and single objects.

    A device is a mounted file system. `sizes` has the bytes of System V segments, because shmat(2)
    maps a whole segment, and the size is unknown outside the segment's IPC namespace.
    """

    devices: frozenset[int] = frozenset()
    objects: frozenset[ObjectId] = frozenset()
    sizes: frozenset[tuple[ObjectId, int]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.devices or self.objects)

    def has(self, identity: ObjectId) -> bool:
        """Return whether the object belongs to the set."""
        return identity.device in self.devices or identity in self.objects


def object_at(path: Path | str) -> ObjectId:
    """Return the object at a path, links followed. Raises OSError.

    A possibly unreachable file server is not asked (AT_STATX_DONT_SYNC).
    """
    buffer = ctypes.create_string_buffer(256)
    if libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_INO, buffer):
        raise last_error(str(path))
    inode, major, minor = _STATX.unpack_from(buffer)
    return ObjectId(os.makedev(major, minor), inode)
