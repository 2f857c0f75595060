"""Names of gated system calls with the flags of interest, such as `mlockall(MCL_FUTURE)`."""

from collections.abc import Callable, Mapping
from typing import Final

from pinwarden.node.gate import pin_requests
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.linux.syscalls import Registers, identify

_INT: Final = 2**32 - 1
_FLAGS: Final[Mapping[str, tuple[int, Mapping[int, str]]]] = {
    "mlock2": (2, {pin_requests.MLOCK_ONFAULT: "MLOCK_ONFAULT"}),
    "mlockall": (
        0,
        {
            pin_requests.MCL_CURRENT: "MCL_CURRENT",
            pin_requests.MCL_FUTURE: "MCL_FUTURE",
            pin_requests.MCL_ONFAULT: "MCL_ONFAULT",
        },
    ),
    "mmap": (
        3,
        {pin_requests.MAP_LOCKED: "MAP_LOCKED", pin_requests.MAP_GROWSDOWN: "MAP_GROWSDOWN"},
    ),
    "mremap": (
        3,
        {
            pin_requests.MREMAP_FIXED: "MREMAP_FIXED",
            pin_requests.MREMAP_DONTUNMAP: "MREMAP_DONTUNMAP",
        },
    ),
}
"""By call: the register of its flags, and its flags for pinning."""
_COMMANDS: Final[Mapping[str, tuple[int, Mapping[int, str]]]] = {
    "shmctl": (1, {pin_requests.SHM_LOCK: "SHM_LOCK"}),
    "socket": (0, {pin_requests.AF_XDP: "AF_XDP"}),
    "io_uring_register": (
        1,
        {
            pin_requests.REGISTER_BUFFERS: "IORING_REGISTER_BUFFERS",
            pin_requests.REGISTER_BUFFERS2: "IORING_REGISTER_BUFFERS2",
            pin_requests.BUFFERS_UPDATE: "IORING_REGISTER_BUFFERS_UPDATE",
        },
    ),
    "ioctl": (
        1,
        {
            pin_requests.VFIO_IOMMU_MAP_DMA: "VFIO_IOMMU_MAP_DMA",
            pin_requests.IOMMU_IOAS_MAP: "IOMMU_IOAS_MAP",
        },
    ),
}
"""By call: the register of its command, and the commands' names. Others appear as numbers."""


def describe(call: Notification) -> str:
    """Return a call's name with its flags or command in brackets, or `system call N` if ungated."""
    try:
        name, registers = identify(call.arch, call.number, call.arguments)
    except KeyError:
        return f"system call {call.number}"
    argument = _flags(name, registers) if name in _FLAGS else _command(name, registers)
    return f"{name}({argument})" if argument else name


def _flags(name: str, registers: Registers) -> str:
    position, known = _FLAGS[name]
    return "|".join(text for flag, text in known.items() if registers[position] & flag)


def _command(name: str, registers: Registers) -> str:
    if name not in _COMMANDS:
        return ""
    position, known = _COMMANDS[name]
    command = registers[position] & _INT
    if name == "io_uring_register":
        command &= ~pin_requests.USE_REGISTERED_RING
    as_number: Callable[[int], str] = hex if name == "ioctl" else str
    return known.get(command) or as_number(command)
