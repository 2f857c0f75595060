"""The tables of docs/sources.md."""

import pytest

from docs import sources
from pinwarden.node.ebpf.operations import OPERATIONS
from pinwarden.node.ebpf.selftest import OperationResult

RESULTS = [
    OperationResult("mlock", True, True, False, False, ""),
    OperationResult("memfd_secret", None, None, None, None, "memfd_secret: off (ENOSYS)"),
]


def test_section_has_a_row_for_each_result() -> None:
    assert sources.section("6.12.95+deb12-amd64", RESULTS).splitlines() == [
        "## Linux 6.12",
        "",
        "| operation | counted | uncounted | stays after munmap | stays after exit | reason |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `mlock` | yes | yes | no | no |   |",
        "| `memfd_secret` | unknown | unknown | unknown | unknown | memfd_secret: off (ENOSYS) |",
    ]


def test_section_on_page_is_found_by_the_version_alone() -> None:
    first, second = (sources.section(release, RESULTS) for release in ("6.1.0-50", "6.12.95"))
    page = f"# Sources\n\ntext\n\n{first}\n{second}"
    assert sources.section_on_page("6.1.192", page) == first
    assert sources.section_on_page("6.12.1-rc1", page) == second
    assert sources.section_on_page("7.0", page) == ""


@pytest.mark.parametrize("release", ["6.1", "6.12"])
def test_page_has_a_row_for_each_operation(release: str) -> None:
    section = sources.section_on_page(release, sources.PAGE.read_text())
    rows = [line.split(" | ")[0].strip("| `") for line in section.splitlines()[4:]]
    assert rows == [operation.name for operation in OPERATIONS]
