"""Objects of shared memory on a real kernel: found, made, charged, borrowed, drained (M1 to M11).

Runs inside the guest (`make test-kernel`), as root with every capability.
"""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.node.accountant.provisioner import PREFIX
from pinwarden.node.linux.namespaces import run_in_namespaces

from .nodes import CGROUP, MIB
from .shared_nodes import FOLDER, PAGE, SharedNode, group


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A tmpfs of 16 MiB that an administrator mounted on the shares."""
    path = FOLDER / "tmpfs"
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "test", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)  # the node's borrowers end later
    path.rmdir()


def created(*pods: str, **more: Any) -> dict[str, Any]:
    backing = more.pop("backing", {"tmpfs": {}})
    return group(backing, *pods, **{"management": "Create", "capacity": 4 * MIB, **more})


MEMORY = f"{PREFIX}/ns/g/shared/memory"


@pytest.mark.rule("M3", "M5", "M6")
def test_adopted_tmpfs_is_charged_once_and_borrowed_by_each(
    shares: SharedNode, tmpfs: Path
) -> None:
    first, a = shares.pod()
    second, b = shares.pod()
    shares.configure(group({"tmpfs": {"path": str(tmpfs)}}, first, second))
    file = a(f"opened('{tmpfs}/f', {4 * MIB})")
    area = a(f"mapped({file}, {4 * MIB})")
    a(f"touch({area}, 512)")
    report = shares.report()
    assert (report.phase, report.objects, report.charge) == (Phase.ACTIVE, 1, 2 * MIB)
    assert [(each.pod, each.borrowed, each.mapped) for each in report.borrowers] == [
        (first, 2 * MIB, 4 * MIB)
    ]
    assert shares.borrow(second) is None, (
        "a page that A writes and B does not map changes nothing for B"
    )
    area = b(f"mapped(opened('{tmpfs}/f'), {MIB})")
    b(f"touch({area}, 16)")  # a read would have more mapped around it
    borrow = shares.borrow(second)
    assert borrow
    assert (borrow.mapped, borrow.borrowed) == (MIB, 16 * PAGE)
    b(f"unmap({area})")
    assert shares.borrow(second) is None
    assert shares.report().charge == 2 * MIB


@pytest.mark.rule("M6", "M9")
def test_borrow_of_a_pod_that_is_no_member_ends_with_the_pod(
    shares: SharedNode, tmpfs: Path
) -> None:
    member, a = shares.pod()
    stranger, b = shares.pod()
    shares.configure(group({"tmpfs": {"path": str(tmpfs)}}, member))
    a(f"opened('{tmpfs}/f', {MIB})")
    area = b(f"mapped(opened('{tmpfs}/f'), {MIB})")
    b(f"touch({area}, 16)")
    assert shares.borrow(stranger) is not None
    shares.end(stranger)
    assert shares.borrow(stranger) is None
    report = shares.report()
    assert report.charge
    assert report.orphaned == report.charge


@pytest.mark.rule("M1", "M9")
def test_bytes_of_an_ended_pod_are_reported_as_orphaned(shares: SharedNode, tmpfs: Path) -> None:
    first, a = shares.pod()
    shares.configure(group({"tmpfs": {"path": str(tmpfs)}}, first))
    a(f"touch(mapped(opened('{tmpfs}/f', {MIB}), {MIB}), 256)")
    assert shares.report().orphaned == 0
    shares.end(first)
    shares.configure(group({"tmpfs": {"path": str(tmpfs)}}))
    report = shares.report()
    assert (report.phase, report.charge, report.orphaned) == (Phase.ACTIVE, MIB, MIB)


@pytest.mark.rule("M9", backing="tmpfs posixShm")
@pytest.mark.parametrize("kind", ["tmpfs", "posixShm"])
def test_bytes_on_dead_cgroups_are_shown_as_such(
    shares: SharedNode, tmpfs: Path, kind: str
) -> None:
    backing, path = {
        "tmpfs": ({"tmpfs": {"path": str(tmpfs)}}, f"{tmpfs}/a/f"),
        "posixShm": ({"posixShm": {"name": "pw-*", "ipcNamespace": "Host"}}, "/dev/shm/pw-dead"),
    }[kind]
    (tmpfs / "a").mkdir()
    pod, a = shares.pod()
    keeper, b = shares.pod()
    shares.configure(group(backing, pod, keeper))
    a(f"touch(mapped(opened('{path}', {4 * MIB}), {4 * MIB}), 512)")
    address = b(f"mapped(opened('{path}'), {4 * MIB})")
    b(f"touch({address}, 768)")
    try:
        assert shares.report().dead == 0
        shares.end(pod)
        shares.start()
        report = shares.report()
        assert (report.charge, report.dead) == (3 * MIB, 2 * MIB), (
            "the keeper pays for what it touched first"
        )
        assert report.orphaned == 0
    finally:
        os.unlink(path)


@pytest.mark.rule("M9")
def test_created_object_is_charged_to_its_own_cgroup_whoever_writes(shares: SharedNode) -> None:
    pod, a = shares.pod()
    shares.configure(created(pod))
    report = shares.report()
    assert (report.phase, report.charge, report.orphaned) == (Phase.ACTIVE, 4 * MIB, 4 * MIB)
    assert report.own is not None
    assert 4 * MIB <= report.own < 5 * MIB
    before = shares.charge_of(pod)
    file = a(f"opened('{MEMORY}')")
    a(f"touch(mapped({file}, {4 * MIB}), 1024)")
    assert shares.charge_of(pod) - before < MIB, "the writer pays for none of it"
    borrow = shares.borrow(pod)
    assert borrow
    assert borrow.borrowed == 4 * MIB
    a(f"punch({file}, 0, {2 * MIB})")
    assert os.stat(MEMORY).st_blocks * 512 == 2 * MIB
    report = shares.report()
    assert report.charge == 4 * MIB, "a hole is filled again"
    assert report.own is not None
    assert report.own >= 4 * MIB
    stat = dict(
        line.split() for line in (CGROUP / "pinwarden/ns_g/memory.stat").read_text().splitlines()
    )
    assert int(stat["shmem"]) == 4 * MIB


@pytest.mark.rule("M8")
def test_created_object_cannot_grow_past_its_capacity(shares: SharedNode) -> None:
    pod, a = shares.pod()
    shares.configure(created(pod, prefault=False, owner={"mode": 0o777}))
    shares.report()
    assert a(f"write('{PREFIX}/ns/g/shared/mine', {5 * MIB})") == 4 * MIB
    with pytest.raises(OSError, match="write") as refused:
        a(f"write('{PREFIX}/ns/g/shared/more', 1)")
    assert refused.value.errno == errno.ENOSPC
    assert shares.report().charge == 4 * MIB


@pytest.mark.rule("M8")
def test_created_tmpfs_follows_its_capacity_and_never_shrinks_below_its_content(
    shares: SharedNode,
) -> None:
    pod, a = shares.pod()
    shares.configure(created(pod))
    shares.report()
    a(f"touch(mapped(opened('{MEMORY}'), {4 * MIB}), 8)")
    shares.configure(created(pod, capacity=8 * MIB))
    assert shares.report().charge == 8 * MIB
    assert os.stat(MEMORY).st_size == 8 * MIB
    borrow = shares.borrow(pod)
    assert borrow
    assert borrow.mapped == 4 * MIB, "who has it mapped keeps it"
    shares.configure(created(pod, capacity=4 * MIB))
    report = shares.report()
    assert (report.reason, report.charge) == ("NotMade", 8 * MIB)
    assert "more bytes are in use than this capacity" in report.message


@pytest.mark.rule("M10")
def test_draining_object_is_removed_after_its_last_user(shares: SharedNode) -> None:
    pod, a = shares.pod()
    shares.configure(created(pod))
    shares.report()
    file = a(f"opened('{MEMORY}')")
    area = a(f"mapped({file}, {MIB})")
    shares.configure(created(pod, draining=True))
    report = shares.report()
    assert (report.phase, report.reason) == (Phase.DRAINING, "InUse")
    assert str(a.pid) in report.message
    a(f"close({file})")
    assert shares.report().phase is Phase.DRAINING, "a mapping alone is a use"
    a(f"unmap({area})")
    assert shares.report().phase is Phase.RELEASED
    assert not Path(f"{PREFIX}/ns/g").exists()
    assert not (CGROUP / "pinwarden").exists()
    assert shares.report().phase is Phase.RELEASED


@pytest.mark.rule("M10", "H3")
def test_new_accountant_finds_all_of_it_again(shares: SharedNode) -> None:
    pod, a = shares.pod()
    shares.configure(created(pod))
    shares.report()
    area = a(f"mapped(opened('{MEMORY}'), {MIB})")
    a(f"touch({area}, 8)")
    shares.start()
    report = shares.report()
    assert report.charge == 4 * MIB
    assert [(each.pod, each.borrowed) for each in report.borrowers] == [(pod, 8 * PAGE)]


def test_objects_above_the_nodes_reserve_are_not_created(shares: SharedNode) -> None:
    shares.start(budget=6 * MIB)
    shares.configure(created(), {**created(), "uid": "h", "name": "ns/h"})
    assert (shares.report("g").phase, shares.report("g").charge) == (Phase.ACTIVE, 4 * MIB)
    refused = shares.report("h")
    assert (refused.phase, refused.reason) == (Phase.RELEASED, "NoRoom")
    assert not Path(f"{PREFIX}/ns/h").exists()


def test_objects_of_deleted_groups_count_towards_the_nodes_reserve(shares: SharedNode) -> None:
    shares.start(budget=6 * MIB)
    shares.configure(created())
    assert shares.report("g").charge == 4 * MIB
    other = {**created(), "uid": "h", "name": "ns/h"}
    shares.configure(other)
    assert shares.report("h").reason == "NoRoom", "the first group is gone, and its object is there"
    shares.configure(created())
    assert shares.report("g").charge == 4 * MIB, "what is there already is not refused again"


@pytest.mark.rule("M10")
def test_group_that_cannot_be_created_drains(shares: SharedNode) -> None:
    bad = created(capacity=100_000_001)
    shares.configure(bad)
    report = shares.report()
    assert (report.reason, report.charge) == ("Invalid", None)
    shares.configure({**bad, "draining": True})
    assert shares.report().phase is Phase.RELEASED


@pytest.mark.rule("M10")
def test_interrupted_release_is_repeated(shares: SharedNode) -> None:
    pod, a = shares.pod()
    shares.configure(created(pod, prefault=False, owner={"mode": 0o777}))
    shares.report()
    shares.configure(created(pod, prefault=False, draining=True))
    a(f"os.chdir('{PREFIX}/ns/g/shared') or 0")
    report = shares.report()
    assert (report.phase, report.reason) == (Phase.DRAINING, "NotRemoved"), report
    assert shares.report().phase is Phase.DRAINING
    a("os.chdir('/') or 0")
    assert shares.report().phase is Phase.RELEASED


@pytest.mark.rule("M10")
def test_tree_of_any_depth_is_removed(shares: SharedNode) -> None:
    pod, a = shares.pod()
    asked = created(pod, prefault=False, owner={"mode": 0o777})
    shares.configure(asked)
    shares.report()
    a(f"os.chdir('{PREFIX}/ns/g/shared') or 0")
    a("[(os.mkdir('d'), open('f', 'w').close(), os.chdir('d')) for _ in range(3000)] and 1")
    a("os.chdir('/') or 0")
    shares.configure({**asked, "draining": True})
    assert shares.report().phase is Phase.RELEASED


def test_segment_of_another_owner_is_left_alone(shares: SharedNode) -> None:
    key = 0x50770003
    pod, a = shares.pod()
    number = a(f"segment({key}, {MIB})")
    made = group(
        {"sysvShm": {"key": key, "ipcNamespace": "Host"}}, pod, management="Create", capacity=MIB
    )
    try:
        time.sleep(1.1)  # the kernel stamps segments by whole seconds
        shares.configure(made)
        assert shares.report().reason == "NotMade"
        shares.configure({**made, "draining": True})
        assert shares.report().phase is Phase.RELEASED
        assert a(f"segment({key}, {MIB})") == number
    finally:
        a(f"remove({number})")


def test_names_that_are_no_text_stop_no_group(shares: SharedNode) -> None:
    pod, a = shares.pod("apart")
    other, b = shares.pod("apart")
    a(r"os.mkdir(b'/dev/shm/pw-\xff') or 0")
    b(f"opened('/dev/shm/pw-1', {MIB})")
    backing = {"posixShm": {"name": "pw-*"}}
    shares.configure(group(backing, pod))
    report = shares.report()
    assert (report.phase, report.reason) == (Phase.PENDING, "WrongType")
    shares.configure(group(backing, pod, other))
    assert shares.report().objects == 1, "what one pod has in the way hides no other's"


def test_killed_child_is_an_error_and_ends_nothing_else(shares: SharedNode) -> None:
    with pytest.raises(OSError, match="the child process ended"):
        run_in_namespaces([], lambda: os.kill(os.getpid(), signal.SIGBUS))
    with pytest.raises(OSError, match="the child process ended"):
        run_in_namespaces([], lambda: int("x"))


@pytest.mark.rule("M3")
@pytest.mark.parametrize("where", ["Host", "Pod"])
def test_posix_shared_memory(shares: SharedNode, where: str) -> None:
    pod, a = shares.pod(*(["apart"] if where == "Pod" else []))
    other, b = shares.pod()
    backing = {"posixShm": {"name": "pw-*", "ipcNamespace": where}}
    shares.configure(group(backing, pod, other))
    file = a(f"opened('/dev/shm/pw-1', {MIB})")
    try:
        a(f"touch(mapped({file}, {MIB}), 128)")
        report = shares.report()
        assert (report.objects, report.charge) == (1, MIB // 2)
        assert [(each.pod, each.borrowed, each.mapped) for each in report.borrowers] == [
            (pod, MIB // 2, MIB)
        ]
        if where == "Pod":
            b(f"opened('/dev/shm/pw-2', {MIB})")
            assert shares.report().objects == 1, "the node's own /dev/shm is not a pod's"
    finally:
        for path in Path("/dev/shm").glob("pw-*"):
            path.unlink()


@pytest.mark.rule("M3")
@pytest.mark.parametrize("where", ["Host", "Pod"])
def test_system_v_shared_memory(shares: SharedNode, where: str) -> None:
    key = 0x50770001
    pod, a = shares.pod(*(["apart"] if where == "Pod" else []))
    other, b = shares.pod("apart")
    shares.configure(group({"sysvShm": {"key": key, "ipcNamespace": where}}, pod, other))
    number = a(f"segment({key}, {MIB})")
    try:
        address = a(f"attach({number}, 64)")
        report = shares.report()
        assert (report.objects, report.charge) == (1, 64 * PAGE)
        assert [(each.pod, each.borrowed, each.mapped) for each in report.borrowers] == [
            (pod, 64 * PAGE, MIB)
        ]
        if where == "Pod":
            b(f"attach(segment({key}, {MIB}), 2)")
            report = shares.report()
            assert (report.objects, report.charge) == (2, 66 * PAGE)
            assert {each.pod: each.borrowed for each in report.borrowers} == {
                pod: 64 * PAGE,
                other: 2 * PAGE,
            }
        a(f"detach({address})")
        assert shares.borrow(pod) is None
    finally:
        a(f"remove({number})")


@pytest.mark.rule("M3")
@pytest.mark.parametrize(
    ("key", "objects", "pages"),
    [
        ("0x0052e2c1", 1, 64),
        ("0x52e000-0x52efff", 2, 96),
        ("0x52f000-0x52ffff", 0, None),
        ("*", 4, 108),
    ],
)
def test_segments_by_hexadecimal_text_by_range_and_all(
    shares: SharedNode, key: str, objects: int, pages: int | None
) -> None:
    """See https://github.com/ManageIQ/manageiq-pods/pull/974: random keys.

    The node's own segments never count as a pod's.
    """
    pod, a = shares.pod("apart")
    outside, b = shares.pod()
    shares.configure(group({"sysvShm": {"key": key}}, pod, outside))
    of_node = b(f"segment(0x52e2c2, {MIB})")
    try:
        b(f"attach({of_node}, 1)")
        for each, touched in ((0x0052E2C1, 64), (0x52E000, 32), (0x7FFFFFFF, 8), (0, 4)):
            a(f"attach(segment({each}, {MIB}), {touched})")
        report = shares.report()
        assert (report.objects, report.charge) == (objects, pages and pages * PAGE)
        assert [each.borrowed for each in report.borrowers] == ([pages * PAGE] if pages else [])
    finally:
        b(f"remove({of_node})")


@pytest.mark.rule("M1", "M3", "M10")
def test_created_segment(shares: SharedNode) -> None:
    key = 0x50770002
    pod, a = shares.pod()
    made = group(
        {"sysvShm": {"key": key, "ipcNamespace": "Host"}},
        pod,
        management="Create",
        capacity=MIB,
        owner={"user": 1000, "mode": 0o600},
    )
    shares.configure(made)
    report = shares.report()
    assert (report.charge, report.orphaned) == (MIB, MIB)
    assert report.own is not None
    assert report.own >= MIB
    address = a(f"attach(segment({key}, {MIB}), 4)")
    shares.configure({**made, "draining": True})
    assert shares.report().phase is Phase.DRAINING
    a(f"detach({address})")
    assert shares.report().phase is Phase.RELEASED
    with pytest.raises(OSError, match="shmget") as gone:
        a(f"checked(libc.shmget({key}, 0, 0))")
    assert gone.value.errno == errno.ENOENT


def test_created_segment_keeps_its_size(shares: SharedNode) -> None:
    made = group(
        {"sysvShm": {"key": 0x50770004, "ipcNamespace": "Host"}}, management="Create", capacity=MIB
    )
    shares.configure(made)
    assert shares.report().charge == MIB
    shares.configure({**made, "capacity": 2 * MIB})
    report = shares.report()
    assert (report.reason, report.charge) == ("NotMade", MIB)
    assert f"the segment has {MIB} bytes, and its size cannot change" in report.message


@pytest.mark.rule("M10")
def test_created_object_is_removed_with_its_group_though_an_older_one_adopted_it(
    shares: SharedNode,
) -> None:
    key = 0x50770005
    _, a = shares.pod()
    backing = {"sysvShm": {"key": key, "ipcNamespace": "Host"}}
    made = group(backing, management="Create", capacity=MIB)
    older = {**group(backing), "uid": "h", "name": "ns/h"}
    shares.configure(older, made)
    shares.report()
    assert (shares.report("h").phase, shares.report("g").reason) == (Phase.ACTIVE, "Claimed")
    address = a(f"attach(segment({key}, {MIB}), 4)")
    shares.configure(older, {**made, "draining": True})
    assert (shares.report().phase, shares.report().reason) == (Phase.DRAINING, "InUse")
    a(f"detach({address})")
    assert shares.report().phase is Phase.RELEASED
    with pytest.raises(OSError, match="shmget"):
        a(f"checked(libc.shmget({key}, 0, 0))")


@pytest.mark.rule("M10")
def test_mount_of_another_group_is_neither_adopted_nor_removed(
    shares: SharedNode,
) -> None:
    pod, a = shares.pod()
    shares.configure(created(pod))
    shares.report()
    a(f"touch(mapped(opened('{MEMORY}'), {MIB}), 8)")
    other = created(pod, backing={"hugetlbfs": {}})
    shares.configure(other)
    report = shares.report()
    assert (report.phase, report.reason) == (Phase.PENDING, "NotMade")
    assert "a file system of another group is mounted there" in report.message
    shares.configure({**other, "draining": True})
    assert shares.report().phase is Phase.RELEASED
    assert os.stat(MEMORY).st_blocks * 512 == 4 * MIB
    assert (CGROUP / "pinwarden/ns_g").is_dir()
    shares.configure(created(pod))
    assert shares.report().phase is Phase.ACTIVE


@pytest.mark.rule("M10", "M11", "H2")
def test_unreadable_object_is_neither_gone_nor_empty(
    shares: SharedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, _ = shares.pod()
    shares.configure(created())
    assert shares.report().phase is Phase.ACTIVE
    shares.configure(created(pod))
    shares.report()
    assert [each.pod for each in shares.accountant.status.fair_view] == [pod]

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(shares.accountant._finder, "find", refuse)
        assert shares.report().phase is Phase.PENDING
        assert shares.accountant.status.fair_view == (), "of a part of it nothing is known"
        shares.configure(created())
        report = shares.report()
        assert (report.phase, report.reason) == (Phase.PENDING, "NotReadable"), "not Released"
        shares.configure(created(draining=True))
        assert shares.report().phase is Phase.DRAINING
    assert shares.report().phase is Phase.RELEASED


@pytest.mark.rule("M3")
def test_memfds(shares: SharedNode) -> None:
    pod, a = shares.pod()
    shares.configure(group({"memfd": {"name": "pw*"}}, pod))
    file = a(f"memfd('pw one', {MIB})")
    a(f"memfd('other', {MIB})")
    a(f"touch(mapped({file}, {MIB}), 3)")
    report = shares.report()
    assert (report.objects, report.charge) == (1, 3 * PAGE)
    assert [(each.borrowed, each.mapped) for each in report.borrowers] == [(3 * PAGE, MIB)]
    a(f"close({file})")
    report = shares.report()
    assert (report.objects, report.charge) == (1, 3 * PAGE), "one that is mapped only is found"
    low = a(f"memfd('pw low', {MIB})")
    a(f"touch(mapped({low}, {MIB}, 0xf000000), 2)")
    a(f"close({low})")
    report = shares.report()
    assert (report.objects, report.charge) == (2, 5 * PAGE), (
        "also at an address that begins with a zero"
    )


@pytest.mark.rule("M3")
def test_files(shares: SharedNode, tmpfs: Path) -> None:
    pod, a = shares.pod()
    path = tmpfs / "[odd] né.db"
    path.write_bytes(b"x" * MIB)
    (tmpfs / "other").write_bytes(b"x" * MIB)
    shares.configure(group({"file": {"path": f"{tmpfs}/[odd]*.db"}}, pod))
    a(f"touch(mapped(opened({str(path)!r}), {MIB}), 256)")
    report = shares.report()
    assert (report.objects, report.charge) == (1, MIB)
    assert [(each.borrowed, each.mapped) for each in report.borrowers] == [(MIB, MIB)]
    path.unlink()
    report = shares.report()
    assert (report.phase, report.reason) == (Phase.PENDING, "NotThere")
    shares.configure(group({"file": {"path": "/var/tmp/x"}}, pod, allowed="/var/tmp"))
    assert shares.report().reason == "NotSupported", "what is on an overlay has its pages elsewhere"


@pytest.mark.emulated
@pytest.mark.rule("M3", "M10")
def test_hugetlbfs(shares: SharedNode) -> None:
    Path("/proc/sys/vm/nr_hugepages").write_text("4")
    try:
        pod, a = shares.pod()
        made = created(pod, backing={"hugetlbfs": {}})
        shares.configure(made)
        report = shares.report()
        assert (report.phase, report.charge) == (Phase.ACTIVE, 4 * MIB), report
        a(f"touch(mapped(opened('{MEMORY}'), {4 * MIB}), 513)")
        borrow = shares.borrow(pod)
        assert borrow
        assert (borrow.borrowed, borrow.mapped) == (4 * MIB, 4 * MIB)
        shares.end(pod)
        shares.configure({**made, "draining": True})
        assert shares.report().phase is Phase.RELEASED
    finally:
        Path("/proc/sys/vm/nr_hugepages").write_text("0")


@pytest.mark.emulated
@pytest.mark.rule("M3")
def test_dma_buffers(shares: SharedNode) -> None:
    assert Path("/dev/udmabuf").exists()
    pod, a = shares.pod()
    shares.configure(group({"dmabuf": {"exporter": "udmabuf"}}, pod))
    file = a(f"udmabuf({MIB})")
    a(f"mapped({file}, {MIB // 2})")
    report = shares.report()
    assert (report.objects, report.charge) == (1, MIB)
    assert [(each.borrowed, each.mapped) for each in report.borrowers] == [(MIB // 2, MIB // 2)]
    assert report.orphaned == MIB // 2


@pytest.mark.rule("M11")
def test_fair_view_counts_what_is_borrowed_or_all_of_it(shares: SharedNode) -> None:
    first, a = shares.pod()
    second, b = shares.pod()
    shares.configure(created(first, second))
    shares.report()
    a(f"touch(mapped(opened('{MEMORY}'), {4 * MIB}), 1024)")
    b(f"touch(mapped(opened('{MEMORY}'), {4 * MIB}), 256)")
    shares.report()
    view = {each.pod: each for each in shares.accountant.status.fair_view}
    assert (view[first].shared, view[second].shared) == (4 * MIB, MIB)
    assert 0 < view[first].anonymous <= view[first].current == shares.charge_of(first)
    shares.configure(created(first, second, fairShare="Charge"))
    shares.report()
    assert {each.shared for each in shares.accountant.status.fair_view} == {4 * MIB}


# -- what a tenant may try --


def _refused(shares: SharedNode, path: Path | str, *, kind: str = "tmpfs", reason: str) -> None:
    shares.configure(group({kind: {"path": str(path)}}, "p"))
    report = shares.report()
    assert (report.phase, report.reason, report.charge, report.borrowers) == (
        Phase.PENDING,
        reason,
        None,
        [],
    )


def test_tricks_with_paths_reach_no_other_file(shares: SharedNode, tmpfs: Path) -> None:
    link = FOLDER / "link"
    link.symlink_to("/dev/shm")
    inner = FOLDER / "bound"
    inner.mkdir()
    (tmpfs / "below").mkdir()
    subprocess.run(["mount", "--bind", tmpfs / "below", inner], check=True)
    try:
        _refused(shares, FOLDER / "nothing", reason="NotThere")
        _refused(shares, link, reason="SymbolicLink")
        _refused(shares, FOLDER / "link/x", reason="SymbolicLink")
        _refused(shares, "/dev/shm", reason="NotAllowed")
        _refused(shares, "/run/pinwarden-testing", reason="NotAllowed")
        _refused(shares, FOLDER, reason="WrongType")
        _refused(shares, tmpfs / "below", reason="WrongType")
        _refused(shares, inner, reason="WrongType")
        _refused(shares, tmpfs, kind="hugetlbfs", reason="WrongType")
        os.mkfifo(FOLDER / "pipe")
        _refused(shares, FOLDER / "pipe", kind="file", reason="WrongType")
        _refused(shares, FOLDER / "link", kind="file", reason="WrongType")
        _refused(shares, tmpfs, kind="file", reason="WrongType")
    finally:
        subprocess.run(["umount", inner], check=True)
        inner.rmdir()
        link.unlink()
        (FOLDER / "pipe").unlink(missing_ok=True)


def test_replaced_object_counts_as_another_object(shares: SharedNode, tmpfs: Path) -> None:
    pod, a = shares.pod()
    shares.configure(group({"file": {"path": f"{tmpfs}/f"}}, pod))
    a(f"touch(mapped(opened('{tmpfs}/f', {MIB}), {MIB}), 9)")
    assert shares.borrow(pod)
    (tmpfs / "f").unlink()
    (tmpfs / "f").write_bytes(b"")
    assert shares.report().objects == 1
    assert shares.borrow(pod) is None
    (tmpfs / "f").unlink()
    (tmpfs / "f").mkdir()
    assert shares.report().reason == "WrongType"


def test_two_groups_for_one_object(shares: SharedNode, tmpfs: Path) -> None:
    pod, a = shares.pod()
    whole = group({"tmpfs": {"path": str(tmpfs)}}, pod)
    part = {**group({"file": {"path": f"{tmpfs}/f"}}, pod), "uid": "h", "name": "ns/h"}
    a(f"touch(mapped(opened('{tmpfs}/f', {MIB}), {MIB}), 9)")
    shares.configure(whole, part)
    assert shares.report("g").phase is Phase.ACTIVE
    assert shares.report("h").reason == "Claimed"
    shares.configure(part, whole)
    assert shares.report("h").phase is Phase.ACTIVE
    assert shares.report("g").reason == "Claimed"


def test_ten_thousand_files(shares: SharedNode, tmpfs: Path) -> None:
    pod, a = shares.pod()
    a(f"[open(f'{tmpfs}/{{number}}', 'w').close() for number in range(10000)] and 1")
    a(f"touch(mapped(opened('{tmpfs}/f', {MIB}), {MIB}), 9)")
    shares.configure(group({"tmpfs": {"path": str(tmpfs)}}, pod))
    report = shares.report()
    assert (report.objects, report.charge, report.truncated) == (1, 9 * PAGE, False)
    a(f"touch(mapped(opened('/dev/shm/pw-well', {MIB}), {MIB}), 3)")
    well = {
        **group({"posixShm": {"name": "pw-well", "ipcNamespace": "Host"}}, pod),
        "uid": "h",
        "name": "ns/h",
    }
    shares.configure(group({"file": {"path": f"{tmpfs}/*"}}, pod), well)
    try:
        report = shares.report()
        assert (report.objects, report.truncated) == (1024, True)
        report = shares.report("h")
        assert (report.charge, report.orphaned, report.truncated) == (3 * PAGE, 0, False)
        assert [(each.pod, each.borrowed) for each in report.borrowers] == [(pod, 3 * PAGE)]
    finally:
        os.unlink("/dev/shm/pw-well")


def test_pod_cannot_put_something_else_in_the_place_of_a_created_file(shares: SharedNode) -> None:
    pod, a = shares.pod()
    shares.configure(created(pod, owner={"user": 1000, "group": 1000}))
    shares.report()
    a("os.setgroups([]) or os.setgid(1000) or os.setuid(1000) or 0")
    with pytest.raises(OSError, match="unlink") as refused:
        a(f"os.unlink('{MEMORY}')")
    assert refused.value.errno == errno.EACCES
    a(f"touch(mapped(opened('{MEMORY}'), {MIB}), 1)")


def test_link_in_the_place_of_a_created_file_is_not_followed(shares: SharedNode) -> None:
    shares.configure(created())
    shares.report()
    os.unlink(MEMORY)
    victim = FOLDER / "victim"
    FOLDER.mkdir(exist_ok=True)
    victim.write_text("mine")
    os.symlink(victim, MEMORY)
    try:
        report = shares.report()
        assert report.reason == "NotMade"
        assert victim.read_text() == "mine"
        assert victim.stat().st_mode & 0o777 == 0o644
    finally:
        os.unlink(MEMORY)
        victim.unlink()
