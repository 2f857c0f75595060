"""The maximum of bytes per gated call, the kernel's error for a limit, and exactness. Pure.

This module repeats the arithmetic of the kernel with its overflows (mm/mlock.c, mm/mmap.c,
mm/mremap.c). A call with an earlier error of the kernel asks for nothing. The gate continues the
call for its error.

- `mlock`, `mlock2`: `PAGE_ALIGN(len + offset_in_page(start))`. Locked bytes of the range add
  nothing (P8).
- `mmap` with MAP_LOCKED: `PAGE_ALIGN(len)`.
- `mremap`: the growth of a locked mapping. With MREMAP_DONTUNMAP the whole mapping, which Linux
  6.17 adds to VmLck.
- `shmat`, `remap_file_pages`, and `mmap` without MAP_LOCKED: nothing. `map_requests` reads them.
- `mlockall(MCL_CURRENT)`: the whole address space, because the kernel compares `mm->total_vm`.
  Locked bytes add nothing.
- `io_uring_register`, VFIO and iommufd maps: an amount in the caller's memory. The caller can
  change the amount between the gate's read and the call.

After some calls the pod is *inexact*: memory can be pinned later, or by an unseen amount. If a
limit requires the level Deny, such a call fails with the kernel's error for a limit. `memfd_secret`
fails with the error of an older kernel.

- `mlockall(MCL_FUTURE)`: the address space grows locked without a gated call.
- Locking a stack (a mapping with VM_GROWSDOWN), also by `mlockall`: a stack grows as it is used,
  and its new pages are locked.
- `mremap` to a fixed address: locked memory moves away, and another call can lock new memory.
- `memfd_secret`: any process with the descriptor can map the memory without MAP_LOCKED.
- SHM_LOCK, udmabuf and AF_XDP: no per-process counter has their bytes.
- `socketcall` of i386: the family of a new socket is in memory, and may be AF_XDP.
- io_uring rings and buffers, and all driver ioctls: structures in memory can change, and a driver
  has other ways to pin, such as `write(2)` for RDMA.
"""

import errno
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from pinwarden.api.pinlimit import Source
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.linux.syscalls import SYS_SOCKET, Registers, identify, is_32_bit, untagged

PAGE = mmap.PAGESIZE
_WRAP = 2**64
_INT = 2**32 - 1

MLOCK_ONFAULT = 1
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MAP_LOCKED, MAP_GROWSDOWN = 0x2000, 0x100
MREMAP_FIXED, MREMAP_DONTUNMAP = 2, 4
SHM_LOCK = 11
AF_XDP = 44
USE_REGISTERED_RING = 1 << 31
REGISTER_BUFFERS, REGISTER_BUFFERS2, BUFFERS_UPDATE = 0, 15, 16
_MOST_BUFFERS = 1 << 14
VFIO_IOMMU_MAP_DMA, IOMMU_IOAS_MAP = 0x3B71, 0x3B85
_VFIO_TYPE, _RDMA_TYPE, _UDMABUF_TYPE = 0x3B, 0x1B, 0x75
_IOVEC = struct.Struct("=QQ")
_IOVEC_32 = struct.Struct("=II")  # struct compat_iovec
_RSRC_REGISTER = struct.Struct("=IIQQQ")
_RSRC_UPDATE = struct.Struct("=IIQQII")
_MAP = struct.Struct("=24xQ")  # vfio_iommu_type1_dma_map.size and iommu_ioas_map.length


class Growth(Enum):
    """How to find the real bytes of a call."""

    ALL = "all bytes"
    NOT_LOCKED = "the bytes of the range that are not locked"
    IF_LOCKED = "all bytes if the mapping at the start is locked"
    ADDRESS_SPACE = "the bytes of the address space that are not locked"
    IN_MEMORY = "the amount in the structures in memory"


Read = Callable[[int, int], bytes]
"""Reads bytes of the caller's memory. Raises OSError where the kernel returns EFAULT."""


@dataclass(frozen=True, slots=True)
class PinRequest:
    """The amount of a pinning call.

    `most` is the maximum in bytes, None if the registers do not show it. `start` is the first byte
    of the range. `inexact` is why the pod becomes inexact, or "".
    `refusal` is the kernel's errno value for a limit. `in_memory` reads the amount for
    `Growth.IN_MEMORY`.
    """

    source: Source
    most: int | None
    refusal: int
    adds: Growth = Growth.ALL
    start: int = 0
    inexact: str = ""
    in_memory: Callable[[Read], int] | None = None


_STACK: Final = "a locked stack grows with its use"
_STACK_RANDOM: Final = {"x86_64": 16 << 30, "aarch64": 1 << 30}
STACK_GAP = 128 << 20
"""The bytes that the kernel keeps free below a stack (MIN_GAP of arch/x86/mm/mmap.c)."""


def stack_region(top: int, machine: str) -> int:
    """Return the start of the region in which the kernel places main stacks and nothing else.

    `top` is an address in the stack of any process. A stack ends at most STACK_RND_MASK pages below
    the end of the address space, which is the next power of two.
    """
    return (1 << top.bit_length()) - _STACK_RANDOM.get(machine, 16 << 30) - STACK_GAP


STACK_REGION: Final = stack_region(
    int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[25]), os.uname().machine
)

_STACKS_OF_32_BIT: Final = tuple(
    range(top - STACK_GAP - (16 << 20), top)
    for top in (3 << 30, 4 << 30)  # with ADDR_LIMIT_3GB, and without
)


def _in_stack(start: int, size: int) -> bool:
    """Return whether a range may touch a main stack.

    The stack of a 32-bit program is below 4 GiB.
    """
    end = start + size
    return end > STACK_REGION or any(
        start < stack.stop and end > stack.start for stack in _STACKS_OF_32_BIT
    )


def aligned(length: int) -> int:
    """Return PAGE_ALIGN of a length, which overflows to 0."""
    return (length + PAGE - 1) % _WRAP // PAGE * PAGE


def _range(start: int, length: int) -> PinRequest | None:
    offset = start % PAGE
    size = aligned((length + offset) % _WRAP)
    first = start - offset
    if size == 0 or first + size >= _WRAP:
        return None
    inexact = _STACK if _in_stack(first, size) else ""
    return PinRequest(Source.MLOCK, size, errno.ENOMEM, Growth.NOT_LOCKED, first, inexact)


def _mlock(registers: Registers) -> PinRequest | None:
    return _range(registers[0], registers[1])


def _mlock2(registers: Registers) -> PinRequest | None:
    return None if registers[2] & _INT & ~MLOCK_ONFAULT else _range(registers[0], registers[1])


def _mlockall(registers: Registers) -> PinRequest | None:
    flags = registers[0] & _INT
    if flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags in (0, MCL_ONFAULT):
        return None
    inexact = (
        "mlockall(MCL_FUTURE): later mappings are locked too" if flags & MCL_FUTURE else _STACK
    )
    if not flags & MCL_CURRENT:
        return PinRequest(Source.MLOCK, 0, errno.ENOMEM, inexact=inexact)
    return PinRequest(Source.MLOCK, None, errno.ENOMEM, Growth.ADDRESS_SPACE, inexact=inexact)


def _mmap(registers: Registers) -> PinRequest | None:
    size = aligned(registers[1])
    if size == 0 or not registers[3] & (MAP_LOCKED | MAP_GROWSDOWN):
        return None
    inexact = _STACK if registers[3] & MAP_GROWSDOWN else ""
    return PinRequest(
        Source.MLOCK, size if registers[3] & MAP_LOCKED else 0, errno.EAGAIN, inexact=inexact
    )


def _mremap(registers: Registers) -> PinRequest | None:
    start, old, new = registers[0], aligned(registers[1]), aligned(registers[2])
    inexact = ""
    if _in_stack(start, max(old, PAGE)):
        inexact = _STACK  # a moved stack grows outside the stack region
    elif registers[3] & MREMAP_FIXED:
        inexact = "mremap to a fixed address: locked memory can move away during another call"
    most = new if registers[3] & MREMAP_DONTUNMAP else max(0, new - old)
    if start % PAGE or new == 0 or not (most or inexact):
        return None
    return PinRequest(Source.MLOCK, most, errno.EAGAIN, Growth.IF_LOCKED, start, inexact)


def _memfd_secret(_: Registers) -> PinRequest:
    return PinRequest(
        Source.MEMFD_SECRET,
        0,
        errno.ENOSYS,
        inexact="memfd_secret: its mappings are locked without a gated call",
    )


def _shmctl(registers: Registers) -> PinRequest | None:
    if registers[1] & _INT != SHM_LOCK:
        return None
    return PinRequest(
        Source.SHM_LOCK, 0, errno.ENOMEM, inexact="SHM_LOCK: in no per-process counter"
    )


def _io_uring_setup(_: Registers) -> PinRequest:
    return PinRequest(
        Source.IO_URING,
        0,
        errno.ENOMEM,
        inexact="io_uring: a ring can be in the program's own memory",
    )


def _socket(registers: Registers) -> PinRequest | None:
    if registers[0] & _INT != AF_XDP:
        return None
    return PinRequest(
        Source.XDP, 0, errno.EPERM, inexact="AF_XDP: its frames are in no per-process counter"
    )


def _socketcall(registers: Registers) -> PinRequest | None:
    if registers[0] & _INT != SYS_SOCKET:
        return None
    inexact = "socketcall: the family of its socket is in memory, and may be AF_XDP"
    return PinRequest(Source.XDP, 0, errno.EPERM, inexact=inexact)


def _io_uring_register(registers: Registers, iovec: struct.Struct = _IOVEC) -> PinRequest | None:
    opcode, address, count = (
        registers[1] & _INT & ~USE_REGISTERED_RING,
        registers[2],
        registers[3] & _INT,
    )

    def amount(read: Read) -> int:
        if opcode == REGISTER_BUFFERS:
            return _iovecs(read, address, count, iovec)
        if opcode == REGISTER_BUFFERS2:
            number, _, _, data, _ = _RSRC_REGISTER.unpack(read(address, _RSRC_REGISTER.size))
        else:
            _, _, data, _, number, _ = _RSRC_UPDATE.unpack(read(address, _RSRC_UPDATE.size))
        return _iovecs(read, data, number, iovec) if data else 0

    if opcode not in (REGISTER_BUFFERS, REGISTER_BUFFERS2, BUFFERS_UPDATE):
        return PinRequest(
            Source.IO_URING, 0, errno.ENOMEM, inexact="io_uring: a ring in the program's own memory"
        )
    inexact = "io_uring: the list of buffers can change after the gate reads it"
    return PinRequest(
        Source.IO_URING, None, errno.ENOMEM, Growth.IN_MEMORY, inexact=inexact, in_memory=amount
    )


def _iovecs(read: Read, address: int, count: int, iovec: struct.Struct) -> int:
    """Return the bytes of all pages in `count` iovecs (`io_sqe_buffer_register`).

    The kernel rejects a larger count than its maximum, so such a call asks for nothing.
    """
    if count > _MOST_BUFFERS:
        return 0
    total = 0
    for base, length in iovec.iter_unpack(read(address, count * iovec.size)):
        if base:
            total += (base + length + PAGE - 1) // PAGE - base // PAGE
    return total * PAGE


def _ioctl(registers: Registers) -> PinRequest | None:
    command, address = registers[1] & _INT, registers[2]

    def amount(read: Read) -> int:
        (size,) = _MAP.unpack(read(address, _MAP.size))
        return aligned(size)

    match command >> 8 & 0xFF:
        case kind if kind == _RDMA_TYPE:
            return PinRequest(
                Source.RDMA,
                0,
                errno.ENOMEM,
                inexact="RDMA: drivers also pin by other calls than the gated ones",
            )
        case kind if kind == _UDMABUF_TYPE:
            return PinRequest(
                Source.UDMABUF, 0, errno.ENOMEM, inexact="udmabuf: in no per-process counter"
            )
        case kind if kind != _VFIO_TYPE:
            return None
    source = Source.IOMMUFD if command & 0xFF >= 0x80 else Source.VFIO
    inexact = f"{source}: structures in memory can change after the gate reads them"
    if command not in (VFIO_IOMMU_MAP_DMA, IOMMU_IOAS_MAP):
        return PinRequest(source, 0, errno.ENOMEM, inexact=inexact)
    return PinRequest(
        source, None, errno.ENOMEM, Growth.IN_MEMORY, inexact=inexact, in_memory=amount
    )


def _pins_nothing(_: Registers) -> None:
    return None


_READERS: Final[Mapping[str, Callable[[Registers], PinRequest | None]]] = {
    "mlock": _mlock,
    "mlock2": _mlock2,
    "mlockall": _mlockall,
    "mmap": _mmap,
    "mremap": _mremap,
    "shmat": _pins_nothing,
    "remap_file_pages": _pins_nothing,
    "memfd_secret": _memfd_secret,
    "shmctl": _shmctl,
    "io_uring_setup": _io_uring_setup,
    "io_uring_register": _io_uring_register,
    "socket": _socket,
    "socketcall": _socketcall,
    "ioctl": _ioctl,
}


def read(notification: Notification) -> PinRequest | None:
    """Return the pin request of a call, or None if the call pins nothing or has another error.

    Raises KeyError for an ungated call.
    """
    name, registers = identify(notification.arch, notification.number, notification.arguments)
    if name == "io_uring_register" and is_32_bit(notification.arch, notification.number):
        return _io_uring_register(registers, _IOVEC_32)
    if name in ("mlock", "mlock2", "mremap"):
        registers = (untagged(notification.arch, registers[0]), *registers[1:])
    return _READERS[name](registers)
