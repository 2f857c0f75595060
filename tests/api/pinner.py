"""A process of a pod that answers each line of standard input with a line.

- `lock BYTES`: mlock of so many bytes more; answers errno. `unlock`: all locked bytes.
- `storm`: tries twenty times a second to lock more than any limit of the tests. `calm` ends it.
- `hold NAME BYTES`: a written and open memfd; answers its descriptor. `drop DESCRIPTOR` empties it.
- `share NAME BYTES`: the same, and mapped; answers errno.
- `map PATH BYTES`: a mapped file; answers errno. `unshare`: unmaps and closes all of these.
"""

import ctypes
import mmap
import os
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
for name in ("mmap", "munmap", "mlock"):
    getattr(libc, name).restype = ctypes.c_long
ANONYMOUS, SHARED = 0x22, 0x01
locked: list[tuple[int, int]] = []
shared: list[tuple[int, int, int]] = []
storming = threading.Event()


def call(name: str, *arguments: int) -> tuple[int, int]:
    ctypes.set_errno(0)
    result = getattr(libc, name)(*map(ctypes.c_long, arguments))
    return result, ctypes.get_errno()


def lock(size: int) -> int:
    address, error = call("mmap", 0, size, 3, ANONYMOUS, -1, 0)
    if error:
        return error
    _, error = call("mlock", address, size)
    if error:
        call("munmap", address, size)
    else:
        locked.append((address, size))
    return error


def storm() -> None:
    while True:
        storming.wait()
        lock(1 << 30)
        time.sleep(0.05)


def map_shared(descriptor: int, size: int) -> int:
    address, error = call("mmap", 0, size, 3, SHARED, descriptor, 0)
    if error:
        os.close(descriptor)
        return error
    shared.append((address, size, descriptor))
    return 0


def hold(name: str, size: int) -> int:
    descriptor = os.memfd_create(name)
    for _ in range(size // mmap.PAGESIZE):
        os.write(descriptor, bytes(mmap.PAGESIZE))
    return descriptor


def share(name: str, size: int) -> int:
    error = map_shared(hold(name, size), size)
    if not error:
        address, _, _ = shared[-1]
        ctypes.memset(address, 1, size)
    return error


def end_all() -> int:
    while locked:
        call("munmap", *locked.pop())
    return 0


def unshare() -> int:
    while shared:
        address, size, descriptor = shared.pop()
        call("munmap", address, size)
        os.close(descriptor)
    return 0


threading.Thread(target=storm, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    match line.split():
        case ["lock", size]:
            answer = lock(int(size))
        case ["unlock"]:
            answer = end_all()
        case ["storm"]:
            answer = 0
            storming.set()
        case ["calm"]:
            answer = 0
            storming.clear()
        case ["hold", name, size]:
            answer = hold(name, int(size))
        case ["drop", descriptor]:
            answer = 0
            os.ftruncate(int(descriptor), 0)
        case ["share", name, size]:
            answer = share(name, int(size))
        case ["map", path, size]:
            answer = map_shared(os.open(path, os.O_RDWR), int(size))
        case ["unshare"]:
            answer = unshare()
        case _:
            answer = -1
    print(answer, flush=True)
