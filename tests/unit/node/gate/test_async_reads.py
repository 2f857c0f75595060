"""Hanging reads of one pod do not delay other pods (P5)."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pinwarden.node.gate.async_reads import AsyncRead, ReadPool

THREADS, OF_A_POD = 4, 2


@pytest.fixture
def readers() -> Iterator[ReadPool]:
    readers = ReadPool(THREADS, OF_A_POD, "reader")
    yield readers
    readers.close()


def read(aside: AsyncRead[int], says: Callable[[], int]) -> int:
    while (found := aside.get(says)) is None:
        time.sleep(0.001)
    return found


@pytest.mark.rule("P5")
def test_a_pod_whose_reads_hang_keeps_only_its_own_threads_busy(readers: ReadPool) -> None:
    ends = threading.Event()

    def hangs() -> int:
        return int(ends.wait(60))

    for _ in range(3 * THREADS):
        assert AsyncRead[int](readers, "hanging").get(hangs) is None
    assert read(AsyncRead(readers, "quiet"), lambda: 5) == 5
    readers.forget("hanging")
    late = AsyncRead[int](readers, "hanging")
    assert late.get(lambda: 6) is None, "what hangs stays counted"
    ends.set()
    assert read(late, lambda: 6) == 6


def test_what_a_read_raises_is_raised(readers: ReadPool) -> None:
    def fails() -> int:
        raise OSError("no")

    aside = AsyncRead[int](readers, "pod")
    with pytest.raises(OSError, match="no"):
        read(aside, fails)
    assert read(aside, lambda: 7) == 7
