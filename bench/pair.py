"""Time pairs of `mlock` and `munlock` of a page for gate_latency.py.

Arguments: the number of pairs, and the seconds between two pairs. A line on standard input ends the
run. Output: `ready`, then the nanoseconds of each pair as a JSON list.
"""

import ctypes
import json
import mmap
import select
import sys
import time

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
pairs, pause = int(sys.argv[1]), float(sys.argv[2])
area = mmap.mmap(-1, PAGE)
area[0] = 1
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
print("ready", flush=True)
sys.stdin.readline()
spent = []
for number in range(pairs):
    if pause:
        time.sleep(pause)
    elif number % 256 == 0 and select.select([0], [], [], 0)[0]:
        break
    began = time.perf_counter_ns()
    failed = libc.mlock(start, PAGE)
    libc.munlock(start, PAGE)
    spent.append(time.perf_counter_ns() - began)
    if failed:
        sys.exit(f"a lock that fits was refused: {ctypes.get_errno()}")
print(json.dumps(spent), flush=True)
