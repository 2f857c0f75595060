"""A tenant's path names only files below the allowed folder."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.node.accountant.finder import Finder
from pinwarden.node.accountant.finder.result import ObjectsNotFoundError
from pinwarden.node.linux import openat2


def _inode(root: Path, allowed: str, rest: str) -> int:
    with (
        openat2.opened_folder(str(root), allowed, links=True) as folder,
        openat2.opened_below(folder, rest) as found,
    ):
        return os.fstat(found).st_ino


def test_path_below_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "allowed/deep").mkdir(parents=True)
    (tmp_path / "allowed/deep/f").write_text("")
    (tmp_path / "moved").symlink_to("/allowed")
    assert _inode(tmp_path, "/allowed", "deep/f") == (tmp_path / "allowed/deep/f").stat().st_ino
    assert _inode(tmp_path, "/moved", "deep/f") == (tmp_path / "allowed/deep/f").stat().st_ino, (
        "the administrator's own links are followed, within the node's root"
    )
    assert _inode(tmp_path, "/allowed", "") == (tmp_path / "allowed").stat().st_ino


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("link", errno.ELOOP),
        ("link/f", errno.ELOOP),
        ("inner", errno.ELOOP),
        ("../outside", errno.EXDEV),
        ("deep/../../outside", errno.EXDEV),
        ("/outside", errno.EXDEV),
        ("none", errno.ENOENT),
        ("deep/f/x", errno.ENOTDIR),
    ],
)
def test_path_that_leads_elsewhere_is_an_error(tmp_path: Path, rest: str, expected: int) -> None:
    (tmp_path / "allowed/deep").mkdir(parents=True)
    (tmp_path / "allowed/deep/f").write_text("")
    (tmp_path / "outside").mkdir()
    (tmp_path / "allowed/link").symlink_to("../outside")
    (tmp_path / "allowed/inner").symlink_to("deep")
    with pytest.raises(OSError, match=r".") as raised:
        _inode(tmp_path, "/allowed", rest)
    assert raised.value.errno == expected


@given(
    parts=st.lists(
        st.sampled_from(["a", "b", "..", ".", "link", "up", "f"]), min_size=1, max_size=6
    )
)
def test_any_path_names_nothing_outside(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "allowed/a/b").mkdir(parents=True)
    (root / "allowed/a/f").write_text("")
    (root / "allowed/link").symlink_to("/")
    (root / "allowed/a/up").symlink_to("../../..")
    inside = {
        path.stat().st_ino
        for path in [root / "allowed", *(root / "allowed").rglob("*")]
        if not path.is_symlink()
    }
    try:
        found = _inode(root, "/allowed", "/".join(parts))
    except OSError:
        return
    assert found in inside


def test_only_star_and_question_mark_are_wildcards(tmp_path: Path) -> None:
    for name in ("[a]1", "a1", "[a]2", ".hidden"):
        (tmp_path / name).write_text("")
    with openat2.opened_folder(str(tmp_path), "/", links=True) as at:
        assert openat2.matching_names(at, "[a]?", 9) == (["[a]1", "[a]2"], False)
        assert openat2.matching_names(at, "*", 9) == (["[a]1", "[a]2", "a1"], False)
        assert openat2.matching_names(at, ".*", 9) == ([".hidden"], False)
        assert openat2.matching_names(at, "*", 2) == (["[a]1", "[a]2"], True)


def test_fifo_and_device_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        openat2.opened_folder(str(tmp_path), "/", links=True) as at,
        openat2.opened_below(at, "pipe") as found,
        pytest.raises(OSError, match="neither"),
        openat2.reopened(found),
    ):
        pass


@pytest.mark.parametrize("path", ["/other/f", "/allowedx/f", "/allow", "/"])
def test_path_beside_the_allowed_folder_is_not_read(path: str) -> None:
    """The operator has already rejected such a spec."""
    group = NodeGroup.model_validate(
        {
            "name": "ns/g",
            "uid": "g",
            "backing": {"file": {"path": f"{path.rstrip('/')}/x"}},
            "allowed": "/allowed",
            "management": "Adopt",
            "accounting": "Charge",
            "fairShare": "Charge",
        }
    )
    with pytest.raises(ObjectsNotFoundError) as raised:
        Finder(Path("/proc"), os.getpid()).find(group, {})
    assert raised.value.reason == "NotAllowed"
