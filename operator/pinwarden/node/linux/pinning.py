"""System calls that pin memory or end a pin: mlock(2) and its relatives, io_uring, memfd_secret(2).

Addresses are integers, and sizes are in bytes. Every function raises OSError, with the name of
the system call as the file name of the error. System V segments are in `sysvshm`.
"""

import ctypes
import mmap
import os
import platform
from collections.abc import Sequence
from typing import Final

from pinwarden.node.linux.libc import MAP_FAILED, last_error, libc
from pinwarden.node.linux.syscalls import AUDIT_ARCH_AARCH64, AUDIT_ARCH_X86_64, NUMBERS

MCL_CURRENT, MCL_FUTURE = 1, 2
MLOCK_ONFAULT = 1
MAP_LOCKED = 0x2000
MREMAP_MAYMOVE = 1
_REGISTER_BUFFERS, _UNREGISTER_BUFFERS, _CLONE_BUFFERS = 0, 1, 30
_PARAMETERS_BYTES: Final = 120  # struct io_uring_params
_CLONE_WORDS: Final = 8  # struct io_uring_clone_buffers; the first is the ring to clone from
_BUFFER_WORDS: Final = 2  # struct iovec
_ARCHITECTURES: Final = {"x86_64": AUDIT_ARCH_X86_64, "aarch64": AUDIT_ARCH_AARCH64}

libc.sbrk.restype = ctypes.c_void_p
libc.sbrk.argtypes = (ctypes.c_ssize_t,)
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
for _function in (libc.mlock, libc.munlock):
    _function.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.mlock2.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)


def map_memory(size: int, flags: int = 0, descriptor: int = -1) -> int:
    """Map memory to read and write, anonymous or of a file, and return the address."""
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if descriptor < 0 else mmap.MAP_SHARED
    address: int = libc.mmap(
        None, size, mmap.PROT_READ | mmap.PROT_WRITE, kind | flags, descriptor, 0
    )
    _check(address != MAP_FAILED, "mmap")
    return address


def unmap_memory(address: int, size: int) -> None:
    """Unmap with munmap(2)."""
    _check(libc.munmap(address, size) == 0, "munmap")


def resize_mapping(address: int, size: int, new_size: int) -> int:
    """Grow or shrink a mapping with mremap(2), and return the possibly new address."""
    moved: int = libc.mremap(address, size, new_size, MREMAP_MAYMOVE)
    _check(moved != MAP_FAILED, "mremap")
    return moved


def move_break(size: int) -> int:
    """Grow the heap, or shrink by a negative size, with brk(2); return the old end."""
    end: int = libc.sbrk(size)
    _check(end != MAP_FAILED, "brk")
    return end


def grow_stack(size: int) -> int:
    """Lock and grow the stack of the first thread, and return the new start.

    A process that calls mlockall(2) with MCL_CURRENT and MCL_FUTURE has such a stack. The gap
    between the stack and the pointer is allowed, as for a large local variable.
    """
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        line = next(line for line in maps if line.rstrip().endswith("[stack]"))
    start, end = (int(number, 16) for number in line.split()[0].split("-"))
    lock(start, end - start)
    ctypes.memset(start - size, 1, 1)
    return start - size


def lock(address: int, size: int) -> None:
    """Lock pages with mlock(2)."""
    _check(libc.mlock(address, size) == 0, "mlock")


def lock_on_fault(address: int, size: int) -> None:
    """Lock pages with mlock2(2), each one when it is first used."""
    _check(libc.mlock2(address, size, MLOCK_ONFAULT) == 0, "mlock2")


def unlock(address: int, size: int) -> None:
    """Unlock pages with munlock(2)."""
    _check(libc.munlock(address, size) == 0, "munlock")


def lock_all(flags: int) -> None:
    """Lock with mlockall(2): all pages with MCL_CURRENT, later mappings with MCL_FUTURE."""
    _check(libc.mlockall(flags) == 0, "mlockall")


def unlock_all() -> None:
    """Unlock all pages, and end MCL_FUTURE, with munlockall(2)."""
    _check(libc.munlockall() == 0, "munlockall")


def open_secret_memory(size: int) -> int:
    """Return the descriptor of a new file of memfd_secret(2). ENOSYS if the kernel has it off."""
    descriptor = _call("memfd_secret", 0)
    os.ftruncate(descriptor, size)
    return descriptor


def open_ring() -> int:
    """Return the descriptor of a new ring of io_uring_setup(2)."""
    return _call("io_uring_setup", 1, (ctypes.c_uint8 * _PARAMETERS_BYTES)())


def register_buffers(ring: int, buffers: Sequence[tuple[int, int]]) -> None:
    """Pin buffers, given by address and size, for a ring without buffers."""
    vectors = (ctypes.c_uint64 * (_BUFFER_WORDS * len(buffers)))(
        *(word for buffer in buffers for word in buffer)
    )
    _call("io_uring_register", ring, _REGISTER_BUFFERS, vectors, len(buffers))


def unregister_buffers(ring: int) -> None:
    """Release all buffers of a ring. A buffer stays pinned while another ring shares it."""
    _call("io_uring_register", ring, _UNREGISTER_BUFFERS, None, 0)


def clone_buffers(ring: int, source: int) -> None:
    """Share all buffers of another ring with a ring without buffers. Since Linux 6.12."""
    request = (ctypes.c_uint32 * _CLONE_WORDS)(source)
    _call("io_uring_register", ring, _CLONE_BUFFERS, request, 1)


def _call(name: str, *arguments: object) -> int:
    number = NUMBERS[_ARCHITECTURES[platform.machine()]][name]
    result: int = libc.syscall(number, *arguments)
    _check(result >= 0, name)
    return result


def _check(succeeded: bool, call: str) -> None:
    if not succeeded:
        raise last_error(call)
