"""A process that locks and pins memory on request; started by nodes.py.

Arguments: the user that the process becomes (0 stays root with every capability), and the file
whose pages it maps (`-` for anonymous pages). With a third argument a second thread serves the
requests, so that the first one can end.
"""

import ctypes
import mmap
import os
import signal
import sys
import threading

IO_URING_SETUP, IO_URING_REGISTER, IORING_REGISTER_BUFFERS = 425, 427, 0
libc = ctypes.CDLL(None, use_errno=True)
SIZE = 64 << 20
file = -1 if sys.argv[2] == "-" else os.open(sys.argv[2], os.O_RDWR)
area = mmap.mmap(file, SIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
if int(sys.argv[1]):
    os.setuid(int(sys.argv[1]))
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: no capability is within reach
locked = 0
leaving = threading.Event()


def lock(most: int) -> str:
    global locked
    error = 0
    while locked < most and not error:
        if libc.mlock(ctypes.c_void_p(start + locked), ctypes.c_size_t(mmap.PAGESIZE)):
            error = ctypes.get_errno()
        else:
            locked += mmap.PAGESIZE
    return f"{locked} {error}"


def register(size: int) -> str:
    """Have io_uring pin the first `size` bytes as a registered buffer, which stays registered."""
    ring = libc.syscall(IO_URING_SETUP, 1, (ctypes.c_uint8 * 120)())
    buffer = (ctypes.c_uint64 * 2)(start, size)
    failed = ring < 0 or libc.syscall(IO_URING_REGISTER, ring, IORING_REGISTER_BUFFERS, buffer, 1)
    return f"0 {ctypes.get_errno()}" if failed else f"{size} 0"


def fork(generations: int) -> None:
    # Each generation ends as soon as it has a child; the last one stays.
    for _ in range(generations):
        if os.fork():
            os._exit(0)
    os.write(1, b"0 0\n")
    signal.pause()


def serve() -> None:
    global locked
    for line in sys.stdin:
        command, amount = line.split()
        if command == "lock":
            print(lock(int(amount)), flush=True)
        elif command == "again":  # what is locked already
            locked = 0
            print(lock(int(amount)), flush=True)
        elif command == "write":
            area[: int(amount)] = bytes(int(amount))
            print(f"{amount} 0", flush=True)
        elif command == "register":
            print(register(int(amount)), flush=True)
        elif command == "leave":
            leaving.set()
            print("0 0", flush=True)
        elif command == "unlock":
            libc.munlock(ctypes.c_void_p(start), ctypes.c_size_t(SIZE))
            locked = 0
            print("0 0", flush=True)
        elif os.fork() == 0:
            fork(int(amount))


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
if len(sys.argv) > 3:
    threading.Thread(target=serve).start()
    leaving.wait()
    libc.pthread_exit(None)
serve()
