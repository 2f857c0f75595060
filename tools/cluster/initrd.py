"""Initial RAM disks: busybox, the kernel modules that reach the root file system, and the script
that goes on there.
"""

import gzip
import lzma
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.cache import cached
from cluster.errors import ClusterError


def _content(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _dependencies(module: bytes) -> list[str]:
    """Return what a module's own ``depends=`` record names (modinfo(8))."""
    found = re.search(rb"\0depends=([^\0]+)\0", module)
    return found.group(1).decode().split(",") if found else []


def load_order(tree: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """Return modules and all they depend on, uncompressed, in the order in which they must be
    loaded.

    What the kernel has built in is left out. Raises ClusterError for a name that the tree does not
    hold.
    """
    lists = "".join(path.read_text() for path in tree.rglob("modules.builtin"))
    built_in = {Path(line).stem.replace("-", "_") for line in lists.splitlines()}
    paths = {path.name.split(".")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name in built_in:
            return
        if name not in paths:
            raise ClusterError(f"the guest's kernel has no module {name}")
        content = _content(paths[name])
        for dependency in _dependencies(content):
            add(dependency.replace("-", "_"))
        order[name] = content

    for name in wanted:
        add(name)
    return order


def initrd(kernel_modules: Path, busybox: Path, init: Path, modules: Sequence[str]) -> Path:
    """Return the compressed archive for a kernel's modules, a static busybox, and the script that
    is process 1.
    """

    def build(folder: Path) -> None:
        tree = folder / "tree"
        for part in ("bin", "dev", "proc", "sys", "modules", "host", "memory", "root"):
            (tree / part).mkdir(parents=True)
        shutil.copy(busybox, tree / "bin/busybox")
        (tree / "bin/sh").symlink_to("busybox")
        shutil.copy(init, tree / "init")
        (tree / "init").chmod(0o755)
        for number, (name, content) in enumerate(load_order(kernel_modules, modules).items()):
            (tree / f"modules/{number:02}-{name}.ko").write_bytes(content)
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        packed = subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc"],
            cwd=tree,
            input=names.encode(),
            capture_output=True,
            check=True,
        )
        (folder / "initrd.gz").write_bytes(gzip.compress(packed.stdout, 1, mtime=0))
        shutil.rmtree(tree)

    inputs = [
        init.read_bytes(),
        repr((str(kernel_modules), busybox.parents[1].name, modules)).encode(),
    ]
    return cached("initrd", inputs, build) / "initrd.gz"
