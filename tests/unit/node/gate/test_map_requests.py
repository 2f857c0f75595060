"""The mapped object of a call, from its registers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.gate import map_requests
from pinwarden.node.gate.map_requests import MapRequest, NamedBy
from pinwarden.node.gate.pin_requests import PAGE
from pinwarden.node.linux.syscalls import AUDIT_ARCH_AARCH64, NUMBERS

from .mappings import call

GARBAGE = 0xABCD << 32


@pytest.mark.parametrize("arch", NUMBERS)
@pytest.mark.parametrize("flags", [1, 3, 1 | 0x2000, 1 | 0x8000, 1 | GARBAGE])
def test_shared_mmap_names_its_descriptor(arch: int, flags: int) -> None:
    request = map_requests.read(
        call("mmap", 0, 2 * PAGE - 1, 3, flags, 5 | GARBAGE, PAGE, arch=arch)
    )
    assert request == MapRequest(NamedBy.DESCRIPTOR, 5, PAGE, 2 * PAGE)


@pytest.mark.parametrize(
    ("name", "registers"),
    [
        ("mmap", (0, PAGE, 3, 2, 5, 0)),
        ("mmap", (0, PAGE, 3, 0x21, -1, 0)),
        ("mmap", (0, PAGE, 3, 0x2022, -1, 0)),
        ("mmap", (0, 0, 3, 1, 5, 0)),
        ("mmap", (0, 2**64 - 1, 3, 1, 5, 0)),
        ("mmap", (0, PAGE, 3, 1, 5, 1)),
        ("mmap", (0, PAGE, 3, 1, 5, 2**63)),
        ("shmat", (-1, 0, 0)),
        ("mremap", (PAGE, PAGE, PAGE, 1)),
        ("mremap", (PAGE, 2 * PAGE, PAGE, 1)),
        ("mremap", (PAGE, PAGE, 0, 1)),
        ("mremap", (1, PAGE, 2 * PAGE, 1)),
        ("mremap", (PAGE, PAGE, 2 * PAGE, 8)),
        ("remap_file_pages", (PAGE, 0, 0, 0, 0)),
        ("remap_file_pages", (PAGE, PAGE, 3, 0, 0)),
        ("mlock", (PAGE, PAGE)),
        ("ioctl", (3, 0x3B71, 0)),
    ],
)
def test_call_without_a_shared_mapping_has_no_map_request(
    name: str, registers: tuple[int, ...]
) -> None:
    assert map_requests.read(call(name, *registers)) is None


def test_other_calls_name_a_segment_or_an_existing_mapping() -> None:
    assert map_requests.read(call("shmat", 5 | GARBAGE, 0, 0)) == MapRequest(NamedBy.SEGMENT, 5)
    assert map_requests.read(call("mremap", PAGE, PAGE + 1, 3 * PAGE, 1)) == MapRequest(
        NamedBy.ADDRESS, PAGE, 0, 3 * PAGE, relative=True
    )
    assert map_requests.read(call("mremap", PAGE, 0, PAGE, 1)) == MapRequest(
        NamedBy.ADDRESS, PAGE, 0, PAGE, relative=True
    )
    tagged = call("mremap", 0xAB << 56 | PAGE, 0, PAGE, 1, arch=AUDIT_ARCH_AARCH64)
    assert map_requests.read(tagged) == MapRequest(NamedBy.ADDRESS, PAGE, 0, PAGE, relative=True)
    assert map_requests.read(
        call("remap_file_pages", PAGE + 1, 2 * PAGE + 1, 0, 7, 0)
    ) == MapRequest(NamedBy.ADDRESS, PAGE, 7 * PAGE, 2 * PAGE)


@given(
    name=st.sampled_from(["mmap", "shmat", "mremap", "remap_file_pages"]),
    registers=st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
)
def test_no_registers_are_too_strange(name: str, registers: tuple[int, ...]) -> None:
    request = map_requests.read(call(name, *registers))
    assert request is None or 0 <= request.offset <= request.offset + request.size <= 2**63
