"""The reference matches the models, and each field of a spec has a meaning."""

import pytest

from docs import reference
from pinwarden.api.crd import KINDS
from pinwarden.api.pinlimit import Resource

WRITTEN_BY_PEOPLE = {"PinLimit", "ClusterPinLimit", "SharedMemoryGroup"}


def test_the_reference_is_that_of_the_models() -> None:
    documents = reference.documents()
    assert {path: path.read_text() for path in documents} == documents, "run `make docs`"
    assert set(reference.FOLDER.glob("*.md")) == set(documents), "a page of a kind that is gone"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.__name__ in WRITTEN_BY_PEOPLE])
def test_every_field_of_a_spec_has_a_meaning(kind: type[Resource]) -> None:
    page = reference.document(kind)
    spec = page[page.index("\n## spec") : page.index("\n## status")]
    rows = [line for line in spec.splitlines() if line.startswith("| `")]
    assert rows
    assert not [row for row in rows if row.split(" | ")[3].strip(" |") == ""]


def test_a_field_has_its_type_default_and_bounds() -> None:
    page = reference.document(next(kind for kind in KINDS if kind.__name__ == "PinLimit"))
    assert (
        "| `minimumLevel` | [Level](#level) | `Converge` | "
        "Weakest level at which the limit counts as enforced" in page
    )
    assert "One of `Deny`, `Kill`, `Converge`, `Observe`." in page
    assert "- `containers`: containers needs scope: Container" in page
    assert "| `limit` | quantity | required |" in page
    assert "from 0 to 4Pi bytes" in page


def test_a_type_without_words_is_an_error() -> None:
    with pytest.raises(ValueError, match="no words"):
        reference._type({"format": "none"})
