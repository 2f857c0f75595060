"""Applied objects never differ from stored ones: `kubectl apply` twice, `diff`, no defaults.

Tools that compare whole lists (kubectl's three-way merge, Argo CD) see a default in a list's item
as a difference: https://github.com/argoproj/argo-cd/issues/28724.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Kubectl

pytestmark = pytest.mark.usefixtures("crds")
EXAMPLES = sorted(
    path for path in (ROOT / "examples").rglob("*.yaml") if path.parent.name != "host"
)
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
BLOCK = re.compile(r"^```ya?ml\n(.*?)^```", re.MULTILINE | re.DOTALL)
Json = dict[str, Any]


def found() -> Iterator[tuple[str, str]]:
    """Each file of examples, and each whole object of a page's blocks: a name, and the text."""
    for path in EXAMPLES:
        yield path.relative_to(ROOT).as_posix(), path.read_text()
    for page in PAGES:
        for number, block in enumerate(BLOCK.findall(page.read_text())):
            if re.search(r"^apiVersion:", block, re.MULTILINE):
                yield f"{page.relative_to(ROOT).as_posix()}-{number}", block


CASES = dict(found())


def placed(text: str, namespace: str) -> str:
    """The objects in a namespace of the test, without namespaces of their own."""
    objects = [each for each in yaml.safe_load_all(text) if each]
    for each in objects:
        each["metadata"].pop("namespace", None)
        if each["kind"] in ("ClusterPinLimit", "Namespace", "PersistentVolume"):
            each["metadata"]["name"] = f"{namespace}-{each['metadata']['name']}"
        else:
            each["metadata"]["namespace"] = namespace
    return yaml.safe_dump_all(objects)


def test_there_are_objects_of_examples_and_of_pages() -> None:
    assert {name.split("/")[0] for name in CASES} >= {"examples", "docs", "README.md-0"}


@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
def test_applying_twice_changes_nothing(text: str, kubectl: Kubectl, namespace: str) -> None:
    text = placed(text, namespace)
    kubectl("apply", "-f", "-", stdin=text)
    again = kubectl("apply", "-f", "-", stdin=text).stdout.splitlines()
    assert again
    assert [line for line in again if not line.endswith(" unchanged")] == []
    differing = kubectl("diff", "-f", "-", stdin=text, check=False)
    assert (differing.returncode, differing.stdout, differing.stderr) == (0, "", "")


@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
def test_server_side_apply_is_stable(text: str, kubectl: Kubectl, namespace: str) -> None:
    """The client owns only fields that it applied, also in items of lists."""
    text = placed(text, namespace)
    apply = ("apply", "--server-side", "-f", "-", "-o", "yaml", "--show-managed-fields")
    kubectl(*apply, stdin=text)
    before = kubectl("get", "-f", "-", "-o", "yaml", stdin=text).stdout
    dry = kubectl(*apply, "--dry-run=server", stdin=text).stdout
    assert list(map(content, listed(dry))) == list(map(content, listed(before)))
    for sent, got in zip(yaml.safe_load_all(text), listed(before), strict=True):
        if sent["apiVersion"].startswith("pinwarden.io/"):
            assert lists(got["spec"]) == lists(sent["spec"])


def listed(text: str) -> list[Json]:
    (first, *others) = [each for each in yaml.safe_load_all(text) if each]
    return first["items"] if first["kind"] == "List" else [first, *others]


def content(found: Json) -> Json:
    """Return an object without its managers and times, which each read may change."""
    return {**found, "metadata": {**found["metadata"], "managedFields": None}}


def lists(value: Any) -> Any:
    """The lists of an object by field; an object without lists is None."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else None
    parts = {key: lists(part) for key, part in value.items()}
    return {key: part for key, part in parts.items() if part is not None} or None
