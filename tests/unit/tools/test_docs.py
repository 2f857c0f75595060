"""`docs/semantics.md` is up to date, and a test names existing rules only."""

from pathlib import Path

import pytest

from docs import semantics


def test_the_rules_document_is_that_of_the_tests() -> None:
    assert semantics.DOCUMENT.read_text() == semantics.document(), "run `make docs`"


def test_a_test_that_names_an_unknown_rule_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("@pytest.mark.rule('P99')\ndef test_a(): ...\n")
    with pytest.raises(KeyError, match="P99"):
        list(semantics.shown(tmp_path))
