"""The image of operator and agent, built from the project's one Containerfile without a registry or a container engine.

buildah comes from Debian's packages without being installed. What the Containerfile needs is brought to it: the base
image, made by mmdebstrap, and the wheels that requirements.lock pins by hash. Both change seldom; buildah keeps the
layers that stand on them in a store below the cache, so that a changed source costs seconds. The result is an OCI
archive, cached by the hash of all that goes into it.
"""

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster import debian, qemu
from cluster.cache import cached, digest
from cluster.errors import ClusterError
from cluster.paths import cache_root

ROOT = Path(__file__).resolve().parents[2]
NAME = "pinwarden.local/pinwarden:dev"
PAUSE = "pinwarden.local/pause:1"
PAUSE_ENTRY = '["/busybox", "sleep", "2147483647"]'
BASE = "localhost/pinwarden-base"
BASE_PACKAGES = ("python3",)
INSTALLERS = ("pip", "setuptools")
FILES = ("Containerfile", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")


def _tools() -> Path:
    return debian.programs("image-tools", ["buildah", "mmdebstrap"])


def _sources() -> Iterator[Path]:
    yield from (ROOT / name for name in FILES)
    yield from sorted(
        path
        for path in (ROOT / "operator").rglob("*")
        if path.suffix in (".py", ".typed", ".json") and path.is_file()
    )


def _wheels() -> Path:
    """Return a folder with a wheel for everything in requirements.lock, and for what installs them."""
    lock, development = ROOT / "requirements.lock", ROOT / "requirements-dev.lock"

    def build(folder: Path) -> None:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
        for wanted in (["-r", str(lock)], [*INSTALLERS, "-c", str(development)]):
            done = subprocess.run(
                [*download, "--only-binary=:all:", "--dest", str(folder), *wanted], check=False
            )
            if done.returncode:
                raise ClusterError("pip could not download the wheels of the image, see its messages above")

    return cached("wheels", [lock.read_bytes(), development.read_bytes()], build)


class _Buildah:
    """buildah with a store of its own; one process at a time uses it."""

    def __init__(self, store: Path, runtime: Path) -> None:
        self._command = [
            *debian.as_if_installed(_tools()),
            *("env", "STORAGE_DRIVER=overlay", "BUILDAH_ISOLATION=chroot"),
            *("buildah", "--root", str(store), "--runroot", str(runtime)),
        ]

    def run(self, *arguments: str | Path) -> str:
        """Return what it prints. Raises ClusterError with its messages when it fails."""
        command = [*self._command, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"buildah {arguments[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout.strip()


def _base(buildah: _Buildah) -> str:
    """Return the name of the base image, importing it into the store when it is not there."""
    system = debian.base_system(BASE_PACKAGES, _tools())
    name = f"{BASE}:{digest([system.parent.name.encode()])}"
    if name not in buildah.run("images", "--format", "{{.Name}}:{{.Tag}}").split():
        container = buildah.run("from", "scratch")
        buildah.run("add", "--quiet", container, system, "/")
        buildah.run("commit", "--quiet", "--rm", container, name)
    return name


def _build(folder: Path) -> None:
    context = folder / "context"
    for source in _sources():
        target = context / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    shutil.copytree(_wheels(), context / "wheels")
    store = cache_root() / "image-store"
    with (cache_root() / "image-store.lock").open("w") as lock, tempfile.TemporaryDirectory() as runtime:
        fcntl.flock(lock, fcntl.LOCK_EX)
        buildah = _Buildah(store, Path(runtime))
        buildah.run(
            *("bud", "--layers", "--pull-never"),
            *("--build-arg", f"BASE={_base(buildah)}", "--tag", NAME, context),
        )
        buildah.run("push", "--disable-compression", NAME, f"oci-archive:{folder / 'image.tar'}:{NAME}")
    shutil.rmtree(context)


def _build_pause(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        buildah = _Buildah(Path(work) / "store", Path(work) / "run")
        container = buildah.run("from", "scratch")
        buildah.run("add", "--quiet", container, qemu.busybox(), "/busybox")
        buildah.run("config", "--entrypoint", PAUSE_ENTRY, container)
        buildah.run("commit", "--quiet", container, PAUSE)
        buildah.run("push", "--disable-compression", PAUSE, f"oci-archive:{folder / 'image.tar'}:{PAUSE}")


def pause_image() -> Path:
    """Return the OCI archive of what keeps a pod's namespaces open: a busybox that sleeps."""
    inputs = [PAUSE_ENTRY.encode(), qemu.busybox().parents[1].name.encode()]
    return cached("pause-image", inputs, _build_pause) / "image.tar"


def image() -> Path:
    """Return the OCI archive of the project's image as the source tree is now, building what is missing.

    Raises ClusterError when something cannot be fetched or built.
    """
    inputs = [
        part for path in _sources() for part in (str(path.relative_to(ROOT)).encode(), path.read_bytes())
    ]
    return cached("image", inputs, _build) / "image.tar"
