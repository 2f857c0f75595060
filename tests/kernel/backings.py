"""Each kind of object of shared memory: how a process makes one, maps it, and lets it go."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from .nodes import MIB
from .shared_nodes import FOLDER, PAGE


class Sharer(Protocol):
    """A process that runs sharing.py."""

    pid: int

    def __call__(self, expression: str) -> int:
        """Its answer. Raises OSError."""
        ...


SIZE = 4 * MIB
KEY = 0x50770100


@dataclass(frozen=True)
class Case:
    """A kind of object.

    `make` makes an object in a process and returns a handle. `map` maps it in a process and touches
    so many pages of `page` bytes. `remove` removes it. An object is `whole` from the start, or a
    mapping `reserves` all of it, or its touched pages count.
    """

    backing: dict[str, Any]
    make: Callable[[Sharer], int]
    map: Callable[[Sharer, Sharer, int, int], int]
    remove: Callable[[Sharer, int], object]
    page: int = PAGE
    whole: bool = False
    reserves: bool = False
    detach: str = "unmap"

    def charge(self, pages: int) -> int:
        """Bytes that it is charged after so many touched pages, while all of it is mapped."""
        return SIZE if self.reserves else self.resident(pages)

    def resident(self, pages: int) -> int:
        """Bytes that so many touched pages take."""
        return SIZE if self.whole else pages * self.page


def _map_path(path: str) -> Callable[[Sharer, Sharer, int, int], int]:
    def mapped(process: Sharer, _: Sharer, __: int, pages: int) -> int:
        address = process(f"mapped(opened('{path}'), {SIZE})")
        process(f"touch({address}, {pages})")
        return address

    return mapped


def _map_taken(process: Sharer, maker: Sharer, file: int, pages: int) -> int:
    mine = file if process is maker else process(f"taken({maker.pid}, {file})")
    address = process(f"mapped({mine}, {SIZE})")
    process(f"touch({address}, {pages})")
    return address


def _at(path: str, backing: dict[str, Any], page: int = PAGE, *, reserves: bool = False) -> Case:
    return Case(
        backing,
        make=lambda a: a(f"opened('{path}', {SIZE})"),
        map=_map_path(path),
        remove=lambda _, __: os.unlink(path),
        page=page,
        reserves=reserves,
    )


CASES = {
    "tmpfs": _at(f"{FOLDER}/tmpfs/f", {"tmpfs": {"path": f"{FOLDER}/tmpfs"}}),
    "posixShm": _at("/dev/shm/pw-f", {"posixShm": {"name": "pw-f", "ipcNamespace": "Host"}}),
    "sysvShm": Case(
        {"sysvShm": {"key": KEY, "ipcNamespace": "Host"}},
        make=lambda a: a(f"segment({KEY}, {SIZE})"),
        map=lambda process, _, number, pages: process(f"attach({number}, {pages})"),
        remove=lambda a, number: a(f"remove({number})"),
        detach="detach",
    ),
    "hugetlbfs": _at(
        f"{FOLDER}/huge/f", {"hugetlbfs": {"path": f"{FOLDER}/huge"}}, page=2 * MIB, reserves=True
    ),
    "file": _at(f"{FOLDER}/ext4/f", {"file": {"path": f"{FOLDER}/ext4/f"}}),
    "memfd": Case(
        {"memfd": {"name": "pw"}},
        make=lambda a: a(f"memfd('pw', {SIZE})"),
        map=_map_taken,
        remove=lambda a, file: a(f"close({file})"),
    ),
    "dmabuf": Case(
        {"dmabuf": {"exporter": "udmabuf"}},
        make=lambda a: a(f"udmabuf({SIZE})"),
        map=_map_taken,
        remove=lambda a, file: a(f"close({file})"),
        whole=True,
    ),
}
NOT_IN_UML = ("hugetlbfs", "dmabuf")


def kinds(*names: str) -> list[Any]:
    """Return parameters for a test of these kinds, of all without a name."""
    return [
        pytest.param(name, marks=[pytest.mark.emulated] if name in NOT_IN_UML else [])
        for name in names or CASES
    ]


OUTLIVE = kinds("tmpfs", "posixShm", "sysvShm", "hugetlbfs", "file")
"""Those that stay when their last process has ended."""


@contextmanager
def mounts(kind: str) -> Iterator[None]:
    """Mount below `FOLDER` as an administrator would, for a test of one kind."""
    huge_pages = kind == "hugetlbfs"
    mounted = [("tmpfs", "tmpfs", "size=16m"), *[("hugetlbfs", "huge", "size=8m")] * huge_pages]
    if huge_pages:
        Path("/proc/sys/vm/nr_hugepages").write_text("4")
    for file_system, name, options in mounted:
        (FOLDER / name).mkdir(parents=True)
        subprocess.run(
            ["mount", "-t", file_system, "-o", options, "test", FOLDER / name], check=True
        )
    (FOLDER / "ext4").mkdir()
    yield
    for name in (*(name for _, name, _ in mounted), "ext4"):
        if (FOLDER / name).is_mount():
            subprocess.run(["umount", "--lazy", FOLDER / name], check=True)
        else:
            for file in (FOLDER / name).iterdir():
                file.unlink()
        (FOLDER / name).rmdir()
    if huge_pages:
        Path("/proc/sys/vm/nr_hugepages").write_text("0")
    Path("/dev/shm/pw-f").unlink(missing_ok=True)
    with_key = [
        line for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:] if str(KEY) in line
    ]
    for line in with_key:
        subprocess.run(["ipcrm", "-m", line.split()[1]], check=True)
