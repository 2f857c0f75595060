"""The locked and pinned memory of one process, from /proc/PID/status through an open descriptor.

`VmLck` is `mm->locked_vm` and `VmPin` is `mm->pinned_vm`, in kB. Both are samples, true at the time
of the read (H2). A process without an address space shows neither line: the amounts are unknown,
not zero (H2). Such a process is a kernel thread, a zombie, or a process whose first thread has
ended while others run.

The descriptor is bound to one process, because the inode in /proc has its `struct pid`. Once the
process is reaped, a read fails with ESRCH, also if another process has the id by then. So a reader
never shows the wrong process, and a read costs one system call. Each open reader takes one
descriptor.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pinwarden.node.linux.libc import opened

_FIRST_READ = 4096
_START_TIME = 22  # the field's number in proc_pid_stat(5), counted from 1; field 2 is a free name
_AFTER_NAME = 3
_CHUNK = 65536
_MAPPING = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ")
_FLAGS = b"VmFlags:"
_LOCKED = b" lo"
GONE = (FileNotFoundError, ProcessLookupError)
"""The errors of a read in `/proc/PID` once the process has ended."""


class ProcessKey(NamedTuple):
    """A process, unique until the node reboots: the kernel reuses ids, but no id with a start time.

    The start time is in clock ticks since boot.
    """

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One sample of /proc/PID/status. Amounts are in bytes, capabilities are bit masks.

    Without an address space `locked` and `pinned` are None, and `stack` (`VmStk`) is 0.
    """

    parent: int
    locked: int | None
    pinned: int | None
    stack: int
    threads: int
    cap_permitted: int
    cap_inheritable: int
    cap_bounding: int
    no_new_privs: bool


def parse_status(text: bytes) -> ProcessStatus:
    """Parse the text of /proc/PID/status. Raises ValueError if a line of every process is missing.

    A process chooses its name but cannot forge a line: the kernel writes a newline as `\\n`.
    """
    return ProcessStatus(
        parent=int(_required(text, b"PPid")),
        locked=_kilobytes(text, b"VmLck"),
        pinned=_kilobytes(text, b"VmPin"),
        stack=_kilobytes(text, b"VmStk") or 0,
        threads=int(_required(text, b"Threads")),
        cap_permitted=int(_required(text, b"CapPrm"), 16),
        cap_inheritable=int(_required(text, b"CapInh"), 16),
        cap_bounding=int(_required(text, b"CapBnd"), 16),
        no_new_privs=_required(text, b"NoNewPrivs") == b"1",
    )


def parse_start_ticks(text: bytes) -> int:
    """Return the start time in the text of /proc/PID/stat, in clock ticks since boot."""
    return int(text[text.rindex(b")") + 1 :].split()[_START_TIME - _AFTER_NAME])


def read_thread_status(directory: str) -> ProcessStatus | None:
    """Return a sample of one thread, /proc/PID/task/TID; None if the thread has ended."""
    try:
        with opened(f"{directory}/status") as descriptor:
            return parse_status(_read_whole(descriptor))
    except GONE:
        return None


class StatusReader:
    """Samples one process, named by `key`; close it, or use it as a context manager.

    Opening and every read raise ProcessLookupError if the process is gone.
    """

    __slots__ = ("_fd", "_last", "key")

    def __init__(self, proc_root: Path, pid: int) -> None:
        self._last: tuple[bytes, ProcessStatus] | None = None
        try:
            with opened(f"{proc_root}/{pid}", os.O_RDONLY | os.O_DIRECTORY) as directory:
                with opened("stat", at=directory) as stat:
                    self.key = ProcessKey(pid, parse_start_ticks(_read_whole(stat)))
                self._fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError as error:
            raise ProcessLookupError(error.errno, f"process {pid} is gone") from error

    def read(self) -> ProcessStatus:
        """Return a sample: the same object as before while nothing changed, which is cheap.

        Raises ProcessLookupError if the process has been reaped.
        """
        text = _read_whole(self._fd)
        if self._last is None or self._last[0] != text:
            self._last = (text, parse_status(text))
        return self._last[1]

    def close(self) -> None:
        """Close the descriptor; may be called again."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _read_whole(descriptor: int) -> bytes:
    """Return the whole file by one read, so all lines are of one moment.

    A long list of groups needs a larger buffer.
    """
    size = _FIRST_READ
    while len(text := os.pread(descriptor, size, 0)) == size:
        size *= 2
    return text


def _value(text: bytes, name: bytes) -> bytes | None:
    start = text.find(b"\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 2
    return text[start : text.index(b"\n", start)].strip()


def _required(text: bytes, name: bytes) -> bytes:
    value = _value(text, name)
    if value is None:
        raise ValueError(f"status has no line {name.decode()}")
    return value


def _kilobytes(text: bytes, name: bytes) -> int | None:
    value = _value(text, name)
    return None if value is None else int(value.removesuffix(b" kB")) * 1024


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """The address space of process `pid`: its size, and the locked and pinned bytes in it."""

    size: int
    locked: int
    pinned: int
    pid: int


def address_space(proc_root: Path, tid: int) -> AddressSpace | None:
    """Return the address space of a thread's process, or None if there is none any more.

    The size is VmSize (`mm->total_vm`).
    """
    try:
        text = (proc_root / str(tid) / "status").read_bytes()
    except GONE:
        return None
    fields = dict(re.findall(rb"^(VmSize|VmLck|VmPin|Tgid):\s*(\d+)", text, re.MULTILINE))
    if b"VmSize" not in fields:
        return None
    size, locked, pinned = (int(fields[name]) * 1024 for name in (b"VmSize", b"VmLck", b"VmPin"))
    return AddressSpace(size, locked, pinned, int(fields[b"Tgid"]))


def locked_within(proc_root: Path, tid: int, start: int, size: int) -> int:
    """Return the locked bytes of a range (VM_LOCKED, `count_mm_mlocked_page_nr`).

    Return 0 if the thread is gone. Reads all mappings up to the end of the range, and waits for
    the lock of the address space. Raises PermissionError.
    """
    end, locked, rest = start + size, 0, b""
    first = last = 0
    try:
        with opened(f"{proc_root}/{tid}/smaps") as descriptor:
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
    except GONE:
        return 0
    return locked


def read_memory(proc_root: Path, tid: int, address: int, size: int) -> bytes:
    """Return bytes from the memory of a thread's process.

    Waits for the lock of the address space. Raises OSError unless every byte can be read.
    """
    with opened(f"{proc_root}/{tid}/mem") as descriptor:
        data = os.pread(descriptor, size, address) if address < 2**63 else b""
    if len(data) < size:
        raise OSError(f"{size} bytes at {address:#x} are not readable")
    return data


def soft_memlock(proc_root: Path, tid: int) -> int | None:
    """Return the soft RLIMIT_MEMLOCK of a thread's process in bytes.

    Return None if it is unlimited or the thread is gone.
    """
    try:
        text = (proc_root / str(tid) / "limits").read_bytes()
    except GONE:
        return None
    limit = re.search(rb"^Max locked memory\s+(\d+)", text, re.MULTILINE)
    return int(limit[1]) if limit else None


def command(proc_root: Path, tid: int) -> str:
    """Return the name of a thread, which may contain any character but a newline.

    Return "" if the thread is gone.
    """
    try:
        return (proc_root / str(tid) / "comm").read_bytes().decode(errors="replace").rstrip("\n")
    except GONE:
        return ""


def use_of_threads(proc_root: Path, pid: int) -> int:
    """Return VmLck + VmPin in bytes of a process whose first thread has ended.

    Another thread of the process shows both values. Return 0 if all threads have ended.
    """
    try:
        tids = os.listdir(proc_root / str(pid) / "task")
    except GONE:
        return 0
    for tid in tids:
        if space := address_space(proc_root / str(pid) / "task", int(tid)):
            return space.locked + space.pinned
    return 0
