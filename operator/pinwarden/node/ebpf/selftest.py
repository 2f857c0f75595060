"""The self-test of the ledger: does each operation, and compares the account of a scratch cgroup.

An attached program proves nothing, because the compiler may have inlined its function. So a source
counts only if its operation was seen to count on this kernel.

Each operation is done three times: with an unpin, with a munmap, and with an exit of the pinning
process. Each time there are two new processes. The holder joins the cgroup and prepares, for
example a ring, and its child pins. Both end with this process, because each of their steps waits
for a byte of a pipe. The cgroup is removed in the end. SIGKILL leaves an empty cgroup behind.

For `mlock` the oracle is `VmLck` of the process, and for other sources the known size.
"""

import errno
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NoReturn

from pinwarden.node.ebpf.accounts import Accounts, PinSource, cgroup_id
from pinwarden.node.ebpf.loader import BpfObject
from pinwarden.node.ebpf.operations import OPERATIONS, SIZE, Operation
from pinwarden.node.linux.cgroupfs import Layout, detect_layout, member_pids
from pinwarden.node.linux.procfs import read_thread_status

OBJECT: Final = "ledger.bpf.o"
PREFIX: Final = "pinwarden-self-test-"
"""The first part of the scratch cgroup's name; the rest is random."""
STEP_SECONDS: Final = 20.0
RELEASE_SECONDS: Final = 5.0
"""A ring's buffers are released after the last close, by a worker (io_ring_exit_work)."""
_POLL_SECONDS: Final = 0.01
_MESSAGE_BYTES: Final = 4096
_PINNED: Final = "pinned"
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class OperationResult:
    """The effects of one operation on the account, None for those that were not seen.

    `counted` and `uncounted`: the account grew, and fell, by exactly the amount of the kernel.
    `survives_munmap` and `survives_exit`: the charge stayed. `reason` says why a field is False or
    None, and is empty otherwise.
    """

    operation: str
    counted: bool | None
    uncounted: bool | None
    survives_munmap: bool | None
    survives_exit: bool | None
    reason: str


@dataclass(frozen=True)
class SelfTest:
    """The results of all operations, and the reason for each program that is not attached."""

    results: Sequence[OperationResult]
    left_out: Mapping[str, str]


class _Step(StrEnum):
    """The step of a process after its pin."""

    UNPIN = "unpin"
    UNMAP = "munmap"
    EXIT = "exit"


@dataclass(frozen=True)
class _Reading:
    """The bytes of the account before the pin, with the pin, after the step, and at the end."""

    before: int
    pinned: int
    expected: int
    after: int
    ended: int


class _MismatchError(Exception):
    """The account and the kernel have different amounts."""


class _StepError(Exception):
    """A process did not do its step, without an error of a system call."""


def run(objects: Path, cgroup_root: Path) -> SelfTest:
    """Load the ledger from the folder `objects`, and do every operation.

    `cgroup_root` is a folder of the default hierarchy, in which a scratch cgroup is created.

    Raises:
        BpfError: the programs cannot be loaded.
        OSError: the cgroup cannot be created.
    """
    with (
        BpfObject(objects / OBJECT) as ledger,
        _ended_by_signals(),
        _scratch_cgroup(cgroup_root) as cgroup,
    ):
        ledger.load()
        ledger.attach()
        accounts = Accounts(ledger.map_fd("accounts"), ledger.map_fd("lost"))
        accounts.open(cgroup_id(cgroup))
        results = [_test(operation, accounts, cgroup) for operation in OPERATIONS]
        return SelfTest(results, ledger.left_out)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise SystemExit, so every clean-up runs."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, end) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _scratch_cgroup(root: Path) -> Iterator[Path]:
    """Yield a new cgroup, removed at the end with all its processes. Raises OSError."""
    try:
        layout = detect_layout(root)
    except ValueError as error:
        raise OSError(errno.ENOENT, str(error)) from error
    if layout is not Layout.V2:
        raise OSError(
            errno.ENOTSUP,
            "the ledger counts by cgroups of the default hierarchy: mount cgroup v2 there",
            str(root),
        )
    cgroup = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    try:
        yield cgroup
    finally:
        remove_cgroup(cgroup)


def remove_cgroup(cgroup: Path) -> None:
    """End all processes of a cgroup and remove it. Raises OSError."""
    deadline = time.monotonic() + STEP_SECONDS
    while True:
        _end((), cgroup)
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def _test(operation: Operation, accounts: Accounts, cgroup: Path) -> OperationResult:
    """Do one operation with each step. Its failure is its own result."""
    readings: dict[_Step, _Reading] = {}
    reasons: dict[str, None] = {}
    matches = True
    for step in _Step:
        try:
            readings[step] = _read(operation, step, accounts, cgroup)
        except (OSError, _StepError) as error:
            reasons[describe(error)] = None
        except _MismatchError as error:
            matches = False
            reasons[str(error)] = None
    uncounted: bool | None = None
    if unpinned := readings.get(_Step.UNPIN):
        uncounted = unpinned.after == unpinned.before
        if not uncounted:
            reasons[f"{unpinned.after - unpinned.before} bytes are counted after the unpin"] = None
    if any(reading.ended != reading.before for reading in readings.values()):
        uncounted = False
        reasons["bytes are counted after the end of all processes"] = None
    return OperationResult(
        operation=operation.name,
        counted=matches if readings or not matches else None,
        uncounted=uncounted,
        survives_munmap=_survived(readings.get(_Step.UNMAP), SIZE),
        survives_exit=_survived(readings.get(_Step.EXIT), None),
        reason="; ".join(reasons),
    )


def describe(error: Exception) -> str:
    """Return an error in one line, with the failed system call."""
    if isinstance(error, OSError) and error.errno is not None:
        call = f"{error.filename}: " if error.filename else ""
        return f"{call}{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, '?')})"
    return str(error)


def _survived(reading: _Reading | None, size: int | None) -> bool | None:
    """Return whether a charge stayed. `size` is the amount to fall; None means all of it."""
    if reading is None:
        return None
    fall = reading.pinned - reading.after
    expected = reading.pinned - reading.before if size is None else size
    return {0: True, expected: False}.get(fall)


def _read(operation: Operation, step: _Step, accounts: Accounts, cgroup: Path) -> _Reading:
    """Do one operation with one step, and return the amounts of the account.

    Raises _MismatchError if the account has another amount than the kernel, and OSError.
    """

    def read() -> dict[PinSource, int]:
        account = accounts.read(cgroup_id(cgroup))
        if account is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "account")
        return dict(account)

    def charged() -> int:
        account = read()
        others = [
            source.name
            for source, size in account.items()
            if source != operation.source and size != at_first[source]
        ]
        if others:
            raise _MismatchError(f"other sources changed: {', '.join(others)}")
        return account[operation.source]

    at_first = read()
    before = charged()
    with _holder(operation, step, cgroup) as holder:
        pid = holder.next_stage(_PINNED)
        pinned = charged()
        expected = _kernel_amount(operation, pid)
        if pinned - before != expected or expected < SIZE:
            raise _MismatchError(f"{pinned - before} bytes are counted, {expected} are pinned")
        holder.go_on()
        holder.next_stage(step)
        after = charged()
        if step is _Step.UNMAP and operation.source is PinSource.MLOCK:
            left = _kernel_amount(operation, pid)
            if after - before != left:
                raise _MismatchError(
                    f"{after - before} bytes are counted after munmap, {left} are pinned"
                )
        holder.go_on()
    ended = _eventually(charged, before)
    return _Reading(before, pinned, expected, after, ended)


def _kernel_amount(operation: Operation, pid: int) -> int:
    """Return the bytes that the kernel counts for a process by itself. Raises OSError."""
    if operation.source is not PinSource.MLOCK:
        return SIZE
    status = read_thread_status(f"/proc/{pid}")
    if status is None or status.locked is None:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), f"/proc/{pid}/status")
    if operation.exact and status.locked not in (0, SIZE):
        raise _MismatchError(f"VmLck has {status.locked} bytes, not {SIZE}")
    return status.locked


def _eventually(read: Callable[[], int], expected: int) -> int:
    """Return the first reading with the expected amount, or the last one."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while (reading := read()) != expected and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return reading


class _Holder:
    """The side of the self-test: waits for a stage of the processes, and lets them go on."""

    def __init__(self, stages: int, steps: int) -> None:
        self._stages = stages
        self._steps = steps
        self._lines: list[str] = []

    def next_stage(self, name: str) -> int:
        """Wait for a stage and return the process at it. Raises OSError and _StepError."""
        if not self._lines:
            if not select.select([self._stages], [], [], STEP_SECONDS)[0]:
                raise _StepError(f"{name}: not done within {STEP_SECONDS:.0f} s")
            self._lines = os.read(self._stages, _MESSAGE_BYTES).decode().splitlines()
        if not self._lines:
            raise _StepError(f"{name}: the process ended")
        stage, _, rest = self._lines.pop(0).partition(" ")
        if stage == name:
            return int(rest)
        number, _, call = rest.partition(" ")
        if stage != "error":
            raise _StepError(f"{name}: the process was at {stage}")
        raise OSError(int(number), os.strerror(int(number)), call)

    def go_on(self) -> None:
        """Let the processes go on to the next stage. Raises OSError if they ended."""
        os.write(self._steps, b"1")


@contextmanager
def _holder(operation: Operation, step: _Step, cgroup: Path) -> Iterator[_Holder]:
    """Fork the holder and yield its control. At the end no process is left. Raises OSError."""
    with ExitStack() as stack:
        stages_read, stages_write = os.pipe()
        steps_read, steps_write = os.pipe()
        stack.callback(os.close, stages_read)
        pid = os.fork()
        if pid == 0:
            os.close(steps_write)
            _act(operation, step, cgroup, _Stages(stages_write, steps_read))
        stack.callback(os.waitpid, pid, 0)
        stack.callback(_end, {pid}, cgroup)
        stack.callback(os.close, steps_write)
        os.close(stages_write)
        os.close(steps_read)
        yield _Holder(stages_read, steps_write)
        # The last stage lets the holder exit, and with it everything that it holds.
        _wait_for_end(stages_read)


def _wait_for_end(stages: int) -> None:
    """Wait until no process has the other end of the pipe, for a limited time."""
    select.select([stages], [], [], STEP_SECONDS)


def _end(processes: Collection[int], cgroup: Path) -> None:
    """Kill these processes, which are not reaped yet, and all processes of a cgroup."""
    for pid in member_pids(cgroup).union(processes):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class _Stages:
    """The side of the holder and of its child."""

    def __init__(self, stages: int, steps: int) -> None:
        self._stages = stages
        self._steps = steps

    def reach(self, name: str) -> None:
        """Report a stage and wait; end the process if the self-test ended."""
        os.write(self._stages, f"{name} {os.getpid()}\n".encode())
        if not os.read(self._steps, 1):
            os._exit(1)

    def fail(self, error: OSError) -> None:
        """Report the failure of a system call."""
        os.write(
            self._stages, f"error {error.errno or errno.EIO} {error.filename or ''}\n".encode()
        )


def _act(operation: Operation, step: _Step, cgroup: Path, stages: _Stages) -> NoReturn:
    """Run the holder's whole life, and that of its child."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        (cgroup / "cgroup.procs").write_text("0")
        prepared = operation.prepare()
        child = os.fork()
        if child == 0:
            _pin(operation, step, prepared, stages)
        elif not os.waitpid(child, 0)[1] and step is _Step.EXIT:
            stages.reach(step)
        status = 0
    except OSError as error:
        stages.fail(error)
    finally:
        os._exit(status)


def _pin(operation: Operation, step: _Step, prepared: int, stages: _Stages) -> None:
    address = operation.pin(prepared)
    stages.reach(_PINNED)
    if step is _Step.UNPIN:
        operation.unpin(prepared, address)
        stages.reach(step)
    elif step is _Step.UNMAP:
        operation.unmap(prepared, address)
        stages.reach(step)
