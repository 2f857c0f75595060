"""The object of a call, and the mapped ranges of a pod, from /proc."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from pinwarden.node.gate import map_targets
from pinwarden.node.gate.borrow_rules import BorrowRules, ObjectRange
from pinwarden.node.gate.map_requests import MapRequest, NamedBy
from pinwarden.node.gate.map_targets import MapTarget
from pinwarden.node.gate.pin_requests import PAGE
from pinwarden.node.shm.objects import ObjectId, ObjectSet

from .mappings import group

PROC, OWN = Path("/proc"), Path("/proc/self")


def test_descriptor_read_by_each_way_is_the_same_file(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        about = os.fstat(file.fileno())
        expected = ObjectId(about.st_dev, about.st_ino)
        for identify in (map_targets.identify, map_targets.by_mount, map_targets.by_copy):
            assert identify(OWN, file.fileno()) == expected
    secret = os.memfd_create("x")
    about = os.fstat(secret)
    assert (
        map_targets.identify(OWN, secret)
        == map_targets.by_copy(OWN, secret)
        == ObjectId(about.st_dev, about.st_ino)
    )
    assert map_targets.by_mount(OWN, secret) is None
    os.close(secret)
    assert map_targets.by_copy(OWN, 999999) is None
    for identify in (map_targets.identify, map_targets.by_mount):
        with pytest.raises(FileNotFoundError):
            identify(OWN, 999999)


def test_mapped_object_is_found_by_descriptor_and_by_address() -> None:
    descriptor, other = os.memfd_create("x"), os.memfd_create("y")
    os.ftruncate(descriptor, 8 * PAGE)
    about = os.fstat(descriptor)
    file_id = ObjectId(about.st_dev, about.st_ino)
    groups = BorrowRules([group()], {"g": ObjectSet(objects=frozenset({file_id}))})
    pid = os.getpid()

    def target(request: MapRequest) -> MapTarget:
        return map_targets.target(PROC, pid, request, groups)

    assert target(MapRequest(NamedBy.DESCRIPTOR, descriptor, PAGE, PAGE)) == MapTarget(
        ObjectRange(file_id, PAGE, 2 * PAGE)
    )
    for missing in (other, 999999):
        assert target(MapRequest(NamedBy.DESCRIPTOR, missing, 0, PAGE)) == map_targets.NOTHING
    assert target(MapRequest(NamedBy.SEGMENT, 1)) == map_targets.NOTHING
    with mmap.mmap(descriptor, 4 * PAGE, offset=2 * PAGE) as area:
        anchor = ctypes.c_char.from_buffer(area)
        address = ctypes.addressof(anchor)
        assert target(
            MapRequest(NamedBy.ADDRESS, address + PAGE, 0, 5 * PAGE, relative=True)
        ) == MapTarget(ObjectRange(file_id, 3 * PAGE, 8 * PAGE))
        assert target(MapRequest(NamedBy.ADDRESS, address, 0, PAGE)) == MapTarget(
            ObjectRange(file_id, 0, PAGE)
        )
        assert (
            target(MapRequest(NamedBy.ADDRESS, address + 4 * PAGE, 0, PAGE)) == map_targets.NOTHING
        )
        del anchor
    assert (
        map_targets.target(PROC, 2**22 + 1, MapRequest(NamedBy.DESCRIPTOR, 0, 0, PAGE), groups)
        == map_targets.NOTHING
    )
    os.close(descriptor)
    os.close(other)
