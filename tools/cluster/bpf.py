"""Compiles the programs of bpf/ with Debian's clang, and brings libbpf, which loads them.

An object is the same to the byte wherever it is compiled: its debug information, from which the
kernel's own (BTF) is made, has no path of the machine.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cluster import debian
from cluster.cache import cached
from cluster.commands import run

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path("operator/pinwarden/node/ebpf")
"""The folder of the package's object files, in a source tree."""
COMPILER = ("clang-14", "libbpf-dev")
LIBRARIES = (f"libbpf1/{debian.RELEASE}", "libelf1", "zlib1g")
FLAGS = (
    *("-target", "bpf", "-mcpu=v3", "-g", "-O2"),
    *("-Wall", "-Wextra", "-Werror"),
    *("-Wno-unused-parameter", "-Wno-sign-compare", "-Wno-missing-declarations"),
    "-fdebug-compilation-dir=.",
)


def compiler() -> Path:
    """Return the folder with clang and libbpf's headers."""
    return debian.programs("clang", COMPILER)


def libbpf() -> Path:
    """Return the folder with libbpf and what it needs beside the C library."""
    folder = debian.alone("libbpf", LIBRARIES, debian.RELEASE) / "usr/lib"
    (found,) = folder.glob("*/libbpf.so.1")
    return found.parent


def _sources(tree: Path) -> Iterator[Path]:
    folder = tree / "bpf"
    yield from sorted(path for path in folder.glob("*.[ch]") if path.is_file())


def compile_program(source: Path, target: Path) -> None:
    """Compile a file in C into an object. Raises ClusterError with the compiler's messages."""
    root = compiler()
    (libraries,) = root.glob("usr/lib/*-linux-gnu")
    machine = Path("/", libraries.relative_to(root))  # first: its C library fits its linker
    headers = root / "usr/include"
    command: list[str | Path] = [
        *(root / "usr/bin/clang-14", *FLAGS, f"-ffile-prefix-map={headers}="),
        *("-isystem", headers, "-c", source.name, "-o", target),
    ]
    run(command, cwd=source.parent, env=os.environ | {"LD_LIBRARY_PATH": f"{machine}:{libraries}"})


def objects(tree: Path = ROOT) -> Path:
    """Return a folder with the object of each bpf/*.bpf.c of a source tree, empty if it has none.

    Raises ClusterError with the compiler's messages.
    """
    sources = list(_sources(tree))

    def build(folder: Path) -> None:
        for source in sources:
            if source.name.endswith(".bpf.c"):
                compile_program(source, folder / f"{source.stem}.o")

    inputs = [part for path in sources for part in (path.name.encode(), path.read_bytes())]
    return cached("bpf", [repr((COMPILER, FLAGS)).encode(), *inputs], build)


def install(tree: Path = ROOT, target: Path = ROOT) -> list[Path]:
    """Copy the objects of a source tree to their place in a copy of it, and return the copies."""
    return [
        Path(shutil.copyfile(path, target / INSTALLED / path.name))
        for path in sorted(objects(tree).iterdir())
    ]
