"""The command line: `python -m release image`, `make` or `upgrade-check`. Nothing is published."""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.errors import ClusterError
from cluster.image import PROJECT, ROOT, image
from release.archive import Image
from release.artifacts import BASE, SUMS, base, make
from release.checks import git, problems
from release.errors import ReleaseError
from release.upgrade import check_upgrade

DOCUMENT = ROOT / "docs" / "release.md"
FIGURES = re.compile(r"[\d.]+ MB compressed, [\d.]+ MB unpacked")
"""What the document says of the image's size."""


def figures(built: Image) -> str:
    """The size of an image, as the document gives it."""
    return f"{built.compressed / 1e6:.1f} MB compressed, {built.unpacked / 1e6:.0f} MB unpacked"


def _image(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    archive = output / f"pinwarden-{PROJECT['version']}-image.tar"
    shutil.copyfile(image(), archive)
    built = Image(archive)
    DOCUMENT.write_text(FIGURES.sub(figures(built), DOCUMENT.read_text()))
    (ROOT / BASE).write_text(base(built))
    print(f"{archive}\n  {built.name}\n  {built.digest}\n  {figures(built)}")


def _make(version: str, output: Path) -> None:
    if found := list(problems(ROOT, version)):
        raise ReleaseError(
            "this tree cannot be released:\n" + "\n".join(f"- {each}" for each in found)
        )
    revision, created = git(ROOT, "log", "-1", "--format=%H %cI").split()
    if output.exists():
        if any(output.iterdir()) and not (output / SUMS).exists():
            raise ReleaseError(
                f"{output} has files that are not a release's: name another folder by --output"
            )
        shutil.rmtree(output)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="pinwarden-tree-") as folder:
        committed = subprocess.run(
            ["git", "archive", revision], cwd=ROOT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "--extract", "--directory", folder], input=committed, check=True)
        built = make(Path(folder), version, {"revision": revision, "created": created}, output)
    print((output / SUMS).read_text(), end="")
    print(f"image {built.name}\n  {built.digest}\n  {figures(built)}")
    print(
        f"Nothing was published. To publish {version}, after `make test` passed on commit "
        f"{revision}:\n"
        f"- tag the commit v{version}, and attach the files of {output}/ to the tag's release;\n"
        f"- push the image to a registry, where it must have the digest above;\n"
        f"- push the chart there, with image.repository set to the image's place."
    )


def main() -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    only = commands.add_parser(
        "image", help="the image of the source tree as it is now, as an OCI archive"
    )
    only.add_argument(
        "--output", type=Path, default=ROOT / "build", metavar="FOLDER", help="default: build/"
    )
    whole = commands.add_parser("make", help="every file of a release, of the last commit")
    whole.add_argument(
        "--version", default=PROJECT["version"], help="default: that of pyproject.toml"
    )
    whole.add_argument(
        "--output",
        type=Path,
        default=ROOT / "dist",
        metavar="FOLDER",
        help="an earlier release in it is removed; default: dist/",
    )
    upgrade = commands.add_parser(
        "upgrade-check", help="upgrade a cluster from an earlier commit to this tree, and back"
    )
    upgrade.add_argument("reference", metavar="REF", help="the earlier commit, as git names it")
    arguments = parser.parse_args()
    try:
        if arguments.command == "image":
            _image(arguments.output)
        elif arguments.command == "upgrade-check":
            check_upgrade(arguments.reference)
        else:
            _make(arguments.version, arguments.output)
    except (ClusterError, ReleaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
