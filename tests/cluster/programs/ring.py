"""Register buffers of 1 MiB with io_uring until the kernel denies a call, and keep them.

Usage: ring.py BUFFERS
"""

import ctypes
import mmap
import os
import sys
import time

SETUP, REGISTER, REGISTER_BUFFERS, SIZE = 425, 427, 0, 1 << 20
libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


kept: list[mmap.mmap] = []
why = "all of them"
for _ in range(int(sys.argv[1])):
    params = (ctypes.c_uint8 * 120)()
    ring = libc.syscall(SETUP, 4, ctypes.byref(params))
    if ring < 0:
        why = os.strerror(ctypes.get_errno())
        break
    area = mmap.mmap(-1, SIZE)
    vector = Iovec(ctypes.addressof(ctypes.c_char.from_buffer(area)), SIZE)
    if libc.syscall(REGISTER, ring, REGISTER_BUFFERS, ctypes.byref(vector), 1):
        why = os.strerror(ctypes.get_errno())
        os.close(ring)
        break
    kept.append(area)
print(f"{len(kept)}: {why}", flush=True)
time.sleep(3600)
