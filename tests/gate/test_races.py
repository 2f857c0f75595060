"""Ways around the gate by a race, a detail of the kernel, or a neighbour (P1, P5, H1).

Other ways are in test_ways_around.py. Each way is really tried, in racing.c. A test passes if
nothing is locked above the limit, or if the pod is not reported exact any more.
"""

import errno
import os
import platform
import select
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gate_node.node import CGROUP, MIB, NOBODY, Node, Pod, Process
from pinwarden.node.agent.gate_reader import GateReader
from pinwarden.node.gate import pin_requests
from pinwarden.node.linux.cgroupfs import member_pids, process_hierarchy
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.linux.syscalls import AUDIT_ARCH_AARCH64, NUMBERS
from pinwarden.node.pods.policy import SubjectPolicy
from pinwarden.node.pods.process import ProcessTable
from pinwarden.node.pods.subject import GateCoverage, Subject

from .processes import HERE, PAGE, ask, compiled, hear, send, start

LIMIT = MIB
SECONDS = 10.0
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs registers or code of x86-64")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where everyone may execute programs."""
    folder = Path(tempfile.mkdtemp(prefix="pinwarden-races-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def racing() -> Iterator[Path]:
    with compiled("racing.c") as program:
        yield program


@pytest.fixture
def pod(node: Node) -> Pod:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    return pod


Run = Callable[..., Process]


@pytest.fixture
def run(racing: Path) -> Run:
    """Starts a way in a pod."""

    def run(pod: Pod, way: str, *arguments: object, user: int = NOBODY) -> Process:
        return pod.run([str(racing), way, *map(str, arguments)], user=user)

    return run


def answer(process: Process) -> tuple[int, int]:
    """Bytes that a way reports, and its error."""
    amount, error = map(int, hear(process).split())
    return amount, error


def used(pod: Pod) -> int:
    """VmLck + VmPin of all its processes, those too whose first thread has ended."""
    directories = [path.parent for path in pod.directory.rglob("cgroup.procs")]
    return sum(used_by(pid) for pid in frozenset[int]().union(*map(member_pids, directories)))


def used_by(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{pid}/task/{thread}/status").read_text()
                if "VmLck:" in text:
                    return sum(
                        int(text.partition(name)[2].split()[0]) * 1024
                        for name in ("VmLck:", "VmPin:")
                    )
    return 0


def coverage(node: Node, pod: Pod) -> GateCoverage:
    """What the agent would say of the pod now."""
    node.until(lambda: pod.container in node.status.containers)
    subject = Subject(
        pod.uid,
        (pod.directory,),
        SubjectPolicy((), fingerprint=node.status.fingerprints.get(pod.uid, "")),
    )
    table = ProcessTable(Path("/proc"))
    subject.sample(table, time.monotonic())
    table.close()
    record = GateReader(node.run_dir / "gate.json")
    record.poll()
    record.observe([subject], [subject])
    return subject.coverage


def assert_limited(node: Node, pod: Pod, limit: int = LIMIT) -> None:
    """Nothing is past the limit, or it is said that the pod is not held exactly."""
    assert used(pod) <= limit or not coverage(node, pod).exact


@contextmanager
def gate_stopped(node: Node) -> Iterator[None]:
    """Calls wait meanwhile."""
    os.kill(node.gate.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.gate.pid, signal.SIGCONT)


# -- what grows or moves by itself --


@pytest.mark.rule("P1", "P8", level="Deny")
def test_stack_that_was_moved_does_not_grow_locked_unseen(node: Node, pod: Pod, run: Run) -> None:
    answer(run(pod, "moves_its_stack"))
    assert_limited(node, pod)


@x86
@pytest.mark.rule("P1", "P8", level="Deny")
@pytest.mark.parametrize("narrow", [False, True], ids=["4 GiB", "3 GiB"])
def test_stack_of_a_32_bit_program_does_not_grow_locked_unseen(
    node: Node, pod: Pod, folder: Path, run: Run, narrow: bool
) -> None:
    program, unlinked = folder / "stack32", folder / "stack32.o"
    subprocess.run(["as", "--32", "-o", unlinked, HERE / "stack32.s"], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-o", program, unlinked], check=True)
    process = run(pod, "becomes_narrow", program) if narrow else pod.run([str(program)])
    assert hear(process) == "0 0" or process.wait(SECONDS)
    assert_limited(node, pod)


@pytest.mark.rule("P1", "P8", level="Deny")
def test_mapping_moved_and_left_behind_does_not_exceed_the_limit(
    node: Node, pod: Pod, run: Run
) -> None:
    answer(run(pod, "moved_and_left"))
    assert_limited(node, pod)


@pytest.mark.rule("P1", "P8", level="Deny")
@pytest.mark.parametrize("spoil", [f"mprotect area {LIMIT} 0", f"munmap area+{LIMIT} {PAGE}"])
def test_call_that_fails_after_it_has_locked_is_counted(pod: Pod, spoil: str) -> None:
    locker = start(pod, "locker.py", 2 * LIMIT)
    assert ask(locker, f"call {spoil}") == "0 0"
    asked = LIMIT if "mprotect" in spoil else LIMIT + PAGE
    start_at = "area" if "mprotect" in spoil else f"area+{PAGE}"
    assert ask(locker, f"call mlock {start_at} {min(asked, LIMIT)}") == f"-1 {errno.ENOMEM}"
    rest = LIMIT - used(pod)
    assert rest == (0 if "mprotect" in spoil else PAGE)
    assert ask(start(pod, "locker.py", LIMIT), f"until {LIMIT}") == f"{rest} {errno.ENOMEM}"
    assert used(pod) == LIMIT


@pytest.mark.rule("P1", level="Deny")
def test_root_in_its_own_user_namespace_is_limited(pod: Pod) -> None:
    locker = start(pod, "locker.py", 2 * LIMIT)
    steps = (
        # PR_SET_DUMPABLE: its own files in /proc belong to root since it changed its user
        "libc.prctl(4, 1)",
        "result = libc.unshare(0x10000000)  # CLONE_NEWUSER",
        "open('/proc/self/setgroups', 'w').write('deny')",
        "open('/proc/self/gid_map', 'w').write('0 65534 1')",
        "open('/proc/self/uid_map', 'w').write('0 65534 1')",
        "import os; os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)",
        "status = open('/proc/self/status')",
        "result = os.getuid(), [line.split()[1] for line in status if 'CapEff' in line][0]",
    )
    for step in steps:
        answer_text = ask(locker, f"python {step}")
    assert answer_text.startswith("(0, '000001ff")
    assert ask(locker, f"until {2 * LIMIT}") == f"{LIMIT} {errno.ENOMEM}"


# -- what changes between the look and the call --


@pytest.mark.rule("P1", level="Deny")
@pytest.mark.parametrize("user", [NOBODY, 0])
@pytest.mark.parametrize("way", ["replaced_while_it_grows", "moved_while_it_is_locked_again"])
def test_locked_memory_that_moves_during_a_call_is_counted(
    node: Node, pod: Pod, run: Run, way: str, user: int
) -> None:
    answer(run(pod, way, user=user))
    assert_limited(node, pod)


@pytest.mark.rule("P1", level="Deny")
def test_call_is_not_decided_by_amounts_read_for_the_previous_call(
    node: Node, pod: Pod, run: Run
) -> None:
    answer(run(pod, "interrupted_while_it_is_read"))
    assert_limited(node, pod)


@pytest.mark.rule("P1", "H1", level="Deny")
def test_address_space_grows_while_all_of_it_is_locked(node: Node, run: Run) -> None:
    pod, limit = node.pod(), 3 * MIB
    node.set_limits({pod.uid: limit})
    most, _ = answer(run(pod, "mapped_while_all_is_locked", limit))
    assert most <= limit or "stack" in coverage(node, pod).why


@pytest.mark.rule("P1", level="Deny")
def test_long_call_does_not_count_as_returned_while_it_locks(node: Node, run: Run) -> None:
    limit = 60_000 * 32 * PAGE
    for _ in range(3):
        pod = node.pod()
        node.set_limits({pod.uid: limit})
        process = run(pod, "taken_for_counted", limit // 8, user=0)
        for _ in range(2):
            answer(process)
        assert_limited(node, pod, limit)
        pod.end()


@pytest.mark.rule("H1", level="Deny")
def test_changed_list_of_buffers_makes_the_pod_inexact(node: Node, pod: Pod, run: Run) -> None:
    answer(run(pod, "changes_a_list"))
    assert "io_uring" in coverage(node, pod).why


@pytest.mark.rule("P5", "H1", level="Deny")
@pytest.mark.parametrize("level", ["Converge", "Deny"])
def test_unlocked_memory_grows_without_a_limit(node: Node, run: Run, level: str) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT}, minimum_level=level)
    assert answer(run(pod, "grows_what_is_not_locked")) == (0, 0)
    assert coverage(node, pod).exact


# -- tracers --


@x86
@pytest.mark.rule("P1", level="Deny")
@pytest.mark.parametrize(("asked", "error"), [(2 * MIB, errno.ENOMEM), (MIB // 2, 0)])
def test_call_that_a_tracer_replaces_is_notified_again(
    pod: Pod, run: Run, asked: int, error: int
) -> None:
    process = run(pod, "traced_into_another_call", asked)
    assert answer(process) == (0 if error else asked, error)
    assert used(pod) == (0 if error else asked)


@x86
@pytest.mark.rule("P1", level="Deny")
def test_registers_that_a_tracer_changes_during_the_wait_are_notified_again(
    node: Node, pod: Pod, run: Run
) -> None:
    with gate_stopped(node):
        process = run(pod, "changed_while_it_waits")
        assert answer(process) == (149, 0)
    assert answer(process) == (0, errno.ENOMEM)
    assert used(pod) == 0


# -- processes and threads that come and go --


@pytest.mark.rule("P1", "P5", level="Deny")
def test_exec_during_a_waiting_call_leaves_no_amount(node: Node, pod: Pod, run: Run) -> None:
    with gate_stopped(node):
        assert answer(run(pod, "becomes_another")) == (0, 0)
    assert ask(start(pod, "locker.py", 2 * LIMIT), f"lock {LIMIT}") == f"{LIMIT} 0"
    assert used(pod) == LIMIT


@pytest.mark.rule("P1", level="Deny")
def test_call_whose_parent_goes_while_it_waits_is_counted(node: Node, pod: Pod, run: Run) -> None:
    with gate_stopped(node):
        process = run(pod, "loses_its_parent")
        assert answer(process) == (0, 0)
        time.sleep(0.2)
    assert answer(process) == (LIMIT, 0)
    assert ask(start(pod, "locker.py", LIMIT), f"lock {PAGE}") == f"0 {errno.ENOMEM}"
    assert used(pod) == LIMIT


@pytest.mark.rule("P1", level="Deny")
def test_process_whose_first_thread_has_ended_is_counted(pod: Pod, run: Run) -> None:
    amount = LIMIT - 8 * PAGE
    answer(run(pod, "first_thread_ends", amount))
    locker = start(pod, "locker.py", 2 * LIMIT)
    assert ask(locker, f"until {2 * LIMIT}") == f"{8 * PAGE} {errno.ENOMEM}"
    assert used(pod) == LIMIT


@pytest.mark.rule("P5", level="Deny")
def test_address_space_of_processes_that_are_not_parent_and_child_counts_once(
    pod: Pod, run: Run
) -> None:
    assert answer(run(pod, "has_a_sibling", LIMIT - 8 * PAGE)) == (LIMIT - 8 * PAGE, 0)
    time.sleep(0.2)
    assert ask(start(pod, "locker.py", LIMIT), f"lock {8 * PAGE}") == f"{8 * PAGE} 0"


@pytest.mark.rule("P5", level="Deny")
def test_address_space_of_two_processes_counts_once_while_it_changes(pod: Pod, run: Run) -> None:
    half, third = LIMIT // PAGE // 2 * PAGE, LIMIT // PAGE // 3 * PAGE
    assert answer(run(pod, "toggles_with_a_child", half)) == (half, 0)
    locker = start(pod, "locker.py", LIMIT)
    once = f"call('mlock', area, {third})[1] or call('munlock', area, {third})[1]"
    tries = f"[{once} for _ in range(400)]"
    assert ask(locker, f"python result = sum(map(bool, {tries}))") == "0", "refused though it fits"


@pytest.mark.rule("P1", level="Deny")
def test_repeatedly_frozen_processes_do_not_exceed_the_limit(pod: Pod, run: Run) -> None:
    answer(run(pod, "maps_in_threads", 4))
    with frozen(pod) as freeze:
        locker = start(pod, "locker.py", 2 * LIMIT)
        for _ in range(3):
            freeze(True)
            ask(locker, f"until {2 * LIMIT}")
            assert used(pod) <= LIMIT
            ask(locker, f"unlock {LIMIT // 2}")
            freeze(False)
            time.sleep(0.01)
            assert used(pod) <= LIMIT


@contextmanager
def frozen(pod: Pod) -> Iterator[Callable[[bool], None]]:
    """Freeze and thaw the processes of the pod, by a cgroup in whichever hierarchy can."""
    unified = CGROUP if (CGROUP / "cgroup.procs").exists() else CGROUP / "unified"
    directory = unified / f"pinwarden-test-{uuid.uuid4().hex[:8]}"
    if process_hierarchy(CGROUP) == unified:
        directory = pod.directory / pod.container / "frozen"
    directory.mkdir()
    pids = pod.pids
    for pid in pids:
        (directory / "cgroup.procs").write_text(str(pid))

    def freeze(on: bool) -> None:
        (directory / "cgroup.freeze").write_text(str(int(on)))
        deadline = time.monotonic() + SECONDS
        while f"frozen {int(on)}" not in (directory / "cgroup.events").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    yield freeze
    freeze(False)
    for pid in pids:
        with suppress(ProcessLookupError):
            (directory.parent / "cgroup.procs").write_text(str(pid))
    directory.rmdir()


@pytest.mark.rule("P1", level="Deny")
def test_process_that_leaves_the_cgroup_of_its_pod_makes_it_inexact(node: Node, pod: Pod) -> None:
    start(pod, "locker.py", LIMIT)
    locker = start(pod, "locker.py", 8 * LIMIT, user=0)
    (process_hierarchy(CGROUP) / "cgroup.procs").write_text(str(locker.pid))
    for _ in range(4):
        ask(locker, f"lock {LIMIT}")
    assert used_by(locker.pid) <= LIMIT or not coverage(node, pod).exact


# -- neighbours --


@pytest.mark.rule("P5", level="Deny")
def test_five_hundred_threads_do_not_delay_another_pod(node: Node, run: Run) -> None:
    noisy, quiet = node.pod(), node.pod()
    node.set_limits({noisy.uid: LIMIT, quiet.uid: LIMIT})
    answer(run(noisy, "maps_in_threads", 500))
    locker = start(quiet, "locker.py", 2 * LIMIT)
    for _ in range(3):
        assert ask(locker, f"until {2 * LIMIT}") == f"{LIMIT} {errno.ENOMEM}"
        assert ask(locker, f"unlock {LIMIT}") == "0 0"
    assert noisy.locked <= LIMIT


@pytest.mark.rule("P5", level="Deny")
def test_process_with_a_locked_address_space_does_not_delay_another_pod(
    node: Node, run: Run
) -> None:
    slow, quiet = node.pod(), node.pod()
    node.set_limits({slow.uid: LIMIT, quiet.uid: LIMIT})
    locker = start(quiet, "locker.py", LIMIT)
    assert ask(locker, f"lock {PAGE}") == f"{PAGE} 0"
    process = run(slow, "keeps_its_lock", 48)
    assert answer(process) == (0, 0)
    assert answer(process) == (1, 0), "its lock is not kept"
    assert ask(locker, f"lock {PAGE}") == f"{2 * PAGE} 0"
    assert process.stdout is not None
    assert not select.select([process.stdout], [], [], 0.5)[0], (
        "the answer came when the other was done"
    )


@pytest.mark.rule("P5", "P8", level="Deny")
def test_calls_waiting_for_their_mmap_lock_do_not_deny_another_pod(node: Node, run: Run) -> None:
    slow, quiet = node.pod(), node.pod()
    node.set_limits({slow.uid: LIMIT, quiet.uid: LIMIT})
    locker = start(quiet, "locker.py", LIMIT)
    assert ask(locker, f"lock {LIMIT}") == f"{LIMIT} 0"
    process = run(slow, "keeps_all_readers", 64)
    assert answer(process) == (0, 0)
    assert answer(process) == (1, 0), "its lock is not kept"
    assert ask(locker, "again") == "0 0"


@x86
@pytest.mark.rule("P5", "P13", level="Deny")
def test_endless_calls_do_not_delay_another_pod_under_the_same_limit(node: Node, run: Run) -> None:
    stuck, quiet = node.pod(), node.pod()
    node.configure(
        limits=[{"name": "shared", "uid": "uid-shared", "scope": "Node", "limit": LIMIT}],
        pods=[{"uid": pod.uid, "limits": ["shared"]} for pod in (stuck, quiet)],
    )
    locker = start(quiet, "locker.py", LIMIT)
    assert answer(run(stuck, "left_at_the_end", 64, PAGE, "and one more")) == (0, 0)
    time.sleep(0.2)
    send(locker, f"lock {PAGE}")
    assert locker.stdout is not None
    assert select.select([locker.stdout], [], [], SECONDS)[0], "no answer"
    assert hear(locker) == f"{PAGE} 0"


@x86
@pytest.mark.rule("P1", level="Deny")
def test_call_that_is_stopped_at_its_end_counts_twice_until_it_goes_on(pod: Pod, run: Run) -> None:
    half = LIMIT // 2
    assert answer(run(pod, "left_at_the_end", 1, half)) == (0, 0)
    assert used(pod) == half
    assert ask(start(pod, "locker.py", LIMIT), f"lock {half}") == f"0 {errno.ENOMEM}"


# -- pins without a notification --


@pytest.mark.rule("H1", level="Deny")
@pytest.mark.parametrize("way", ["watches_itself", "lends_a_ring", "shares_frames"])
def test_pins_without_a_gated_call_are_not_reported_exact(
    node: Node, pod: Pod, run: Run, way: str
) -> None:
    amount, error = answer(run(pod, way))
    assert not amount or not coverage(node, pod).exact, f"{amount} bytes are pinned, errno {error}"


@pytest.mark.rule("P1")
@pytest.mark.parametrize("name", ["mlock", "mremap"])
def test_address_tag_is_ignored_on_arm(name: str) -> None:
    number = NUMBERS[AUDIT_ARCH_AARCH64][name]

    def asked(start: int) -> pin_requests.PinRequest | None:
        return pin_requests.read(
            Notification(1, 1, number, AUDIT_ARCH_AARCH64, (start, PAGE, 2 * PAGE, 1, 0, 0))
        )

    assert asked(0xAB << 56 | 0x10000000) == asked(0x10000000)
