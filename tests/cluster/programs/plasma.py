"""Take shared memory as object stores do: created in /dev/shm, unlinked, mapped by two processes.

Usage: plasma.py MEBIBYTES [keep]. With `keep` the file stays linked.
"""

import mmap
import os
import sys
import time

size = int(sys.argv[1]) << 20
path = f"/dev/shm/plasma{os.getpid()}"
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
if "keep" not in sys.argv:
    os.unlink(path)
os.ftruncate(file, size)
area = mmap.mmap(file, size)
for page in range(0, size, mmap.PAGESIZE):
    area[page] = 1
if os.fork() == 0:
    for page in range(0, size, mmap.PAGESIZE):
        _ = area[page]
time.sleep(3600)
