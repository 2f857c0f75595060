"""Four processes whose first act is to lock all they can, page by page. Writes the pages that they
hold together.

With the argument `stay` they keep their pages, else they end.
"""

import ctypes
import os
import signal
import sys

PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
area = libc.mmap(None, ctypes.c_size_t(8 << 20), 3, 0x22, -1, ctypes.c_long(0))
reading, writing = os.pipe()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        held = 0
        while held < 2048 and not libc.mlock(
            ctypes.c_void_p(area + held * PAGE), ctypes.c_size_t(PAGE)
        ):
            held += 1
        os.write(writing, held.to_bytes(4, "little"))
        signal.pause()
    children.append(child)
print("pages", sum(int.from_bytes(os.read(reading, 4), "little") for _ in children), flush=True)
if sys.argv[-1] == "stay":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pause()
for child in children:
    os.kill(child, signal.SIGKILL)
