"""Lock and unlock memory in several processes of a pod, and count what they lock together.

Usage: `prober.py POD PROCESSES MEBIBYTES`. Each process wants so many MiB.

Each SIGUSR1 to the first process begins the next phase: *wait*, *race* (lock and unlock at random),
*fill* (only lock). SIGUSR2 forks a process that locks nothing. A line of JSON is printed each
second: `now` and `most` are bytes locked by all processes. A process adds to the sum after a call
has locked, and subtracts before a call unlocks. So the real amount is never below `most`.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import resource
import signal
import sys
import time

PAGE = mmap.PAGESIZE
CHUNK = 16
PAUSE_SECONDS = 0.05
WAIT, RACE, FILL = range(3)
PHASE, NOW, MOST, LOCKED_CALLS, DENIED_CALLS, ERROR = range(6)

libc = ctypes.CDLL(None, use_errno=True)
board = memoryview(mmap.mmap(-1, PAGE)).cast("q")
guard = os.memfd_create("guard")


def add(amount: int) -> None:
    """Add to the sum of locked bytes."""
    fcntl.lockf(guard, fcntl.LOCK_EX)
    board[NOW] += amount
    board[MOST] = max(board[MOST], board[NOW])
    fcntl.lockf(guard, fcntl.LOCK_UN)


def count(counter: int) -> None:
    """Increase a counter by one."""
    fcntl.lockf(guard, fcntl.LOCK_EX)
    board[counter] += 1
    fcntl.lockf(guard, fcntl.LOCK_UN)


def lock(start: int, pages: int) -> int:
    """Lock up to so many pages, fewer if that is denied, and return how many were locked."""
    while pages:
        if not libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(pages * PAGE)):
            add(pages * PAGE)
            count(LOCKED_CALLS)
            return pages
        error = ctypes.get_errno()
        if error not in (errno.ENOMEM, errno.EAGAIN):
            board[ERROR] = error
        count(DENIED_CALLS)
        pages //= 2
        time.sleep(PAUSE_SECONDS)
    return 0


def unlock(start: int, pages: int) -> None:
    """Unlock pages at an address."""
    add(-pages * PAGE)
    libc.munlock(ctypes.c_void_p(start), ctypes.c_size_t(pages * PAGE))


def run(number: int, size: int) -> None:
    """Lock and unlock for ever."""
    choice = random.Random(number)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    free = [(start, CHUNK) for start in range(address, address + size, CHUNK * PAGE)]
    locked: list[tuple[int, int]] = []
    while True:
        phase = board[PHASE]
        if phase == WAIT:
            pass
        elif locked and phase == RACE and choice.random() < 0.4:
            extent = locked.pop(choice.randrange(len(locked)))
            unlock(*extent)
            free.append(extent)
        elif free:
            start, pages = free.pop()
            if done := lock(start, pages):
                locked.append((start, done))
            if done < pages:
                free.append((start + done * PAGE, pages - done))
        time.sleep(PAUSE_SECONDS)


def begin_next_phase(*_: object) -> None:
    """Begin the next phase in all processes."""
    board[PHASE] += 1


def fork_idle(*_: object) -> None:
    """Fork a process that locks nothing."""
    if os.fork() == 0:
        while True:
            signal.pause()


def main() -> None:
    """Start the processes and print the board for ever."""
    processes, size = int(sys.argv[2]), int(sys.argv[3]) << 20
    signal.signal(signal.SIGUSR1, begin_next_phase)
    signal.signal(signal.SIGUSR2, fork_idle)
    for number in range(processes):
        if os.fork() == 0:
            if number == 0:
                soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft * 3 // 4, hard))
            run(number, size)
    names = ("phase", "now", "most", "locked", "denied", "error")
    while True:
        print(json.dumps(dict(zip(names, board, strict=False))), flush=True)
        time.sleep(1)


if __name__ == "__main__":
    main()
