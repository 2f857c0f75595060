"""The names of gated calls are those of the manual pages, with any registers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import DenialReport
from pinwarden.node.gate.call_names import describe
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.linux.syscalls import AUDIT_ARCH_X86_64, NUMBERS

GARBAGE = 1 << 40
X86 = NUMBERS[AUDIT_ARCH_X86_64]


def named(name: str, *registers: int) -> str:
    first, second, third, fourth, *_ = (*registers, 0, 0, 0, 0)
    return describe(
        Notification(1, 1, X86[name], AUDIT_ARCH_X86_64, (first, second, third, fourth, 0, 0))
    )


@pytest.mark.parametrize(
    ("name", "registers", "text"),
    [
        ("mlock", (4096, 4096), "mlock"),
        ("mlock2", (4096, 4096, 1), "mlock2(MLOCK_ONFAULT)"),
        ("mlock2", (4096, 4096, 0), "mlock2"),
        ("mlockall", (2,), "mlockall(MCL_FUTURE)"),
        ("mlockall", (7 | GARBAGE,), "mlockall(MCL_CURRENT|MCL_FUTURE|MCL_ONFAULT)"),
        ("mmap", (0, 4096, 3, 0x2022), "mmap(MAP_LOCKED)"),
        ("mmap", (0, 4096, 3, 0x122), "mmap(MAP_GROWSDOWN)"),
        ("mremap", (4096, 4096, 8192, 3), "mremap(MREMAP_FIXED)"),
        ("shmctl", (7, 11), "shmctl(SHM_LOCK)"),
        ("socket", (44,), "socket(AF_XDP)"),
        ("memfd_secret", (), "memfd_secret"),
        ("io_uring_setup", (), "io_uring_setup"),
        ("io_uring_register", (3, 1 << 31), "io_uring_register(IORING_REGISTER_BUFFERS)"),
        ("io_uring_register", (3, 27), "io_uring_register(27)"),
        ("ioctl", (3, 0x3B71), "ioctl(VFIO_IOMMU_MAP_DMA)"),
        ("ioctl", (3, 0xC0181B01), "ioctl(0xc0181b01)"),
    ],
)
def test_gated_call_is_named_with_its_flags(
    name: str, registers: tuple[int, ...], text: str
) -> None:
    assert named(name, *registers) == text


def test_ungated_call_is_named_by_its_number() -> None:
    assert describe(Notification(1, 1, 0, AUDIT_ARCH_X86_64, (0, 0, 0, 0, 0, 0))) == "system call 0"


@given(st.sampled_from(sorted(X86)), st.tuples(*[st.integers(0, 2**64 - 1)] * 6))
def test_any_call_name_fits_into_a_report(
    name: str, registers: tuple[int, int, int, int, int, int]
) -> None:
    text = describe(Notification(1, 1, X86[name], AUDIT_ARCH_X86_64, registers))
    fields = {
        "number": 1,
        "time": "2026-01-01T00:00:00Z",
        "pod": "p",
        "container": "",
        "process": "x",
    }
    assert (
        DenialReport.model_validate({**fields, "pid": 1, "source": "Mlock", "call": text}).call
        == text
    )
    assert text.isprintable()
