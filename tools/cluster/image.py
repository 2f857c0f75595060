"""The image of operator and agent, built from the project's one Containerfile without a registry or
a container engine.

buildah comes from Debian's packages without being installed. The Containerfile gets its inputs from
here: the base image, made by mmdebstrap, and the wheels that requirements.lock pins by hash. Both
change seldom; buildah keeps the layers that stand on them in a store below the cache, so that a
changed source costs seconds. The result is an OCI archive, cached by the hash of all that goes into
it. A release is built by the same steps, from nothing (:func:`build`).
"""

import shutil
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster import bpf, debian
from cluster.cache import cached, digest, locked
from cluster.commands import run
from cluster.paths import cache_root

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"pinwarden.local/pinwarden:{PROJECT['version']}"
PAUSE = "pinwarden.local/pause:1"
PAUSE_ENTRY = '["/busybox", "sleep", "2147483647"]'
BASE = "localhost/pinwarden-base"
BASE_PACKAGES = ("python3", "libbpf1")
BASE_PYTHON = "3.11"
"""That of the base, for which wheels are downloaded whatever Python runs this."""
INSTALLERS = ("pip", "setuptools")
FILES = (
    *("Containerfile", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"),
    "tools/release/rootfs.py",
)


def image_tools() -> Path:
    """Return the folder with what builds images."""
    return debian.programs("image-tools", ["buildah", "mmdebstrap"])


def _sources(tree: Path) -> Iterator[Path]:
    yield from (
        tree / name for name in FILES if (tree / name).is_file()
    )  # an older tree may lack one
    yield from sorted(
        path
        for path in (tree / "operator").rglob("*")
        if path.suffix in (".py", ".typed", ".json") and path.is_file()
    )


def wheels(tree: Path) -> Path:
    """Return a folder with a wheel for everything in a source tree's requirements.lock, and for
    what installs them.
    """
    lock, development = tree / "requirements.lock", tree / "requirements-dev.lock"

    def build(folder: Path) -> None:
        download = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"),
            *("--only-binary=:all:", "--python-version", BASE_PYTHON, "--dest", str(folder)),
        ]
        for wanted in (["-r", str(lock)], [*INSTALLERS, "-c", str(development)]):
            run([*download, *wanted])

    inputs = [BASE_PYTHON.encode(), lock.read_bytes(), development.read_bytes()]
    return cached("wheels", inputs, build)


class _Buildah:
    """buildah with a store of its own; one process at a time uses it. ``work`` is for temporary
    files.
    """

    def __init__(self, store: Path, work: Path) -> None:
        self._command = [
            *debian.as_if_installed(image_tools()),
            *("env", "STORAGE_DRIVER=overlay", "BUILDAH_ISOLATION=chroot", f"TMPDIR={work}"),
            *("buildah", "--root", str(store), "--runroot", str(work / "run")),
        ]

    def run(self, *arguments: str | Path) -> str:
        """Return what it prints. Raises ClusterError with its messages when it fails."""
        return run([*self._command, *arguments]).strip()


def base_system() -> Path:
    """Return the tar of the base image."""
    return debian.base_system(BASE_PACKAGES, image_tools())


def _base(buildah: _Buildah) -> str:
    """Return the name of the base image, importing it into the store when it is not there."""
    system = base_system()
    name = f"{BASE}:{digest([system.parent.name.encode()])}"
    if name not in buildah.run("images", "--format", "{{.Name}}:{{.Tag}}").split():
        container = buildah.run("from", "scratch")
        buildah.run("add", "--quiet", container, system, "/")
        buildah.run("commit", "--quiet", "--rm", container, name)
    return name


def build(
    tree: Path,
    archive: Path,
    store: Path,
    labels: Mapping[str, str] | None = None,
    name: str = NAME,
) -> None:
    """Build the image of a source tree into an OCI archive.

    With the same source, base and labels it is the same to the byte, wherever and whenever it is
    built: all times in it are 1970, so that versions share the layers that do not differ.
    ``labels`` go below ``org.opencontainers.image``, beside the version. Layers are taken from the
    store if it has them.
    """
    options = [
        f"--label=org.opencontainers.image.{key}={value}"
        for key, value in {"version": PROJECT["version"], **(labels or {})}.items()
    ]
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        work = Path(folder)
        context, layout = work / "context", work / "layout"
        for source in _sources(tree):
            target = context / source.relative_to(tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        bpf.install(tree, context)
        shutil.copytree(wheels(tree), context / "wheels")
        buildah = _Buildah(store, work)
        buildah.run(
            *("bud", "--layers", "--pull-never", "--timestamp=0", *options),
            *("--build-arg", f"BASE={_base(buildah)}", "--tag", name, context),
        )
        buildah.run("push", name, f"oci:{layout}:{name}")
        _pack(layout, archive)


def _pack(layout: Path, archive: Path) -> None:
    """Put a folder into a tar that tells nothing of when and by whom."""

    def bare(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.mode = 0, 0o755 if member.isdir() else 0o644
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w") as tar:
        for path in sorted(layout.rglob("*")):
            tar.add(path, path.relative_to(layout), recursive=False, filter=bare)


def _cached(tree: Path, name: str) -> Path:
    def work(folder: Path) -> None:
        with locked("image-store"):
            build(tree, folder / "image.tar", cache_root() / "image-store", name=name)

    sources = [
        part
        for path in _sources(tree)
        for part in (str(path.relative_to(tree)).encode(), path.read_bytes())
    ]
    inputs = [name.encode(), repr((BASE_PYTHON, BASE_PACKAGES)).encode()]
    inputs.append(bpf.objects(tree).name.encode())
    return cached("image", [*inputs, *sources], work) / "image.tar"


def _build_pause(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        buildah = _Buildah(Path(work) / "store", Path(work))
        container = buildah.run("from", "scratch")
        buildah.run("add", "--quiet", container, debian.busybox(), "/busybox")
        buildah.run("config", "--entrypoint", PAUSE_ENTRY, container)
        buildah.run("commit", "--quiet", container, PAUSE)
        buildah.run(
            "push", "--disable-compression", PAUSE, f"oci-archive:{folder / 'image.tar'}:{PAUSE}"
        )


def pause_image() -> Path:
    """Return the OCI archive of what keeps a pod's namespaces open: a busybox that sleeps."""
    inputs = [PAUSE_ENTRY.encode(), debian.busybox().parents[1].name.encode()]
    return cached("pause-image", inputs, _build_pause) / "image.tar"


def image() -> Path:
    """Return the OCI archive of the project's image as the source tree is now, building what is
    missing.

    Raises ClusterError when something cannot be fetched or built.
    """
    return _cached(ROOT, NAME)


def image_of(tree: Path, name: str) -> Path:
    """Return the same of another source tree, by another name."""
    return _cached(tree, name)
