"""The files of a release, made of a source tree that holds nothing but what is committed.

The same commit gives the same files: of what the image takes from Debian, `BASE` names the
packages, and a release with others is refused.
"""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster import image
from cluster.build import binary
from release.archive import Image
from release.bom import bill, packages
from release.errors import ReleaseError

SUMS = "SHA256SUMS"
BASE = "tools/release/base.lock"
"""Names the Debian packages of the image's base. `make image` writes it."""


def _chart(tree: Path, output: Path) -> None:
    command = [
        str(binary("helm")),
        "package",
        str(tree / "charts/pinwarden"),
        "--destination",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"helm package: {done.stderr.strip()}")


def sums(files: Iterator[Path]) -> str:
    """What `sha256sum --check` reads."""
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(files)
    )


def base(built: Image) -> str:
    """The Debian packages that an image's files came from, a line each."""
    return "".join(f"{package.name} {package.version}\n" for package in packages(built))


def changes(named: str, found: str) -> list[str]:
    """What of one base another one has not (-), and what it has instead (+)."""
    old, new = named.splitlines(), found.splitlines()
    return [
        *(f"-{line}" for line in old if line not in new),
        *(f"+{line}" for line in new if line not in old),
    ]


def make(tree: Path, version: str, labels: dict[str, str], output: Path) -> Image:
    """Fill an empty folder with a release's files, and return the image.

    Raises ReleaseError when the packages of its base are not those that the tree names.
    """
    stem = f"pinwarden-{version}"
    archive = output / f"{stem}-image.tar"
    with tempfile.TemporaryDirectory(prefix="pinwarden-release-") as store:
        image.build(tree, archive, Path(store), labels)
    built = Image(archive)
    if changed := changes((tree / BASE).read_text(), base(built)):
        raise ReleaseError(
            f"the base is not the one that {BASE} names: run `make image`, and commit what it "
            "writes\n" + "\n".join(changed)
        )
    (output / f"{stem}-sbom.cdx.json").write_text(bill(built, image.wheels(tree)))
    _chart(tree, output)
    crds = [
        path.read_text().removeprefix("---\n") for path in sorted((tree / "crds").glob("*.yaml"))
    ]
    (output / f"{stem}-crds.yaml").write_text("---\n".join(crds))
    shutil.copyfile(tree / "manifests/pinwarden.yaml", output / f"{stem}.yaml")
    (output / SUMS).write_text(sums(output.iterdir()))
    return built
