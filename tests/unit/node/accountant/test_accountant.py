"""The level of borrow limits, objects of two groups, draining, and failed items (H1)."""

from pathlib import Path

import pytest

from pinwarden.api.nodepinconfig import NodeGroup, NodePinConfigSpec
from pinwarden.api.pinlimit import Level
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.node.accountant.accountant import Accountant, _claimed
from pinwarden.node.accountant.finder import Finder
from pinwarden.node.accountant.finder.result import GroupObjects, ObjectsNotFoundError
from pinwarden.node.accountant.report import _gated, _level
from pinwarden.node.pods.cgroups import ContainerCgroup, PodCgroup
from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.state.config import ConfigFile, ConfigFollower, Configuration
from pinwarden.node.state.gate_status import GateStatus, empty


def group(*members: dict[str, object], **more: object) -> NodeGroup:
    return NodeGroup.model_validate(
        {
            "name": "ns/g",
            "uid": "g",
            "backing": {"tmpfs": {}},
            "management": "Create",
            "accounting": "Borrow",
            "fairShare": "Borrow",
            "members": list(members),
            **more,
        }
    )


LIMIT = {"pods": ["p"], "borrowLimit": 1}
RESIDENT = {"pods": ["p"], "borrowLimit": 1, "borrowLimitOn": "Resident"}


@pytest.mark.rule("H1")
@pytest.mark.parametrize(
    ("asked", "gated", "expected"),
    [
        (group({"pods": ["p"]}), True, (None, "")),
        (group({"pods": ["q"], "borrowLimit": 1}), True, (None, "")),
        (group(LIMIT), True, (Level.CONVERGE, "SeccompGate")),
        (group(LIMIT), False, (Level.OBSERVE, "NotGated")),
        (group(LIMIT, RESIDENT), True, (Level.OBSERVE, "ResidentSeenOnly")),
        (group(LIMIT, enforcement="Audit"), True, (Level.OBSERVE, "Audit")),
    ],
)
def test_borrow_limit_is_reported_with_its_level(
    asked: NodeGroup, gated: bool, expected: tuple[Level | None, str]
) -> None:
    assert _level(asked, "p", gated) == expected


def test_pod_is_gated_if_each_running_container_is_gated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = {"one", "two", "sandbox"}
    monkeypatch.setattr(
        "pinwarden.node.accountant.report.member_pids",
        lambda path: frozenset({1}) if path.name in running else frozenset(),
    )
    pod = PodCgroup(
        "p",
        (tmp_path,),
        tuple(
            ContainerCgroup(name, tmp_path / name, (tmp_path / name,))
            for name in ("one", "two", "sandbox", "ended")
        ),
        (tmp_path,),
        False,
    )
    both = {name: ("p", name, "sandbox") for name in ("one", "two")}

    def status(gated: set[str], mapping: set[str]) -> GateStatus:
        containers = {name: both[name] for name in gated}
        return empty().model_copy(update={"containers": containers, "mapping": frozenset(mapping)})

    assert _gated(pod, status({"one", "two"}, {"one", "two"}))
    assert not _gated(pod, status({"one"}, {"one"}))
    assert not _gated(pod, status({"one", "two"}, {"one"})), "the other has an older profile"
    assert not _gated(pod, empty())


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        (ObjectSet(frozenset({1})), ObjectSet(frozenset({1})), True),
        (ObjectSet(frozenset({1})), ObjectSet(objects=frozenset({ObjectId(1, 5)})), True),
        (ObjectSet(objects=frozenset({ObjectId(1, 5)})), ObjectSet(frozenset({1})), True),
        (
            ObjectSet(objects=frozenset({ObjectId(1, 5)})),
            ObjectSet(objects=frozenset({ObjectId(1, 5)})),
            True,
        ),
        (
            ObjectSet(objects=frozenset({ObjectId(1, 5)})),
            ObjectSet(objects=frozenset({ObjectId(1, 6)})),
            False,
        ),
        (
            ObjectSet(objects=frozenset({ObjectId(1, 5, 7)})),
            ObjectSet(objects=frozenset({ObjectId(1, 5, 8)})),
            False,
        ),
        (ObjectSet(), ObjectSet(frozenset({1})), False),
    ],
)
def test_object_of_two_groups_belongs_to_the_older(
    first: ObjectSet, second: ObjectSet, clash: bool
) -> None:
    assert _claimed(second, first) is clash


@pytest.mark.rule("H1")
def test_failed_group_leaves_other_groups_accounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_: Finder, asked: NodeGroup, __: object, **___: object) -> GroupObjects:
        if asked.uid == "odd":
            raise ValueError("not a number")
        return GroupObjects(objects={ObjectId(1, 5): 4096})

    monkeypatch.setattr(Finder, "find", find)
    (tmp_path / "cgroup.controllers").touch()
    accountant = Accountant(
        cgroup_root=tmp_path, proc_root=Path("/proc"), run_dir=tmp_path, budget=0
    )
    groups = [group(uid=uid, management="Adopt") for uid in ("odd", "even")]
    accountant.configure(NodePinConfigSpec(groups=groups))
    accountant.tick()
    assert [(report.uid, report.reason, report.charge) for report in accountant.status.groups] == [
        ("odd", "NotReadable", None),
        ("even", "", 4096),
    ]


@pytest.mark.rule("M10", "H2")
@pytest.mark.parametrize(
    ("result", "phase", "reason"),
    [
        (ObjectsNotFoundError("NotThere", "no such object exists now"), Phase.RELEASED, ""),
        (
            ObjectsNotFoundError("NotReadable", "no such object is known"),
            Phase.DRAINING,
            "NotReadable",
        ),
        (GroupObjects(objects={ObjectId(1, 5): 4096}), Phase.RELEASED, ""),
        (GroupObjects(objects={ObjectId(1, 5): 4096}, truncated=True), Phase.RELEASED, ""),
        (
            GroupObjects(
                objects={ObjectId(1, 5): 4096}, truncated=True, cause="some may be unknown"
            ),
            Phase.DRAINING,
            "NotReadable",
        ),
    ],
)
def test_draining_group_with_unknown_objects_is_not_released(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    result: GroupObjects | ObjectsNotFoundError,
    phase: Phase,
    reason: str,
) -> None:
    def find(*_: object, **__: object) -> GroupObjects:
        if isinstance(result, ObjectsNotFoundError):
            raise result
        return result

    monkeypatch.setattr(Finder, "find", find)
    monkeypatch.setattr("pinwarden.node.accountant.accountant.find_users", lambda *_, **__: [])
    (tmp_path / "cgroup.controllers").touch()
    accountant = Accountant(
        cgroup_root=tmp_path, proc_root=Path("/proc"), run_dir=tmp_path, budget=0
    )
    backing = {"posixShm": {"name": "x", "ipcNamespace": "Host"}}
    accountant.configure(
        NodePinConfigSpec(groups=[group(management="Adopt", draining=True, backing=backing)])
    )
    accountant.tick()
    (report,) = accountant.status.groups
    assert (report.phase, report.reason) == (phase, reason)


@pytest.mark.rule("M10", "H2")
def test_draining_group_with_an_unreadable_member_is_not_released(
    tmp_path: Path,
) -> None:
    uid = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123456"
    processes = tmp_path / "kubepods" / f"pod{uid}" / "cgroup.procs"
    processes.parent.mkdir(parents=True)
    processes.write_text("no number")
    (tmp_path / "cgroup.controllers").touch()
    accountant = Accountant(
        cgroup_root=tmp_path, proc_root=Path("/proc"), run_dir=tmp_path, budget=0
    )
    drained = group(
        {"pods": [uid]}, management="Adopt", draining=True, backing={"memfd": {"name": "x"}}
    )
    accountant.configure(NodePinConfigSpec(groups=[drained]))
    accountant.tick()
    (report,) = accountant.status.groups
    assert (report.phase, report.reason) == (Phase.DRAINING, "NotReadable")
    assert "a member's processes cannot be read" in report.message


def test_changed_configuration_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "nodepinconfig.json"
    followed = ConfigFollower(path)
    assert followed.read_if_changed() is None
    ConfigFile(path).save(Configuration.parse({"unknownPods": 5}, "u", 1))
    configuration = followed.read_if_changed()
    assert configuration is not None
    assert configuration.spec.unknown_pods == 5
    assert followed.read_if_changed() is None
    path.write_text("{")
    assert followed.read_if_changed() is None, "an unreadable file changes nothing"


@pytest.mark.rule("H1", "H2")
def test_unreadable_pod_leaves_groups_accounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, even = (f"3f2a9c1e-0b7d-4e55-9a10-c0ffee12345{number}" for number in (6, 7))
    for uid in (odd, even):
        pod = tmp_path / "kubepods" / f"pod{uid}"
        pod.mkdir(parents=True)
        (pod / "cgroup.procs").write_text("no number" if uid == odd else "")
        (pod / "memory.current").write_text("no number" if uid == odd else "4096")
        (pod / "memory.stat").write_text("anon 4096\n")
    monkeypatch.setattr(
        Finder, "find", lambda *_, **__: GroupObjects(objects={ObjectId(1, 5): 4096})
    )
    (tmp_path / "cgroup.controllers").touch()
    accountant = Accountant(
        cgroup_root=tmp_path, proc_root=Path("/proc"), run_dir=tmp_path, budget=0
    )
    groups = [
        group(uid="g", management="Adopt", accounting="Borrow", members=[{"pods": [odd, even]}])
    ]
    accountant.configure(NodePinConfigSpec(groups=groups))
    accountant.tick()
    (report,) = accountant.status.groups
    assert (report.reason, report.charge, report.orphaned, report.truncated) == (
        "",
        4096,
        None,
        True,
    )
    assert [report.pod for report in accountant.status.fair_view] == [even]
    assert accountant.status.failures["pod"] > 0
