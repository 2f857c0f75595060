"""Maps and programs in the kernel by bpf(2), for a process with their descriptors.

Keys and values of a map are bytes in the layout of its programs. The kernel copies as many bytes as
the map has, whatever the size of the caller's buffer. So a `Map` compares the sizes first.
"""

import ctypes
import errno
import os
import struct
import sys
from typing import Final

from pinwarden.node.linux.libc import last_error, libc

_BPF: Final = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, -1)
_LOOKUP, _UPDATE, _DELETE, _INFO = 1, 2, 3, 15
_RECURSION_MISSES: Final = 208
"""The offset in `struct bpf_prog_info`."""
_MAP_INFO: Final = struct.Struct("=I4xII")
"""`struct bpf_map_info`: type, key_size, value_size."""
_PER_CPU: Final = (5, 6, 10, 21)
"""Types of maps with a value for each processor, all of which the kernel copies at once."""
NO_EXIST: Final = 1
"""BPF_NOEXIST: insert only. EEXIST if the key is there."""


class _Element(ctypes.Structure):
    """The part of `union bpf_attr` for the commands BPF_MAP_*_ELEM."""

    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _Info(ctypes.Structure):
    """The part of `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD."""

    _fields_ = (("fd", ctypes.c_uint32), ("bytes", ctypes.c_uint32), ("info", ctypes.c_uint64))


class Map:
    """A map with keys and values of fixed sizes in bytes. `fd` stays the caller's to close."""

    def __init__(self, fd: int, key_bytes: int, value_bytes: int) -> None:
        """Raise ValueError if the map has other sizes, or a value for each processor; OSError."""
        kind, key_size, value_size = _MAP_INFO.unpack(_info(fd, _MAP_INFO.size))
        if kind in _PER_CPU or (key_size, value_size) != (key_bytes, value_bytes):
            raise ValueError(
                f"a map of type {kind} has keys of {key_size} and values of {value_size} bytes, "
                f"not {key_bytes} and {value_bytes}"
            )
        self._fd = fd
        self._key_bytes = key_bytes
        self._value_bytes = value_bytes

    def get(self, key: bytes) -> bytes | None:
        """Return a value, None without the key. Raises OSError."""
        value = ctypes.create_string_buffer(self._value_bytes)
        return value.raw if self._call(_LOOKUP, key, value) else None

    def set(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Insert or replace a value. Raises OSError: E2BIG if the map is full."""
        if len(value) != self._value_bytes:
            raise ValueError(f"a value has {self._value_bytes} bytes, not {len(value)}")
        if not self._call(_UPDATE, key, ctypes.create_string_buffer(value, len(value)), flags):
            raise FileNotFoundError(errno.ENOENT, "the map has no such key")

    def delete(self, key: bytes) -> bool:
        """Remove a key, and return whether it was there. Raises OSError."""
        return self._call(_DELETE, key, None)

    def _call(
        self,
        command: int,
        key: bytes,
        value: "ctypes.Array[ctypes.c_char] | None",
        flags: int = 0,
    ) -> bool:
        """Do a command, and return whether the key was there. Raises OSError."""
        if len(key) != self._key_bytes:
            raise ValueError(f"a key has {self._key_bytes} bytes, not {len(key)}")
        held = ctypes.create_string_buffer(key, len(key))
        attributes = _Element(
            self._fd,
            ctypes.addressof(held),
            0 if value is None else ctypes.addressof(value),
            flags,
        )
        try:
            _bpf(command, attributes)
        except FileNotFoundError:
            return False
        return True


def recursion_misses(program: int) -> int:
    """Return how often the kernel skipped a program because it ran already (bpf_prog_info).

    Raises OSError.
    """
    info = _info(program, _RECURSION_MISSES + 8)
    return int.from_bytes(info[_RECURSION_MISSES:], sys.byteorder)


def _info(fd: int, size: int) -> bytes:
    """Return the first bytes of what the kernel tells about a map or program."""
    info = ctypes.create_string_buffer(size)
    _bpf(_INFO, _Info(fd, size, ctypes.addressof(info)))
    return info.raw


def _bpf(command: int, attributes: ctypes.Structure) -> None:
    size = ctypes.sizeof(attributes)
    if libc.syscall(_BPF, command, ctypes.byref(attributes), size) < 0:
        raise last_error()
