"""Finding objects among open files and mappings with hostile names, over folders like /proc."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinwarden.api.nodepinconfig import NodeGroup, NodeMember
from pinwarden.node.accountant.finder import Finder, dmabuf, posix_shm, processes, unlinked
from pinwarden.node.accountant.finder.result import MOST_OBJECTS, GroupObjects, ObjectsNotFoundError
from pinwarden.node.accountant.round_time import RoundTime
from pinwarden.node.linux import openat2
from pinwarden.node.linux.mountinfo import read_mountinfo
from pinwarden.node.shm.objects import ObjectId

PID = 7


def group(backing: dict[str, Any]) -> NodeGroup:
    return NodeGroup.model_validate(
        {
            "name": "ns/g",
            "uid": "g",
            "backing": backing,
            "management": "Adopt",
            "accounting": "Borrow",
            "fairShare": "Borrow",
            "members": [{"pods": ["p"]}],
        }
    )


@pytest.mark.rule("M3")
def test_dma_buf_with_any_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DMA_BUF_SET_NAME takes any bytes, and fdinfo shows them."""
    buffer, folder = tmp_path / "buffer", tmp_path / str(PID) / "fdinfo"
    buffer.touch()
    folder.mkdir(parents=True)
    (folder / "3").write_bytes(b"size:\t8192\ncount:\t1\nexp_name:\tudmabuf\nname:\t\xff\n")
    monkeypatch.setattr(dmabuf, "descriptors", lambda *_: [("3", str(buffer), "/dmabuf:\udcff")])
    results = Finder(tmp_path).find(group({"dmabuf": {"exporter": "udmabuf"}}), {"p": [PID]})
    about = buffer.stat()
    assert results.objects == {ObjectId(about.st_dev, about.st_ino): 8192}


def test_mount_with_any_name_is_read(tmp_path: Path) -> None:
    """A name can have a character that ends a line in Unicode, and bytes that are not text."""
    point = "/a\r\x0b\x1c\x85\u2028b".encode() + b"\xff"
    (tmp_path / "mountinfo").write_bytes(b"30 1 0:25 / %b rw - tmpfs tmpfs rw\n" % point)
    assert [
        (mount.device, os.fsencode(mount.point), mount.type) for mount in read_mountinfo(tmp_path)
    ] == [(os.makedev(0, 25), point, "tmpfs")]


@pytest.mark.rule("M3")
def test_vanished_or_low_mapping_hides_no_memfd(tmp_path: Path) -> None:
    process = tmp_path / str(PID)
    (process / "map_files").mkdir(parents=True)
    mappings = {
        "05000000-05001000": 8,
        "06000000-06001000": 8,
        "00010000-00011000": 9,
        "7f0000000000-7f0000001000": 10,
    }
    lines = [
        f"{where} rw-s 00000000 00:01 {inode}    /memfd:pw (deleted)\n"
        for where, inode in mappings.items()
    ]
    (process / "maps").write_text("".join(lines))
    for name in ("6000000-6001000", "10000-11000", "7f0000000000-7f0000001000"):
        (process / "map_files" / name).touch()
    results = Finder(tmp_path).find(group({"memfd": {"name": "pw"}}), {"p": [PID]})
    assert results.count == 3


@pytest.mark.rule("M3")
def test_ended_first_thread_hides_no_memfd(tmp_path: Path) -> None:
    """Its process then shows no mappings. Another thread does, also in a folder of its own."""
    thread = tmp_path / str(PID) / "task" / str(PID + 1)
    files = tmp_path / str(PID + 1) / "map_files"
    thread.mkdir(parents=True)
    files.mkdir(parents=True)
    (thread / "maps").write_text(
        "7f0000000000-7f0000001000 rw-s 00000000 00:01 8    /memfd:pw (deleted)\n"
    )
    (files / "7f0000000000-7f0000001000").touch()
    results = Finder(tmp_path).find(group({"memfd": {"name": "pw"}}), {"p": [PID]})
    assert results.count == 1


MANY_DESCRIPTORS = 17_000
HOLDS_MANY = f"""
import os, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, ({MANY_DESCRIPTORS + 1}, hard))
other = os.memfd_create("other")
for number in range(other + 1, {MANY_DESCRIPTORS}):
    os.dup2(other, number)
os.dup2(os.memfd_create("pw-last"), {MANY_DESCRIPTORS})
print("ready", flush=True)
input()
"""


@pytest.mark.rule("M3")
def test_many_descriptors_hide_no_memfd() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS_MANY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "ready\n"
        results = Finder(Path("/proc")).find(
            group({"memfd": {"name": "pw-*"}}), {"p": [holder.pid]}
        )
    finally:
        holder.communicate("\n")
    assert results.count == 1
    assert not results.truncated


@pytest.mark.rule("H2")
@pytest.mark.parametrize("backing", [{"memfd": {"name": "pw"}}, {"dmabuf": {"exporter": "pw"}}])
def test_search_that_takes_too_long_is_no_absence(
    backing: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SECONDS", 0.0)
    with pytest.raises(ObjectsNotFoundError, match="time was too short"):
        Finder(tmp_path).find(group(backing), {"p": [PID]})


UNLINKED = 40960
A, B = 11, 12


class SharedMemory:
    """The node's /dev/shm with unlinked objects, and the processes with them open."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.shown: dict[int, list[str]] = {}
        self.inodes: dict[str, int] = {}
        self.hidden = 0
        """Bytes without a process that shows them."""
        self.read: list[int] = []
        self.finder = Finder(Path("/proc"), os.getpid())
        self.rooms = {"a": MOST_OBJECTS, "b": MOST_OBJECTS}
        patch.setattr(unlinked, "named_bytes", lambda _: 0)
        patch.setattr(unlinked, "nested_bytes", lambda _: 0)
        patch.setattr(
            unlinked,
            "used_bytes",
            lambda _: (
                self.hidden
                + UNLINKED * len({name for names in self.shown.values() for name in names})
            ),
        )
        patch.setattr(unlinked, "_unlinked", self.unlinked)

    def unlinked(
        self, _: Path, pid: int, device: int, deadline: float
    ) -> Iterator[unlinked.UnlinkedObject]:
        self.read.append(pid)
        for name in processes.before(deadline, self.shown.get(pid, ())):
            inode = self.inodes.setdefault(name, 1 << 40 | len(self.inodes))
            yield unlinked.UnlinkedObject(ObjectId(device, inode), name, UNLINKED)

    def find_all(self) -> dict[str, GroupObjects | ObjectsNotFoundError]:
        """Do a round with two groups over /dev/shm, the older group first."""
        pids = {"a": [A], "b": [B]}
        backing = {"posixShm": {"name": "pw-hidden-*", "ipcNamespace": "Host"}}
        groups = {
            uid: group(backing).model_copy(update={"uid": uid, "members": [NodeMember(pods=[uid])]})
            for uid in pids
        }
        self.finder.begin(groups.values(), pids)
        results: dict[str, GroupObjects | ObjectsNotFoundError] = {}
        for uid, pod_pids in pids.items():
            try:
                results[uid] = self.finder.find(groups[uid], {uid: pod_pids}, room=self.rooms[uid])
            except ObjectsNotFoundError as error:
                results[uid] = error
        return results


@pytest.fixture
def shm(monkeypatch: pytest.MonkeyPatch) -> SharedMemory:
    return SharedMemory(monkeypatch)


def charges(results: dict[str, GroupObjects | ObjectsNotFoundError]) -> dict[str, object]:
    return {
        uid: (result.charge, result.truncated)
        if isinstance(result, GroupObjects)
        else result.reason
        for uid, result in results.items()
    }


@pytest.mark.rule("M3", "H2")
def test_groups_over_one_dev_shm_find_the_objects_of_their_own_members(
    shm: SharedMemory,
) -> None:
    shm.shown = {B: ["pw-hidden-b"]}
    assert charges(shm.find_all()) == {"a": "NotThere", "b": (UNLINKED, False)}
    shm.shown = {A: ["pw-hidden-a"], B: ["pw-hidden-b"]}
    assert charges(shm.find_all()) == {"a": (UNLINKED, False), "b": (UNLINKED, False)}
    shm.shown = {A: ["pw-hidden-a", "pw-hidden-b"], B: ["pw-hidden-b"]}
    assert charges(shm.find_all()) == {"a": (2 * UNLINKED, False), "b": (UNLINKED, False)}


def test_process_is_read_once_in_a_round_for_all_groups(shm: SharedMemory) -> None:
    shm.shown = {A: ["pw-hidden-a"], B: ["pw-hidden-b"]}
    shm.find_all()
    assert sorted(shm.read) == [A, B]
    shm.find_all()
    assert sorted(shm.read) == [A, A, B, B]


@pytest.mark.rule("H2", "M10")
def test_missing_object_with_unexplained_bytes_is_not_readable(shm: SharedMemory) -> None:
    shm.shown, shm.hidden = {B: ["pw-hidden-b"]}, UNLINKED
    results = shm.find_all()
    assert charges(results) == {"a": "NotReadable", "b": (UNLINKED, True)}
    assert "no member's process shows" in str(results["a"])


@pytest.mark.rule("H2", "M10")
def test_wrong_type_with_unexplained_bytes_is_not_readable(
    shm: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member could make a folder of a matching name, and have its group released."""

    def folder(results: GroupObjects, *__: object) -> None:
        results.not_regular = "/dev/shm/pw-hidden-folder"

    monkeypatch.setattr(posix_shm, "add_matching", folder)
    assert charges(shm.find_all()) == {"a": "WrongType", "b": "WrongType"}
    shm.hidden = UNLINKED
    assert charges(shm.find_all()) == {"a": "NotReadable", "b": "NotReadable"}


@pytest.mark.rule("M10")
def test_group_without_processes_ignores_unexplained_bytes(
    shm: SharedMemory,
) -> None:
    """Otherwise a stranger could keep a draining group whose last pod has ended."""
    shm.hidden = UNLINKED
    backing = {"posixShm": {"name": "pw-hidden-*", "ipcNamespace": "Host"}}
    with pytest.raises(ObjectsNotFoundError) as raised:
        shm.finder.find(group(backing), {})
    assert raised.value.reason == "NotThere"


@pytest.mark.rule("H2")
def test_missing_object_without_time_or_room_is_not_readable(
    shm: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shm.shown = {A: ["pw-hidden-a"], B: ["pw-hidden-b"]}
    shm.rooms["b"] = 0
    assert charges(shm.find_all()) == {"a": (UNLINKED, False), "b": "NotReadable"}
    monkeypatch.setattr(processes, "SECONDS", 0.0)
    results = shm.find_all()
    assert charges(results) == {"a": "NotReadable", "b": "NotReadable"}
    assert "the time was too short" in str(results["a"])
    assert "no member's process" not in str(results["a"])


@pytest.mark.rule("H2")
@pytest.mark.parametrize(
    ("error", "reason"),
    [(errno.ENOENT, "NotThere"), (errno.ELOOP, "NotReadable"), (errno.EMFILE, "NotReadable")],
)
def test_dev_shm_of_a_pod_that_cannot_be_read_is_no_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, reason: str
) -> None:
    namespace = tmp_path / str(PID) / "ns" / "mnt"
    namespace.parent.mkdir(parents=True)
    namespace.symlink_to("mnt:[1]")

    def fail(*_: object, **__: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(openat2, "opened_folder", fail)
    backing = {"posixShm": {"name": "pw-hidden-*", "ipcNamespace": "Pod"}}
    with pytest.raises(ObjectsNotFoundError) as raised:
        Finder(tmp_path).find(group(backing), {"p": [PID]})
    assert raised.value.reason == reason
    assert reason == "NotThere" or os.strerror(error) in str(raised.value)


@pytest.mark.rule("H2")
def test_group_with_slow_members_leaves_other_groups_known(
    shm: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read of the clock for a process of the older group takes a second, without an end."""
    clock = [0.0]
    monkeypatch.setattr(
        "pinwarden.node.accountant.finder.unlinked.time.monotonic", lambda: clock[0]
    )

    def slow(_: Path, pid: int, device: int, deadline: float) -> Iterator[unlinked.UnlinkedObject]:
        if pid == A:
            while clock[0] < deadline:
                clock[0] += 1
            raise TimeoutError
        yield from shm.unlinked(_, pid, device, deadline)

    monkeypatch.setattr(unlinked, "_unlinked", slow)
    monkeypatch.setattr(processes, "SECONDS", posix_shm.ROUND_SECONDS)
    shm.finder._posix_shm._time = RoundTime(posix_shm.ROUND_SECONDS, lambda: clock[0])
    shm.shown = {B: ["pw-hidden-b"]}
    for _ in range(3):
        assert charges(shm.find_all()) == {"a": "NotReadable", "b": (UNLINKED, False)}
