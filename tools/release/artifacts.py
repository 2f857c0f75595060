"""The files of a release, made of a source tree that holds nothing but what is committed.

The same commit gives the same files, as long as Debian's packages of the base are the same: the bill of materials names them.
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
from release.bom import bill
from release.errors import ReleaseError

SUMS = "SHA256SUMS"


def _chart(tree: Path, output: Path) -> None:
    command = [str(binary("helm")), "package", str(tree / "charts/pinwarden"), "--destination", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"helm package: {done.stderr.strip()}")


def sums(files: Iterator[Path]) -> str:
    """What `sha256sum --check` reads."""
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(files)
    )


def make(tree: Path, version: str, labels: dict[str, str], output: Path) -> Image:
    """Fill an empty folder with a release's files, and return the image."""
    stem = f"pinwarden-{version}"
    archive = output / f"{stem}-image.tar"
    with tempfile.TemporaryDirectory(prefix="pinwarden-release-") as store:
        image.build(tree, archive, Path(store), labels)
    built = Image(archive)
    (output / f"{stem}-sbom.cdx.json").write_text(bill(built, image.wheels(tree)))
    _chart(tree, output)
    crds = [path.read_text().removeprefix("---\n") for path in sorted((tree / "crds").glob("*.yaml"))]
    (output / f"{stem}-crds.yaml").write_text("---\n".join(crds))
    shutil.copyfile(tree / "manifests/pinwarden.yaml", output / f"{stem}.yaml")
    (output / SUMS).write_text(sums(output.iterdir()))
    return built
