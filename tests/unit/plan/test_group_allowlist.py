"""A group may name what an administrator allows, and never more."""

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.sharedmemorygroup import SharedMemoryGroupSpec
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.group_allowlist import Permission, admit, covers, parse, permission

HOST = "Host"


def spec(backing: dict[str, Any], **fields: Any) -> SharedMemoryGroupSpec:
    return SharedMemoryGroupSpec.model_validate(
        {"backing": backing, "members": [{"podSelector": {}}], **fields}
    )


def judge(backing: dict[str, Any], allowed: str, **fields: Any) -> Permission | Rejection:
    return permission(spec(backing, **fields), parse(allowed))


@pytest.mark.parametrize(
    ("allowed", "path", "folder"),
    [
        ("path:/run/team-a", "/run/team-a", "/run/team-a"),
        ("path:/run/team-a", "/run/team-a/x/y", "/run/team-a"),
        ("path:/run/team-a/", "/run/team-a/x", "/run/team-a"),
        ("path:/run path:/run/team-a", "/run/team-a/x", "/run/team-a"),
        ("path:/run/team-a", "/run/team-ab", None),
        ("path:/run/team-a", "/run/team", None),
        ("path:/run/team-a", "/run", None),
        ("path:/run/team-a/..", "/run/x", None),
        ("path:/run/../run", "/run/x", None),
        ("path:/run//team-a", "/run/team-a", None),
        ("path:/run/*", "/run/x", None),
        ("path:/", "/run", None),
        ("path:run", "/run", None),
        ("posixShm:/run", "/run", None),
        ("", "/run", None),
    ],
)
def test_path_is_allowed_at_and_below_a_folder(allowed: str, path: str, folder: str | None) -> None:
    decision = judge({"tmpfs": {"path": path}}, allowed)
    assert (decision.folder if isinstance(decision, Permission) else None) == folder
    assert judge({"hugetlbfs": {"path": path}}, allowed) == decision or isinstance(
        decision, Rejection
    )


def test_file_named_itself_is_looked_up_in_its_folder() -> None:
    assert judge({"file": {"path": "/srv/a/ring"}}, "path:/srv/a/ring") == Permission("/srv/a")
    assert judge({"file": {"path": "/srv/a/r*"}}, "path:/srv") == Permission("/srv")
    assert isinstance(judge({"file": {"path": "/srv/a/r*"}}, "path:/srv/a/ring"), Rejection)
    assert isinstance(judge({"file": {"path": "/ring"}}, "path:/ring"), Rejection)


PARTS = st.sampled_from(["a", "ab", "b", "..", ".", "", "*", "a b"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(
    PATHS, st.lists(st.sampled_from(["/a", "/a/b", "/ab", "/a/..", "/a/./b", "a", "/"]), max_size=3)
)
def test_path_outside_of_folders_is_never_allowed(path: str, folders: list[str]) -> None:
    allowed = parse(" ".join(f"path:{folder}" for folder in folders))
    try:
        decision = permission(spec({"tmpfs": {"path": path}}), allowed)
    except ValueError:
        return
    if isinstance(decision, Permission):
        assert decision.folder in folders
        assert path.split("/")[: len(decision.folder.split("/"))] == decision.folder.split("/")
        assert ".." not in path.split("/")


SOME_TEXT = st.text("ab*?[]", min_size=1, max_size=6)


@given(SOME_TEXT, SOME_TEXT, st.text("ab[]", max_size=6))
def test_entry_that_covers_a_pattern_matches_all_its_names(
    entry: str, pattern: str, name: str
) -> None:
    if covers(entry, pattern) and fnmatchcase(name, pattern.replace("[", "[[]")):
        assert fnmatchcase(name, entry.replace("[", "[[]"))


@pytest.mark.parametrize(
    ("entry", "name", "covered"),
    [
        ("team-a-*", "team-a-x", True),
        ("team-a-*", "team-a-x*", True),
        ("team-a-*", "team-a-*", True),
        ("team-a-*", "team-a*", False),
        ("team-a-*", "team-?-x", False),
        ("team-a-?", "team-a-x", True),
        ("team-a-?", "team-a-*", False),
        ("*-a", "x*-a", False),
        ("team-[ab]", "team-a", False),
        ("team-[ab]", "team-[ab]", True),
        ("*", "?", True),
    ],
)
def test_pattern_covers_name(entry: str, name: str, covered: bool) -> None:
    decision = judge({"posixShm": {"name": name, "ipcNamespace": HOST}}, f"posixShm:{entry}")
    assert isinstance(decision, Permission) is covered


@pytest.mark.parametrize(
    ("entry", "key", "allowed"),
    [
        ("0x5000-0x5fff", 0x5000, True),
        ("0x5000-0x5fff", 0x5FFF, True),
        ("0x5000-0x5fff", 0x6000, False),
        ("20480", 0x5000, True),
        ("0X5000", 0x5000, True),
        ("20480", 0x5001, False),
        ("0x5fff-0x5000", 0x5800, False),
        ("0-0xffffffff", 7, False),
        ("1-0x1ffffffff", 7, False),
        ("1-", 1, False),
        ("-1", 1, False),
        ("1_0", 10, False),
        ("0x5000-0x5fff", "0x5000", True),
        ("0x5000-0x5fff", "0x5000-0x5fff", True),
        ("0x5000-0x5fff", "20480-0x5100", True),
        ("0x5000-0x5fff", "0x4fff-0x5fff", False),
        ("0x5000-0x5fff", "0x5fff-0x6000", False),
        ("1-0xffffffff", "*", False),
    ],
)
def test_key_is_allowed_in_range(entry: str, key: int | str, allowed: bool) -> None:
    decision = judge({"sysvShm": {"key": key, "ipcNamespace": HOST}}, f"sysvShm:{entry}")
    assert isinstance(decision, Permission) is allowed


@pytest.mark.rule("M2")
@pytest.mark.parametrize(
    "backing",
    [
        {"memfd": {"name": "ring*"}},
        {"dmabuf": {"exporter": "udmabuf"}},
        {"posixShm": {"name": "*"}},
        {"sysvShm": {"key": 7}},
        {"sysvShm": {"key": "0x5000-0x5fff"}},
        {"sysvShm": {"key": "*"}},
    ],
    ids=lambda backing: next(iter(backing)),
)
def test_object_in_member_pods_needs_no_entry(backing: dict[str, Any]) -> None:
    assert judge(backing, "") == Permission()


@pytest.mark.parametrize(
    ("backing", "field", "entry"),
    [
        ({"tmpfs": {"path": "/run/a"}}, "spec.backing.tmpfs.path", "path:/run/a"),
        ({"file": {"path": "/run/a/ring*"}}, "spec.backing.file.path", "path:/run/a"),
        ({"hugetlbfs": {"path": "/run/a b/c"}}, "spec.backing.hugetlbfs.path", "path:/run"),
        (
            {"posixShm": {"name": "a ?", "ipcNamespace": HOST}},
            "spec.backing.posixShm.name",
            "posixShm:a*",
        ),
        (
            {"posixShm": {"name": "a b", "ipcNamespace": HOST}},
            "spec.backing.posixShm.name",
            "posixShm:a?b",
        ),
        (
            {"sysvShm": {"key": 80, "ipcNamespace": HOST}},
            "spec.backing.sysvShm.key",
            "sysvShm:0x50",
        ),
        (
            {"sysvShm": {"key": "80-0x00000060", "ipcNamespace": HOST}},
            "spec.backing.sysvShm.key",
            "sysvShm:0x50-0x60",
        ),
    ],
)
def test_rejection_names_field_and_allowing_entry(
    backing: dict[str, Any], field: str, entry: str
) -> None:
    decision = judge(backing, "")
    assert isinstance(decision, Rejection)
    assert decision.reason == "NotAllowed"
    assert field in decision.message
    assert repr(entry) in decision.message
    assert "pinwarden.io/allow-shared-memory" in decision.message
    assert isinstance(judge(backing, entry), Permission)


@pytest.mark.parametrize(
    "entry", ["path", "paths:/run", "create:-1", "create:lots", "create:5Pi", "sysvShm:x"]
)
def test_invalid_entry_allows_nothing_and_is_named(entry: str) -> None:
    allowed = parse(f"{entry} path:/srv")
    assert allowed.folders == ("/srv",)
    assert (allowed.create, allowed.keys) == (0, ())
    decision = judge({"tmpfs": {"path": "/run"}}, f"{entry} path:/srv")
    assert isinstance(decision, Rejection)
    assert f"{entry!r} is invalid" in decision.message


def test_create_quota_goes_to_the_oldest_groups() -> None:
    allowed = parse("create:1Mi create:2Mi")
    assert allowed.create == 2 << 20
    creating = [("a/old", 1 << 20), ("a/large", 2 << 20), ("a/small", 1 << 20), ("a/late", 1)]
    refused = admit(creating, allowed)
    assert set(refused) == {"a/large", "a/late"}
    assert "'create:3Mi'" in refused["a/large"].message
    assert "spec.capacity" in refused["a/late"].message
    assert set(admit([("a/x", 1)], parse(""))) == {"a/x"}
