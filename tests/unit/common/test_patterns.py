"""Patterns match as in pathlib, in trees of other users with any depth and any names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.common.patterns import MOST_NESTED, directories

parts = st.sampled_from(["a", "b", "*", "?", "**", "[ab]", "a*"])
patterns = st.lists(parts, min_size=1, max_size=5).map("/".join)
paths = st.lists(st.sampled_from(["a", "b", "ab", "c\n"]), min_size=1, max_size=4).map("/".join)


@given(pattern=patterns, trees=st.lists(paths, max_size=6))
def test_directories_are_the_ones_of_pathlib(
    pattern: str, trees: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for tree in trees:
        (root / tree).mkdir(parents=True, exist_ok=True)
    found = directories(root, pattern)
    assert found == sorted({path for path in root.glob(pattern) if path.is_dir()})


def test_files_do_not_match(tmp_path: Path) -> None:
    (tmp_path / "a.slice" / "b").mkdir(parents=True)
    (tmp_path / "c.slice").touch()
    assert (
        directories(tmp_path, "*.slice")
        == directories(tmp_path, "a.slice")
        == [tmp_path / "a.slice"]
    )
    assert directories(tmp_path, "**/b") == [tmp_path / "a.slice" / "b"]
    assert directories(tmp_path, "none/*") == directories(tmp_path, "c.slice/*") == []


@pytest.mark.parametrize("deep_tree", ["d", "e" * 200], indirect=True)
def test_tree_deeper_than_a_path_hides_no_other_directory(deep_tree: Path) -> None:
    (deep_tree / "vm").mkdir()
    assert directories(deep_tree, "**/vm") == [deep_tree / "vm"]
    assert len(directories(deep_tree, "**")) == MOST_NESTED + 1


@pytest.mark.parametrize(
    ("pattern", "subject", "holds"),
    [
        ("machine.slice/*.scope", "machine.slice/vm-1.scope", True),
        ("/machine.slice/*.scope/", "machine.slice/vm-1.scope", True),
        ("machine.slice/*.scope", "machine.slice/vm-1.scope/inner", False),
        ("machine.slice/*", "other.slice/vm-1.scope", False),
        ("*.slice", "machine.slice", True),
        ("**/vm-?.scope", "a/b/vm-1.scope", True),
        ("**/vm-?.scope", "vm-1.scope", True),
        ("**/vm-?.scope", "a/b/vm-10.scope", False),
    ],
)
def test_matching_directory_is_found(
    pattern: str, subject: str, holds: bool, tmp_path: Path
) -> None:
    (tmp_path / subject).mkdir(parents=True)
    assert (tmp_path / subject in directories(tmp_path, pattern)) is holds
