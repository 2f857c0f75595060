"""What /proc tells of a thread that made a gated call: whether the call is counted by now, and what of its address space is locked.

Needs CAP_SYS_PTRACE. A thread may end at any time, and its number may then be another's: what is read here of a thread whose call waits is
checked by asking the listener afterwards whether it still waits.

Reads of smaps and of memory wait for the address space's lock, which its own threads can hold for long (a fork of much memory, a page on a
file system that hangs). They are made `AsyncRead`, so that a pod can hold up nobody but itself.
"""

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pinwarden.node.linux.seccomp_notify import Notification

_MOMENT_SECONDS = 0.0005
_CHUNK = 65536
_USER_TIME = 11  # utime of proc_pid_stat(5), counted from what follows the name
_TICKS = os.sysconf("SC_CLK_TCK")
_MAPPING = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ")
_FLAGS = b"VmFlags:"
_LOCKED = b" lo"
_KCMP: Final = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
_KCMP_VM = 1
_libc = ctypes.CDLL(None, use_errno=True)
_GONE = (FileNotFoundError, ProcessLookupError)
_Read = TypeVar("_Read")


class ReadPool:
    """Threads that read `AsyncRead`. Each pod may keep `of_a_pod` of them busy: a read may hang for as long as a program wants."""

    def __init__(self, threads: int, of_a_pod: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._of_a_pod = of_a_pod
        self._busy: dict[str, set[Future[Any]]] = {}

    def submit(self, pod: str, read: Callable[[], _Read]) -> "Future[_Read] | None":
        """The read, once it is begun; None while as many of the pod's go on."""
        busy = {each for each in self._busy.get(pod, ()) if not each.done()}
        if len(busy) >= self._of_a_pod:
            return None
        reading = self._pool.submit(read)
        self._busy[pod] = busy | {reading}
        return reading

    def forget(self, pod: str) -> None:
        """The pod has no calls any more; reads of its that still hang stay counted."""
        if all(each.done() for each in self._busy.get(pod, ())):
            self._busy.pop(pod, None)

    def close(self) -> None:
        """Ends those that can be ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class AsyncRead(Generic[_Read]):
    """One read at a time of a pod's memory."""

    __slots__ = ("_pod", "_readers", "_reading")

    def __init__(self, readers: ReadPool, pod: str) -> None:
        self._readers = readers
        self._pod = pod
        self._reading: Future[_Read] | None = None

    def get(self, read: Callable[[], _Read]) -> _Read | None:
        """What `read` says; None while that takes longer than a moment: then to be called again, with the same. Raises what it raises."""
        if self._reading is None:
            self._reading = self._readers.submit(self._pod, read)
        if self._reading is None or not wait([self._reading], _MOMENT_SECONDS).done:
            return None
        reading, self._reading = self._reading, None
        return reading.result()


class SyscallExit:
    """Whether a call that was let through is over, so that what it added is counted.

    A thread that sleeps shows the call that it is in (`task_current_syscall`). One that runs shows nothing: it may be on its way into the
    call, spin there for its address space's lock, fault in what is counted already, or be busy in user mode again; then its user time goes
    on, which a call's own work does not. That time is an estimate (`cputime_adjust`) which a program can bend, at a cost: it must go on for
    a second, longer than a call counts.

    That a range is marked as locked proves nothing: another thread may have done that, and move it away before this call comes.
    """

    __slots__ = ("_call", "_path", "_user")

    def __init__(self, proc_root: Path, call: Notification) -> None:
        self._path = proc_root / str(call.tid)
        self._call = call
        self._user: int | None = None

    def returned(self) -> bool:
        """Looks."""
        try:
            shown = self._shown()
            user = int((self._path / "stat").read_bytes().rpartition(b")")[2].split()[_USER_TIME])
        except _GONE:
            return True
        if shown is not None and shown != (self._call.number, self._call.arguments):
            return True
        if self._user is None:
            self._user = user
        return user - self._user >= _TICKS

    def _shown(self) -> tuple[int, tuple[int, ...]] | None:
        """Number and registers of the call that the thread sleeps in; None while it runs, or where the kernel does not tell."""
        try:
            number, *words = (self._path / "syscall").read_bytes().split()
        except PermissionError:  # yama's ptrace_scope 3 refuses it to everyone
            return None
        return None if number == b"running" else (int(number), tuple(int(word, 16) for word in words[:6]))


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """That of the process `pid`: all of it, and what of it is locked and pinned, in bytes."""

    size: int
    locked: int
    pinned: int
    pid: int


def address_space(proc_root: Path, tid: int) -> AddressSpace | None:
    """VmSize (`mm->total_vm`), VmLck, VmPin and more of the thread's process; None when it has no address space any more."""
    try:
        text = (proc_root / str(tid) / "status").read_bytes()
    except _GONE:
        return None
    found = dict(re.findall(rb"^(VmSize|VmLck|VmPin|Tgid):\s*(\d+)", text, re.MULTILINE))
    if b"VmSize" not in found:
        return None
    size, locked, pinned = (int(found[name]) * 1024 for name in (b"VmSize", b"VmLck", b"VmPin"))
    return AddressSpace(size, locked, pinned, int(found[b"Tgid"]))


def locked_within(proc_root: Path, tid: int, start: int, size: int) -> int:
    """Bytes of the range that lie in locked mappings (VM_LOCKED, `count_mm_mlocked_page_nr`); 0 when the thread is gone.

    Reads all mappings up to the range's end. Raises PermissionError.
    """
    end, locked, rest = start + size, 0, b""
    first = last = 0
    try:
        with _opened(proc_root / str(tid) / "smaps") as descriptor:
            while data := os.read(descriptor, _CHUNK):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.startswith(_FLAGS):
                        if _LOCKED in line:
                            locked += max(0, min(last, end) - max(first, start))
                    elif mapping := _MAPPING.match(line):
                        first, last = (int(bound, 16) for bound in mapping.groups())
                        if first >= end:
                            return locked
    except _GONE:
        return 0
    return locked


def read_memory(proc_root: Path, tid: int, address: int, size: int) -> bytes:
    """Memory of the thread's process. Raises OSError where there is none, also when only a part of it can be read."""
    with _opened(proc_root / str(tid) / "mem") as descriptor:
        data = os.pread(descriptor, size, address) if address < 2**63 else b""
    if len(data) < size:
        raise OSError(f"{size} bytes at {address:#x} are not readable")
    return data


def soft_limit(proc_root: Path, tid: int) -> int | None:
    """The soft RLIMIT_MEMLOCK of the thread's process in bytes; None when it is unlimited or the thread is gone."""
    try:
        text = (proc_root / str(tid) / "limits").read_bytes()
    except _GONE:
        return None
    found = re.search(rb"^Max locked memory\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else None


def command(proc_root: Path, tid: int) -> str:
    """The name that a thread has; it may hold any character but a newline. Empty when it is gone."""
    try:
        return (proc_root / str(tid) / "comm").read_bytes().decode(errors="replace").rstrip("\n")
    except _GONE:
        return ""


def use_of_threads(proc_root: Path, pid: int) -> int:
    """VmLck + VmPin in bytes of a process whose first thread has ended: another thread shows them. 0 when there is none any more."""
    try:
        tids = os.listdir(proc_root / str(pid) / "task")
    except _GONE:
        return 0
    for tid in tids:
        if space := address_space(proc_root / str(pid) / "task", int(tid)):
            return space.locked + space.pinned
    return 0


def compare_address_spaces(pid: int, other: int) -> int:
    """An order of address spaces: 0 when two processes have the same one, as after vfork(2) (kcmp(2)), else -1 or 1.

    Where the kernel does not tell, two processes have two.
    """
    result = -1 if _KCMP is None else _libc.syscall(_KCMP, pid, other, _KCMP_VM, 0, 0)
    return {0: 0, 1: -1, 2: 1}.get(result, -1 if pid < other else 1)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
