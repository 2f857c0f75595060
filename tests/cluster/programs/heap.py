"""Lock memory as a JVM does: reserve address space, commit a heap, and call mlockall(MCL_CURRENT).

Usage: heap.py HEAP_MEBIBYTES RESERVED_MEBIBYTES [wait]. With `wait` the process waits until
RLIMIT_MEMLOCK is above the reserved space. The kernel compares the whole address space with
RLIMIT_MEMLOCK.
"""

import ctypes
import mmap
import os
import resource
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
NORESERVE = 0x4000
heap, reserved = (int(text) << 20 for text in sys.argv[1:3])
while "wait" in sys.argv and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 2 * reserved:
    time.sleep(0.1)
start = libc.mmap(None, reserved, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE, -1, 0)
if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(heap), mmap.PROT_READ | mmap.PROT_WRITE):
    raise SystemExit("mprotect failed")
ctypes.memset(start, 1, heap)
if libc.mlockall(1):
    print(f"memory is not locked: {os.strerror(ctypes.get_errno())}", flush=True)
    raise SystemExit(78)
print("locked", flush=True)
time.sleep(3600)
