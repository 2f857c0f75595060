"""The amount of a call, from its registers."""

import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.pinlimit import Source
from pinwarden.node.gate import pin_requests
from pinwarden.node.gate.pin_requests import (
    PAGE,
    STACK_REGION,
    Growth,
    PinRequest,
)
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.linux.syscalls import (
    AUDIT_ARCH_I386,
    AUDIT_ARCH_X86_64,
    NUMBERS,
    NUMBERS_32_BIT,
)
from pinwarden.node.seccomp.gated_calls import GATED

HERE = 0x10000000
GARBAGE = 0xDEADBEEF << 32
WORDS = st.integers(0, 2**64 - 1)


def ask(name: str, *registers: int) -> PinRequest | None:
    number = NUMBERS[AUDIT_ARCH_X86_64][name]
    a, b, c, d, e, f = (*registers, *[0] * (6 - len(registers)))
    return pin_requests.read(Notification(1, 1, number, AUDIT_ARCH_X86_64, (a, b, c, d, e, f)))


def most(name: str, *registers: int) -> int | None:
    request = ask(name, *registers)
    return request.most if request else -1


def reading(memory: bytes, at: int = HERE) -> Callable[[int, int], bytes]:
    def read(address: int, size: int) -> bytes:
        if address < at or address + size > at + len(memory):
            raise OSError(errno.EFAULT, "unreadable")
        return memory[address - at :][:size]

    return read


def in_memory(request: PinRequest | None, memory: bytes) -> int:
    assert request is not None
    assert request.in_memory is not None
    assert request.adds is Growth.IN_MEMORY
    return request.in_memory(reading(memory))


def test_gated_call_has_a_number_and_a_reader_on_each_architecture() -> None:
    for numbers in NUMBERS.values():
        assert numbers.keys() == GATED.keys()
        assert len(set(numbers.values())) == len(numbers)


def test_ungated_call_is_an_error() -> None:
    with pytest.raises(KeyError):
        pin_requests.read(Notification(1, 1, 0, AUDIT_ARCH_X86_64, (0, 0, 0, 0, 0, 0)))
    with pytest.raises(KeyError):
        pin_requests.read(Notification(1, 1, 90, AUDIT_ARCH_I386, (0, 0, 0, 0, 0, 0)))


@pytest.mark.parametrize("arch", NUMBERS_32_BIT)
def test_gated_call_of_a_32_bit_program_has_a_reader(arch: int) -> None:
    for name, number in NUMBERS_32_BIT[arch].items():
        first = 24 if name == "ipc" else 1
        pin_requests.read(Notification(1, 1, number, arch, (first, 0, 0, 0, 0, 0)))


def test_io_uring_buffers_of_a_32_bit_program_are_read_as_small_iovecs() -> None:
    number = NUMBERS_32_BIT[AUDIT_ARCH_I386]["io_uring_register"]
    notification = Notification(1, 1, number, AUDIT_ARCH_I386, (3, 0, HERE, 2, 0, 0))
    memory = struct.pack("=4I", 4096, 100, 12288, 8192)
    assert in_memory(pin_requests.read(notification), memory) == 3 * 4096


def test_socketcall_that_makes_a_socket_is_inexact_and_others_pin_nothing() -> None:
    def call(kind: int) -> PinRequest | None:
        number = NUMBERS_32_BIT[AUDIT_ARCH_I386]["socketcall"]
        return pin_requests.read(Notification(1, 1, number, AUDIT_ARCH_I386, (kind, 1, 0, 0, 0, 0)))

    request = call(1)
    assert request is not None
    assert "AF_XDP" in request.inexact
    assert call(3) is None


@pytest.mark.rule("P8")
@pytest.mark.parametrize(
    ("start", "length", "pages"),
    [
        (HERE, PAGE, 1),
        (HERE, 1, 1),
        (HERE + 1, PAGE, 2),
        (HERE + PAGE - 1, 2, 2),
        (HERE, 3 * PAGE, 3),
    ],
)
def test_mlock_counts_whole_pages(start: int, length: int, pages: int) -> None:
    for name in ("mlock", "mlock2"):
        request = ask(name, start, length)
        assert request is not None
        assert (request.most, request.start, request.adds) == (
            pages * PAGE,
            HERE,
            Growth.NOT_LOCKED,
        )
        assert (request.refusal, request.inexact) == (errno.ENOMEM, "")


@pytest.mark.parametrize(("start", "length"), [(HERE, 0), (HERE, 2**64 - 1), (HERE, 2**64 - HERE)])
def test_mlock_of_an_invalid_range_asks_for_nothing(start: int, length: int) -> None:
    assert ask("mlock", start, length) is None


def test_unknown_flags_ask_for_nothing() -> None:
    assert ask("mlock2", HERE, PAGE, 2) is None
    assert most("mlock2", HERE, PAGE, 1 | GARBAGE) == PAGE
    for flags in (0, 4, 8, 1 | 8):
        assert ask("mlockall", flags) is None


@pytest.mark.rule("P8")
def test_mlockall_asks_for_current_or_later_memory() -> None:
    now, later = ask("mlockall", 1 | GARBAGE), ask("mlockall", 2)
    assert now is not None
    assert later is not None
    assert (now.most, now.adds) == (None, Growth.ADDRESS_SPACE)
    assert later.most == 0
    assert "MCL_FUTURE" in later.inexact


@pytest.mark.rule("P8", "H1")
def test_lock_of_a_stack_is_inexact() -> None:
    for request in (
        ask("mlock", STACK_REGION, 1),
        ask("mlockall", 1),
        ask("mmap", 0, PAGE, 3, 0x122),
    ):
        assert request is not None
        assert "stack" in request.inexact
    assert most("mmap", 0, PAGE, 3, 0x122) == 0
    assert most("mmap", 0, PAGE, 3, 0x2122) == PAGE


def test_stack_region_reaches_from_the_lowest_stack_to_the_end() -> None:
    assert pin_requests.stack_region(0x7FFD18AAF670, "x86_64") == 0x800000000000 - (16 << 30) - (
        128 << 20
    )
    assert pin_requests.stack_region(0xFFFFC0000000, "aarch64") == 0x1000000000000 - (1 << 30) - (
        128 << 20
    )


def test_mmap_counts_only_if_locked() -> None:
    assert most("mmap", 0, 3 * PAGE + 1, 3, 0x2022) == 4 * PAGE
    assert ask("mmap", 0, 0, 3, 0x2022) is None
    assert ask("mmap", 0, PAGE, 3, 0x22) is None
    request = ask("mmap", 0, PAGE, 3, 0x2022)
    assert request is not None
    assert (request.adds, request.refusal) == (Growth.ALL, errno.EAGAIN)


@given(old=st.integers(0, 10 * PAGE), new=st.integers(0, 10 * PAGE))
def test_mremap_adds_the_growth_of_a_mapping(old: int, new: int) -> None:
    pages = -(-new // PAGE) - -(-old // PAGE)
    assert most("mremap", HERE, old, new) == (pages * PAGE if pages > 0 else -1)


@pytest.mark.rule("P2", "H1")
@pytest.mark.parametrize(
    ("name", "registers", "source"),
    [
        ("memfd_secret", (0,), Source.MEMFD_SECRET),
        ("shmctl", (5, 11 | GARBAGE), Source.SHM_LOCK),
        ("io_uring_register", (3, 22), Source.IO_URING),
        ("io_uring_setup", (4, HERE), Source.IO_URING),
        ("socket", (44 | GARBAGE, 3), Source.XDP),
        ("ioctl", (3, 0xC0181B01 | GARBAGE), Source.RDMA),
        ("ioctl", (3, 0x40187542), Source.UDMABUF),
        ("ioctl", (3, 0x3B64), Source.VFIO),
        ("ioctl", (3, 0x3B81), Source.IOMMUFD),
    ],
)
def test_call_with_an_unknown_amount_is_inexact(
    name: str, registers: tuple[int, ...], source: Source
) -> None:
    request = ask(name, *registers)
    assert request is not None
    assert request.source is source
    assert request.inexact


def test_io_uring_buffers_count_by_touched_pages() -> None:
    vectors = struct.pack("=6Q", HERE, PAGE, HERE + 1, PAGE, 0, 99 * PAGE)
    assert in_memory(ask("io_uring_register", 3, GARBAGE, HERE, 3), vectors) == 3 * PAGE
    assert in_memory(ask("io_uring_register", 3, 1 << 31, HERE, 3), vectors) == 3 * PAGE
    register = struct.pack("=IIQQQ", 3, 0, 0, HERE + 32, 0)
    assert in_memory(ask("io_uring_register", 3, 15, HERE, 32), register + vectors) == 3 * PAGE
    update = struct.pack("=IIQQII", 0, 0, HERE + 32, 0, 3, 0)
    assert in_memory(ask("io_uring_register", 3, 16, HERE, 32), update + vectors) == 3 * PAGE
    sparse = struct.pack("=IIQQQ", 3, 1, 0, 0, 0)
    assert in_memory(ask("io_uring_register", 3, 15, HERE, 32), sparse) == 0
    assert in_memory(ask("io_uring_register", 3, 0, HERE, 1 << 20), b"") == 0


def test_device_maps_count_by_the_size_in_their_structure() -> None:
    for command in (0x3B71, 0x3B85):
        structure = struct.pack("=24xQ8x", 3 * PAGE - 1)
        assert in_memory(ask("ioctl", 3, command, HERE), structure) == 3 * PAGE


def test_unreadable_caller_memory_is_an_error() -> None:
    with pytest.raises(OSError, match="unreadable"):
        in_memory(ask("io_uring_register", 3, 0, 0x40, 1), b"")


@given(name=st.sampled_from(sorted(GATED)), registers=st.tuples(*[WORDS] * 6))
def test_no_registers_are_too_strange(name: str, registers: tuple[int, ...]) -> None:
    request = ask(name, *registers)
    assert request is None or request.most is None or 0 <= request.most < 2**64
