"""Write the tables of docs/sources.md from results of the ledger's self-test.

Usage: `sources.py`, as root in a guest, prints the section of the running kernel. A test in the
guest compares the section of its kernel with the page.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pinwarden.cli.ebpf import cells
from pinwarden.node.ebpf import selftest
from pinwarden.node.ebpf.loader import OBJECTS
from pinwarden.node.ebpf.selftest import OperationResult

PAGE: Final = Path(__file__).resolve().parents[2] / "docs/sources.md"
CGROUPS: Final = Path("/sys/fs/cgroup")
COLUMNS: Final = ("operation", "counted", "uncounted", "stays after munmap", "stays after exit")


def heading(release: str) -> str:
    """Return the heading of a kernel's section, such as `## Linux 6.12`."""
    version = re.match(r"\d+\.\d+", release)
    return f"## Linux {version[0] if version else release}"


def section(release: str, results: Sequence[OperationResult]) -> str:
    """Return a kernel's section."""
    lines = [heading(release), "", _row((*COLUMNS, "reason")), _row(["---"] * (len(COLUMNS) + 1))]
    for result in results:
        operation, *others = cells(result)
        lines.append(_row([f"`{operation}`", *others]))
    return "\n".join(lines) + "\n"


def section_on_page(release: str, page: str) -> str:
    """Return the section of a kernel on the page, or an empty text."""
    start = heading(release)
    found = re.search(rf"^{re.escape(start)}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found[0].rstrip() + "\n" if found else ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell or " " for cell in cells) + " |"


if __name__ == "__main__":
    print(section(os.uname().release, selftest.run(OBJECTS, CGROUPS).results))
