"""Mappings of groups' objects in gated pods: who may borrow, and how much (M2, M8, M10)."""

import ast
import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gate_node.node import MIB, Node, Pod, Process
from pinwarden.api.nodepinconfig import NodeGroup, NodeMember
from pinwarden.node.gate.borrow_rules import ObjectRange, total
from pinwarden.node.gate.map_targets import mapped
from pinwarden.node.gate.pending import UNLISTED_SECONDS
from pinwarden.node.linux import sysvshm
from pinwarden.node.linux.namespaces import ipc_namespace
from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.shm.regions import RegionFilter

from .processes import PAGE, ask, send, start
from .test_calls import answers
from .test_exactness import LIMIT

HALF = LIMIT // 2
SIZE = 64 * MIB
LOCKED, POPULATE, NO_RESERVE = 0x2000, 0x8000, 0x4000
NONE, NO, FULL = 0, errno.EACCES, errno.ENOMEM
GROUP = "uid-of-group"


def group(
    uid: str = GROUP, *, limit: int | None = None, pods: Sequence[Pod] = (), **more: Any
) -> NodeGroup:
    """A group with these members, each under this limit on what it has mapped."""
    return NodeGroup.model_validate(
        {
            "name": f"test/{uid}",
            "uid": uid,
            "backing": {"tmpfs": {"path": "/run/shared"}},
            "management": "Adopt",
            "accounting": "Borrow",
            "fairShare": "Borrow",
            "members": [{"pods": [pod.uid for pod in pods], "borrowLimit": limit}] if pods else [],
            **more,
        }
    )


def configure(node: Node, *groups: NodeGroup, listed: Sequence[Pod] = (), **more: Any) -> None:
    """Puts these groups in force; pods that are listed have no limits, unless `more` says so."""
    node.configure(
        **{"pods": [{"uid": pod.uid} for pod in listed], **more},
        groups=[each.to_wire() for each in groups],
    )


@dataclass(frozen=True)
class Shared:
    """A mounted tmpfs with a file, and what of it is a group's."""

    folder: Path
    file: Path
    extent: ObjectSet

    def has(self, *pods: Pod) -> int:
        """Bytes that pods have mapped of it, each once, as an outside reader sees it."""
        found: list[ObjectRange] = []
        for pod in pods:
            found += mapped(
                Path("/proc"), [pod.directory / pod.container], RegionFilter([self.extent])
            )
        return total(found)


@contextmanager
def mounted(kind: str) -> Iterator[Shared]:
    """A file system of this kind, where everyone may create and map."""
    folder = Path(tempfile.mkdtemp(prefix="pinwarden-"))
    subprocess.run(["mount", "-t", kind, "-o", "mode=1777", "none", folder], check=True)
    try:
        file = folder / "file"
        with open(file, "wb") as made:
            os.truncate(made.fileno(), SIZE)
        file.chmod(0o666)
        yield Shared(folder, file, ObjectSet(devices=frozenset({file.stat().st_dev})))
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


@pytest.fixture
def shared() -> Iterator[Shared]:
    with mounted("tmpfs") as found:
        yield found


@contextmanager
def segment(size: int) -> Iterator[int]:
    made = sysvshm.create(sysvshm.IPC_PRIVATE, size, sysvshm.IPC_CREAT | 0o666)
    yield made
    sysvshm.remove(made)


def of_segments(sizes: dict[int, int], space: int) -> ObjectSet:
    """Report System V segments of an IPC namespace, by id, with their bytes."""
    found = {ObjectId(sysvshm.device(), each, space): size for each, size in sizes.items()}
    return ObjectSet(objects=frozenset(found), sizes=frozenset(found.items()))


def sharer(pod: Pod, children: int = 0, *, user: int = 65534) -> Process:
    return start(pod, "sharer.py", children, user=user)


def do(process: Process, order: str, *, child: int = 0) -> tuple[int, int]:
    """What a call answers: the result, and errno."""
    result, error = ast.literal_eval(ask(process, f"{child} {order}"))
    return result, error


def maps(
    process: Process, file: Path, offset: int, size: int, more: int = 0, *, child: int = 0
) -> int:
    """The errno of a mapping."""
    return do(process, f"map({str(file)!r}, {offset}, {size}, {more})", child=child)[1]


# -- who may borrow --


@pytest.mark.rule("M2", level="Converge")
@pytest.mark.parametrize("user", [65534, 0])
def test_only_an_attached_pod_may_borrow(node: Node, shared: Shared, user: int) -> None:
    member, other = node.pod(), node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(pods=[member]), listed=[member, other])
    assert maps(sharer(member, user=user), shared.file, 0, SIZE) == NONE
    stranger = sharer(other, user=user)
    for more in (0, POPULATE, 2, LOCKED):  # 2: MAP_SHARED_VALIDATE
        assert maps(stranger, shared.file, 0, PAGE, more) == NO
    assert shared.has(other) == 0
    node.until(lambda: node.status.group_denials == {GROUP: {other.uid: 4}})
    assert not node.status.denials
    assert not node.status.recent
    assert maps(stranger, shared.file, 0, PAGE, child=0) == NO
    configure(node, group(pods=[member, other]), listed=[member, other])
    assert maps(stranger, shared.file, 0, PAGE) == NONE


@pytest.mark.rule("M2", level="Converge")
def test_mapping_outside_all_groups_is_allowed(node: Node, shared: Shared, tmp_path: Path) -> None:
    pod = node.pod()
    process = sharer(pod)
    private = shared.folder / "other"
    private.write_bytes(bytes(PAGE))
    private.chmod(0o666)
    about = shared.file.stat()
    node.share({GROUP: ObjectSet(objects=frozenset({ObjectId(about.st_dev, about.st_ino)}))})
    configure(node, group(), listed=[pod])
    assert maps(process, private, 0, PAGE) == NONE
    assert maps(process, shared.file, 0, PAGE) == NO
    created = "globals().setdefault('m', os.memfd_create('m'))"
    memfd = f"call('mmap', 0, 4096, 3, 1, os.ftruncate({created}, 4096) or m, 0)"
    assert do(process, memfd)[1] == NONE
    assert do(process, "call('mmap', 0, 4096, 3, 1, 99, 0)") == (-1, errno.EBADF)
    assert do(process, "call('mmap', 0, 4096, 3, 1, -1, 0)") == (-1, errno.EBADF)
    assert do(process, f"call('mmap', 0, 0, 3, 1, opened({str(private)!r}), 0)") == (
        -1,
        errno.EINVAL,
    )


@pytest.mark.rule("M2", level="Converge")
def test_object_of_an_unknown_group_is_allowed(node: Node, shared: Shared) -> None:
    pod = node.pod()
    configure(node, group(), listed=[pod])
    process = sharer(pod)
    assert maps(process, shared.file, 0, PAGE) == NONE
    node.share({GROUP: shared.extent})
    node.until(lambda: maps(process, shared.file, 0, PAGE) == NO)
    node.kill_gate()
    assert maps(process, shared.file, 0, PAGE) == NO


@pytest.mark.rule("M2", level="Converge")
def test_unlisted_pod_waits_for_its_membership(node: Node, shared: Shared) -> None:
    late, free = node.pod(), node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group())
    process = sharer(late)
    send(process, f"0 map({str(shared.file)!r}, 0, {PAGE})")
    assert not answers(process, 0.5)
    configure(node, group(pods=[late]), listed=[late, free])
    assert answers(process, 30)
    assert process.stdout is not None
    assert ast.literal_eval(process.stdout.readline())[1] == NONE


@pytest.mark.rule("M8", level="Converge")
def test_audit_and_release_deny_no_mapping(node: Node, shared: Shared) -> None:
    pod, other = node.pod(), node.pod()
    node.share({GROUP: shared.extent})
    processes = [sharer(each) for each in (pod, other)]
    audited = group(limit=PAGE, pods=[pod], enforcement="Audit")
    enforced = group(limit=PAGE, pods=[pod])
    for groups, more in (((audited,), {}), ((enforced,), {"mode": "Release"}), ((), {})):
        configure(node, *groups, listed=[pod, other], **more)
        assert [maps(process, shared.file, 0, 2 * PAGE) for process in processes] == [NONE, NONE]
    configure(node, enforced, listed=[pod, other])
    assert [maps(process, shared.file, 0, 3 * PAGE) for process in processes] == [FULL, NO]


@pytest.mark.rule("M8", level="Converge")
def test_pod_of_a_node_without_groups_is_not_read(node: Node, shared: Shared) -> None:
    pod = node.pod()
    node.share({GROUP: shared.extent})
    configure(node)  # it does not even list the pod
    process = sharer(pod)
    began = time.monotonic()
    assert {maps(process, shared.file, 0, PAGE) for _ in range(200)} == {NONE}
    assert time.monotonic() - began < UNLISTED_SECONDS
    node.until(lambda: pod.container in node.status.mapping)


@pytest.mark.rule("M2", "M8", level="Converge")
@pytest.mark.parametrize("capabilities", ["+sys_ptrace", "+sys_ptrace,+dac_read_search"])
def test_capabilities_of_its_container_are_enough(
    node: Node, shared: Shared, capabilities: str
) -> None:
    """CAP_DAC_READ_SEARCH is needed for another user's /proc/PID/fd."""
    member, other = node.pod(), node.pod()
    node.kill_gate(capabilities=capabilities)
    process, stranger = sharer(member), sharer(other)
    for each in (
        process,
        stranger,
    ):  # as an exec would: its files in /proc are its user's (PR_SET_DUMPABLE)
        assert do(each, "call('prctl', 4, 1)") == (0, 0)
    memfd = "call('mmap', 0, 4096, 3, 1, globals().setdefault('m', os.memfd_create('m')), 0)"
    assert do(process, memfd)[1] == do(stranger, memfd)[1] == NONE
    about = os.stat(f"/proc/{process.pid}/fd/{ask(process, '0 m')}")
    extent = ObjectSet(shared.extent.devices, frozenset({ObjectId(about.st_dev, about.st_ino)}))
    node.share({GROUP: extent})
    configure(node, group(limit=LIMIT, pods=[member]), listed=[member, other])
    assert maps(stranger, shared.file, 0, PAGE) == NO
    assert do(stranger, memfd)[1] == NONE
    assert do(process, "call('mmap', 0, 8192, 3, 1, m, 0)")[1] == NONE
    assert maps(process, shared.file, 0, LIMIT) == FULL
    assert maps(process, shared.file, 0, LIMIT - 2 * PAGE) == NONE
    configure(node, group(), listed=[member, other])
    assert do(process, memfd) == (-1, NO)


# -- how much --


@pytest.mark.rule("M8", "M6", level="Converge")
def test_member_gets_its_limit_to_the_page_and_each_page_once(node: Node, shared: Shared) -> None:
    pod = node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(limit=LIMIT, pods=[pod]), listed=[pod])
    process = sharer(pod, 2)
    assert maps(process, shared.file, 0, LIMIT + PAGE) == FULL
    assert maps(process, shared.file, 0, LIMIT - PAGE) == NONE
    assert maps(process, shared.file, LIMIT - PAGE, 2 * PAGE) == FULL
    assert maps(process, shared.file, LIMIT - PAGE, PAGE, child=1) == NONE
    for child in (0, 1, 2):
        assert maps(process, shared.file, 0, LIMIT, child=child) == NONE
        assert maps(process, shared.file, PAGE, LIMIT, child=child) == FULL
        assert maps(process, shared.file, 32 * MIB, 1, child=child) == FULL
    assert shared.has(pod) == LIMIT
    node.until(lambda: node.status.group_denials == {GROUP: {pod.uid: 8}})


@pytest.mark.rule("M8", level="Converge")
def test_racing_processes_fill_the_limit_and_never_exceed_it(node: Node, shared: Shared) -> None:
    pod, other = node.pod(), node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(limit=LIMIT, pods=[pod, other]), listed=[pod, other])
    process, beside = sharer(pod, 4), sharer(other, 1)
    for unit in (PAGE * 8, PAGE * 3, PAGE * 16):
        send(process, f"each fill({str(shared.file)!r}, {unit}, {SIZE})")
        send(beside, f"1 fill({str(shared.file)!r}, {unit}, {SIZE})")
        most = 0
        while not answers(process, 0):
            most = max(most, shared.has(pod))
        assert process.stdout is not None
        assert beside.stdout is not None
        counts = ast.literal_eval(process.stdout.readline())
        assert {error for _, error in counts} == {FULL}
        assert sum(count for count, _ in counts) == LIMIT // unit
        assert most <= LIMIT
        assert shared.has(pod) == LIMIT // unit * unit
        assert ast.literal_eval(beside.stdout.readline()) == (LIMIT // unit, FULL)
        assert shared.has(other) == LIMIT // unit * unit
        ask(process, "each empty()")
        ask(beside, "1 empty()")


@pytest.mark.rule("M6", "M8", level="Converge")
def test_unmapping_or_exit_makes_room_again(node: Node, shared: Shared) -> None:
    pod = node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(limit=LIMIT, pods=[pod]), listed=[pod])
    one, other = sharer(pod), sharer(pod)
    for _ in range(10):
        address, error = do(one, f"map({str(shared.file)!r}, 0, {LIMIT})")
        assert error == NONE
        assert maps(other, shared.file, LIMIT, PAGE) == FULL
        assert do(one, f"unmap({address + HALF}, {HALF})") == (0, 0)
        half, error = do(other, f"map({str(shared.file)!r}, {LIMIT}, {HALF})")
        assert error == NONE
        assert maps(other, shared.file, 2 * LIMIT, PAGE) == FULL
        assert do(one, f"unmap({address}, {HALF})") == do(other, f"unmap({half}, {HALF})") == (0, 0)
    assert maps(one, shared.file, 0, LIMIT) == NONE
    one.kill()
    one.wait()
    assert maps(other, shared.file, LIMIT, LIMIT) == NONE


@pytest.mark.rule("M8", "P12", level="Converge")
def test_changed_limit_applies_to_the_next_mapping_and_evicts_nothing(
    node: Node, shared: Shared
) -> None:
    pod = node.pod()
    node.share({GROUP: shared.extent})
    process = sharer(pod)
    for limit, asked in ((HALF, LIMIT), (LIMIT, LIMIT + PAGE)):
        configure(node, group(limit=limit, pods=[pod]), listed=[pod])
        assert maps(process, shared.file, 0, asked) == FULL
        assert maps(process, shared.file, 0, limit) == NONE
    configure(node, group(limit=PAGE, pods=[pod]), listed=[pod])
    assert maps(process, shared.file, 0, LIMIT) == NONE
    assert maps(process, shared.file, LIMIT, PAGE) == FULL
    assert shared.has(pod) == LIMIT


@pytest.mark.rule("M8", level="Converge")
def test_limit_on_resident_bytes_denies_no_mapping(node: Node, shared: Shared) -> None:
    pod = node.pod()
    node.share({GROUP: shared.extent})
    one = group(limit=PAGE, pods=[pod])
    members = [
        NodeMember.model_validate(
            {"pods": [pod.uid], "borrowLimit": PAGE, "borrowLimitOn": "Resident"}
        )
    ]
    configure(node, one.model_copy(update={"members": members}), listed=[pod])
    assert maps(sharer(pod), shared.file, 0, SIZE) == NONE


@pytest.mark.rule("M8", level="Converge")
def test_each_group_has_its_own_limit(node: Node, shared: Shared) -> None:
    pod = node.pod()
    second = shared.folder / "second"
    second.write_bytes(bytes(2 * PAGE))
    second.chmod(0o666)
    extents = {}
    for uid, file in (("uid-1", shared.file), ("uid-2", second)):
        about = file.stat()
        extents[uid] = ObjectSet(objects=frozenset({ObjectId(about.st_dev, about.st_ino)}))
    node.share(extents)
    configure(
        node,
        group("uid-1", limit=LIMIT, pods=[pod]),
        group("uid-2", limit=PAGE, pods=[pod]),
        listed=[pod],
    )
    process = sharer(pod)
    assert maps(process, shared.file, 0, LIMIT) == NONE
    assert maps(process, second, 0, PAGE) == NONE
    assert [
        maps(process, file, LIMIT if file == shared.file else PAGE, PAGE)
        for file in (shared.file, second)
    ] == [
        FULL,
        FULL,
    ]
    node.until(lambda: node.status.group_denials == {"uid-1": {pod.uid: 1}, "uid-2": {pod.uid: 1}})


@pytest.mark.rule("M8", level="Converge")
def test_mapping_grows_up_to_the_limit(node: Node, shared: Shared) -> None:
    pod, other = node.pod(), node.pod()
    node.share({GROUP: shared.extent})
    process, stranger = sharer(pod), sharer(other)
    bare, _ = do(stranger, f"map({str(shared.file)!r}, 0, {PAGE})")
    configure(node, group(limit=LIMIT, pods=[pod]), listed=[pod, other])
    address, _ = do(process, f"map({str(shared.file)!r}, {8 * PAGE}, {HALF})")
    assert do(process, f"grow({address}, {HALF}, {LIMIT + PAGE})") == (-1, FULL)
    address, error = do(process, f"grow({address}, {HALF}, {LIMIT})")
    assert error == NONE
    assert shared.has(pod) == LIMIT
    assert do(process, f"grow({address + PAGE}, 0, {LIMIT})") == (-1, FULL)
    assert do(process, f"grow({address + PAGE}, 0, {LIMIT - PAGE})")[1] == NONE
    assert shared.has(pod) == LIMIT
    assert do(stranger, f"grow({bare}, {PAGE}, {2 * PAGE})") == (-1, NO)
    anonymous, _ = do(process, f"call('mmap', 0, {PAGE}, 3, 0x22, -1, 0)")
    assert do(process, f"grow({anonymous}, {PAGE}, {4 * LIMIT})")[1] == NONE


@pytest.mark.rule("M8", level="Converge")
def test_another_range_over_a_mapping_counts_besides(node: Node, shared: Shared) -> None:
    pod = node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(limit=LIMIT, pods=[pod]), listed=[pod])
    process = sharer(pod)
    address, _ = do(process, f"map({str(shared.file)!r}, 0, {LIMIT - PAGE})")
    assert do(process, f"remap({address}, {2 * PAGE}, {LIMIT // PAGE})") == (-1, FULL)
    assert do(process, f"remap({address}, {PAGE}, {LIMIT // PAGE})") == (0, 0)
    assert shared.has(pod) == LIMIT - PAGE


@pytest.mark.rule("M8", level="Converge")
def test_mapping_of_huge_pages_counts_by_whole_ones(node: Node) -> None:
    pod = node.pod()
    with mounted("hugetlbfs") as shared:
        huge = os.statvfs(shared.folder).f_bsize
        node.share({GROUP: shared.extent})
        configure(node, group(limit=2 * huge, pods=[pod]), listed=[pod])
        process = sharer(pod)
        assert maps(process, shared.file, 0, 2 * huge + 1, NO_RESERVE) == FULL
        assert maps(process, shared.file, 0, huge + 1, NO_RESERVE) == NONE
        assert shared.has(pod) == 2 * huge
        assert maps(process, shared.file, 2 * huge, 1, NO_RESERVE) == FULL


@pytest.mark.rule("M8", "M2", level="Converge")
def test_system_v_segment_is_attached_by_members_up_to_the_limit(node: Node) -> None:
    pod, other = node.pod(), node.pod()
    space = ipc_namespace(Path("/proc/self"))
    assert space is not None
    with (
        segment(HALF) as one,
        segment(HALF) as second,
        segment(PAGE) as third,
        segment(PAGE) as foreign,
    ):
        shared = Shared(Path(), Path(), of_segments({one: HALF, second: HALF, third: PAGE}, space))
        node.share({GROUP: shared.extent})
        configure(node, group(limit=LIMIT, pods=[pod]), listed=[pod, other])
        process, stranger = sharer(pod), sharer(other)
        assert do(stranger, f"attach({one})") == (-1, NO)
        assert do(stranger, f"attach({foreign})")[1] == NONE
        assert do(process, f"attach({one})")[1] == NONE
        address, error = do(process, f"attach({second})")
        assert error == NONE
        assert shared.has(pod) == LIMIT
        assert do(process, f"attach({third})") == (-1, FULL)
        assert do(process, f"attach({one})")[1] == NONE
        assert do(process, f"detach({address})") == (0, 0)
        assert do(process, f"attach({third})")[1] == NONE
        assert do(process, "attach(-1)") == (-1, errno.EINVAL)


@pytest.mark.rule("M8", level="Converge")
def test_segment_of_another_ipc_namespace_counts_as_large_as_the_accountant_found_it(
    node: Node,
) -> None:
    pod = node.pod()
    process = sharer(pod, user=0)
    assert do(process, "call('syscall', 272, 0x08000000)") == (0, 0)  # unshare(CLONE_NEWIPC)
    small, _ = do(process, f"call('shmget', 0, {PAGE}, 0o1600)")
    large, _ = do(process, f"call('shmget', 0, {4 * PAGE}, 0o1600)")
    space = ipc_namespace(Path(f"/proc/{process.pid}"))
    assert space not in (None, ipc_namespace(Path("/proc/self")))
    shared = Shared(Path(), Path(), of_segments({small: PAGE, large: 4 * PAGE}, space or 0))
    node.share({GROUP: shared.extent})
    configure(node, group(limit=4 * PAGE, pods=[pod]), listed=[pod])
    assert do(process, f"attach({small})")[1] == NONE
    assert do(process, f"attach({large})") == (-1, FULL)
    configure(node, group(limit=5 * PAGE, pods=[pod]), listed=[pod])
    assert do(process, f"attach({large})")[1] == NONE
    assert do(process, f"attach({large})")[1] == NONE, "it adds nothing"
    assert shared.has(pod) == 5 * PAGE


@pytest.mark.rule("M8", "P1", level="Converge")
def test_mapping_that_is_locked_must_fit_both_limits(node: Node, shared: Shared) -> None:
    pod = node.pod()
    node.share({GROUP: shared.extent})

    def set_limits(pins: int, borrows: int) -> None:
        pinned = {"name": "pins", "uid": "uid-pins", "scope": "Pod", "limit": pins}
        configure(
            node,
            group(limit=borrows, pods=[pod]),
            limits=[pinned],
            pods=[{"uid": pod.uid, "limits": ["pins"]}],
        )

    process = sharer(pod)
    set_limits(HALF, LIMIT)
    assert maps(process, shared.file, 0, HALF + PAGE, LOCKED) == errno.EAGAIN
    set_limits(LIMIT, HALF)
    assert maps(process, shared.file, 0, HALF + PAGE, LOCKED) == FULL
    set_limits(HALF, HALF)
    address, error = do(process, f"map({str(shared.file)!r}, 0, {HALF}, {LOCKED})")
    assert error == NONE
    assert pod.locked == shared.has(pod) == HALF
    set_limits(HALF, LIMIT)
    assert do(process, f"grow({address}, {HALF}, {HALF + PAGE})") == (-1, errno.EAGAIN)
    set_limits(LIMIT, HALF)
    assert do(process, f"grow({address}, {HALF}, {HALF + PAGE})") == (-1, FULL)
    assert maps(process, shared.file, 0, HALF, LOCKED) == NONE
    assert (pod.locked, shared.has(pod)) == (LIMIT, HALF)
    node.until(lambda: node.status.denials == {pod.uid: {"uid-pins": 2}})
    node.until(lambda: node.status.group_denials == {GROUP: {pod.uid: 2}})


# -- draining, and a gate that dies --


@pytest.mark.rule("M10", level="Converge")
def test_draining_group_denies_new_borrowers_and_keeps_the_others(
    node: Node, shared: Shared
) -> None:
    old, new = node.pod(), node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(limit=LIMIT, pods=[old, new]), listed=[old, new])
    one, other = sharer(old), sharer(new)
    address, _ = do(one, f"map({str(shared.file)!r}, 0, {PAGE})")
    configure(node, group(limit=LIMIT, pods=[old, new], draining=True), listed=[old, new])
    assert maps(other, shared.file, 0, PAGE) == NO
    again, error = do(one, f"map({str(shared.file)!r}, {PAGE}, {HALF})")
    assert error == NONE
    assert maps(one, shared.file, 0, LIMIT + PAGE) == FULL
    assert do(one, f"unmap({again}, {HALF})") == do(one, f"unmap({address}, {PAGE})") == (0, 0)
    assert maps(one, shared.file, 0, PAGE) == NO
    node.until(lambda: node.status.group_denials == {GROUP: {old.uid: 2, new.uid: 1}})


@pytest.mark.rule("M8", "H3", level="Converge")
def test_repeatedly_killed_gate_lets_no_member_exceed_its_limit(node: Node, shared: Shared) -> None:
    pod = node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(limit=LIMIT, pods=[pod]), listed=[pod])
    process = sharer(pod, 4)
    for _ in range(10):
        send(process, f"each fill({str(shared.file)!r}, {4 * PAGE}, {SIZE})")
        node.kill_gate()
        while not answers(process, 0):
            assert shared.has(pod) <= LIMIT
        assert process.stdout is not None
        counts = ast.literal_eval(process.stdout.readline())
        assert {error for _, error in counts} == {FULL}
        assert shared.has(pod) == LIMIT
        ask(process, "each empty()")


# -- ways around it --


@pytest.mark.rule("H1", level="Converge")
def test_mapping_without_a_notification_counts_afterwards(node: Node, shared: Shared) -> None:
    """Sampling and the next call see MAP_PRIVATE, and a file that replaced the checked one."""
    pod, other = node.pod(), node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(limit=LIMIT, pods=[pod]), listed=[pod, other])
    process, stranger = sharer(pod), sharer(other)
    private = f"call('mmap', 0, {LIMIT}, 1, 2, opened({str(shared.file)!r}), 0)"
    assert do(stranger, private)[1] == NONE
    assert shared.has(other) == LIMIT
    assert do(process, private)[1] == NONE
    assert maps(process, shared.file, LIMIT, PAGE) == FULL


@pytest.mark.rule("M2", level="Converge")
def test_descriptor_from_a_member_makes_no_borrower(node: Node, shared: Shared) -> None:
    member, other = node.pod(), node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(pods=[member]), listed=[member, other])
    process, stranger = sharer(member), sharer(other)
    name = f"'\\0pinwarden-{os.urandom(8).hex()}'"
    new = "__import__('socket').socket(1, 2)"
    ask(stranger, f"0 globals().update(s={new}) or s.bind({name})")
    ask(process, f"0 globals().update(s={new}) or s.connect({name})")
    ask(process, f"0 __import__('socket').send_fds(s, [b'!'], [opened({str(shared.file)!r})])")
    ask(stranger, "0 globals().update(d=__import__('socket').recv_fds(s, 1, 1)[1][0])")
    assert do(stranger, f"call('mmap', 0, {PAGE}, 3, 1, d, 0)") == (-1, NO)
    assert do(stranger, "(os.read(d, 1)[0], 0)") == (0, 0)
    assert shared.has(other) == 0


@pytest.mark.rule("M8", "P1", level="Converge")
def test_threads_user_namespaces_and_opening_it_again_change_nothing(
    node: Node, shared: Shared
) -> None:
    pod = node.pod()
    node.share({GROUP: shared.extent})
    configure(node, group(), listed=[pod])
    process = sharer(pod)
    asked = f"map({str(shared.file)!r}, 0, {PAGE})"
    thread = f"threading.Thread(target=lambda: globals().update(r={asked}))"
    in_thread = f"(t := {thread}, t.start(), t.join()) and r"
    assert do(process, in_thread) == (-1, NO)
    again = f"os.open('/proc/self/fd/' + str(opened({str(shared.file)!r})), os.O_RDWR)"
    assert do(process, f"call('mmap', 0, {PAGE}, 3, 1, {again}, 0)") == (-1, NO)
    assert do(process, "call('syscall', 272, 0x10000000)") == (0, 0)
    assert do(process, asked) == (-1, NO)
    assert shared.has(pod) == 0
