"""The self-test of the eBPF ledger on this kernel, and what docs/sources.md says about the kernel.

Runs inside the guest, as root with every capability.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil
import pytest

from docs import sources
from pinwarden.node.ebpf import selftest
from pinwarden.node.ebpf.loader import OBJECTS, BpfError
from pinwarden.node.ebpf.selftest import PREFIX, OperationResult
from pinwarden.node.linux.cgroupfs import subdirectories

from ..waiting import eventually, exit_status
from .nodes import CGROUP

pytestmark = pytest.mark.emulated


UNAVAILABLE = {("6.1", "memfd_secret"): "off unless the kernel is booted with secretmem.enable"}
PROGRAM = """
import sys
from pathlib import Path
from pinwarden.node.ebpf import selftest
selftest.run(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@cache
def results() -> Sequence[OperationResult]:
    return selftest.run(OBJECTS, CGROUP).results


def scratch_cgroups() -> list[str]:
    return [path.name for path in subdirectories(CGROUP) if path.name.startswith(PREFIX)]


def test_every_operation_is_counted_and_uncounted() -> None:
    version = ".".join(os.uname().release.split(".")[:2])
    failed = {
        result.operation: result.reason
        for result in results()
        if not (result.counted and result.uncounted)
    }
    expected = {operation for kernel, operation in UNAVAILABLE if kernel == version}
    assert set(failed) == expected, failed
    assert all("ENOSYS" in reason for reason in failed.values())


def test_result_without_a_failure_has_no_reason() -> None:
    for result in results():
        unknown = None in (result.survives_munmap, result.survives_exit)
        assert bool(result.reason) == (unknown or not (result.counted and result.uncounted))


def test_operation_that_cannot_be_done_is_unknown() -> None:
    for result in results():
        if "ENOSYS" in result.reason:
            assert (result.counted, result.uncounted) == (None, None)


def test_page_has_the_results_of_this_kernel() -> None:
    release = os.uname().release
    page = sources.PAGE.read_text()
    assert sources.section_on_page(release, page) == sources.section(release, results())


def test_self_test_leaves_neither_cgroup_nor_process() -> None:
    children = psutil.Process().children()
    selftest.run(OBJECTS, CGROUP)
    assert scratch_cgroups() == []
    assert psutil.Process().children() == children


def test_sigterm_ends_the_self_test_and_removes_the_cgroup() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(OBJECTS), str(CGROUP)])
    try:
        eventually(scratch_cgroups, bool)
        process.send_signal(signal.SIGTERM)
        assert exit_status(process) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert scratch_cgroups() == []


def test_folder_without_cgroups_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no cgroup hierarchy"):
        selftest.run(OBJECTS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_object_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BpfError):
        selftest.run(tmp_path, CGROUP)
    assert scratch_cgroups() == []
