"""The limits of a pod left out by a configuration stay while its cgroup exists (H3)."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import Mode
from pinwarden.node.agent.retainer import MOST_RETAINED, Retainer
from pinwarden.node.state.config import ConfigFile, Configuration

LIMIT = {"name": "ns/l", "uid": "uid-l", "scope": "Pod", "limit": 4096}
OTHER = {**LIMIT, "name": "ns/m", "uid": "uid-m"}
POD = {"uid": "zombie", "limits": ["ns/l"]}
GROUP = {
    "name": "ns/g",
    "uid": "uid-g",
    "backing": {"posixShm": {"name": "x"}},
    "management": "Adopt",
    "accounting": "Borrow",
    "fairShare": "Borrow",
}

PATHS = (Path("/sys/fs/cgroup/pod"),)


def configuration(generation: int = 1, **spec: Any) -> Configuration:
    return Configuration.parse(spec, "uid", generation)


def retained(
    last: Configuration, new: Configuration, there: Collection[str] = ("zombie",)
) -> Configuration:
    return Retainer(last, lambda: dict.fromkeys(there, ())).retain(new)


def limits_of(found: Configuration, uid: str = "zombie") -> list[tuple[str, int]] | None:
    """Name and bytes of each limit that holds for the pod; None for one that is not listed."""
    amounts = {limit.name: limit.limit for limit in found.spec.limits}
    pods = {pod.uid: pod for pod in found.spec.pods}
    return [(name, amounts[name]) for name in pods[uid].limits] if uid in pods else None


BEFORE = configuration(limits=[LIMIT], pods=[POD])


@pytest.mark.rule("H3")
def test_a_missing_pod_keeps_its_limits_while_its_cgroup_exists() -> None:
    new = configuration(2, limits=[OTHER], pods=[{"uid": "b", "limits": ["ns/m"]}])
    found = retained(BEFORE, new)
    assert limits_of(found) == [("ns/l", 4096)]
    assert limits_of(found, "b") == [("ns/m", 4096)]
    assert (set(found.gone), found.uid, found.generation) == ({"zombie"}, "uid", 2)
    assert retained(BEFORE, new, there=()) == new


@pytest.mark.rule("P14", "H3")
@pytest.mark.parametrize(
    ("spec", "limits"),
    [
        ({"pods": [{"uid": "zombie"}]}, []),
        ({"pods": [{"uid": "zombie", "limits": ["ns/m"]}], "limits": [OTHER]}, [("ns/m", 4096)]),
        ({"limits": [{**LIMIT, "limit": 8192}]}, [("ns/l", 8192)]),
    ],
    ids=["it is free", "another limit holds for it", "its limit was changed"],
)
def test_a_listed_pod_or_limit_has_the_new_version(
    spec: Mapping[str, Any], limits: list[tuple[str, int]]
) -> None:
    assert limits_of(retained(BEFORE, configuration(2, **spec))) == limits


@pytest.mark.rule("H3")
def test_a_retained_pod_is_retained_again_also_after_a_restart(tmp_path: Path) -> None:
    memory = ConfigFile(tmp_path / "last.json")
    memory.save(retained(BEFORE, configuration(2)))
    after = memory.load()
    assert after is not None
    retainer = Retainer(after, lambda: {"zombie": ()})
    for generation in (3, 4):
        found = retainer.retain(configuration(generation))
        assert (limits_of(found), set(found.gone)) == ([("ns/l", 4096)], {"zombie"})


@pytest.mark.rule("P14", "H3")
def test_mode_release_ends_the_retention() -> None:
    released = retained(BEFORE, configuration(2, mode="Release"))
    assert released.spec.mode is Mode.RELEASE
    assert retained(released, configuration(3)) == configuration(3)


def test_a_missing_free_pod_is_not_retained() -> None:
    assert retained(configuration(pods=[{"uid": "zombie"}]), configuration(2)) == configuration(2)


@pytest.mark.rule("M8", "H3")
def test_a_retained_pod_keeps_its_allowance() -> None:
    members = [{"pods": ["b", "zombie"], "borrowLimit": 4096}]
    pods = [{"uid": "b"}, {"uid": "zombie"}]
    last = configuration(groups=[{**GROUP, "members": members}], pods=pods)
    now = {**GROUP, "members": [{"pods": ["b"], "borrowLimit": 8192}]}
    (group,) = retained(last, configuration(2, groups=[now], pods=pods[:1])).spec.groups
    assert [(each.pods, each.borrow_limit) for each in group.members] == [
        (["b"], 8192),
        (["zombie"], 4096),
    ]
    assert not retained(last, configuration(2, pods=pods[:1])).spec.groups, "the group was deleted"


@pytest.mark.rule("M8", "H3")
def test_retained_members_with_one_allowance_share_an_entry() -> None:
    uids = [f"pod-{number}" for number in range(40)]
    retainer = Retainer(None, lambda: dict.fromkeys(uids, ()))
    for generation in range(len(uids)):
        left = uids[generation:]
        members = [{"pods": left[1:], "borrowLimit": 8192}, {"pods": left[:1], "borrowLimit": 4096}]
        found = retainer.retain(
            configuration(
                generation,
                groups=[{**GROUP, "members": members}],
                pods=[{"uid": uid} for uid in left],
            )
        )
    (group,) = found.spec.groups
    assert [(len(member.pods), member.borrow_limit) for member in group.members] == [
        (0, 8192),
        (40, 4096),
    ]


@pytest.mark.rule("M8", "H3")
def test_members_with_more_allowances_than_an_object_allows_are_retained(tmp_path: Path) -> None:
    uids = [f"pod-{number}" for number in range(20)]
    retainer = Retainer(None, lambda: dict.fromkeys(uids, ()))
    for generation, uid in enumerate([*uids, "live"]):
        members = [{"pods": [uid], "borrowLimit": generation}]
        found = retainer.retain(
            configuration(generation, groups=[{**GROUP, "members": members}], pods=[{"uid": uid}])
        )
    memory = ConfigFile(tmp_path / "last.json")
    memory.save(found)
    loaded = memory.load()
    assert loaded is not None
    for configured in (found, loaded):
        assert not configured.unsupported
        (group,) = configured.spec.groups
        allowed = {uid: member.borrow_limit for member in group.members for uid in member.pods}
        assert allowed == {uid: number for number, uid in enumerate([*uids, "live"])}


@pytest.mark.rule("M8", "H3")
def test_a_member_of_the_new_group_has_its_new_allowance() -> None:
    last = configuration(
        groups=[{**GROUP, "members": [{"pods": ["zombie"], "borrowLimit": 4096}]}],
        pods=[POD],
        limits=[LIMIT],
    )
    now = {**GROUP, "members": [{"pods": ["zombie"], "borrowLimit": 8192}]}
    (group,) = retained(last, configuration(2, groups=[now])).spec.groups
    assert [(member.pods, member.borrow_limit) for member in group.members] == [(["zombie"], 8192)]


@pytest.mark.rule("H3")
def test_a_failed_list_of_pods_retains_all_missing_pods() -> None:
    def there() -> Mapping[str, Sequence[Path]]:
        raise PermissionError(13, "Permission denied")

    assert limits_of(Retainer(BEFORE, there).retain(configuration(2))) == [("ns/l", 4096)]


def test_an_unknown_limit_is_retained_unchanged() -> None:
    last = configuration(limits=[{**LIMIT, "newer": True}], pods=[POD])
    found = retained(last, configuration(2))
    assert [each.name for each in found.unsupported] == ["ns/l"]
    assert found.raw["limits"] == [{**LIMIT, "newer": True}]


def crowd(count: int, prefix: str = "pod") -> list[dict[str, Any]]:
    return [{"uid": f"{prefix}-{number:05}", "limits": ["ns/l"]} for number in range(count)]


@pytest.mark.rule("H3")
def test_a_pod_missing_from_a_full_configuration_stays_limited(
    tmp_path: Path,
) -> None:
    found = retained(BEFORE, configuration(2, limits=[LIMIT], pods=crowd(4096)))
    assert limits_of(found) == [("ns/l", 4096)]
    memory = ConfigFile(tmp_path / "last.json")
    memory.save(found)
    loaded = memory.load()
    assert loaded is not None
    assert len(loaded.spec.pods) == 4097
    assert limits_of(loaded) == [("ns/l", 4096)]


@pytest.mark.rule("H3")
def test_pods_with_processes_are_retained_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    last = configuration(limits=[LIMIT], pods=[*crowd(MOST_RETAINED, "empty"), *crowd(2, "used")])
    uids = {pod.uid for pod in last.spec.pods}
    retainer = Retainer(
        last, lambda: dict.fromkeys(uids, PATHS), lambda uid, _: uid.startswith("used")
    )
    found = retainer.retain(configuration(2, pods=[{"uid": "new"}]))
    assert len(found.gone) == MOST_RETAINED
    assert {"used-00000", "used-00001"} < found.gone
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.rule("H3")
def test_a_released_pod_with_processes_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    last = configuration(limits=[LIMIT], pods=crowd(MOST_RETAINED + 1))
    uids = {pod.uid for pod in last.spec.pods}
    found = Retainer(last, lambda: dict.fromkeys(uids, PATHS), lambda *_: True).retain(
        configuration(2)
    )
    (released,) = uids - found.gone
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert released in caplog.text


def test_an_unreadable_pod_counts_as_a_pod_with_processes() -> None:
    def processes(uid: str, paths: Sequence[Path]) -> bool:
        if uid == "pod-00007":
            raise PermissionError(13, "Permission denied")
        return False

    last = configuration(limits=[LIMIT], pods=crowd(MOST_RETAINED + 1))
    uids = {pod.uid: PATHS for pod in last.spec.pods}
    assert "pod-00007" in Retainer(last, lambda: uids, processes).retain(configuration(2)).gone


@pytest.mark.rule("P14")
def test_mode_release_retains_nothing_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def there() -> Mapping[str, Sequence[Path]]:
        raise AssertionError("nobody needs to look")

    new = configuration(2, mode="Release")
    with caplog.at_level(logging.INFO):
        assert Retainer(BEFORE, there).retain(new) is new
    assert not caplog.records


def test_the_log_names_a_few_of_many_retained_pods_and_counts_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    last = configuration(limits=[LIMIT], pods=crowd(100))
    with caplog.at_level(logging.INFO):
        retained(last, configuration(2), there=[pod.uid for pod in last.spec.pods])
    (record,) = caplog.records
    assert record.getMessage().endswith("pod-00007 and 92 more")


PART = {"name": "ns/g", "uid": "uid-g"}


@pytest.mark.rule("H1")
def test_a_group_with_a_retained_pod_is_acknowledged_with_the_requested_hash() -> None:
    asked = configuration(2, groups=[{**GROUP, "members": []}])
    last = configuration(groups=[{**GROUP, "members": [{"pods": ["zombie"]}]}], pods=[POD])
    found = retained(last, asked)
    again = Configuration.parse(found.raw, found.uid, found.generation)
    for group in (found.spec.groups[0], again.spec.groups[0]):
        assert group.pods() == {"zombie"}
        assert group.hash == asked.spec.groups[0].hash != last.spec.groups[0].hash


@pytest.mark.parametrize("place", ["last", "new"])
@pytest.mark.parametrize(
    "spec",
    [
        {"groups": [{**PART, "members": [{"selector": {}}]}]},
        {"groups": [{**PART, "members": [7, None, {"pods": 7}, {"pods": [{}, ["zombie"]]}]}]},
        {"groups": [{**PART, "members": None}]},
        {"groups": [{**PART, "members": {"pods": ["zombie"]}}]},
        {"groups": [7, None, "g", ["uid"], {"uid": ["uid-g"]}]},
        {"limits": [7, None, "l", {"name": ["ns/l"]}]},
    ],
    ids=["no pods", "odd members", "null", "an object", "odd groups", "odd limits"],
)
def test_an_unknown_entry_stays_unchanged_and_affects_no_other(
    place: str, spec: dict[str, Any]
) -> None:
    whole = {**GROUP, "members": [{"pods": ["zombie"]}]}
    good: dict[str, Any] = {"limits": [LIMIT], "groups": [whole]}
    odd = {field: [*spec.get(field, ()), *good[field]] for field in good}
    if "groups" in spec and place == "last":
        odd["groups"] = spec["groups"]
    last, new = (odd, good) if place == "last" else (good, odd)
    found = retained(configuration(**last, pods=[POD]), configuration(2, **new))
    assert limits_of(found) == [("ns/l", 4096)]
    assert found.raw["groups"][: len(new["groups"])] == new["groups"]


pods = st.dictionaries(st.sampled_from("abcd"), st.booleans())


@given(st.lists(pods, min_size=1, max_size=6), st.sets(st.sampled_from("abcd")))
def test_a_pod_is_limited_until_it_is_free_or_its_cgroup_is_gone(
    specs: list[dict[str, bool]], there: set[str]
) -> None:
    retainer, held = Retainer(None, lambda: dict.fromkeys(there, ())), frozenset[str]()
    for generation, spec in enumerate(specs):
        listed = [{"uid": uid, "limits": ["ns/l"] if held_ else []} for uid, held_ in spec.items()]
        found = retainer.retain(configuration(generation, limits=[LIMIT], pods=listed))
        limited = {uid for uid, has in spec.items() if has}
        held = frozenset(limited | ((held & there) - spec.keys()))
        assert {pod.uid for pod in found.spec.pods if pod.limits} == held
        assert found.gone == held - spec.keys()
        assert replace(found, gone=frozenset()) == Configuration.parse(found.raw, "uid", generation)
