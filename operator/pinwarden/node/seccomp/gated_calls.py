"""The system calls that are sent to the gate, and the listener's address. Pure.

A gated call pins memory or maps shareable memory. Some calls are gated for some values of an
argument only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pinwarden.node.seccomp.patterns import BitPattern

LISTENER_PATH: Final = "/run/pinwarden/seccomp.sock"
"""The holder's socket for container runtimes, as a path on the node."""


@dataclass(frozen=True, slots=True)
class ArgumentCondition:
    """The values of an argument for which a call is gated. Only the lower `width` bits count."""

    argument: int
    width: int
    patterns: tuple[BitPattern, ...]


def _number(argument: int, *values: int, ignoring: int = 0) -> ArgumentCondition:
    """Return the condition for an argument of the C type `int`."""
    mask = (1 << 32) - 1 & ~ignoring
    return ArgumentCondition(argument, 32, tuple(BitPattern(mask, value) for value in values))


def _type_byte(*values: int) -> ArgumentCondition:
    """Return the condition for the type byte of an ioctl command (_IOC_TYPE)."""
    return ArgumentCondition(1, 32, tuple(BitPattern(0xFF00, value << 8) for value in values))


GATED: Final[Mapping[str, ArgumentCondition | None]] = {
    "mlock": None,
    "mlock2": None,
    "mlockall": None,
    "mremap": None,
    "memfd_secret": None,
    # MAP_LOCKED, MAP_GROWSDOWN, and MAP_SHARED or MAP_SHARED_VALIDATE without MAP_ANONYMOUS
    "mmap": ArgumentCondition(
        3, 32, (BitPattern(0x2000, 0x2000), BitPattern(0x100, 0x100), BitPattern(0x21, 0x01))
    ),
    "shmat": None,
    "remap_file_pages": None,
    "shmctl": _number(1, 11),  # SHM_LOCK
    "io_uring_setup": None,
    # IORING_REGISTER_BUFFERS, _BUFFERS2, _BUFFERS_UPDATE, _PBUF_RING, _ZCRX_IFQ, _RESIZE_RINGS
    # and _MEM_REGION, also with IORING_REGISTER_USE_REGISTERED_RING
    "io_uring_register": _number(1, 0, 15, 16, 22, 32, 33, 34, ignoring=1 << 31),
    "socket": _number(0, 44),  # AF_XDP
    "ioctl": _type_byte(0x3B, 0x1B, 0x75),  # VFIO and iommufd, RDMA, udmabuf
}
"""The gated calls, each with the condition on an argument, or None if always gated."""
