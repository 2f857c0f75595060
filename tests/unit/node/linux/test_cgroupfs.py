"""Reading the files of cgroups, over folders like a hierarchy."""

import errno
import os
from pathlib import Path

import pytest

from pinwarden.node.linux import cgroupfs
from pinwarden.node.linux.cgroupfs import (
    Layout,
    cpu_time,
    detect_layout,
    member_pids,
    process_hierarchy,
)


def test_pids_of_one_cgroup_are_returned(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("12\n0\n7\n12\n")
    assert member_pids(tmp_path) == {7, 12}
    assert member_pids(tmp_path / "absent") == frozenset()


@pytest.mark.parametrize(
    ("number", "tolerated"), [("ENODEV", True), ("EOPNOTSUPP", True), ("EACCES", False)]
)
def test_removed_and_threaded_cgroups_have_no_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, tolerated: bool
) -> None:
    def read(descriptor: int, size: int) -> bytes:
        raise OSError(getattr(errno, number), number)

    (tmp_path / "cgroup.procs").touch()
    monkeypatch.setattr(os, "read", read)
    if tolerated:
        assert member_pids(tmp_path) == frozenset()
    else:
        with pytest.raises(PermissionError):
            member_pids(tmp_path)


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


V1_FILES = ("memory/cgroup.procs", "pids/cgroup.procs", "systemd/cgroup.procs")


@pytest.mark.parametrize(
    ("files", "layout", "hierarchy"),
    [
        (("cgroup.controllers", "cgroup.procs", "system.slice/cgroup.procs"), Layout.V2, "."),
        (V1_FILES, Layout.V1, "memory"),
        (V1_FILES[1:], Layout.V1, "pids"),
        (
            (*V1_FILES, "unified/cgroup.controllers", "unified/cgroup.procs"),
            Layout.HYBRID,
            "memory",
        ),
    ],
)
def test_layout_of_a_mounted_hierarchy_is_detected(
    tmp_path: Path, files: tuple[str, ...], layout: Layout, hierarchy: str
) -> None:
    touch(tmp_path, *files)
    assert detect_layout(tmp_path) is layout
    assert process_hierarchy(tmp_path) == tmp_path / hierarchy


def test_folder_without_hierarchy_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no cgroup hierarchy"):
        detect_layout(tmp_path)
    touch(tmp_path, "cpu/cgroup.procs")
    with pytest.raises(ValueError, match="memory, pids, systemd"):
        process_hierarchy(tmp_path)
    touch(tmp_path, "unified/cgroup.controllers")
    assert detect_layout(tmp_path) is Layout.HYBRID


@pytest.mark.rule("H2")
@pytest.mark.parametrize(
    ("step", "seen"), [(200, b"usage_usec 7"), (1_000_000, None), (10_000_000, None)]
)
def test_cpu_time_on_a_kernel_that_counts_ticks_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int, seen: bytes | None
) -> None:
    """A cgroup may have run for less than a tick, although its value is unchanged."""
    (tmp_path / "cpu.stat").write_text("usage_usec 7\nuser_usec 7\n")
    calls = iter(range(10**9))
    monkeypatch.setattr("time.thread_time_ns", lambda: next(calls) // 3 * step)
    cgroupfs._counts_ticks.cache_clear()
    try:
        assert cpu_time(tmp_path) == seen
    finally:
        cgroupfs._counts_ticks.cache_clear()
