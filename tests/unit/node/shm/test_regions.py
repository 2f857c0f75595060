"""Reading the mappings of invented processes, for rare cases, and of this process."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.shm.regions import ProcessMaps, Region, RegionFilter

SHM, DISK = os.makedev(0, 0x2F), os.makedev(0x103, 0x1A)
MAPS = b"""\
55d0c0a00000-55d0c0a01000 r--p 00000000 103:1a 99                        /usr/bin/python3.11
7f0000000000-7f0000002000 rw-s 00003000 00:2f 7                  \
        /dev/shm/a 00:30 b\\012c (deleted)
7f0000002000-7f0000003000 rw-p 00000000 00:2f 7                          /dev/shm/a
7f0000004000-7f0000005000 rw-s 00000000 00:01 5                          /SYSV00000000 (deleted)
7f0000005000-7f0000006000 rw-s 00000000 00:01 5                  \
        /memfd:/SYSV00000000 (deleted)
7f0000007000-7f0000008000 rw-p 00000000 00:00 0\x20
7f0000008000-7f0000009000 rw-p 00000000 00:00 0                          [anon:rw-s 0 00:2f 7 ]
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def made(root: Path, text: bytes, pid: int = 1, space: int = 77) -> ProcessMaps:
    folder = root / str(pid)
    (folder / "ns").mkdir(parents=True)
    (folder / "ns" / "ipc").symlink_to(f"ipc:[{space}]")
    (folder / "maps").write_bytes(text)
    return ProcessMaps(root, pid)


def test_mappings_of_a_wanted_device_are_found_and_no_others(tmp_path: Path) -> None:
    object_id = ObjectId(SHM, 7)
    assert RegionFilter([ObjectSet(devices=frozenset([SHM]))]).regions(made(tmp_path, MAPS)) == [
        Region(0x7F0000000000, 0x7F0000002000, 0x3000, object_id, True),
        Region(0x7F0000002000, 0x7F0000003000, 0, object_id, False),
    ]


def test_single_object_is_distinguished_from_others_of_its_device(tmp_path: Path) -> None:
    process = made(tmp_path, MAPS)
    assert (
        len(RegionFilter([ObjectSet(objects=frozenset([ObjectId(SHM, 7)]))]).regions(process)) == 2
    )
    assert RegionFilter([ObjectSet(objects=frozenset([ObjectId(SHM, 8)]))]).regions(process) == []
    (found_region,) = RegionFilter([ObjectSet(objects=frozenset([ObjectId(DISK, 99)]))]).regions(
        process
    )
    assert not found_region.shared


def test_segment_is_distinguished_from_a_memfd_and_from_other_namespaces(
    tmp_path: Path,
) -> None:
    process = made(tmp_path, MAPS)
    device = os.makedev(0, 1)
    segment, memfd, other = ObjectId(device, 5, 77), ObjectId(device, 5), ObjectId(device, 5, 78)
    for wanted, start in ((segment, 0x7F0000004000), (memfd, 0x7F0000005000)):
        objects = [ObjectSet(objects=frozenset([wanted, other]))]
        (found_region,) = RegionFilter(objects).regions(process)
        assert (found_region.object, found_region.start) == (wanted, start)


def test_segment_is_no_memfd_without_a_wanted_segment(tmp_path: Path) -> None:
    file = os.memfd_create("ring")
    about = os.fstat(file)
    os.close(file)
    device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}".encode()
    process = made(tmp_path, MAPS.replace(b" 00:01 5 ", b" %s 5 " % device))
    (found_region,) = RegionFilter(
        [ObjectSet(objects=frozenset([ObjectId(about.st_dev, 5)]))]
    ).regions(process)
    assert found_region.start == 0x7F0000005000


def test_file_named_like_a_segment_is_no_segment(tmp_path: Path) -> None:
    """A pod can have such a file at the root of its processes."""
    process = made(tmp_path, MAPS.replace(b"/dev/shm/a\n", b"/SYSV00000000\n"))
    segment, file = ObjectId(os.makedev(0, 1), 5, 77), ObjectId(SHM, 7)
    regions = RegionFilter([ObjectSet(objects=frozenset([segment, file]))]).regions(process)
    assert [region.object for region in regions] == [file, file, segment]


def test_filter_without_objects_reads_nothing(tmp_path: Path) -> None:
    assert RegionFilter([ObjectSet()]).regions(ProcessMaps(tmp_path, 1)) == []


def test_gone_process_and_kernel_thread_have_no_mappings(tmp_path: Path) -> None:
    wanted = RegionFilter([ObjectSet(devices=frozenset([SHM]))])
    assert wanted.regions(ProcessMaps(tmp_path, 1)) == []
    assert wanted.regions(made(tmp_path, b"")) == []
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert [*ProcessMaps("/proc", child).lines()] == [], "a zombie"
    os.waitpid(child, 0)
    assert [*ProcessMaps("/proc", child).lines()] == []
    assert ProcessMaps("/proc", child).space == 0


def test_another_thread_is_read_after_the_first_has_ended(tmp_path: Path) -> None:
    process = made(tmp_path, b"")
    for thread, text in (("1", b""), ("2", MAPS)):
        (tmp_path / "1" / "task" / thread).mkdir(parents=True)
        (tmp_path / "1" / "task" / thread / "maps").write_bytes(text)
    assert len(RegionFilter([ObjectSet(devices=frozenset([SHM]))]).regions(process)) == 2
    assert process.folder.endswith("/1/task/2")


def test_unreadable_process_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = made(tmp_path, MAPS)

    def deny(*_: object, **__: object) -> int:
        raise PermissionError(13, "no")

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(PermissionError):
        list(process.lines())


def test_mapping_of_this_process_is_found() -> None:
    file = os.memfd_create("odd\nname (deleted)")
    os.ftruncate(file, 3 * mmap.PAGESIZE)
    area = mmap.mmap(file, mmap.PAGESIZE, offset=mmap.PAGESIZE)
    about = os.fstat(file)
    object_id = ObjectId(about.st_dev, about.st_ino)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    process = ProcessMaps("/proc", os.getpid())
    assert RegionFilter([ObjectSet(objects=frozenset([object_id]))]).regions(process) == [
        Region(start, start + mmap.PAGESIZE, mmap.PAGESIZE, object_id, True)
    ]
    assert process.space == os.stat("/proc/self/ns/ipc").st_ino
    os.close(file)
