"""Which limit decides a call: changed ones, several, scopes, Audit, 0, unknown pods (P11-P14)."""

import copy
import errno
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gate_node.node import MIB, NOBODY, Node, Pod, Process, kill, locked
from pinwarden.node.gate.budgets import VALID_SECONDS
from pinwarden.node.gate.pending import RAISED_SECONDS, UNLISTED_SECONDS

from .processes import HERE, PAGE, ask, hear, send, start

LIMIT = MIB
HALF = LIMIT // 2
LATE_SECONDS = 30.0
MAP_LOCKED = 0x2022
REFUSED = errno.ENOMEM
SOFT_RLIMIT = (
    f"python result = libc.setrlimit({resource.RLIMIT_MEMLOCK}, "
    f"(ctypes.c_ulong * 2)({{}}, {8 * MIB}))"
)


def limit(name: str, amount: int, scope: str = "Pod", **more: object) -> dict[str, object]:
    return {"name": name, "uid": f"uid-{name}", "scope": scope, "limit": amount, **more}


def apply_limits(node: Node, limits: list[dict[str, object]], *pods: Pod, **more: object) -> None:
    """All these limits hold for each of these pods."""
    names = [each["name"] for each in limits]
    node.configure(limits=limits, pods=[{"uid": pod.uid, "limits": names} for pod in pods], **more)


def locker(pod: Pod, *, user: int = NOBODY) -> Process:
    return start(pod, "locker.py", 4 * LIMIT, user=user)


@contextmanager
def locker_in_another_container(pod: Pod, name: str) -> Iterator[Process]:
    other = copy.copy(pod)
    other.container, other.processes = os.urandom(32).hex(), []
    directory = pod.directory / other.container
    directory.mkdir()
    process = other.run([str(HERE / "locker.py"), str(4 * LIMIT)], name=name)
    try:
        assert hear(process) == "ready"
        yield process
    finally:
        for pid in other.pids:
            kill(pid)
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
        directory.rmdir()


def answers(process: Process, seconds: float) -> bool:
    """Whether it says something within that time."""
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], seconds)[0])


def denial(node: Node, number: int) -> Mapping[str, Any]:
    """The one with this number, which is the last."""
    node.until(lambda: node.status.number >= number)
    assert node.status.number == number
    return node.status.recent[-1]


# -- a limit that changes --


@pytest.mark.rule("P12", level="Deny")
def test_raised_limit_applies_to_the_next_call_of_a_running_process(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    process = locker(pod)
    for amount in (LIMIT, LIMIT + PAGE, 2 * LIMIT):
        node.set_limits({pod.uid: amount})
        assert ask(process, f"until {4 * LIMIT}") == f"{amount} {REFUSED}"
    assert pod.locked == 2 * LIMIT


@pytest.mark.rule("P11", "P8", level="Deny")
def test_lowered_limit_evicts_nothing_and_denies_more(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    process = locker(pod)
    assert ask(process, f"lock {LIMIT}") == f"{LIMIT} 0"
    node.set_limits({pod.uid: HALF})
    assert pod.locked == LIMIT
    assert ask(process, f"lock {PAGE}") == f"{LIMIT} {REFUSED}"
    assert ask(process, "again") == "0 0"
    assert ask(process, f"unlock {HALF}") == f"{HALF} 0"
    assert ask(process, f"lock {PAGE}") == f"{HALF} {REFUSED}"
    assert ask(process, f"unlock {PAGE}") == f"{HALF - PAGE} 0"
    assert ask(process, f"lock {PAGE}") == f"{HALF} 0"
    assert pod.locked == HALF


@pytest.mark.rule("P5", "P8", level="Deny")
def test_unlocked_memory_is_free_for_another_process_at_once(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    one, other = locker(pod), locker(pod)
    for _ in range(20):
        assert ask(one, f"lock {LIMIT}") == f"{LIMIT} 0"
        assert ask(other, f"lock {PAGE}") == f"0 {REFUSED}"
        ask(one, f"unlock {LIMIT}")
        one, other = other, one


# -- several limits, and their scopes --


@pytest.mark.rule("P13", level="Deny")
@pytest.mark.parametrize("scope", ["Pod", "Container", "Node"])
@pytest.mark.parametrize("tighter_first", [True, False])
def test_tighter_of_two_limits_decides_and_is_named(
    node: Node, scope: str, tighter_first: bool
) -> None:
    pod = node.pod()
    limits = [limit("tight", HALF, scope), limit("wide", LIMIT)]
    apply_limits(node, limits if tighter_first else limits[::-1], pod)
    process = locker(pod)
    assert ask(process, f"until {LIMIT}") == f"{HALF} {REFUSED}"
    assert (denial(node, 1)["name"], denial(node, 1)["limit"]) == ("tight", HALF)
    apply_limits(node, [limit("tight", LIMIT + HALF, scope), limit("wide", LIMIT)], pod)
    assert ask(process, f"until {2 * LIMIT}") == f"{LIMIT} {REFUSED}"
    assert denial(node, 2)["name"] == "wide"
    assert node.status.denials == {pod.uid: {"uid-tight": 1, "uid-wide": 1}}


@pytest.mark.rule("P13", level="Deny")
def test_scope_container_limits_each_container_by_itself(node: Node) -> None:
    pod = node.pod()
    apply_limits(node, [limit("each", HALF, "Container"), limit("pod", LIMIT - PAGE)], pod)
    main = locker(pod)
    assert ask(main, f"until {LIMIT}") == f"{HALF} {REFUSED}"
    assert denial(node, 1)["name"] == "each"
    with locker_in_another_container(pod, "sidecar") as sidecar:
        assert ask(sidecar, f"until {LIMIT}") == f"{HALF - PAGE} {REFUSED}"
        assert (denial(node, 2)["name"], denial(node, 2)["container"]) == ("pod", "sidecar")
        ask(main, f"unlock {PAGE}")
        assert ask(sidecar, f"until {LIMIT}") == f"{HALF} {REFUSED}"
        assert denial(node, 3)["name"] == "each"
        assert locked(main.pid) + locked(sidecar.pid) == LIMIT - PAGE


@pytest.mark.rule("P13", level="Deny")
def test_scope_container_ignores_unnamed_containers(node: Node) -> None:
    pod = node.pod()
    apply_limits(node, [limit("one", HALF, "Container", containers=["sidecar"])], pod)
    main = locker(pod)
    assert ask(main, f"until {2 * LIMIT}") == f"{2 * LIMIT} 0"
    with locker_in_another_container(pod, "sidecar") as sidecar:
        assert ask(sidecar, f"until {LIMIT}") == f"{HALF} {REFUSED}"
        assert (denial(node, 1)["container"], denial(node, 1)["used"]) == ("sidecar", HALF)


@pytest.mark.rule("P13", level="Deny")
def test_scope_node_limits_all_pods_of_the_node_together(node: Node) -> None:
    pods = [node.pod() for _ in range(3)]
    node.configure(
        limits=[limit("together", LIMIT, "Node"), limit("alone", LIMIT - PAGE)],
        pods=[
            {"uid": pods[0].uid, "limits": ["together", "alone"]},
            {"uid": pods[1].uid, "limits": ["together"]},
            {"uid": pods[2].uid, "limits": ["alone"]},
        ],
    )
    one, other, third = map(locker, pods)
    assert ask(one, f"until {2 * LIMIT}") == f"{LIMIT - PAGE} {REFUSED}"
    assert denial(node, 1)["name"] == "alone"
    assert ask(other, f"until {2 * LIMIT}") == f"{PAGE} {REFUSED}"
    assert (denial(node, 2)["name"], denial(node, 2)["used"], denial(node, 2)["pod"]) == (
        "together",
        LIMIT,
        pods[1].uid,
    )
    ask(one, f"unlock {HALF}")
    assert ask(other, f"until {2 * LIMIT}") == f"{HALF + PAGE} {REFUSED}"
    assert pods[0].locked + pods[1].locked == LIMIT
    assert ask(third, f"until {LIMIT - PAGE}") == f"{LIMIT - PAGE} 0"


@pytest.mark.rule("P1", "P13", level="Deny")
def test_bytes_of_an_ungated_pod_count_if_its_cgroup_came_after_its_limits(
    node: Node,
) -> None:
    pod, other = node.pod(), node.pod()
    folder = other.directory / other.container
    for directory in (folder, other.directory / other.sandbox, other.directory):
        directory.rmdir()
    apply_limits(node, [limit("together", LIMIT, "Node")], pod, other)
    process = locker(pod)
    assert ask(process, f"lock {PAGE}") == f"{PAGE} 0"
    folder.mkdir(parents=True)
    with ungated(folder) as beside:
        assert ask(beside, f"lock {HALF}") == f"{HALF} 0"
        time.sleep(VALID_SECONDS)
        assert ask(process, f"until {LIMIT}") == f"{HALF} {REFUSED}"
        assert pod.locked + other.locked == LIMIT


@contextmanager
def ungated(folder: Path) -> Iterator[Process]:
    """A locker in this cgroup, without the gate's profile."""
    command = [sys.executable, str(HERE / "locker.py"), str(4 * LIMIT)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            (folder / "cgroup.procs").write_text(str(process.pid))
            assert hear(process) == "ready"
            yield process
        finally:
            process.kill()


@pytest.mark.rule("P13", level="Deny")
def test_racing_pods_under_one_limit_get_it_to_the_page(node: Node) -> None:
    pods = [node.pod() for _ in range(4)]
    apply_limits(node, [limit("together", LIMIT, "Node")], *pods)
    processes = [locker(pod) for pod in pods]
    for _ in range(5):
        for process in processes:
            send(process, f"until {LIMIT}")
        locked = [int(hear(process).split()[0]) for process in processes]
        assert sum(locked) == sum(pod.locked for pod in pods) == LIMIT
        for process, amount in zip(processes, locked, strict=True):
            ask(process, f"unlock {amount}")


@pytest.mark.rule("P13", level="Deny")
def test_audit_denies_nothing_and_disarms_nothing(node: Node) -> None:
    pod = node.pod()
    apply_limits(node, [limit("audit", PAGE, enforcement="Audit")], pod)
    process = locker(pod)
    assert ask(process, f"lock {LIMIT}") == f"{LIMIT} 0"
    apply_limits(
        node, [limit("audit", PAGE, enforcement="Audit"), limit("enforced", 2 * LIMIT)], pod
    )
    assert ask(process, f"until {4 * LIMIT}") == f"{2 * LIMIT} {REFUSED}"
    assert denial(node, 1)["name"] == "enforced"


# -- nothing, everything, and what is not known yet --


@pytest.mark.rule("P5", level="Deny")
@pytest.mark.parametrize("user", [NOBODY, 0])
def test_limit_of_zero_is_answered_as_an_rlimit_of_zero(node: Node, user: int) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: 0})
    process = locker(pod, user=user)
    for call in (
        f"mlock area {PAGE}",
        f"syscall 325 area {PAGE} 1",
        f"mmap 0 {PAGE} 3 {MAP_LOCKED} 2**64-1 0",
    ):
        assert ask(process, f"call {call}") == f"-1 {errno.EPERM}"
    assert ask(process, "call mlock area 0") == "0 0"
    assert pod.locked == 0
    assert denial(node, 3)["limit"] == 0
    if user:
        free = node.pod()
        node.set_limits({pod.uid: 0}, free=[free])
        bare = locker(free, user=user)
        assert ask(bare, SOFT_RLIMIT.format(0)) == "0"
        for call in (f"mlock area {PAGE}", f"mmap 0 {PAGE} 3 {MAP_LOCKED} 2**64-1 0"):
            assert ask(bare, f"call {call}") == f"-1 {errno.EPERM}"


@pytest.mark.rule("P13", level="Deny")
def test_pod_without_limits_is_never_denied(node: Node) -> None:
    pod, free = node.pod(), node.pod()
    node.configure(
        limits=[limit("other", PAGE), limit("node", PAGE, "Node")],
        pods=[{"uid": pod.uid, "limits": ["other", "node"]}, {"uid": free.uid}],
        unknownPods=PAGE,
    )
    process = locker(free)
    assert ask(process, f"until {4 * LIMIT}") == f"{4 * LIMIT} 0"
    assert ask(locker(pod), f"lock {2 * PAGE}") == f"0 {REFUSED}"
    assert denial(node, 1)["pod"] == pod.uid


@pytest.mark.rule("P1", level="Deny")
def test_unlisted_pod_waits_for_its_limits(node: Node) -> None:
    late, other = node.pod(), node.pod()
    node.set_limits({other.uid: LIMIT})
    process = locker(late)
    send(process, f"until {2 * LIMIT}")
    assert ask(locker(other), f"until {2 * LIMIT}") == f"{LIMIT} {REFUSED}"
    assert not answers(process, 1.0)
    node.set_limits({other.uid: LIMIT, late.uid: HALF})
    assert answers(process, LATE_SECONDS)
    assert hear(process) == f"{HALF} {REFUSED}"


@pytest.mark.rule("P1", level="Deny")
@pytest.mark.parametrize("unknown", [HALF, None])
def test_pod_that_stays_unlisted_waits_once_and_counts_as_unknown(
    node: Node, unknown: int | None
) -> None:
    pod = node.pod()
    node.configure(unknownPods=unknown)
    process = locker(pod)
    began = time.monotonic()
    send(process, f"until {LIMIT}")
    assert answers(process, UNLISTED_SECONDS + LATE_SECONDS)
    assert time.monotonic() - began > UNLISTED_SECONDS - 1
    if unknown is None:
        assert hear(process) == f"{LIMIT} 0"
        return
    assert hear(process) == f"{HALF} {REFUSED}"
    refused = denial(node, 1)
    assert (refused["name"], refused["uid"], refused["limit"]) == (
        "unknownPods",
        "unknownPods",
        HALF,
    )
    assert ask(locker(pod), f"lock {PAGE}") == f"0 {REFUSED}"
    assert time.monotonic() - began < 2 * UNLISTED_SECONDS + LATE_SECONDS


@pytest.mark.rule("H3", level="Deny")
def test_node_without_a_configuration_allows_calls_after_the_wait(node: Node) -> None:
    process = locker(node.pod())
    send(process, f"lock {LIMIT}")
    assert not answers(process, 1.0)
    assert answers(process, UNLISTED_SECONDS + LATE_SECONDS)
    assert hear(process) == f"{LIMIT} 0"


@pytest.mark.rule("H3", level="Deny")
def test_mode_release_allows_every_call_until_its_end(node: Node) -> None:
    pod = node.pod()
    limits = [limit("pod", LIMIT)]
    apply_limits(node, limits, pod)
    process = locker(pod)
    assert ask(process, f"until {2 * LIMIT}") == f"{LIMIT} {REFUSED}"
    apply_limits(node, limits, pod, mode="Release")
    assert ask(process, f"until {2 * LIMIT}") == f"{2 * LIMIT} 0"
    apply_limits(node, limits, pod)
    assert ask(process, f"lock {PAGE}") == f"{2 * LIMIT} {REFUSED}"
    assert pod.locked == 2 * LIMIT


@pytest.mark.rule("P14", level="Deny")
@pytest.mark.parametrize("raised", [True, False])
def test_call_within_a_grant_waits_until_the_rlimit_is_raised(node: Node, raised: bool) -> None:
    pod = node.pod()
    apply_limits(node, [limit("grant", 2 * LIMIT, grant=2 * LIMIT)], pod)
    process = locker(pod, user=0)
    assert ask(process, SOFT_RLIMIT.format(HALF)) == "0"
    assert ask(process, f"lock {HALF}") == f"{HALF} 0"
    send(process, f"lock {HALF}")
    assert not answers(process, 1.0)
    if raised:
        resource.prlimit(process.pid, resource.RLIMIT_MEMLOCK, (2 * LIMIT, 8 * MIB))
    assert answers(process, RAISED_SECONDS + LATE_SECONDS)
    assert hear(process) == f"{LIMIT} 0"


# -- reports of a denial --


@pytest.mark.rule("P5", level="Deny")
def test_denial_names_process_source_and_amounts(node: Node) -> None:
    pod = node.pod()
    apply_limits(node, [limit("ns/name@2", LIMIT)], pod)
    process = locker(pod)
    ask(process, r'python libc.prctl(15, "a b)\x1b[1m\u00e9".encode())  # PR_SET_NAME')
    assert ask(process, f"lock {HALF}") == f"{HALF} 0"
    assert ask(process, f"lock {LIMIT}") == f"{HALF} {REFUSED}"
    report = dict(denial(node, 1))
    assert report.pop("time").endswith("Z")
    assert report == {
        "number": 1,
        "pod": pod.uid,
        "container": "main",
        "process": "a b)\x1b[1m\u00e9",
        "pid": process.pid,
        "source": "Mlock",
        "asked": LIMIT,
        "used": HALF,
        "limit": LIMIT,
        "name": "ns/name@2",
        "uid": "uid-ns/name@2",
        "call": "mlock",
    }
    again = f"call mlock area {LIMIT + PAGE}"
    assert ask(process, again) == f"-1 {REFUSED}"
    assert denial(node, 2)["asked"] == HALF + PAGE, "what of the range is locked does not add"


@pytest.mark.rule("P5", level="Deny")
def test_denials_are_counted_by_pod_and_limit_and_outlive_a_gate(node: Node) -> None:
    one, other = node.pod(), node.pod()
    node.set_limits({one.uid: LIMIT, other.uid: HALF})
    for pod, times in ((one, 3), (other, 2)):
        process = locker(pod)
        for _ in range(times):
            assert ask(process, f"lock {2 * LIMIT}") == f"0 {REFUSED}"
    expected = {one.uid: {f"uid-{one.uid[:8]}": 3}, other.uid: {f"uid-{other.uid[:8]}": 2}}
    node.until(lambda: node.status.denials == expected)
    node.kill_gate()
    assert ask(locker(one), f"lock {2 * LIMIT}") == f"0 {REFUSED}"
    expected[one.uid][f"uid-{one.uid[:8]}"] += 1
    node.until(lambda: node.status.denials == expected)
    assert [each["number"] for each in node.status.recent] == [1, 2, 3, 4, 5, 6]
