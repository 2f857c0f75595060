"""What is known of a followed process's threads, over files that look like /proc."""

from pathlib import Path

import pytest

from pinwarden.node.linux.procfs import ProcessStatus, read_thread_status
from pinwarden.node.pods import process as process_module
from pinwarden.node.pods.privileges import HeldBackReason
from pinwarden.node.pods.process import CHECK_SECONDS, RECHECK_SECONDS, Process

PID = 100
IPC_LOCK, SYS_RESOURCE = 1 << 14, 1 << 24


class FakeProcess:
    """A process of these threads: each with what it is permitted, without a way to gain more."""

    def __init__(self, folder: Path, *permitted: int) -> None:
        self._folder = folder / str(PID)
        (self._folder / "task").mkdir(parents=True)
        (self._folder / "stat").write_text(f"{PID} (x) S" + " 0" * 40)
        (self._folder / "uid_map").write_text("0 0 4294967295")
        self._threads: dict[int, int] = {}
        for number, each in enumerate(permitted):
            self.start(PID + number, each)
        self.sampled = Process(folder, PID)

    def start(self, thread: int, permitted: int) -> None:
        (self._folder / "task" / str(thread)).mkdir()
        self.allow(thread, permitted)

    def allow(self, thread: int, permitted: int) -> None:
        self._threads[thread] = permitted
        self._write()

    def end(self, thread: int) -> None:
        (self._folder / "task" / str(thread) / "status").unlink()
        (self._folder / "task" / str(thread)).rmdir()
        del self._threads[thread]
        self._write()

    def checked(self, now: float, most: int = 100) -> HeldBackReason | None:
        self.sampled.sample()
        assert self.sampled.check_privileges(now, most) <= most
        return self.sampled.held_back

    def _write(self) -> None:
        for thread, permitted in self._threads.items():
            text = "\n".join(
                [
                    "Name: x",
                    "PPid: 1",
                    "VmLck: 0 kB",
                    "VmPin: 0 kB",
                    f"Threads: {len(self._threads)}",
                    "CapInh: 0",
                    f"CapPrm: {permitted:x}",
                    "CapBnd: 0",
                    "NoNewPrivs: 1",
                    "",
                ]
            )
            (self._folder / "task" / str(thread) / "status").write_text(text)
            if thread == PID:
                (self._folder / "status").write_text(text)


@pytest.mark.rule("H1")
def test_a_thread_keeping_a_capability_of_the_first_is_found(tmp_path: Path) -> None:
    process = FakeProcess(tmp_path, 0, 0, IPC_LOCK)
    assert process.sampled.held_back is HeldBackReason.THREADS_UNREAD
    assert process.checked(0) is HeldBackReason.CAP_IPC_LOCK
    process.allow(PID + 2, 0)
    assert process.checked(CHECK_SECONDS / 2) is HeldBackReason.CAP_IPC_LOCK
    assert process.checked(CHECK_SECONDS) is None


@pytest.mark.rule("H1")
def test_a_capability_dropped_later_is_checked_in_all_threads_at_once(
    tmp_path: Path,
) -> None:
    process = FakeProcess(tmp_path, IPC_LOCK)
    process.start(PID + 1, SYS_RESOURCE)
    assert process.checked(0) is HeldBackReason.CAP_IPC_LOCK
    process.allow(PID, 0)
    assert process.checked(0) is HeldBackReason.CAP_SYS_RESOURCE
    process.end(PID + 1)
    assert process.checked(CHECK_SECONDS) is None


@pytest.mark.rule("H1")
def test_more_threads_are_read_again(tmp_path: Path) -> None:
    process = FakeProcess(tmp_path, 0)
    assert process.checked(0) is None
    process.start(PID + 1, IPC_LOCK)
    assert process.checked(0) is HeldBackReason.CAP_IPC_LOCK


@pytest.mark.rule("H1")
def test_many_threads_are_read_in_steps_without_a_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def reading(directory: str) -> ProcessStatus | None:
        read.append(directory)
        return read_thread_status(directory)

    monkeypatch.setattr(process_module, "read_thread_status", reading)
    process = FakeProcess(tmp_path, *[0] * 10)
    found = [process.checked(0, 4) for _ in range(4)]
    assert found == [HeldBackReason.THREADS_UNREAD, HeldBackReason.THREADS_UNREAD, None, None]
    assert len(read) == 10
    process.start(PID + 10, 0)
    assert [process.checked(1 + number * RECHECK_SECONDS, 4) for number in range(4)] == [None] * 4
    assert len(read) == 21, "what is known holds while they are read again"


@pytest.mark.rule("H1")
def test_a_failed_sample_is_corrected_by_the_next(tmp_path: Path) -> None:
    process = FakeProcess(tmp_path, 0)
    uid_map = tmp_path / str(PID) / "uid_map"
    whole = uid_map.rename(tmp_path / "whole")
    uid_map.mkdir()
    process.allow(PID, IPC_LOCK)
    with pytest.raises(IsADirectoryError):
        process.sampled.sample()
    uid_map.rmdir()
    whole.rename(uid_map)
    assert process.checked(0) is HeldBackReason.CAP_IPC_LOCK
