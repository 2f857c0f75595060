"""Ways around the gate: each achieves nothing, or makes the pod inexact and is reported (P1, H1).

Calls of another architecture (32-bit, x32), and garbage in the upper halves of registers, are in
test_filters.py. Racing processes and a killed gate are in test_exactness.py.
"""

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gate_node.node import MIB, NOBODY, Node, Pod, Process, kill, locked

from .processes import PAGE, ask, compiled, hear, send, start

LIMIT = MIB
LINUX_NOTIFY, LINUX_ALLOW, LINUX_ENOSPC = 0x7FC00000, 0x7FFF0000, 0x00050000 | errno.ENOSPC


@pytest.fixture(scope="module")
def hostile() -> Iterator[Path]:
    with compiled("hostile.c") as program:
        yield program


@pytest.fixture
def pod(node: Node) -> Pod:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    return pod


def inexact_reasons(node: Node, pod: Pod) -> str:
    return "; ".join(node.status.inexact.get(pod.uid, ()))


def fills_up(pod: Pod, locker: Process) -> None:
    """The rest of the limit is there for another process, and nothing more."""
    ask(locker, f"until {2 * LIMIT}")
    assert pod.locked == LIMIT


@pytest.mark.rule("P1", level="Deny")
def test_program_after_exec_begins_at_zero(pod: Pod, hostile: Path) -> None:
    process = pod.run([str(hostile), "executes", "twice"])
    assert hear(process) == f"{LIMIT} {errno.ENOMEM}"
    assert pod.locked == LIMIT


@pytest.mark.rule("P1", level="Deny")
def test_children_share_the_limit(pod: Pod) -> None:
    locker = start(pod, "locker.py", 2 * LIMIT)
    assert sum(map(int, ask(locker, "fork 8").split())) == LIMIT
    assert pod.locked == LIMIT


@pytest.mark.rule("P1", level="Deny")
def test_another_user_and_a_user_namespace_of_its_own_change_nothing(pod: Pod) -> None:
    code = "import os; os.setresuid(1234, 1234, 1234); result = libc.unshare(0x10000000)"
    for user in (0, NOBODY):
        locker = start(pod, "locker.py", 2 * LIMIT, user=user)
        ask(locker, f"python {code}" if user == 0 else "python result = libc.unshare(0x10000000)")
        ask(locker, f"until {2 * LIMIT}")
    assert pod.locked == LIMIT


@pytest.mark.rule("P1", level="Deny")
def test_every_capability_and_a_raised_rlimit_change_nothing(pod: Pod) -> None:
    locker = start(pod, "locker.py", 2 * LIMIT, user=0)
    raised = (
        "import resource as r; "
        "r.setrlimit(r.RLIMIT_MEMLOCK, (r.getrlimit(r.RLIMIT_MEMLOCK)[1],) * 2)"
    )
    ask(locker, f"python {raised}")
    assert ask(locker, f"until {2 * LIMIT}") == f"{LIMIT} {errno.ENOMEM}"


@pytest.mark.rule("P1", "P5", level="Deny")
def test_process_that_is_killed_while_its_call_waits_leaves_nothing_behind(
    node: Node, pod: Pod
) -> None:
    victim, other = (start(pod, "locker.py", 2 * LIMIT) for _ in range(2))
    for wait in (0.1, 0.0, 0.01):
        os.kill(node.gate.pid, signal.SIGSTOP)
        send(victim, f"lock {LIMIT}")
        time.sleep(wait)
        if wait == 0.01:
            os.kill(node.gate.pid, signal.SIGCONT)
        kill(victim.pid)
        victim.wait()
        os.kill(node.gate.pid, signal.SIGCONT)
        fills_up(pod, other)
        ask(other, f"unlock {LIMIT}")
        victim = start(pod, "locker.py", 2 * LIMIT)


@pytest.mark.rule("P5", level="Deny")
def test_address_space_of_two_processes_counts_once(pod: Pod, hostile: Path) -> None:
    process = pod.run([str(hostile), "shares", str(LIMIT - 8 * PAGE)])
    assert hear(process) == f"{LIMIT - 8 * PAGE} 0"
    locker = start(pod, "locker.py", 2 * LIMIT)
    assert ask(locker, f"lock {8 * PAGE}") == f"{8 * PAGE} 0"
    assert ask(locker, f"lock {PAGE}") == f"{8 * PAGE} {errno.ENOMEM}"


@pytest.mark.rule("P1", "P5", level="Deny")
def test_threads_that_race_share_the_limit(pod: Pod, hostile: Path) -> None:
    assert hear(pod.run([str(hostile), "races", "32"])) == f"{LIMIT} 0"
    assert pod.locked == LIMIT


@pytest.mark.rule("P1", level="Deny")
def test_tracer_cannot_make_a_small_call_a_large_one(pod: Pod, hostile: Path) -> None:
    pod.run([str(hostile), "traces"])
    for _ in range(20):
        assert pod.locked <= LIMIT
        time.sleep(0.05)


@pytest.mark.rule("P1", level="Deny")
@pytest.mark.parametrize("restarts", [True, False])
def test_signals_interrupt_calls_and_none_exceeds_the_limit(
    pod: Pod, hostile: Path, restarts: bool
) -> None:
    process = pod.run([str(hostile), "interrupted", str(int(restarts))])
    interrupts, strange = map(int, hear(process).split())
    assert not strange
    assert not (restarts and interrupts)
    assert pod.locked <= LIMIT
    process.kill()
    process.wait()
    fills_up(pod, start(pod, "locker.py", 2 * LIMIT))


@pytest.mark.rule("P1", level="Deny")
def test_process_stopped_during_a_waiting_call_is_counted_when_continued(
    node: Node, pod: Pod
) -> None:
    one, other = (start(pod, "locker.py", 2 * LIMIT) for _ in range(2))
    os.kill(node.gate.pid, signal.SIGSTOP)
    send(one, f"lock {LIMIT // 2}")
    time.sleep(0.1)
    os.kill(one.pid, signal.SIGSTOP)
    os.kill(node.gate.pid, signal.SIGCONT)
    ask(other, f"until {2 * LIMIT}")
    os.kill(one.pid, signal.SIGCONT)
    hear(one)
    assert pod.locked <= LIMIT
    fills_up(pod, one)


@pytest.mark.rule("P1", "P8", level="Deny")
def test_locked_mapping_does_not_grow_past_the_limit(pod: Pod) -> None:
    locker = start(pod, "locker.py", 2 * LIMIT)
    assert ask(locker, f"lock {LIMIT // 2}") == f"{LIMIT // 2} 0"
    grow = f"call mremap area {LIMIT // 2} {{}} 1"
    result, error = ask(locker, grow.format(LIMIT + PAGE)).split()
    assert (result, error) == ("-1", str(errno.EAGAIN))
    result, error = ask(locker, grow.format(LIMIT)).split()
    assert error == "0"
    assert pod.locked == LIMIT


@pytest.mark.rule("P1", level="Deny")
def test_shared_mapping_that_is_doubled_counts_twice(pod: Pod) -> None:
    locker = start(pod, "locker.py", 2 * LIMIT)
    shared = (
        f"python m = libc.mmap(None, ctypes.c_size_t({LIMIT}), 3, 0x21, -1, ctypes.c_long(0)); "
        "result = m"
    )
    address = ask(locker, shared)
    assert ask(locker, f"call mlock {address} {LIMIT * 3 // 4}") == "0 0"
    assert ask(locker, f"call mremap {address} 0 {LIMIT // 2} 1").split() == [
        "-1",
        str(errno.EAGAIN),
    ]
    assert ask(locker, f"call mremap {address} 0 {LIMIT // 4} 1").split()[1] == "0"
    assert pod.locked == LIMIT


@pytest.mark.rule("P8", "P11", level="Deny")
def test_locked_memory_can_be_locked_again_at_and_above_the_limit(node: Node, pod: Pod) -> None:
    locker = start(pod, "locker.py", 2 * LIMIT)
    assert ask(locker, f"until {2 * LIMIT}") == f"{LIMIT} {errno.ENOMEM}"
    assert ask(locker, "again") == "0 0"
    node.set_limits({pod.uid: LIMIT // 2})
    assert ask(locker, "again") == "0 0"
    assert ask(locker, f"lock {PAGE}") == f"{LIMIT} {errno.ENOMEM}"
    assert pod.locked == LIMIT


def test_replacing_locked_memory_is_denied_as_by_the_kernel(pod: Pod) -> None:
    locker = start(pod, "locker.py", 2 * LIMIT)
    ask(locker, f"until {2 * LIMIT}")
    assert ask(locker, f"call mmap area {PAGE} 3 {0x2000 | 0x32} -1 0") == f"-1 {errno.EAGAIN}"


@pytest.mark.parametrize(
    "call",
    [
        f"mlock {2**64 - 1} 1",
        f"mlock 0 {2**63 - 1}",
        f"mlock {2**63} 4096",
        "mlock 0 4096",
        "mlock area 0",
        f"mlock area {2**64 - 4096}",
        "mlockall 0",
        "mlockall 64",
        "mlockall 4",
        "mmap 0 0 3 8226 -1 0",
        "mmap 0 4096 3 8224 99 0",
        "mremap area 4096 0 1",
        "mremap 1 4096 8192 1",
        "syscall 325 area 4096 7",
        "syscall 427 99 0 0 1",
    ],
)
def test_call_that_the_kernel_denies_gets_the_error_of_the_kernel(
    pod: Pod, node: Node, call: str
) -> None:
    free = node.pod()
    node.set_limits({pod.uid: LIMIT}, free=[free])
    words = call.replace("-1", "2**64-1") if "mmap" in call else call
    answers = [ask(start(each, "locker.py", LIMIT), f"call {words}") for each in (free, pod)]
    assert answers[0] == answers[1]


@pytest.mark.rule("P1", level="Deny")
@pytest.mark.parametrize(
    ("action", "flags", "locked"),
    [
        (LINUX_ALLOW, 0, LIMIT),
        (LINUX_ENOSPC, 0, 0),
        (LINUX_NOTIFY, 0, 0),  # no listener: ENOSYS
        (
            LINUX_NOTIFY,
            8,
            -1,
        ),  # SECCOMP_FILTER_FLAG_NEW_LISTENER, of which there is one already: EBUSY
    ],
)
def test_filter_of_its_own_harms_itself_alone(
    pod: Pod, hostile: Path, action: int, flags: int, locked: int
) -> None:
    answer = hear(pod.run([str(hostile), "nests", str(action), str(flags)]))
    error = {
        LIMIT: errno.ENOMEM,
        -1: errno.EBUSY,
        0: errno.ENOSYS if action == LINUX_NOTIFY else errno.ENOSPC,
    }[locked]
    assert answer == f"{locked} {error}"
    assert pod.locked == max(locked, 0)


@pytest.mark.rule("P1", level="Deny")
def test_no_process_of_the_pod_can_get_the_listener(node: Node, pod: Pod) -> None:
    locker = start(pod, "locker.py", LIMIT)
    own = (
        "import os; "
        "result = [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')]"
    )
    assert "seccomp" not in ask(locker, f"python {own}")
    for process in (node.gate, node.holder):
        ask(locker, f"python handle = libc.syscall(434, {process.pid}, 0); result = handle")
        for number in range(3, 20):
            stolen = f"python result = call('syscall', 438, handle, {number}, 0)"
            assert ask(locker, stolen) == f"(-1, {errno.EPERM})"


@pytest.mark.rule("P1", "P5", level="Deny")
def test_reused_thread_ids_confuse_no_amount(pod: Pod) -> None:
    locker = start(pod, "locker.py", 2 * LIMIT)
    child = f"os.fork() or (call('mlock', area, {8 * PAGE}), os._exit(0))"
    short = f"import os; [os.waitpid(p, 0) for p in [{child} for _ in range(300)]]"
    ask(locker, f"python {short}")
    fills_up(pod, locker)


@pytest.mark.rule("H1", level="Deny")
@pytest.mark.parametrize(
    ("code", "says", "called"),
    [
        ("call('mlockall', 2)", "MCL_FUTURE", "mlockall(MCL_FUTURE)"),
        ("call('mlock', stack(), 1)", "stack", "mlock"),
        ("call('mmap', 0, 4096, 3, 0x122, -1, 0)", "stack", "mmap(MAP_GROWSDOWN)"),
        ("call('syscall', 447, 0)", "memfd_secret", "memfd_secret"),
        (
            "call('shmctl', call('shmget', 0, 4096, 0o1600)[0], 11, 0)",
            "SHM_LOCK",
            "shmctl(SHM_LOCK)",
        ),
        (
            "call('syscall', 427, -1, 0, area, 1)",
            "io_uring",
            "io_uring_register(IORING_REGISTER_BUFFERS)",
        ),
        ("call('syscall', 427, -1, 34, area, 1)", "io_uring", "io_uring_register(34)"),
        ("call('ioctl', 0, 0x3b71, area)", "Vfio", "ioctl(VFIO_IOMMU_MAP_DMA)"),
        ("call('ioctl', 0, 0xc0181b01, area)", "RDMA", "ioctl(0xc0181b01)"),
        ("call('ioctl', 0, 0x40187542, area)", "udmabuf", "ioctl(0x40187542)"),
    ],
)  # fmt: skip
def test_inexact_call_makes_the_pod_inexact_or_is_denied(
    node: Node, pod: Pod, code: str, says: str, called: str
) -> None:
    stack = "stack = lambda: int(open('/proc/self/stat').read().rpartition(')')[2].split()[25])"
    locker = start(pod, "locker.py", LIMIT)
    ask(locker, f"python {stack}; result = {code}")
    assert says in inexact_reasons(node, pod)

    strict = node.pod()
    node.set_limits({pod.uid: LIMIT, strict.uid: LIMIT}, minimum_level="Deny")
    locker = start(strict, "locker.py", LIMIT)
    answer = ask(locker, f"python {stack}; result = {code}")
    assert not inexact_reasons(node, strict)
    assert answer.rstrip(")").split(", ")[-1] in map(
        str, (errno.ENOMEM, errno.ENOSYS, errno.EAGAIN)
    )
    node.until(lambda: any(says in each.get("message", "") for each in node.status.recent))
    assert node.status.recent[-1]["call"] == called


@pytest.mark.rule("P1", level="Deny")
def test_mlockall_of_more_than_the_limit_is_denied(pod: Pod) -> None:
    locker = start(pod, "locker.py", LIMIT)
    assert ask(locker, "call mlockall 1") == f"-1 {errno.ENOMEM}"
    assert pod.locked == 0


@pytest.mark.rule("P5", level="Deny")
def test_flood_of_one_pod_does_not_delay_another(node: Node, hostile: Path) -> None:
    noisy, quiet = node.pod(), node.pod()
    node.set_limits({noisy.uid: LIMIT, quiet.uid: LIMIT})
    assert hear(noisy.run([str(hostile), "flood", "300"])) == "0 0"
    locker = start(quiet, "locker.py", 2 * LIMIT)
    assert ask(locker, f"until {2 * LIMIT}") == f"{LIMIT} {errno.ENOMEM}"
    assert noisy.locked <= LIMIT
    assert locked(locker.pid) == LIMIT
