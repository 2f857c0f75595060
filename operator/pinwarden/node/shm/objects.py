"""What identifies an object of shared memory in /proc/PID/maps, and what of a node is a group's.

A mapping names the device and the inode of what it maps. That is all there is to know of a file, a memfd or a dma-buf; a System V segment
has its id as inode number, in a file system that all IPC namespaces share, so the namespace tells segments of one number apart.
"""

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pinwarden.node.linux.libc import last_error

_AT_FDCWD, _AT_STATX_DONT_SYNC, _STATX_INO = -100, 0x4000, 0x100
_STATX: Final = struct.Struct("=32xQ96xII")  # stx_ino, stx_dev_major and stx_dev_minor
_libc = ctypes.CDLL(None, use_errno=True)


class ObjectId(NamedTuple):
    """One object: the device as `os.makedev` has it, the inode number, and the inode number of the IPC namespace, 0 but for System V."""

    device: int
    inode: int
    space: int = 0


@dataclass(frozen=True, slots=True)
class ObjectSet:
    """What belongs to a group on this node: every inode of some devices (mounted file systems), and single objects.

    `sizes` has the bytes of System V segments, which shmat(2) maps as a whole and nobody outside of their IPC namespace is told.
    """

    devices: frozenset[int] = frozenset()
    objects: frozenset[ObjectId] = frozenset()
    sizes: frozenset[tuple[ObjectId, int]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.devices or self.objects)

    def has(self, one: ObjectId) -> bool:
        """Whether this object belongs to it."""
        return one.device in self.devices or one in self.objects


def object_at(path: Path | str) -> ObjectId:
    """What a path names, links followed, without asking a server that may not answer (AT_STATX_DONT_SYNC). Raises OSError."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_INO, buffer):
        raise last_error(str(path))
    inode, major, minor = _STATX.unpack_from(buffer)
    return ObjectId(os.makedev(major, minor), inode)
