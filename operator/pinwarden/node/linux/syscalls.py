"""Gated system calls by architecture and number, pointer tags, and `kcmp(2)`."""

import os
from collections.abc import Mapping
from typing import Final

from pinwarden.node.linux.libc import libc

_KCMP: Final = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
_KCMP_VM = 1

AUDIT_ARCH_X86_64: Final = 0xC000003E
AUDIT_ARCH_AARCH64: Final = 0xC00000B7
NUMBERS: Final[Mapping[int, Mapping[str, int]]] = {
    AUDIT_ARCH_X86_64: {
        "mlock": 149,
        "mlock2": 325,
        "mlockall": 151,
        "mmap": 9,
        "mremap": 25,
        "shmat": 30,
        "remap_file_pages": 216,
        "memfd_secret": 447,
        "shmctl": 31,
        "io_uring_setup": 425,
        "io_uring_register": 427,
        "socket": 41,
        "ioctl": 16,
    },
    AUDIT_ARCH_AARCH64: {
        "mlock": 228,
        "mlock2": 284,
        "mlockall": 230,
        "mmap": 222,
        "mremap": 216,
        "shmat": 196,
        "remap_file_pages": 234,
        "memfd_secret": 447,
        "shmctl": 195,
        "io_uring_setup": 425,
        "io_uring_register": 427,
        "socket": 198,
        "ioctl": 29,
    },
}
"""System call numbers by AUDIT_ARCH and name.

See arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

AUDIT_ARCH_I386: Final = 0x40000003
AUDIT_ARCH_ARM: Final = 0x40000028
NUMBERS_32_BIT: Final[Mapping[int, Mapping[str, int]]] = {
    AUDIT_ARCH_I386: {
        "mlock": 150,
        "mlock2": 376,
        "mlockall": 152,
        "mmap2": 192,
        "mremap": 163,
        "shmat": 397,
        "remap_file_pages": 257,
        "memfd_secret": 447,
        "shmctl": 396,
        "io_uring_setup": 425,
        "io_uring_register": 427,
        "socket": 359,
        "ioctl": 54,
        "ipc": 117,
        "socketcall": 102,
    },
    AUDIT_ARCH_ARM: {
        "mlock": 150,
        "mlock2": 390,
        "mlockall": 152,
        "mmap2": 192,
        "mremap": 163,
        "shmat": 305,
        "remap_file_pages": 253,
        "shmctl": 308,
        "io_uring_setup": 425,
        "io_uring_register": 427,
        "socket": 281,
        "ioctl": 54,
    },
}
"""The numbers of 32-bit programs.

The old `mmap` of i386, whose arguments are in memory, is missing: the gate answers ENOSYS. C
libraries use `mmap2` since Linux 2.4.

See arch/x86/entry/syscalls/syscall_32.tbl and arch/arm/tools/syscall.tbl.
"""

_X32_BIT: Final = 1 << 30
_X32_IOCTL: Final = 514
_NAMES: Final = {
    (arch, number): name
    for arch, numbers in (*NUMBERS.items(), *NUMBERS_32_BIT.items())
    for name, number in numbers.items()
} | {
    (AUDIT_ARCH_X86_64, number | _X32_BIT): name
    for name, number in {**NUMBERS[AUDIT_ARCH_X86_64], "ioctl": _X32_IOCTL}.items()
}
IPC_MASK, IPC_SHMAT, IPC_SHMCTL = 0xFFFF, 21, 24
"""The calls that `ipc` names by the lower bits of its first argument (include/uapi/linux/ipc.h)."""
SYS_SOCKET = 1
"""The first argument of a `socketcall` that makes a socket (include/uapi/linux/net.h)."""
_IPC_64 = 0x100
_PGOFF_BYTES = 4096

Registers = tuple[int, int, int, int, int, int]


def identify(arch: int, number: int, registers: Registers) -> tuple[str, Registers]:
    """Return the name of a gated call, and its arguments as a 64-bit program passes them.

    `mmap2` becomes `mmap`, and `ipc` becomes `shmat` or `shmctl` (`ksys_ipc`). IPC_64 is removed
    from commands of `shmctl`. Raises KeyError for an ungated call.
    """
    name = _NAMES[arch, number]
    if name == "mmap2":
        address, length, protection, flags, descriptor, page = registers
        return "mmap", (address, length, protection, flags, descriptor, page * _PGOFF_BYTES)
    if name == "ipc":
        call, identity, second, _, pointer, _ = registers
        call &= IPC_MASK
        if call == IPC_SHMAT:
            return "shmat", (identity, pointer, second, 0, 0, 0)
        if call == IPC_SHMCTL:
            return "shmctl", (identity, second & ~_IPC_64, pointer, 0, 0, 0)
        raise KeyError(name)
    if name == "shmctl" and arch == AUDIT_ARCH_ARM:  # compat_sys_old_shmctl
        identity, command, *others = registers
        return name, (identity, command & ~_IPC_64, others[0], others[1], others[2], others[3])
    return name, registers


def is_32_bit(arch: int, number: int) -> bool:
    """Return whether a call has the structures of a 32-bit program (`in_compat_syscall`)."""
    return arch in NUMBERS_32_BIT or (arch == AUDIT_ARCH_X86_64 and bool(number & _X32_BIT))


_TAGS: Final = {AUDIT_ARCH_X86_64: 0x3F << 57, AUDIT_ARCH_AARCH64: 0xFF << 56}
"""Ignored address bits: linear address masking on x86, top byte ignore on arm64."""


def untagged(arch: int, address: int) -> int:
    """Return the address without its tag bits (`untagged_addr`)."""
    return address & ~_TAGS.get(arch, 0)


def compare_address_spaces(pid: int, other: int) -> int:
    """Compare the address spaces of two processes by `kcmp(2)`, and return -1, 0 or 1.

    Return 0 if they share one address space, as after `vfork(2)`. If the kernel cannot compare
    them, they count as different.
    """
    result = -1 if _KCMP is None else libc.syscall(_KCMP, pid, other, _KCMP_VM, 0, 0)
    return {0: 0, 1: -1, 2: 1}.get(result, -1 if pid < other else 1)
