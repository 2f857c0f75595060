"""The loaded ledger, cgroups with an account, and processes in them that pin on request."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from pinwarden.node.ebpf.accounts import (
    ACCOUNT,
    ACCOUNT_KEY,
    Accounts,
    LostReason,
    PinSource,
    cgroup_id,
)
from pinwarden.node.ebpf.loader import OBJECTS, BpfObject
from pinwarden.node.ebpf.selftest import OBJECT, remove_cgroup
from pinwarden.node.linux.bpf import Map
from pinwarden.node.linux.procfs import read_thread_status

from ..waiting import eventually
from .nodes import CGROUP

PAGE = os.sysconf("SC_PAGE_SIZE")


class Worker:
    """A forked process in a cgroup. Its function says words, and waits after each."""

    def __init__(self, cgroup: Path, work: Callable[["Caller"], None]) -> None:
        words_read, words_write = os.pipe()
        steps_read, steps_write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.close(words_read)
                os.close(steps_write)
                (cgroup / "cgroup.procs").write_text("0")
                work(Caller(words_write, steps_read))
                status = 0
            finally:
                os._exit(status)
        os.close(words_write)
        os.close(steps_read)
        self._words, self._steps = words_read, steps_write
        self._reaped = False

    def wait(self) -> str:
        """Return the next word. The end of the process is an empty one."""
        return os.read(self._words, 4096).decode()

    def go_on(self) -> None:
        os.write(self._steps, b"1")

    def step(self) -> str:
        """Let the process go on, and return its next word."""
        self.go_on()
        return self.wait()

    @property
    def locked(self) -> int:
        """Return `VmLck` in bytes."""
        status = read_thread_status(f"/proc/{self.pid}")
        assert status is not None
        assert status.locked is not None
        return status.locked

    def kill(self) -> None:
        if not self._reaped:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.reap()

    def reap(self) -> int:
        """Wait for the end and return the status."""
        self._reaped = True
        status = os.waitpid(self.pid, 0)[1]
        os.close(self._words)
        os.close(self._steps)
        return status


class Caller:
    """The worker's side."""

    def __init__(self, words: int, steps: int) -> None:
        self._words, self._steps = words, steps

    def say(self, word: str) -> None:
        """Say a word and wait; exit if the test ended."""
        os.write(self._words, word.encode())
        if not os.read(self._steps, 1):
            os._exit(1)


class LoadedLedger:
    """The programs of `bpf/`, attached, and what a test made of cgroups and processes."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        bpf = self._stack.enter_context(BpfObject(OBJECTS / OBJECT))
        bpf.load()
        bpf.attach()
        self.accounts = Accounts(bpf.map_fd("accounts"), bpf.map_fd("lost"))
        self._map = Map(bpf.map_fd("accounts"), ACCOUNT_KEY.size, ACCOUNT.size)
        self._workers: list[Worker] = []
        self._cgroups: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clean()
        self._stack.close()

    def cgroup(self, name: str, *, counted: bool = True) -> Path:
        cgroup = CGROUP / name
        cgroup.mkdir()
        self._cgroups.append(cgroup)
        if counted:
            self.open(cgroup)
        return cgroup

    def open(self, cgroup: Path) -> None:
        self.accounts.open(cgroup_id(cgroup))

    def delete(self, cgroup: Path) -> None:
        """Delete the account, whatever is charged."""
        self._map.delete(ACCOUNT_KEY.pack(cgroup_id(cgroup)))

    def hire(self, cgroup: Path, work: Callable[[Caller], None]) -> Worker:
        worker = Worker(cgroup, work)
        self._workers.append(worker)
        return worker

    def charged(self, cgroup: Path, source: PinSource) -> int:
        account = self.accounts.read(cgroup_id(cgroup))
        assert account is not None
        return account[source]

    def until(self, cgroup: Path, source: PinSource, size: int) -> None:
        eventually(lambda: self.charged(cgroup, source), lambda charged: charged == size)

    def lost(self) -> dict[LostReason, int]:
        return dict(self.accounts.lost())

    def clean(self) -> None:
        """End the processes and remove the cgroups of one test, the inner ones first."""
        self.end_workers()
        while self._cgroups:
            remove_cgroup(self._cgroups.pop())

    def end_workers(self) -> None:
        while self._workers:
            self._workers.pop().kill()


def pinned_pages() -> int:
    """Return the bytes pinned by FOLL_PIN on the whole machine."""
    Path("/proc/sys/vm/stat_refresh").write_text("1")
    lines = Path("/proc/vmstat").read_text().splitlines()
    counters = dict(line.split() for line in lines)
    acquired, released = counters["nr_foll_pin_acquired"], counters["nr_foll_pin_released"]
    return (int(acquired) - int(released)) * PAGE
