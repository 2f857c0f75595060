"""The image is the same wherever it is built, and contains only what pinwarden needs.

The programs of the image run unpacked, in a root of their own, as the image's user. They see only
/proc of this machine.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import image
from cluster.image import NAME, PROJECT, ROOT
from release.__main__ import DOCUMENT, FIGURES
from release.archive import Image
from release.bom import OCI, TERMS, bill, normalised

LABELS = {"revision": "0123456789abcdef", "created": "2026-01-02T03:04:05+00:00"}
UNCHECKED_HASH = 1
"""Flags of byte code, by PEP 552."""
FOREIGN = {
    *("sh", "bash", "dash", "busybox", "env", "cat", "ls", "ldd", "ldconfig", "chroot"),
    *("pip", "pip3", "apt", "apt-get", "dpkg", "rpm", "apk", "perl"),
    *("cc", "gcc", "ld", "as", "make", "curl", "wget"),
}
"""Programs that help only an intruder."""
RUN = """
/bin/mkdir -p "$0/proc"
/bin/mount --bind "$0" "$0"
/bin/mount -t proc proc "$0/proc"
/bin/mount -o remount,bind,ro "$0"
user=$1
shift
exec /usr/sbin/chroot --userspec="$user" "$0" "$@"
"""
IMPORT_ALL = """
import importlib, pkgutil, pinwarden
for each in pkgutil.walk_packages(pinwarden.__path__, "pinwarden."):
    if not each.name.endswith("__main__"):
        print(importlib.import_module(each.name).__name__)
"""
WHO = """
import os, ssl, sys
writable = sum(os.access(place, os.W_OK) for place in sys.path if place)
ssl.create_default_context()
print(os.getuid(), os.getgid(), writable, sys.getfilesystemencoding(), "OK")
"""
BPF = """
import ctypes
from pinwarden.node.ebpf.loader import LIBRARY, OBJECTS
print(*(path.name for path in OBJECTS.glob("*.bpf.o")), ctypes.CDLL(LIBRARY).libbpf_major_version())
"""
THREADS_AND_NAMES = """
import ctypes, socket, threading
print(socket.gethostbyname("localhost"))
# A thread ends by pthread_exit, as daemon threads of Python do: glibc then loads libgcc_s.
thread = threading.Thread(target=lambda: ctypes.CDLL(None).pthread_exit(None), daemon=True)
thread.start()
thread.join(1)
print("ended")
"""


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two archives, built at once from copies of the source, in different folders and stores."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "another")]
    first = folders[0] / "source"
    for name in ("operator", "bpf", *image.FILES, "requirements-dev.lock"):
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, first / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, first / name)
    second = shutil.copytree(first, folders[1] / "elsewhere", copy_function=shutil.copyfile)

    def archive(tree: Path) -> Path:
        image.build(tree, tree.parent / "image.tar", tree.parent / "store", LABELS)
        shutil.rmtree(tree.parent / "store")
        return tree.parent / "image.tar"

    with ThreadPoolExecutor() as pool:
        return list(pool.map(archive, (first, second)))


@pytest.fixture(scope="module")
def built(builds: list[Path]) -> Image:
    return Image(builds[0])


@pytest.fixture(scope="module")
def root(built: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image's files, and the one that a runtime brings."""
    folder = tmp_path_factory.mktemp("root")
    folder.chmod(0o755)
    built.unpack(folder)
    (folder / "etc/hosts").write_text("127.0.0.1 localhost\n")
    yield folder
    shutil.rmtree(folder)


def run(root: Path, built: Image, *argv: str) -> str:
    """Run a program in a read-only root as the image's user, and return its output."""
    inside = [str(root), built.config["config"]["User"], *argv]
    environment = dict(each.split("=", 1) for each in built.config["config"]["Env"])
    done = subprocess.run(
        [
            "/usr/bin/unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "/bin/sh",
            "-ec",
            RUN,
            *inside,
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not done.returncode, done.stderr
    return done.stdout


def test_same_source_gives_the_same_archive_to_the_byte(builds: list[Path]) -> None:
    one, another = (hashlib.sha256(path.read_bytes()).hexdigest() for path in builds)
    assert one == another


def test_image_has_its_labels_and_is_not_root(built: Image) -> None:
    assert built.name == NAME
    labels = {key.removeprefix(f"{OCI}."): value for key, value in built.labels.items()}
    assert labels["version"] == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    assert LABELS.items() <= labels.items()
    assert built.config["config"]["User"] == "65532:65532"
    assert built.config["config"]["Entrypoint"] == ["pinwarden"]
    assert "nonroot:x:65532:65532:" in built.read("etc/passwd").decode()


def test_no_shell_no_compiler_and_no_installer_are_in_it(built: Image) -> None:
    programs = {
        Path(path).name
        for path, member in built.files.items()
        if member.issym() or (member.isfile() and member.mode & 0o111)
    }
    assert programs >= {"python3", "pinwarden"}
    assert not programs & FOREIGN
    modules = {Path(path).name for path, member in built.files.items() if member.isdir()}
    assert not modules & {"pip", "setuptools", "ensurepip", "idlelib", "tkinter", "lib2to3"}
    assert {
        path for path in built.files if path.startswith(("usr/bin/", "bin/", "opt/pinwarden/bin/"))
    } == {
        *("usr/bin/python3", os.path.join("usr/bin", built.files["usr/bin/python3"].linkname)),
        *(f"opt/pinwarden/bin/{name}" for name in PROJECT["scripts"]),
    }


def test_all_files_belong_to_root_and_only_root_can_write_them(built: Image) -> None:
    for path, member in built.files.items():
        assert (member.uid, member.gid, member.mtime) == (0, 0, 0), path
        assert not member.mode & (stat.S_ISUID | stat.S_ISGID), path
        if not member.issym() and path != "tmp":
            assert not member.mode & (stat.S_IWGRP | stat.S_IWOTH), path
        assert member.isfile() or member.isdir() or member.issym(), path
    assert stat.S_IMODE(built.files["tmp"].mode) == 0o1777


def test_every_module_has_byte_code_that_is_not_compared_with_its_source(built: Image) -> None:
    sources = [path for path in built.files if path.endswith(".py")]
    assert len(sources) > 1000
    for path in sources:
        compiled = built.read(importlib.util.cache_from_source(path))
        assert int.from_bytes(compiled[4:8], "little") == UNCHECKED_HASH, path


def test_command_and_every_module_of_it_start(root: Path, built: Image) -> None:
    assert run(root, built, "pinwarden", "--version").split() == ["pinwarden", PROJECT["version"]]
    for part in ("operator", "agent", "gate", "holder", "accountant", "nri", "ebpf"):
        assert f"usage: pinwarden {part} " in run(root, built, "pinwarden", part, "--help")
    there = {path.stem for path in (ROOT / "operator/pinwarden").rglob("*.py")} - {
        "__init__",
        "__main__",
    }
    names = run(root, built, "python3", "-c", IMPORT_ALL).split()
    assert there <= {name.rpartition(".")[2] for name in names}
    assert run(root, built, "python3", "-c", WHO).split() == ["65532", "65532", "0", "utf-8", "OK"]


def test_ebpf_has_its_programs_and_libbpf(root: Path, built: Image) -> None:
    assert run(root, built, "python3", "-c", BPF).split() == ["ledger.bpf.o", "1"]


def test_threads_end_and_names_are_looked_up_without_the_base(root: Path, built: Image) -> None:
    assert run(root, built, "python3", "-c", THREADS_AND_NAMES).split() == ["127.0.0.1", "ended"]


def test_bill_names_every_locked_distribution_and_what_files_came_from(
    root: Path, built: Image
) -> None:
    text = bill(built, image.wheels(ROOT))
    assert bill(built, image.wheels(ROOT)) == text
    whole = json.loads(text)
    assert whole["metadata"]["component"]["bom-ref"] == built.digest
    assert whole["metadata"]["timestamp"] == LABELS["created"]
    parts = {each["purl"]: each for each in whole["components"]}
    lock = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))
    assert len(locked) > 20
    for name, version in locked.items():
        part = parts.pop(f"pkg:pypi/{normalised(name)}@{version}")
        assert f"sha256:{part['hashes'][0]['content']}" in lock
        assert part["licenses"], name
    assert parts.pop(f"pkg:pypi/pinwarden@{PROJECT['version']}")
    assert {each["name"] for each in parts.values()} >= {"libc6", "libssl3", "python3.11-minimal"}
    for purl, part in parts.items():
        assert purl.startswith("pkg:deb/debian/")
        assert purl.endswith("&distro=debian-12")
        (terms,) = (each["value"] for each in part["properties"] if each["name"] == TERMS)
        assert (root / terms.lstrip("/")).is_file()


def test_document_has_the_size_of_the_image(built: Image) -> None:
    (figures,) = FIGURES.findall(DOCUMENT.read_text())
    compressed, unpacked = (float(each.split()[0]) for each in figures.split(", "))
    assert compressed == pytest.approx(built.compressed / 1e6, rel=0.05), "run `make image`"
    assert unpacked == pytest.approx(built.unpacked / 1e6, rel=0.05), "run `make image`"
