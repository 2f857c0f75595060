"""What a gated system call asks for: the bytes it may add at most, how the kernel would refuse it, and whether it can be held exactly.

The kernel's own arithmetic is repeated here, wrap-arounds included (mm/mlock.c, mm/mmap.c, mm/mremap.c): a call that the kernel ends with
another error before it counts anything asks for nothing, and is let through to get that error.

- mlock, mlock2: `PAGE_ALIGN(len + offset_in_page(start))`. What is locked already in that range adds nothing (P8).
- mmap with MAP_LOCKED: `PAGE_ALIGN(len)`.
- mremap: what the mapping grows by, if it is locked; with MREMAP_DONTUNMAP all of it, which Linux 6.17 adds to VmLck.
- shmat, remap_file_pages, and mmap without MAP_LOCKED: nothing; what they map is for `mappings` to read.
- mlockall(MCL_CURRENT): the kernel compares `mm->total_vm`, so the whole address space is asked for, and what is locked of it adds nothing.
- io_uring_register, VFIO and iommufd maps: amounts that lie in the caller's memory, which it can change between the look and the call.

Some calls let memory be pinned later, or at an amount that nobody sees; they *loosen* the pod: it is not held exactly from then on. What
refuses them, where a limit asks for Deny, is the kernel's error for a limit, and for memfd_secret that of a kernel without it.

- mlockall(MCL_FUTURE): the address space grows locked without a call that the gate sees.
- locking a stack (a mapping with VM_GROWSDOWN), which mlockall does too: it grows as it is used, and what it grows by is locked.
- mremap to a fixed place: it can move what is locked away from under a call that would lock it again.
- memfd_secret: whoever gets the descriptor can map it, without MAP_LOCKED.
- SHM_LOCK, udmabuf and AF_XDP: counted in no per-process counter.
- io_uring, rings and buffers, and every driver ioctl: what is in memory can change, and a driver has other ways to pin, such as write(2)
  for RDMA.
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
from pinwarden.node.linux.syscalls import NUMBERS, untagged

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
_RSRC_REGISTER = struct.Struct("=IIQQQ")
_RSRC_UPDATE = struct.Struct("=IIQQII")
_MAP = struct.Struct("=24xQ")  # vfio_iommu_type1_dma_map.size and iommu_ioas_map.length


class Growth(Enum):
    """How what a call really adds is found."""

    ALL = "all of it"
    NOT_LOCKED = "what of its range is not locked"
    IF_LOCKED = "all of it, if the mapping at its start is locked"
    ADDRESS_SPACE = "what of the address space is not locked"
    IN_MEMORY = "what its structures in memory say"


Read = Callable[[int, int], bytes]
"""Reads memory of the caller: address and length. Raises OSError where the kernel would answer EFAULT."""


@dataclass(frozen=True, slots=True)
class PinRequest:
    """What a call asks for. `most` is in bytes: it adds no more than that, None where the registers do not tell.

    `start` is the first byte of its range. `loosens` says why the pod is not held exactly from then on, or is empty. `refusal` is the error
    that the kernel gives when the limit does not allow it. `in_memory` finds the amount, with `Growth.IN_MEMORY`.
    """

    source: Source
    most: int | None
    refusal: int
    adds: Growth = Growth.ALL
    start: int = 0
    inexact: str = ""
    in_memory: Callable[[Read], int] | None = None


_STACK: Final = "a locked stack: it grows as it is used"
_STACK_RANDOM: Final = {"x86_64": 16 << 30, "aarch64": 1 << 30}
STACK_GAP = 128 << 20
"""Bytes that the kernel keeps free below a stack, at least (MIN_GAP, mm/util.c and arch/x86/mm/mmap.c)."""


def stack_region(top: int, machine: str) -> int:
    """Where the part of the address space begins that main stacks lie in, and nothing else that the kernel places.

    `top` is an address in some process's stack. A stack ends at most STACK_RND_MASK pages below the end of the address space, which is the
    next power of two.
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
    """Whether a range may touch a main stack; a process that began as a 32-bit program has one below 4 GiB."""
    end = start + size
    return end > STACK_REGION or any(start < each.stop and end > each.start for each in _STACKS_OF_32_BIT)


Registers = tuple[int, int, int, int, int, int]


def aligned(length: int) -> int:
    """PAGE_ALIGN, which wraps around."""
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
    inexact = "mlockall(MCL_FUTURE): its address space grows locked" if flags & MCL_FUTURE else _STACK
    if not flags & MCL_CURRENT:
        return PinRequest(Source.MLOCK, 0, errno.ENOMEM, inexact=inexact)
    return PinRequest(Source.MLOCK, None, errno.ENOMEM, Growth.ADDRESS_SPACE, inexact=inexact)


def _mmap(registers: Registers) -> PinRequest | None:
    size = aligned(registers[1])
    if size == 0 or not registers[3] & (MAP_LOCKED | MAP_GROWSDOWN):
        return None
    inexact = _STACK if registers[3] & MAP_GROWSDOWN else ""
    return PinRequest(Source.MLOCK, size if registers[3] & MAP_LOCKED else 0, errno.EAGAIN, inexact=inexact)


def _mremap(registers: Registers) -> PinRequest | None:
    start, old, new = registers[0], aligned(registers[1]), aligned(registers[2])
    inexact = ""
    if _in_stack(start, max(old, PAGE)):
        inexact = _STACK  # moved, it grows where no stack is looked for
    elif registers[3] & MREMAP_FIXED:
        inexact = "mremap to a fixed place: what is locked can be moved away under another call"
    most = new if registers[3] & MREMAP_DONTUNMAP else max(0, new - old)
    if start % PAGE or new == 0 or not (most or inexact):
        return None
    return PinRequest(Source.MLOCK, most, errno.EAGAIN, Growth.IF_LOCKED, start, inexact)


def _memfd_secret(_: Registers) -> PinRequest:
    return PinRequest(
        Source.MEMFD_SECRET, 0, errno.ENOSYS, inexact="memfd_secret: its mappings are locked unseen"
    )


def _shmctl(registers: Registers) -> PinRequest | None:
    if registers[1] & _INT != SHM_LOCK:
        return None
    return PinRequest(Source.SHM_LOCK, 0, errno.ENOMEM, inexact="SHM_LOCK: in no per-process counter")


def _io_uring_setup(_: Registers) -> PinRequest:
    return PinRequest(
        Source.IO_URING, 0, errno.ENOMEM, inexact="io_uring: a ring can be in memory of its own"
    )


def _socket(registers: Registers) -> PinRequest | None:
    if registers[0] & _INT != AF_XDP:
        return None
    return PinRequest(Source.XDP, 0, errno.EPERM, inexact="AF_XDP: its frames are in no per-process counter")


def _io_uring_register(registers: Registers) -> PinRequest | None:
    opcode, address, count = registers[1] & _INT & ~USE_REGISTERED_RING, registers[2], registers[3] & _INT

    def amount(read: Read) -> int:
        if opcode == REGISTER_BUFFERS:
            return _iovecs(read, address, count)
        if opcode == REGISTER_BUFFERS2:
            number, _, _, data, _ = _RSRC_REGISTER.unpack(read(address, _RSRC_REGISTER.size))
        else:
            _, _, data, _, number, _ = _RSRC_UPDATE.unpack(read(address, _RSRC_UPDATE.size))
        return _iovecs(read, data, number) if data else 0

    if opcode not in (REGISTER_BUFFERS, REGISTER_BUFFERS2, BUFFERS_UPDATE):
        return PinRequest(Source.IO_URING, 0, errno.ENOMEM, inexact="io_uring: a ring in memory of its own")
    inexact = "io_uring: the list of its buffers can change after the look"
    return PinRequest(
        Source.IO_URING, None, errno.ENOMEM, Growth.IN_MEMORY, inexact=inexact, in_memory=amount
    )


def _iovecs(read: Read, address: int, count: int) -> int:
    """Pages that `count` iovecs touch, as `io_sqe_buffer_register` pins them, in bytes; more than it takes asks for nothing."""
    if count > _MOST_BUFFERS:
        return 0
    total = 0
    for base, length in _IOVEC.iter_unpack(read(address, count * _IOVEC.size)):
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
                Source.RDMA, 0, errno.ENOMEM, inexact="RDMA: drivers pin by more calls than are seen"
            )
        case kind if kind == _UDMABUF_TYPE:
            return PinRequest(Source.UDMABUF, 0, errno.ENOMEM, inexact="udmabuf: in no per-process counter")
        case kind if kind != _VFIO_TYPE:
            return None
    source = Source.IOMMUFD if command & 0xFF >= 0x80 else Source.VFIO
    inexact = f"{source}: its structures in memory can change after the look"
    if command not in (VFIO_IOMMU_MAP_DMA, IOMMU_IOAS_MAP):
        return PinRequest(source, 0, errno.ENOMEM, inexact=inexact)
    return PinRequest(source, None, errno.ENOMEM, Growth.IN_MEMORY, inexact=inexact, in_memory=amount)


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
    "ioctl": _ioctl,
}
_BY_NUMBER = {
    (arch, number): _READERS[name] for arch, numbers in NUMBERS.items() for name, number in numbers.items()
}


def read(call: Notification) -> PinRequest | None:
    """What the call asks for; None when it asks for nothing, or the kernel refuses it for another reason. Raises KeyError for a call
    that no profile of pinwarden sends.
    """
    first, *rest = call.arguments
    reader = _BY_NUMBER[call.arch, call.number]
    if reader in (_mlock, _mlock2, _mremap):
        first = untagged(call.arch, first)
    return reader((first, *rest))  # type: ignore[arg-type]
