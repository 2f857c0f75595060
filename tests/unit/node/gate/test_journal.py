"""Received notifications stay in the journal for the next gate."""

from contextlib import closing
from pathlib import Path

import pytest

from pinwarden.node.gate import journal as journals
from pinwarden.node.gate.journal import Journal
from pinwarden.node.linux import seccomp_notify
from pinwarden.node.linux.seccomp_notify import Notification


class Queue(seccomp_notify.Listener):
    """Replaces the kernel: a queue of notifications."""

    def __init__(self, *calls: Notification) -> None:
        self._calls = list(calls)

    def receive(self, address: int) -> bool:
        import ctypes

        if not self._calls:
            return False
        call = self._calls.pop(0)
        data = seccomp_notify._NOTIFICATION.pack(
            call.id, call.tid, 0, call.number, call.arch, 0, *call.arguments
        )
        ctypes.memmove(address, data, len(data))
        return True


def call(identity: int) -> Notification:
    return Notification(identity, 100 + identity, 149, 0xC000003E, (1, 2, 3, 4, 5, 2**64 - 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.mark.rule("H3")
def test_received_notification_is_read_by_the_next_gate(path: Path) -> None:
    with closing(Journal(path)) as journal:
        first = journal.receive(Queue(call(1)), 7)
        second = journal.receive(Queue(call(2)), 8)
        third = journal.receive(Queue(call(3)), 9)
        assert first is not None
        assert second is not None
        assert third is not None
        fourth = journal.receive(Queue(call(4)), 9)
        assert fourth is not None
        journal.track(second[0], 4096)
        journal.track(fourth[0], 0)
        journal.free(third[0])
    with closing(Journal(path)) as journal:
        assert sorted(journal.left()) == [
            (first[0], call(1), 7, None),
            (second[0], call(2), 8, 4096),
            (fourth[0], call(4), 9, 0),
        ]


def test_receive_of_an_ended_call_returns_none(path: Path) -> None:
    with closing(Journal(path)) as journal:
        assert journal.receive(Queue(), 7) is None
        assert list(journal.left()) == []


def test_journal_is_open_in_one_gate_at_a_time(path: Path) -> None:
    with closing(Journal(path)), pytest.raises(BlockingIOError):
        Journal(path)
    Journal(path).close()


@pytest.mark.parametrize("content", [b"", b"other", b"pinwarden-gate-1" + bytes(10)])
def test_journal_of_another_format_is_replaced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with closing(Journal(path)) as journal:
        assert list(journal.left()) == []


def test_slots_are_reused_and_can_all_be_in_use(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "SLOTS", 2)
    with closing(Journal(path)) as journal:
        for number in range(1, 6):
            received = journal.receive(Queue(call(number)), 1)
            assert received is not None
            journal.free(received[0])
        for number in range(2):
            journal.receive(Queue(call(number + 1)), 1)
        assert journal.full
        assert journal.receive(Queue(call(9)), 1) is None
