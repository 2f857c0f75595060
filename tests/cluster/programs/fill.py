"""Fill /dev/shm up to so many MiB, a file of 1 MiB at a time.

The container's memory limit ends the process before it is done.
"""

import os
import sys
import time

for number in range(int(sys.argv[1])):
    with open(f"/dev/shm/part-{os.getpid()}-{time.time_ns()}", "wb") as file:
        file.write(b"x" * (1 << 20))
    print(f"wrote {number + 1} MiB", flush=True)
    time.sleep(0.1)
time.sleep(3600)
