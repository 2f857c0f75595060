"""Gated calls of 32-bit programs, by the names and arguments of their 64-bit forms."""

import pytest

from pinwarden.node.linux.syscalls import (
    AUDIT_ARCH_ARM,
    AUDIT_ARCH_I386,
    AUDIT_ARCH_X86_64,
    NUMBERS,
    NUMBERS_32_BIT,
    identify,
    is_32_bit,
)

X32 = 1 << 30
REGISTERS = (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("arch", [*NUMBERS, *NUMBERS_32_BIT])
def test_number_of_an_architecture_has_its_own_name(arch: int) -> None:
    numbers = {**NUMBERS, **NUMBERS_32_BIT}[arch]
    assert len(set(numbers.values())) == len(numbers)
    for name in numbers.keys() - {"mmap2", "ipc"}:
        assert identify(arch, numbers[name], REGISTERS) == (name, REGISTERS)
        assert is_32_bit(arch, numbers[name]) == (arch in NUMBERS_32_BIT)


@pytest.mark.parametrize("arch", NUMBERS_32_BIT)
def test_mmap2_is_mmap_with_an_offset_in_bytes(arch: int) -> None:
    assert identify(arch, 192, REGISTERS) == ("mmap", (1, 2, 3, 4, 5, 6 * 4096))


@pytest.mark.parametrize("version", [0, 1])
def test_ipc_is_the_call_that_its_first_argument_names(version: int) -> None:
    shmat = identify(AUDIT_ARCH_I386, 117, (21 | version << 16, 7, 8, 9, 10, 0))
    assert shmat == ("shmat", (7, 10, 8, 0, 0, 0))
    shmctl = identify(AUDIT_ARCH_I386, 117, (24 | version << 16, 7, 11 | 0x100, 9, 10, 0))
    assert shmctl == ("shmctl", (7, 11, 10, 0, 0, 0))
    with pytest.raises(KeyError):
        identify(AUDIT_ARCH_I386, 117, (1, 7, 8, 9, 10, 0))


def test_shmctl_of_arm_has_its_command_without_ipc_64() -> None:
    number = NUMBERS_32_BIT[AUDIT_ARCH_ARM]["shmctl"]
    call = identify(AUDIT_ARCH_ARM, number, (7, 11 | 0x100, 3, 0, 0, 0))
    assert call == ("shmctl", (7, 11, 3, 0, 0, 0))


def test_x32_number_has_the_name_of_x86_64() -> None:
    for name, number in NUMBERS[AUDIT_ARCH_X86_64].items():
        x32 = 514 if name == "ioctl" else number
        assert identify(AUDIT_ARCH_X86_64, x32 | X32, REGISTERS) == (name, REGISTERS)
        assert is_32_bit(AUDIT_ARCH_X86_64, x32 | X32)


@pytest.mark.parametrize(
    ("arch", "number"),
    [(AUDIT_ARCH_I386, 90), (AUDIT_ARCH_ARM, 90), (AUDIT_ARCH_X86_64, 0), (0x28, 150)],
    ids=["old mmap", "old mmap of arm", "read", "unknown architecture"],
)
def test_call_that_is_not_gated_is_an_error(arch: int, number: int) -> None:
    with pytest.raises(KeyError):
        identify(arch, number, REGISTERS)
