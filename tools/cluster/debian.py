"""Unpacks Debian packages into the cache, without installing anything on the machine.

apt runs with a configuration of its own: its own package lists, archives and an empty record of what is installed, so
that a piece brings all of its dependencies. The mirrors are those of the machine's own apt sources, with backports
added beside each main archive; the versions are the newest ones when a piece is first built.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.cache import cached
from cluster.errors import ClusterError

RELEASE = "bookworm"
BACKPORTS = f"{RELEASE}-backports"
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


def sources(run: Callable[..., str], suite: str = RELEASE) -> list[str]:
    """Return the lines of a sources.list: the machine's own Debian mirrors, with backports beside each main archive.

    With another ``suite`` than the machine's release, the list holds that suite alone. ``run`` runs an apt command and
    returns its output. Raises ClusterError when the machine names no such mirror.
    """
    targets = run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"),
        "Created-By: Packages",
    )
    lines = []
    for target in sorted(set(targets.splitlines())):
        mirror, release = target.split()
        if suite != RELEASE:
            lines += [f"deb {mirror} {suite} main\n"] if release == RELEASE else []
            continue
        if release in (RELEASE, f"{RELEASE}-security"):
            lines.append(f"deb {mirror} {release} main\n")
        if release == RELEASE:
            lines.append(f"deb {mirror} {BACKPORTS} main\n")
    if not lines:
        raise ClusterError(f"apt's sources name no Debian {RELEASE} archive: guests need its packages")
    return lines


class Apt:
    """A private apt below a folder that must be empty and absolute."""

    def __init__(self, folder: Path, suite: str = RELEASE) -> None:
        self._folder = folder
        self._environment = dict(os.environ)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text("".join(sources(self.run, suite)))
        configuration = folder / "apt.conf"
        configuration.write_text(
            CONFIGURATION.format(folder=folder, release=BACKPORTS if suite == RELEASE else suite)
        )
        self._environment["APT_CONFIG"] = str(configuration)
        self.run("apt-get", "-q", "update")

    def run(self, *argv: str, cwd: Path | None = None) -> str:
        """Run an apt command and return its output; raises ClusterError when it is missing or fails."""
        try:
            done = subprocess.run(
                argv, cwd=cwd, env=self._environment, capture_output=True, text=True, check=False
            )
        except FileNotFoundError as error:
            raise ClusterError(f"{argv[0]} is not on PATH: guests need a Debian {RELEASE} machine") from error
        if done.returncode:
            raise ClusterError(f"{' '.join(argv)} failed:\n{done.stderr.strip()[-2000:]}")
        return done.stdout

    def with_dependencies(self, packages: Sequence[str]) -> list[Path]:
        """Download packages and all they depend on."""
        self.run("apt-get", "-qq", "-y", "--download-only", "install", *packages)
        return sorted((self._folder / "cache/archives").glob("*.deb"))

    def alone(self, package: str) -> Path:
        """Download one package without what it depends on."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        self.run("apt-get", "-qq", "download", package, cwd=folder)
        return next(folder.glob("*.deb"))

    def dependency(self, package: str, prefix: str, release: str) -> str:
        """Return the package with a prefix that a metapackage of a release stands for."""
        option = f"--option=APT::Default-Release={release}"
        for line in self.run("apt-cache", option, "depends", package).splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and name.startswith(prefix):
                return name
        raise ClusterError(f"{package} depends on no package {prefix}*")


def _unpack(archive: Path, folder: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        raise ClusterError("dpkg-deb is not on PATH: install it (apt-get install dpkg)")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)


def programs(piece: str, packages: Sequence[str]) -> Path:
    """Return a folder that holds packages and all they depend on, unpacked."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="pinwarden-apt-") as private:
            for archive in Apt(Path(private)).with_dependencies(packages):
                _unpack(archive, folder)

    return cached(piece, [repr((RELEASE, CONFIGURATION, sorted(packages))).encode()], build)


def alone(piece: str, packages: Sequence[str], suite: str) -> Path:
    """Return a folder that holds packages of a Debian suite, unpacked, without what they depend on."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="pinwarden-apt-") as private:
            apt = Apt(Path(private), suite)
            for package in packages:
                _unpack(apt.alone(package), folder)

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


def as_if_installed(root: Path) -> list[str]:
    """Return what to put before a command for which the packages of a folder of :func:`programs` look installed.

    They do so in a mount namespace of the command's own; what it changes in /etc is gone with it. Needs root.
    """
    return ["unshare", "--mount", "sh", "-ec", AS_IF_INSTALLED, str(root)]


def base_system(packages: Sequence[str], tools: Path) -> Path:
    """Return a tar of a minimal Debian with packages in it; ``tools`` is a folder of :func:`programs` with mmdebstrap."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="pinwarden-apt-") as private:
            listed = "".join(sources(Apt(Path(private)).run))
        done = subprocess.run(
            [
                *as_if_installed(tools),
                *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"),
                *(f"--dpkgopt={option}" for option in UNPACKED),
                *(f"--include={','.join(packages)}", RELEASE, str(folder / "base.tar"), "-"),
            ],
            input=listed,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"mmdebstrap failed:\n{done.stderr.strip()[-2000:]}")

    inputs = [repr((RELEASE, sorted(packages), UNPACKED)).encode()]
    return cached("base-system", inputs, build) / "base.tar"


def kernel(flavour: str, release: str = BACKPORTS) -> Path:
    """Return a folder that holds ``boot/vmlinuz-*`` and ``lib/modules/*`` of a Debian release's kernel."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="pinwarden-apt-") as private:
            apt = Apt(Path(private))
            name = apt.dependency(f"linux-image-{flavour}", "linux-image-", release)
            _unpack(apt.alone(name), folder)

    inputs = [repr((CONFIGURATION, flavour, release)).encode()]
    return cached(f"kernel-{release}-{flavour}", inputs, build)
