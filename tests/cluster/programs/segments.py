"""Create System V segments as a database does, 11 MiB in all.

One segment has a fixed key, three have random keys, and one has no key.
"""

import ctypes
import os
import random
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p


def segment(key: int, size: int) -> None:
    number = libc.shmget(key, ctypes.c_size_t(size), 0o1600)  # IPC_CREAT
    if number < 0:
        raise SystemExit(f"shmget: {os.strerror(ctypes.get_errno())}")
    ctypes.memset(libc.shmat(number, None, 0), 1, size)


segment(0x0052E2C1, 4 << 20)
for _ in range(3):
    segment(random.randrange(1, 1 << 31), 2 << 20)
segment(0, 1 << 20)
time.sleep(3600)
