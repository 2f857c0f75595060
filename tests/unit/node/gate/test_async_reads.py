"""Hanging reads of one pod do not delay other pods (P5)."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pinwarden.node.gate.async_reads import READS_PER_POD, AsyncRead, ReadPool

PODS = 50


@pytest.fixture
def readers() -> Iterator[ReadPool]:
    readers = ReadPool("reader")
    yield readers
    readers.close()


def read(async_read: AsyncRead[int], says: Callable[[], int]) -> int:
    while (result := async_read.get(says)) is None:
        time.sleep(0.001)
    return result


@pytest.mark.rule("P5")
def test_pods_with_hanging_reads_occupy_only_their_own_threads(readers: ReadPool) -> None:
    ends = threading.Event()

    def hangs() -> int:
        return int(ends.wait(60))

    before = threading.active_count()
    for number in range(PODS):
        for _ in range(READS_PER_POD + 1):
            assert AsyncRead[int](readers, f"hanging{number}").get(hangs) is None
    assert threading.active_count() - before == PODS * READS_PER_POD
    assert read(AsyncRead(readers, "quiet"), lambda: 5) == 5
    readers.forget("hanging0")
    late = AsyncRead[int](readers, "hanging0")
    assert late.get(lambda: 6) is None, "a hanging read stays counted"
    ends.set()
    assert read(late, lambda: 6) == 6


def test_exception_of_a_read_is_raised(readers: ReadPool) -> None:
    def fails() -> int:
        raise OSError("no")

    async_read = AsyncRead[int](readers, "pod")
    with pytest.raises(OSError, match="no"):
        read(async_read, fails)
    assert read(async_read, lambda: 7) == 7
