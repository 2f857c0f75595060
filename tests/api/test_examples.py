"""Examples of the documentation are accepted by a real API server, as `kubectl` sends them.

Server-side dry runs: schemas, CEL rules and strict field validation are the server's own.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pinwarden import __version__
from pinwarden.api.crd import KINDS
from pinwarden.plan.limit_compiler import MAX_POD_LIMITS

from .conftest import ROOT, Kubectl

pytestmark = pytest.mark.usefixtures("crds")
EXAMPLES = ROOT / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "host")
HOW_TO = sorted((EXAMPLES / "how-to").glob("*.yaml"))
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))


def objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, or of all files of a folder."""
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    return [each for file in files for each in yaml.safe_load_all(file.read_text()) if each]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(EXAMPLES).as_posix())
def test_server_accepts_the_example(path: Path, kubectl: Kubectl, namespace: str) -> None:
    found = objects(path)
    done = kubectl("-n", namespace, "apply", "--server-side", "--dry-run=server", "-f", str(path))
    assert done.stdout.count("serverside-applied (server dry run)") == len(found) > 0
    assert done.stderr == ""


def test_every_user_facing_kind_has_an_example() -> None:
    kinds = {each["kind"] for path in FILES for each in objects(path)}
    assert {kind.__name__ for kind in KINDS} - {"NodePinConfig"} <= kinds


@pytest.mark.parametrize("path", HOW_TO, ids=lambda path: path.stem)
def test_page_mentions_the_example(path: Path) -> None:
    telling = [
        page.stem for page in PAGES if f"(../../examples/how-to/{path.name})" in page.read_text()
    ]
    assert telling


@pytest.mark.parametrize("path", [*HOW_TO, EXAMPLES / "quick-start"], ids=lambda path: path.stem)
def test_limits_select_the_pods_beside_them(path: Path) -> None:
    """A misspelt label selects no pod, and causes no error."""
    found = objects(path)
    labels = [
        each["metadata"].get("labels", {})
        if each["kind"] == "Pod"
        else each["spec"]["template"]["metadata"]["labels"]
        for each in found
        if each["kind"] in ("Pod", "Deployment")
    ]
    selectors = [
        selector.get("matchLabels", {})
        for each in found
        if each["apiVersion"].startswith("pinwarden.io/")
        for selector in (
            [one["podSelector"] for one in each["spec"]["members"]]
            if each["kind"] == "SharedMemoryGroup"
            else [each["spec"].get("podSelector", {})]
        )
    ]
    for one in labels:
        matching = [
            selector for selector in selectors if selector and selector.items() <= one.items()
        ]
        assert 0 < len(matching) <= MAX_POD_LIMITS


def test_quick_start_runs_the_image_of_this_version() -> None:
    (pod,) = (each for each in objects(EXAMPLES / "quick-start") if each["kind"] == "Pod")
    assert pod["spec"]["containers"][0]["image"] == f"pinwarden.local/pinwarden:{__version__}"
