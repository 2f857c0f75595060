"""The Python mirror of `bpf/pinwarden.h`, constant by constant and field by field."""

import re
from enum import IntEnum
from pathlib import Path

import pytest

from pinwarden.node.ebpf import accounts
from pinwarden.node.ebpf.accounts import ACCOUNT, ACCOUNT_LEVELS, LostReason, PinSource

BPF = Path(__file__).parents[4] / "bpf"
HEADER = re.sub(r"/\*.*?\*/", "", (BPF / "pinwarden.h").read_text(), flags=re.DOTALL)


def body(kind: str, name: str) -> list[str]:
    found = re.search(rf"{kind} {name} \{{(.*?)\}};", HEADER, re.DOTALL)
    assert found is not None
    return [item for item in re.split(r"[,;\s]*[,;]\s*", found[1].strip()) if item]


@pytest.mark.parametrize(
    ("name", "prefix", "mirror"),
    [("source", "SOURCE", PinSource), ("lost_reason", "LOST", LostReason)],
)
def test_enumeration_has_the_members_of_the_header(
    name: str, prefix: str, mirror: type[IntEnum]
) -> None:
    *members, count = body("enum", name)
    assert members == [f"{prefix}_{member.name}" for member in sorted(mirror)]
    assert [member.value for member in sorted(mirror)] == list(range(len(members)))
    assert count in ("SOURCES", "LOST_REASONS")


def test_account_has_the_fields_of_the_header() -> None:
    assert body("struct", "account") == ["__s64 bytes[SOURCES]"]
    assert ACCOUNT.size == 8 * len(PinSource)


def test_constants_are_those_of_the_header() -> None:
    defined = {
        name: int(value)
        for name, value in re.findall(r"#define (\w+) (\d+)$", HEADER, re.MULTILINE)
    }
    assert defined["ACCOUNT_LEVELS"] == ACCOUNT_LEVELS


def test_keys_have_the_sizes_of_the_maps() -> None:
    maps = (BPF / "maps.bpf.h").read_text()
    sizes = {"u32": 4, "u64": 8}
    keys = {
        name: sizes[key]
        for key, name in re.findall(r"__type\(key, (u\d+)\);[^{]*?\} (\w+) SEC", maps)
    }
    assert keys["accounts"] == accounts.ACCOUNT_KEY.size
    assert keys["lost"] == accounts.LOST_KEY.size
