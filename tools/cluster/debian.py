"""Unpacks Debian packages into the cache, without installing anything on the machine.

apt runs with a configuration of its own: its own package lists and an empty record of what is
installed, so that a piece brings all of its dependencies. The mirrors are those of the machine's
own apt sources, with backports added beside each main archive; the versions are the newest ones
when a piece is first built.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster import commands
from cluster.cache import cached, locked
from cluster.errors import ClusterError
from cluster.paths import cache_root

RELEASE = "bookworm"
BACKPORTS = f"{RELEASE}-backports"
FRESH_SECONDS = 3600.0
UNPACKED = (
    *(f"path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man")),
    "path-include=/usr/share/doc/*/copyright",
)
"""dpkg's options for a base system: of its documentation the licenses alone."""
CONFIGURATION = """
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Default-Release "{release}";
Acquire::Languages "none";
Acquire::Retries "3";
"""


ARCHIVE = "deb [target=Packages]"
"""The indices of an archive's binary packages, even if the machine's apt fetches others too."""


def sources(run: Callable[..., str], suite: str = RELEASE) -> list[str]:
    """Return the lines of a sources.list: the machine's own Debian mirrors, with backports beside
    each main archive.

    With another ``suite`` than the machine's release, the list holds that suite alone. ``run`` runs
    an apt command and returns its output. Raises ClusterError when the machine names no such
    mirror.
    """
    targets = run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"),
        "Created-By: Packages",
    )
    lines = []
    for target in sorted(set(targets.splitlines())):
        mirror, release = target.split()
        if suite != RELEASE:
            lines += [f"{ARCHIVE} {mirror} {suite} main\n"] if release == RELEASE else []
            continue
        if release in (RELEASE, f"{RELEASE}-security"):
            lines.append(f"{ARCHIVE} {mirror} {release} main\n")
        if release == RELEASE:
            lines.append(f"{ARCHIVE} {mirror} {BACKPORTS} main\n")
    if not lines:
        raise ClusterError(
            f"apt's sources name no Debian {RELEASE} archive: guests need its packages"
        )
    return lines


class Apt:
    """A private apt for one suite, with its package lists below the cache. They are updated at most
    once an hour.

    ``sources`` is the text of its sources.list.
    """

    sources: str

    def __init__(self, suite: str = RELEASE) -> None:
        self._folder = cache_root() / f"apt-{suite}"
        self._environment = dict(os.environ)
        with locked(f"apt-{suite}"):
            self._update(suite)

    def _update(self, suite: str) -> None:
        self.sources = "".join(sources(self.run, suite))
        self._environment["APT_CONFIG"] = str(self._folder / "apt.conf")
        listed, updated = self._folder / "sources.list", self._folder / "updated"
        if updated.exists() and listed.read_text() == self.sources:
            if time.time() - updated.stat().st_mtime < FRESH_SECONDS:
                return
            updated.unlink()
        for part in ("state/lists/partial", "cache"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        listed.write_text(self.sources)
        release = BACKPORTS if suite == RELEASE else suite
        configuration = CONFIGURATION.format(folder=self._folder, release=release)
        (self._folder / "apt.conf").write_text(configuration)
        self.run("apt-get", "-q", "update")
        updated.touch()

    def run(self, *argv: str, cwd: Path | None = None) -> str:
        """Run an apt command and return its output; raises ClusterError when it is missing or
        fails.
        """
        if shutil.which(argv[0]) is None:
            raise ClusterError(f"{argv[0]} is not on PATH: guests need a Debian {RELEASE} machine")
        return commands.run(argv, cwd=cwd, env=self._environment)

    def with_dependencies(self, packages: Sequence[str], folder: Path) -> list[Path]:
        """Download packages and all they depend on into a folder."""
        (folder / "partial").mkdir()
        options = (f"Dir::Cache::archives={folder}", "Debug::NoLocking=true")
        self.run(
            *("apt-get", "-qq", "-y", *(f"-o{option}" for option in options)),
            *("--download-only", "install", *packages),
        )
        return sorted(folder.glob("*.deb"))

    def alone(self, packages: Sequence[str], folder: Path) -> list[Path]:
        """Download packages into a folder, without what they depend on."""
        self.run("apt-get", "-qq", "download", *packages, cwd=folder)
        return sorted(folder.glob("*.deb"))

    def dependency(self, package: str, prefix: str, release: str) -> str:
        """Return the package with a prefix that a metapackage of a release stands for."""
        option = f"--option=APT::Default-Release={release}"
        for line in self.run("apt-cache", option, "depends", package).splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and name.startswith(prefix):
                return name
        raise ClusterError(f"{package} depends on no package {prefix}*")


def _unpacked(download: Callable[[Path], Sequence[Path]], folder: Path) -> None:
    """Unpack into a folder the archives that ``download`` puts into another one."""
    if shutil.which("dpkg-deb") is None:
        raise ClusterError("dpkg-deb is not on PATH: install it (apt-get install dpkg)")
    with tempfile.TemporaryDirectory(dir=folder) as archives:
        for archive in download(Path(archives)):
            commands.run(["dpkg-deb", "-x", archive, folder])


def programs(piece: str, packages: Sequence[str]) -> Path:
    """Return a folder that holds packages and all they depend on, unpacked."""

    def build(folder: Path) -> None:
        _unpacked(lambda archives: Apt().with_dependencies(packages, archives), folder)

    return cached(piece, [repr((RELEASE, CONFIGURATION, sorted(packages))).encode()], build)


def alone(piece: str, packages: Sequence[str], suite: str) -> Path:
    """Return a folder with unpacked packages of a Debian suite, without their dependencies."""

    def build(folder: Path) -> None:
        _unpacked(lambda archives: Apt(suite).alone(packages, archives), folder)

    return cached(piece, [repr((suite, CONFIGURATION, sorted(packages))).encode()], build)


def busybox() -> Path:
    """Return a static busybox."""
    return programs("busybox", ["busybox-static"]) / "bin/busybox"


AS_IF_INSTALLED = """
mount -t tmpfs layers /mnt
mkdir /mnt/changes /mnt/work
mount -t overlay overlay -o "lowerdir=$0/etc:/etc,upperdir=/mnt/changes,workdir=/mnt/work" /etc
mount -t overlay overlay -o "lowerdir=$0/usr:/usr" /usr
if [ -d "$0/lib" ]; then mount -t overlay overlay -o "lowerdir=$0/lib:/usr/lib" /usr/lib; fi
exec "$@"
"""
IN_MEMORY = "/mnt"
"""Where the command of :func:`as_if_installed` may write what is gone with it."""
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def as_if_installed(root: Path) -> list[str]:
    """Return what to put before a command for which the packages of a folder of :func:`programs`
    look installed.

    They do so in a mount namespace of the command's own; what it changes in /etc is gone with it.
    Nothing that it starts outlives it. Needs root.
    """
    return [*NAMESPACES, "sh", "-ec", AS_IF_INSTALLED, str(root)]


def base_system(packages: Sequence[str], tools: Path) -> Path:
    """Return a tar of a minimal Debian with packages in it; ``tools`` is a folder of
    :func:`programs` with mmdebstrap.
    """

    def build(folder: Path) -> None:
        command = [
            *as_if_installed(tools),
            *("env", f"TMPDIR={IN_MEMORY}"),
            *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"),
            *(f"--dpkgopt={option}" for option in UNPACKED),
            *(f"--include={','.join(packages)}", RELEASE, str(folder / "base.tar"), "-"),
        ]
        commands.run(command, stdin=Apt().sources)

    inputs = [repr((RELEASE, sorted(packages), UNPACKED)).encode()]
    return cached("base-system", inputs, build) / "base.tar"


def kernel(flavour: str, release: str = BACKPORTS) -> Path:
    """Return a folder that holds ``boot/vmlinuz-*`` and ``lib/modules/*`` of a Debian release's
    kernel.
    """

    def download(archives: Path) -> list[Path]:
        apt = Apt()
        return apt.alone(
            [apt.dependency(f"linux-image-{flavour}", "linux-image-", release)], archives
        )

    inputs = [repr((CONFIGURATION, flavour, release)).encode()]
    return cached(f"kernel-{release}-{flavour}", inputs, lambda folder: _unpacked(download, folder))
