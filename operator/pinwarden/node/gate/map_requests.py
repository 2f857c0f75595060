"""The object of a gated mapping, from the registers. Other processes can map it too. Pure.

- `mmap` of a descriptor with MAP_SHARED or MAP_SHARED_VALIDATE: `PAGE_ALIGN(len)` from the offset.
  For a file of hugetlbfs these are whole huge pages (`ksys_mmap_pgoff`), which the registers do not
  show.
- `shmat`: a whole segment, whose size the registers do not show.
- `mremap`: the object of the mapping at the address, with the growth of the mapping. An old length
  of 0 maps the object a second time (mm/mremap.c).
- `remap_file_pages`: another range of the object of the mapping at the address (mm/mmap.c).

MAP_ANONYMOUS has no descriptor. A call with another error of the kernel maps nothing. The gate
continues the call for its error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pinwarden.node.gate.pin_requests import PAGE, aligned
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.linux.syscalls import Registers, identify, untagged

MAP_SHARED, MAP_ANONYMOUS = 0x01, 0x20
_MREMAP_FLAGS = 7  # MAYMOVE, FIXED, DONTUNMAP
_INT, _SIGN = 2**32 - 1, 2**31
_MOST = 2**63


class NamedBy(Enum):
    """How a call names the mapped object."""

    DESCRIPTOR = "a number in the caller's table"
    SEGMENT = "a System V id in the caller's IPC namespace"
    ADDRESS = "an address in an existing mapping"


@dataclass(frozen=True, slots=True)
class MapRequest:
    """The mapped bytes of an object: `size` bytes from `offset`.

    `name` is a descriptor, an id or an address. `size` is 0 if only the object knows it. With
    `relative`, the offset counts from the byte at the address.
    """

    by: NamedBy
    name: int
    offset: int = 0
    size: int = 0
    relative: bool = False


def read(notification: Notification) -> MapRequest | None:
    """Return the mapped object of a call, or None for other calls."""
    try:
        name, registers = identify(notification.arch, notification.number, notification.arguments)
    except KeyError:
        return None
    reader = _READERS.get(name)
    return reader(notification.arch, registers) if reader else None


def _mmap(_: int, registers: Registers) -> MapRequest | None:
    size, offset = aligned(registers[1]), registers[5]
    if registers[3] & (MAP_SHARED | MAP_ANONYMOUS) != MAP_SHARED or not size or offset % PAGE:
        return None
    if offset + size > _MOST:
        return None  # EOVERFLOW
    return MapRequest(NamedBy.DESCRIPTOR, registers[4] & _INT, offset, size)


def _shmat(_: int, registers: Registers) -> MapRequest | None:
    identity = registers[0] & _INT
    return None if identity & _SIGN else MapRequest(NamedBy.SEGMENT, identity)


def _mremap(arch: int, registers: Registers) -> MapRequest | None:
    start, old, new = untagged(arch, registers[0]), aligned(registers[1]), aligned(registers[2])
    if start % PAGE or new <= old or new > _MOST or registers[3] & ~_MREMAP_FLAGS:
        return None
    return MapRequest(NamedBy.ADDRESS, start, 0, new, relative=True)


def _remap_file_pages(_: int, registers: Registers) -> MapRequest | None:
    start, size, offset = (
        registers[0] // PAGE * PAGE,
        registers[1] // PAGE * PAGE,
        registers[3] * PAGE,
    )
    if not size or registers[2] or offset + size > _MOST:
        return None
    return MapRequest(NamedBy.ADDRESS, start, offset, size)


_READERS: Final[Mapping[str, Callable[[int, Registers], MapRequest | None]]] = {
    "mmap": _mmap,
    "shmat": _shmat,
    "mremap": _mremap,
    "remap_file_pages": _remap_file_pages,
}
