"""System call numbers and pointer tags by architecture, and `kcmp(2)`."""

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

_TAGS: Final = {AUDIT_ARCH_X86_64: 0x3F << 57, AUDIT_ARCH_AARCH64: 0xFF << 56}
"""Ignored address bits: linear address masking on x86, top byte ignore on arm64."""


def untagged(arch: int, address: int) -> int:
    """Return the address without its tag bits (`untagged_addr`)."""
    return address & ~_TAGS[arch]


def compare_address_spaces(pid: int, other: int) -> int:
    """Compare the address spaces of two processes by `kcmp(2)`, and return -1, 0 or 1.

    Return 0 if they share one address space, as after `vfork(2)`. If the kernel cannot compare
    them, they count as different.
    """
    result = -1 if _KCMP is None else libc.syscall(_KCMP, pid, other, _KCMP_VM, 0, 0)
    return {0: 0, 1: -1, 2: 1}.get(result, -1 if pid < other else 1)
