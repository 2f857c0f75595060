"""The name of a gated system call as its manual page writes it, with the flags that made it a gated one: `mlockall(MCL_FUTURE)`."""

from collections.abc import Callable, Mapping
from typing import Final

from pinwarden.agent.gates.seccomp import calls
from pinwarden.agent.gates.seccomp.notify import Call

_INT: Final = 2**32 - 1
_FLAGS: Final[Mapping[str, tuple[int, Mapping[int, str]]]] = {
    "mlock2": (2, {calls.MLOCK_ONFAULT: "MLOCK_ONFAULT"}),
    "mlockall": (
        0,
        {
            calls.MCL_CURRENT: "MCL_CURRENT",
            calls.MCL_FUTURE: "MCL_FUTURE",
            calls.MCL_ONFAULT: "MCL_ONFAULT",
        },
    ),
    "mmap": (3, {calls.MAP_LOCKED: "MAP_LOCKED", calls.MAP_GROWSDOWN: "MAP_GROWSDOWN"}),
    "mremap": (3, {calls.MREMAP_FIXED: "MREMAP_FIXED", calls.MREMAP_DONTUNMAP: "MREMAP_DONTUNMAP"}),
}
"""By call: the register that holds its flags, and those that are told; others say nothing about pinning."""
_COMMANDS: Final[Mapping[str, tuple[int, Mapping[int, str]]]] = {
    "shmctl": (1, {calls.SHM_LOCK: "SHM_LOCK"}),
    "socket": (0, {calls.AF_XDP: "AF_XDP"}),
    "io_uring_register": (
        1,
        {
            calls.REGISTER_BUFFERS: "IORING_REGISTER_BUFFERS",
            calls.REGISTER_BUFFERS2: "IORING_REGISTER_BUFFERS2",
            calls.BUFFERS_UPDATE: "IORING_REGISTER_BUFFERS_UPDATE",
        },
    ),
    "ioctl": (1, {calls.VFIO_IOMMU_MAP_DMA: "VFIO_IOMMU_MAP_DMA", calls.IOMMU_IOAS_MAP: "IOMMU_IOAS_MAP"}),
}
"""By call: the register that says what is asked for, and the names; one without a name is told as a number."""
_NAMES: Final = {
    (arch, number): name for arch, numbers in calls.NUMBERS.items() for name, number in numbers.items()
}


def describe(call: Call) -> str:
    """Return the call's name, and its telling flags or command in brackets; `system call N` for a call that no profile gates."""
    name = _NAMES.get((call.arch, call.number))
    if name is None:
        return f"system call {call.number}"
    argument = _flags(name, call) if name in _FLAGS else _command(name, call)
    return f"{name}({argument})" if argument else name


def _flags(name: str, call: Call) -> str:
    register, known = _FLAGS[name]
    return "|".join(text for flag, text in known.items() if call.arguments[register] & flag)


def _command(name: str, call: Call) -> str:
    if name not in _COMMANDS:
        return ""
    register, known = _COMMANDS[name]
    command = call.arguments[register] & _INT
    if name == "io_uring_register":
        command &= ~calls.USE_REGISTERED_RING
    as_number: Callable[[int], str] = hex if name == "ioctl" else str
    return known.get(command) or as_number(command)
