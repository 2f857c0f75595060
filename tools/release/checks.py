"""Whether a source tree is fit for release: one version everywhere, its changes told, nothing that
is not committed.
"""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

from release.errors import ReleaseError

CHANGES = "CHANGELOG.md"
PROJECT = "pyproject.toml"
PACKAGE = "operator/pinwarden/__init__.py"
CHART = "charts/pinwarden/Chart.yaml"
WITH_IMAGES = ("README.md", "docs/**/*.md", "examples/**/*.yaml", "manifests/*.yaml")
IMAGE = re.compile(r"\bpinwarden\.local/pinwarden:([\w.+-]+)")
ELSEWHERE = re.compile(
    r"(?:/pinwarden:|\bpinwarden-|\borg\.opencontainers\.image\.version=)(\d+\.\d+\.\d+)\b"
)
"""How documents name it besides: an image in somebody's registry, a file of a release, an image's
label.
"""
VERSION = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}")
"""Three numbers: what Python's and helm's rules of versions read alike."""


def versions(tree: Path) -> Iterator[tuple[str, str]]:
    """Each place of a tree that names the version, and what it names."""
    yield PROJECT, tomllib.loads((tree / PROJECT).read_text())["project"]["version"]
    for statement in ast.parse((tree / PACKAGE).read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__version__":
            yield PACKAGE, ast.literal_eval(statement.value)
    chart = yaml.safe_load((tree / CHART).read_text())
    for field in ("version", "appVersion"):
        yield f"{CHART} ({field})", str(chart[field])
    for pattern in WITH_IMAGES:
        for path in sorted(tree.glob(pattern)):
            text = path.read_text()
            for version in sorted({*IMAGE.findall(text), *ELSEWHERE.findall(text)}):
                yield str(path.relative_to(tree)), version


def changes(text: str, version: str) -> str:
    """What a changelog says of a version, "" when it has no section of it."""
    found = re.search(
        rf"^## {re.escape(version)}(?: [^\n]*)?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    return found[1].strip() if found else ""


def problems(tree: Path, version: str) -> Iterator[str]:
    """Why a tree cannot be released as a version, each with what to do about it."""
    if not VERSION.fullmatch(version):
        yield f"{version} is no version: three numbers are, as in 1.2.3"
    for place, named in versions(tree):
        if named != version:
            yield f"{place} names version {named}: change it to {version}"
    if not changes((tree / CHANGES).read_text(), version):
        yield f"{CHANGES} tells nothing of {version}: name its section `## {version}`"
    if status := git(tree, "status", "--porcelain"):
        yield f"there is what is not committed: commit or remove it\n{status}"


def git(tree: Path, *arguments: str) -> str:
    """Run git in a tree and return what it prints. Raises ReleaseError when it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=tree, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ReleaseError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.rstrip()
