"""POSIX shared memory as programs really use it: unlinked at once, and left over between restarts.

Runs inside the guest (`make test-kernel`), as root with every capability.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .nodes import MIB
from .shared_nodes import SharedNode, group

Volume = Callable[[str, str], Path]
ANY = {"posixShm": {"name": "*"}}
PLASMA = {"posixShm": {"name": "plasma*"}}


@pytest.fixture
def volume() -> Iterator[Volume]:
    """Mounts a volume of medium Memory where the kubelet has it for a pod."""
    with ExitStack() as stack:

        def mount(pod: str, name: str) -> Path:
            path = Path("/var/lib/kubelet/pods", pod, "volumes/kubernetes.io~empty-dir", name)
            path.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], check=True)
            stack.callback(lambda: subprocess.run(["umount", "--lazy", path], check=True))
            return path

        yield mount


@pytest.mark.rule("M3", "M6")
@pytest.mark.parametrize("use", ["mapped", "open", "both"])
def test_object_unlinked_while_in_use_is_counted(shares: SharedNode, use: str) -> None:
    """https://github.com/ray-project/ray/issues/31556."""
    pod, a = shares.pod("apart")
    shares.configure(group(PLASMA, pod))
    kept = a(f"opened('/dev/shm/plasma-kept', {MIB})")
    a(f"touch(mapped({kept}, {MIB}), 16)")
    file = a(f"opened('/dev/shm/plasma-1', {4 * MIB})")
    address = a(f"mapped({file}, {4 * MIB})")
    a(f"touch({address}, 512)")
    a(f"touch(mapped(opened('/dev/shm/other', {MIB}), {MIB}), 256)")
    a("unlink('/dev/shm/plasma-1')")
    a("unlink('/dev/shm/other')")
    if use == "mapped":
        a(f"close({file})")
    if use == "open":
        a(f"unmap({address})")
    report = shares.report()
    assert (report.objects, report.charge, report.truncated) == (2, 2 * MIB + 16 * 4096, False)
    mapped = 16 * 4096 + (0 if use == "open" else 2 * MIB)
    assert [each.borrowed for each in report.borrowers] == [mapped]
    assert report.orphaned == 2 * MIB + 16 * 4096 - mapped


@pytest.mark.rule("M3", "M5")
def test_each_pod_that_maps_an_unlinked_object_borrows_it(
    shares: SharedNode, volume: Volume
) -> None:
    pod, a = shares.pod()
    path = volume(pod, "shm")
    shares.kill(a)
    a, b = shares.join(pod, f"volume={path}"), shares.join(pod, f"volume={path}")
    shares.configure(group(PLASMA, pod))
    file = a(f"opened('/dev/shm/plasma-1', {4 * MIB})")
    a(f"touch(mapped({file}, {4 * MIB}), 256)")
    a("unlink('/dev/shm/plasma-1')")
    b(f"touch(mapped(taken({a.pid}, {file}), {4 * MIB}), 512)")
    report = shares.report()
    assert (report.charge, [each.borrowed for each in report.borrowers]) == (2 * MIB, [2 * MIB])


@pytest.mark.rule("H2")
def test_bytes_without_a_member_make_the_amount_a_lower_bound(
    shares: SharedNode, volume: Volume
) -> None:
    pod, a = shares.pod()
    path = volume(pod, "shm")
    shares.kill(a)
    a = shares.join(pod, f"volume={path}")
    shares.configure(group(PLASMA, pod))
    a(f"touch(mapped(opened('/dev/shm/plasma-1', {MIB}), {MIB}), 256)")
    (path / "sub").mkdir()
    (path / "sub" / "file").write_bytes(b"x" * MIB)
    report = shares.report()
    assert (report.charge, report.truncated) == (MIB, False), (
        "a file in a folder is no object, and is known"
    )
    _, stranger = shares.pod(f"volume={path}")
    stranger(f"touch(mapped(opened('/dev/shm/plasma-2', {MIB}), {MIB}), 256)")
    a("unlink('/dev/shm/plasma-2')")
    report = shares.report()
    assert (report.charge, report.truncated) == (MIB, True)
    assert "no member's process shows" in report.message


@pytest.mark.rule("M1", "M9")
@pytest.mark.parametrize("seen", [True, False])
def test_volume_is_charged_and_orphaned_between_restarts(
    shares: SharedNode, volume: Volume, seen: bool
) -> None:
    """https://github.com/kubernetes/kubernetes/issues/128339."""
    pod, _ = shares.pod("apart", "name=pause")
    path = volume(pod, "shm")
    shares.configure(group(ANY, pod, capacity=MIB))
    container = shares.join(pod, f"volume={path}")
    container(f"touch(mapped(opened('/dev/shm/left', {4 * MIB}), {4 * MIB}), 512)")
    if seen:
        volume(pod, "cache").joinpath("file").write_bytes(b"x")
        report = shares.report()
        assert (report.charge, report.orphaned) == (2 * MIB, 0)
    shares.kill(container)
    for _ in range(2):
        report = shares.report()
        assert (report.phase, report.objects, report.charge, report.orphaned) == (
            "Active",
            1,
            2 * MIB,
            2 * MIB,
        )
    container = shares.join(pod, f"volume={path}")
    container(f"touch(mapped(opened('/dev/shm/left'), {4 * MIB}), 256)")
    report = shares.report()
    assert (report.objects, report.charge, report.orphaned) == (1, 2 * MIB, MIB)
    shares.kill(container)
    subprocess.run(["umount", path], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], check=True)
    assert shares.report().charge is None, "another file system is not the one that was left"


@pytest.mark.rule("M1")
def test_volume_elsewhere_is_not_the_pods_shared_memory(shares: SharedNode, volume: Volume) -> None:
    pod, _ = shares.pod("apart", "name=pause")
    path = volume(pod, "cache")
    (path / "file").write_bytes(b"x" * MIB)
    shares.configure(group(ANY, pod))
    container = shares.join(pod, "apart")
    assert shares.report().objects == 0
    shares.kill(container)
    assert shares.report().objects == 0, "its container was seen with another /dev/shm"


@pytest.mark.rule("M1")
def test_several_matching_volumes_are_reported_not_there(
    shares: SharedNode, volume: Volume
) -> None:
    pod, _ = shares.pod("apart", "name=pause")
    for name in ("shm", "cache"):
        (volume(pod, name) / "file").write_bytes(b"x" * MIB)
    shares.configure(group(ANY, pod))
    report = shares.report()
    assert (report.reason, report.charge) == ("NotThere", None)
