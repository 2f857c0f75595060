"""Processes of a pod that lock and unlock at random and count calls and unexpected errors.

Arguments: the number of processes, then the seconds between two lines of output and between two
calls. With the number alone, each line of standard input asks for a line, and calls have no pause.
An error is expected if the kernel has it for a limit (ENOMEM, EAGAIN).
"""

import ctypes
import errno
import mmap
import os
import random
import sys
import time
from collections.abc import Iterator

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
count = int(sys.argv[1])
pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
board = memoryview(mmap.mmap(-1, 16 * count)).cast(
    "q"
)  # per process: calls, and the first strange error


def loop(number: int) -> None:
    area = libc.mmap(None, ctypes.c_size_t(256 * PAGE), 3, 0x22, -1, ctypes.c_long(0))
    choice = random.Random(number)
    while True:
        start, pages = choice.randrange(200), choice.choice((1, 1, 2, 8, 50))
        if choice.random() < 0.6:
            if libc.mlock(area + start * PAGE, pages * PAGE):
                error = ctypes.get_errno()
                if error not in (errno.ENOMEM, errno.EAGAIN) and not board[2 * number + 1]:
                    board[2 * number + 1] = error
        else:
            libc.munlock(area + start * PAGE, pages * PAGE)
        board[2 * number] += 1
        if pause:
            time.sleep(pause)


for number in range(count):
    if os.fork() == 0:
        loop(number)


def asked() -> Iterator[None]:
    if len(sys.argv) == 2:
        yield from (None for _ in sys.stdin)
        return
    while True:
        time.sleep(float(sys.argv[2]))
        yield


print("ready", flush=True)
for _ in asked():
    strange = [board[2 * number + 1] for number in range(count) if board[2 * number + 1]]
    print(sum(board[0::2]), *strange, flush=True)
