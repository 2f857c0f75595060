"""32-bit programs in containers that the NRI plugin gates: each way to pin counts (P1, P2)."""

import errno
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from gate_node.node import MIB, Node, Pod

from .processes import PAGE, compiled, hear

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="i386 programs")

OPTIONS = [
    "-m32",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-pic",
    "-no-pie",
    "-nostdlib",
    "-static",
]
PROFILES = ("merged-unconfined", "merged-runtime-default")


@pytest.fixture(scope="module")
def narrow() -> Iterator[Path]:
    with compiled("narrow.c", *OPTIONS) as program:
        yield program


@pytest.fixture
def pod(node: Node) -> Pod:
    pod = node.pod()
    node.set_limits({pod.uid: MIB})
    return pod


@pytest.mark.rule("P1", level="Deny")
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("call", "12", ids=["mlock", "mlock2"])
def test_32_bit_mlock_up_to_the_limit_is_exact(
    pod: Pod, narrow: Path, profile: str, call: str
) -> None:
    processes = [pod.run([str(narrow), call], profile=profile) for _ in range(3)]
    assert sum(int(hear(process)) for process in processes) * PAGE == MIB
    assert pod.locked == MIB


@pytest.mark.rule("P1", level="Deny")
@pytest.mark.parametrize("profile", PROFILES)
def test_32_bit_mapping_over_the_limit_is_denied(pod: Pod, narrow: Path, profile: str) -> None:
    assert hear(pod.run([str(narrow), "m"], profile=profile)) == f"{-errno.EAGAIN}"
    assert hear(pod.run([str(narrow), "n"], profile=profile)) == "0"
    assert pod.locked == MIB


@pytest.mark.parametrize("profile", PROFILES)
def test_old_mmap_with_arguments_in_memory_is_answered_by_enosys(
    pod: Pod, narrow: Path, profile: str
) -> None:
    assert hear(pod.run([str(narrow), "o"], profile=profile)) == f"{-errno.ENOSYS}"


@pytest.mark.rule("H1")
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("call", "ais", ids=["mlockall", "SHM_LOCK by ipc", "socketcall"])
def test_32_bit_call_that_is_not_exact_marks_its_pod(
    node: Node, pod: Pod, narrow: Path, profile: str, call: str
) -> None:
    process = pod.run([str(narrow), call], profile=profile, user=0 if call == "i" else 65534)
    assert int(hear(process)) >= 0
    node.until(lambda: pod.uid in node.status.inexact)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("call", "dx", ids=["socket", "getpid"])
def test_32_bit_call_that_pins_nothing_succeeds(
    node: Node, pod: Pod, narrow: Path, profile: str, call: str
) -> None:
    assert int(hear(pod.run([str(narrow), call], profile=profile))) > 0
    assert pod.uid not in node.status.inexact
