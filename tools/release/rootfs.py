"""Gathers what the image needs of its base: the interpreter, the standard library without what is
not used, and the shared libraries, libbpf among them if the base has it.

A stage of the Containerfile runs it with the base's own python3, wherever that is installed: in
/usr by Debian, in /usr/local by the official Python images. It needs nothing but the standard
library, and ldd and chroot of the base. At the end the gathered interpreter imports every extension
module from inside its new root, so that a base whose libraries are not found fails the build, not a
node.

What came from Debian packages is told where scanners look for it in images without a package
manager: a stanza for each package in /var/lib/dpkg/status.d, and its copyright file.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

UNUSED = (
    *("__pycache__", "site-packages", "dist-packages", "sitecustomize.py", "EXTERNALLY-MANAGED"),
    # What installs, builds, documents or tests Python code.
    *(
        "ensurepip",
        "venv",
        "distutils",
        "_distutils_system_mod.py",
        "lib2to3",
        "config-*",
        "pydoc_data",
        "test",
        "tests",
    ),
    *("_test*", "_ctypes_test*", "_xxtestfuzz*", "xxlimited*", "xxsubtype*"),
    # Terminals, windows, and the libraries that they need.
    *(
        "idlelib",
        "tkinter",
        "_tkinter*",
        "turtle.py",
        "turtledemo",
        "curses",
        "_curses*",
        "readline*",
    ),
    # Files of databases, and of passwords.
    *("sqlite3", "_sqlite3*", "dbm", "_dbm*", "_gdbm*", "nis.*", "crypt.py", "_crypt*"),
)
"""Patterns of names in the standard library that are left out, at any depth."""

FILES = {
    "etc/passwd": "root:x:0:0:root:/:/sbin/nologin\n"
    "nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnonroot:x:65532:\n",
    # Without it glibc asks DNS before it looks into /etc/hosts.
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
OPENED = ("libbpf.so.1",)
"""Shared libraries that pinwarden opens by name. It says so if the base does not have one."""
DISTRIBUTION = (Path("/etc/os-release"),)
"""By the release of its distribution a scanner knows which advisories apply."""


class Root:
    """The new root folder, and which files of the base are in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: set[Path] = set()

    def inside(self, path: Path) -> Path:
        """Where an absolute path of the base is in the new root."""
        return self._folder / path.relative_to("/")

    def copy(self, path: Path) -> None:
        """Copy a file, and every symbolic link on the way to it, so that it has the names that it
        had.
        """
        reached, ahead = Path("/"), list(path.parts[1:])
        while ahead:
            here = reached / ahead.pop(0)
            if here.is_symlink():
                link = here.readlink()
                if not self.inside(here).is_symlink():
                    self.inside(here).symlink_to(link)
                ahead = [*Path(os.path.normpath(reached / link)).parts[1:], *ahead]
                reached = Path("/")
            elif here.is_dir():
                self.inside(here).mkdir(exist_ok=True)
                reached = here
            else:
                shutil.copyfile(here, self.inside(here))
                self.inside(here).chmod(0o755 if os.access(here, os.X_OK) else 0o644)
                self.files.add(here)


def used(folder: Path) -> Iterator[Path]:
    """The files of the standard library, sorted, without what is left out."""
    for entry in sorted(folder.iterdir()):
        if any(fnmatch(entry.name, pattern) for pattern in UNUSED):
            continue
        if entry.is_dir():
            yield from used(entry)
        else:
            yield entry


def extensions(files: Iterable[Path]) -> list[Path]:
    """Those of the files that are extension modules, or libraries that came with some."""
    return [path for path in files if re.search(r"\.so(\.\d+)*$", path.name)]


def libraries(programs: Iterable[Path]) -> set[Path]:
    """The shared libraries that programs and extension modules need, by the names under which the
    linker looks for them.
    """
    found = set()
    for program in programs:
        text = subprocess.run(
            ["ldd", str(program)], capture_output=True, text=True, check=True
        ).stdout
        if missing := re.findall(r"(\S+) => not found", text):
            raise SystemExit(
                f"{program} needs {', '.join(missing)}, which the base image does not have"
            )
        found |= {Path(name) for name in re.findall(r"(/\S+) \(0x", text)}
    # glibc opens it by name when a thread is ended: no program lists it.
    (libc,) = (path for path in found if path.name == "libc.so.6")
    return found | {libc.parent / "libgcc_s.so.1"}


def opened() -> list[Path]:
    """The libraries that are opened by name, as far as the base has them."""
    text = subprocess.run(
        ["ldconfig", "-p"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
    ).stdout
    places = dict(reversed(re.findall(r"^\s*(\S+) .*=> (\S+)$", text, re.MULTILINE)))
    return [Path(places[name]) for name in OPENED if name in places]


@cache
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def owners(files: Iterable[Path], dpkg: Path = Path("/var/lib/dpkg")) -> set[str]:
    """The Debian packages that files came from; those of no package are passed over."""
    wanted = {str(path) for path in files}
    return {
        listing.name.removesuffix(".list").partition(":")[0]
        for listing in dpkg.glob("info/*.list")
        for line in listing.read_text().splitlines()
        if f"{_real(os.path.dirname(line))}/{os.path.basename(line)}" in wanted
    }


def stanzas(packages: set[str], dpkg: Path = Path("/var/lib/dpkg")) -> dict[str, str]:
    """What dpkg's record says about each of the packages."""
    status = dpkg / "status"
    known = {}
    for stanza in status.read_text().split("\n\n") if status.is_file() else ():
        if (name := stanza.removeprefix("Package: ").partition("\n")[0]) in packages:
            known[name] = f"{stanza.strip()}\n"
    return known


def gather(target: Path, applications: list[Path]) -> None:
    """Fill a new root with what the interpreter and the extension modules below ``applications``
    need.
    """
    target.mkdir()
    root = Root(target)
    interpreter = Path(sys.executable)
    standard = list(used(Path(sysconfig.get_path("stdlib"))))
    own = [path for folder in applications for path in sorted(folder.rglob("*"))]
    loaded = opened()
    for path in (
        *(
            interpreter,
            *standard,
            *loaded,
            *libraries([interpreter, *loaded, *extensions(standard), *extensions(own)]),
        ),
        *filter(Path.exists, DISTRIBUTION),
        *sorted(Path("/usr/share/common-licenses").glob("*")),
    ):
        if not any(path.is_relative_to(folder) for folder in applications):
            root.copy(path)
    for package, stanza in sorted(stanzas(owners(root.files)).items()):
        if (terms := Path("/usr/share/doc") / package / "copyright").is_file():
            root.copy(terms)
        record = root.inside(Path("/var/lib/dpkg/status.d") / package)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(stanza)
    for name, content in FILES.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(content)
    (target / "tmp").mkdir()
    (target / "tmp").chmod(0o1777)
    modules = sorted(
        {
            path.name.partition(".")[0]
            for path in standard
            if path.name.endswith(tuple(EXTENSION_SUFFIXES))
        }
    )
    subprocess.run(
        ["chroot", str(target), str(interpreter), "-IBc", f"import {', '.join(modules)}"],
        check=True,
    )


if __name__ == "__main__":
    gather(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
