"""The profiles in the kernel: which calls are sent to the gate, and no way around (P1, P2, M8)."""

import ctypes
import errno
import json
import mmap
import os
import platform
import random
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from gate_node.filters import install
from pinwarden.node.linux import seccomp_notify
from pinwarden.node.linux.seccomp_notify import Listener, Notification
from pinwarden.node.linux.syscalls import AUDIT_ARCH_X86_64, NUMBERS
from pinwarden.node.seccomp.profiles import profiles, runtime_default

from .filters import ALLOW, ERRNO, KILL_THREAD, NOTIFY, Program, program

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="calls are made by their x86_64 numbers"
)

PAGE = mmap.PAGESIZE
PRIVATE, LOCKED, GROWS_DOWN = 0x22, 0x2000, 0x100
MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, ANONYMOUS, POPULATE = 0x01, 0x02, 0x03, 0x20, 0x8000
GARBAGE = 0xABCD << 32
X32 = 1 << 30
AUDIT_ARCH_I386 = 0x40000003
TCGETS, FIONREAD = 0x5401, 0x541B
VFIO, RDMA, UDMABUF = 0x3B71, 0xC0181B01, 0x40187542
IPC_STAT, SHM_LOCK, IPC_64 = 2, 11, 0x100
AF_XDP = 44
PINNING_REGISTER = (0, 15, 16, 22, 32, 33, 34)
USE_REGISTERED_RING = 1 << 31
BY_NAME = NUMBERS[AUDIT_ARCH_X86_64]
BY_NUMBER = {number: name for name, number in BY_NAME.items()}
PROFILES = {name.removesuffix("-v2.json"): profile for name, profile in profiles().items()}
GATED = [
    ("mlock", (0, 0)),
    ("mlock2", (0, 0, 0)),
    ("mlockall", (0,)),
    ("mremap", (1, PAGE, PAGE)),
    ("memfd_secret", (1 << 20,)),
    ("mmap", (0, PAGE, 3, PRIVATE | LOCKED, -1, 0)),
    ("mmap", (0, PAGE, 3, PRIVATE | LOCKED | GARBAGE, -1, 0)),
    ("mmap", (0, PAGE, 3, MAP_SHARED, -1, 0)),
    ("mmap", (0, PAGE, 3, MAP_SHARED | GARBAGE, -1, 0)),
    ("mmap", (0, PAGE, 1, MAP_SHARED_VALIDATE | POPULATE, -1, 0)),
    ("mmap", (0, PAGE, 3, MAP_SHARED | LOCKED, -1, 0)),
    ("mmap", (0, PAGE, 3, MAP_SHARED | ANONYMOUS | LOCKED, -1, 0)),
    ("shmat", (-1, 0, 0)),
    ("remap_file_pages", (0, 0, 0, 0, 0)),
    ("shmctl", (-1, SHM_LOCK, 0)),
    ("shmctl", (-1, SHM_LOCK | GARBAGE, 0)),
    *(
        ("ioctl", (-1, command | above, 0))
        for command in (VFIO, RDMA, UDMABUF)
        for above in (0, GARBAGE)
    ),
]
REGISTER = [
    ("io_uring_register", (-2, opcode | flag | above, 0, 0))
    for opcode in PINNING_REGISTER
    for flag in (0, USE_REGISTERED_RING)
    for above in (0, GARBAGE)
]
NOT_GATED = [
    ("mmap", (0, PAGE, 3, PRIVATE, -1, 0)),
    ("mmap", (0, PAGE, 3, PRIVATE | LOCKED << 32, -1, 0)),
    ("mmap", (0, PAGE, 3, MAP_PRIVATE, -1, 0)),
    ("mmap", (0, PAGE, 3, MAP_PRIVATE | MAP_SHARED << 32, -1, 0)),
    ("mmap", (0, PAGE, 3, MAP_SHARED | ANONYMOUS, -1, 0)),
    ("ioctl", (-1, TCGETS, 0)),
    ("ioctl", (-1, FIONREAD, 0)),
    ("ioctl", (-1, TCGETS | VFIO << 32, 0)),
    ("shmctl", (-1, IPC_STAT, 0)),
    ("shmctl", (-1, SHM_LOCK + 1, 0)),
    ("shmctl", (-1, IPC_STAT | SHM_LOCK << 32, 0)),
]

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def syscall(name: str, arguments: Sequence[int]) -> tuple[int, int]:
    ctypes.set_errno(0)
    result = libc.syscall(
        ctypes.c_long(BY_NAME[name]), *(ctypes.c_long(_signed(each)) for each in arguments)
    )
    return result, ctypes.get_errno()


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def unsigned(arguments: Sequence[int]) -> tuple[int, ...]:
    return tuple(each % 2**64 for each in arguments)


class Outcome:
    """Outcome of a filtered process: wait status, result, and the calls of its listener."""

    def __init__(self, status: int, result: Any, calls: Sequence[Notification]) -> None:
        self.status, self.result, self.calls = status, result, calls

    def notified(self, name: str, arguments: Sequence[int]) -> int:
        """How often this very call was sent."""
        wanted = unsigned(arguments)
        return sum(
            call.number == BY_NAME[name] and call.arguments[: len(wanted)] == wanted
            for call in self.calls
        )


def filtered(profile: Mapping[str, Any], work: Callable[[], Any]) -> Outcome:
    """Run the work in a process under the profile, with a listener that allows every call."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ours.close()
            listener = install(profile)
            socket.send_fds(theirs, [b"!"], [listener])
            os.close(listener)
            theirs.sendall(json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    calls: list[Notification] = []
    with ours:
        ours.settimeout(30)
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        listening = threading.Thread(target=let_all_through, args=(Listener(descriptor), calls))
        listening.start()
        text = b"".join(iter(lambda: ours.recv(1 << 16), b""))
    _, status = os.waitpid(child, 0)
    listening.join(30)
    assert not listening.is_alive()
    return Outcome(status, json.loads(text) if text else None, calls)


def let_all_through(listener: Listener, calls: list[Notification]) -> None:
    """Until no process is left that could make a call."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    memory = ctypes.create_string_buffer(seccomp_notify.SIZE)
    while not (event := poll.poll(30_000)) or event[0][1] & select.POLLIN:
        ctypes.memset(memory, 0, seccomp_notify.SIZE)
        if event and listener.receive(ctypes.addressof(memory)):
            call = seccomp_notify.parse(memory.raw)
            calls.append(call)
            listener.continue_(call.id)
    listener.close()


@pytest.fixture(params=PROFILES)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def profile(variant: str) -> Mapping[str, Any]:
    return PROFILES[variant]


def expect_notified(profile: Mapping[str, Any], asked: Sequence[tuple[str, Sequence[int]]]) -> None:
    bare = [syscall(name, arguments) for name, arguments in asked]
    outcome = filtered(profile, lambda: [syscall(name, arguments) for name, arguments in asked])
    assert outcome.status == 0
    for (name, arguments), (_, error), (_, error_bare) in zip(
        asked, outcome.result, bare, strict=True
    ):
        assert outcome.notified(name, arguments) == asked.count((name, arguments)), (
            name,
            arguments,
        )
        assert error == error_bare, (name, arguments)


def test_each_pinning_call_is_sent_whatever_its_other_registers(
    profile: Mapping[str, Any],
) -> None:
    expect_notified(profile, GATED)


def test_registering_of_buffers_is_sent_where_io_uring_is_allowed() -> None:
    expect_notified(PROFILES["unconfined"], REGISTER)


def test_calls_that_the_runtime_denies_stay_denied_and_are_not_sent() -> None:
    asked = [*REGISTER, ("io_uring_register", (-2, 1, 0, 0))]
    outcome = filtered(PROFILES["runtime-default"], lambda: [syscall(*each) for each in asked])
    assert {tuple(each) for each in outcome.result} == {(-1, errno.EPERM)}
    assert not any(outcome.notified(*each) for each in asked)


def test_same_calls_with_other_arguments_are_not_sent(profile: Mapping[str, Any]) -> None:
    bare = [syscall(*each)[1] for each in NOT_GATED]
    outcome = filtered(profile, lambda: [syscall(*each) for each in NOT_GATED])
    assert [error for _, error in outcome.result] == bare
    assert not any(outcome.notified(*each) for each in NOT_GATED)


def test_kernel_takes_the_version_bit_of_an_older_abi_for_another_command() -> None:
    """So SHM_LOCK with IPC_64 needs no rule."""
    identity = libc.shmget(0, PAGE, 0o1600)
    assert identity >= 0
    try:
        assert syscall("shmctl", (identity, SHM_LOCK | IPC_64, 0)) == (-1, errno.EINVAL)
        assert syscall("shmctl", (identity, SHM_LOCK | GARBAGE, 0)) == (0, 0)
    finally:
        assert syscall("shmctl", (identity, 0, 0)) == (0, 0)


I386_MLOCK = bytes.fromhex(
    "53 b8 96000000 31 db 31 c9 cd 80 5b c3"
)  # push rbx; eax=150, ebx=ecx=0; int 0x80
X32_MLOCK = bytes.fromhex(
    "b8 95000040 31 ff 31 f6 0f 05 c3"
)  # eax=149 with the bit of x32, edi=esi=0; syscall


@pytest.fixture(params=[I386_MLOCK, X32_MLOCK], ids=["32-bit", "x32"])
def other_way(request: pytest.FixtureRequest) -> Iterator[Callable[[], int]]:
    """A call of mlock in another architecture's way."""
    with mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(request.param)
        anchor = ctypes.c_char.from_buffer(page)
        yield ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(anchor))
        del anchor


def test_call_of_another_architecture_kills_the_thread(
    profile: Mapping[str, Any], other_way: Callable[[], int]
) -> None:
    outcome = filtered(profile, other_way)
    assert os.WIFSIGNALED(outcome.status)
    assert os.WTERMSIG(outcome.status) == signal.SIGSYS
    assert outcome.result is None
    assert not outcome.calls


def test_call_of_another_architecture_succeeds_without_a_filter(
    other_way: Callable[[], int],
) -> None:
    child = os.fork()
    if child == 0:
        other_way()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        pytest.skip(f"this kernel has no such call: signal {os.WTERMSIG(status)}")


def pins(name: str, arguments: Sequence[int]) -> bool:
    """What is to be gated, said once more in another way."""
    match name:
        case "mmap":
            shared = arguments[3] & MAP_SHARED and not arguments[3] & ANONYMOUS
            return bool(shared or arguments[3] & (LOCKED | GROWS_DOWN))
        case "shmctl":
            return arguments[1] & 0xFFFFFFFF == SHM_LOCK
        case "ioctl":
            return arguments[1] // 256 % 256 in (0x3B, 0x1B, 0x75)
        case "socket":
            return arguments[0] & 0xFFFFFFFF == AF_XDP
        case "io_uring_register":
            return arguments[1] & 0x7FFFFFFF in PINNING_REGISTER
    return name in BY_NAME


def words(choice: random.Random) -> Iterator[int]:
    """Every pinning value, its neighbours of one bit, and chance."""
    close = [
        *PINNING_REGISTER,
        AF_XDP,
        SHM_LOCK,
        PRIVATE | LOCKED,
        PRIVATE | GROWS_DOWN,
        MAP_SHARED,
        MAP_PRIVATE,
        MAP_SHARED_VALIDATE | POPULATE,
        MAP_SHARED | LOCKED,
        MAP_SHARED | ANONYMOUS,
        VFIO,
        RDMA,
        UDMABUF,
        IPC_STAT,
        TCGETS,
    ]
    for word in close:
        yield word
        for bit in range(64):
            yield word ^ 1 << bit
    for _ in range(500):
        yield choice.getrandbits(64)
    yield from range(1 << 16)


def answers_as_meant(gated: Program, default: Callable[[int, Sequence[int]], int]) -> None:
    for number in range(600):
        for word in (0, SHM_LOCK, PRIVATE | LOCKED, VFIO, 2**64 - 1):
            check(gated, default, number, [word] * 6)
    for name in ("mmap", "shmctl", "ioctl", "io_uring_register", "socket"):
        for word in words(random.Random(name)):
            check(gated, default, BY_NAME[name], [word] * 6)


def check(
    gated: Program,
    default: Callable[[int, Sequence[int]], int],
    number: int,
    arguments: Sequence[int],
) -> None:
    wanted = default(number, arguments)
    if wanted == ALLOW and pins(BY_NUMBER.get(number, ""), arguments):
        wanted = NOTIFY
    assert gated.answer(number, arguments) == wanted, (number, arguments)


def test_whole_filter_is_the_runtimes_but_for_the_pinning_calls_that_it_allows() -> None:
    default = program(runtime_default())
    assert {default.answer(BY_NAME["mmap"]), default.answer(BY_NAME["io_uring_register"])} == {
        ALLOW,
        ERRNO,
    }
    answers_as_meant(program(PROFILES["runtime-default"]), default.answer)


def test_filter_of_unconfined_pods_allows_all_but_the_pinning_calls() -> None:
    answers_as_meant(program(PROFILES["unconfined"]), lambda number, arguments: ALLOW)


def test_filter_kills_for_every_other_architecture(
    profile: Mapping[str, Any],
) -> None:
    made = program(profile)
    for number in range(600):
        assert made.answer(number, arch=AUDIT_ARCH_I386) == KILL_THREAD
        assert made.answer(number | X32) == KILL_THREAD


def test_filters_are_far_below_the_kernels_size_limit(profile: Mapping[str, Any]) -> None:
    assert len(program(profile).instructions) < 4096 // 4
