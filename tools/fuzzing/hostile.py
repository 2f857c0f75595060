"""A program in a pod that follows orders, one a line, and answers each with a line.

- `lock BYTES`: lock page by page up to this amount; the answer is the locked bytes and `errno`.
- `unlock`: unlock all.
- `comm HEX`, `memfd HEX`, `shm HEX`, `exe HEX`: use these bytes as a name: of the process, of a
  mapped memfd, of an object in /dev/shm, or of a deleted file that a child executes.
- `leave`: start a child whose first thread ends while another thread continues.
- `call NUMBER ARGUMENT...`: have a child make a system call and end.

The program keeps only its last few objects.
"""

import ctypes
import mmap
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

_SIZE = 16 << 20
_KEPT = 4
_PR_SET_NAME, _SYS_EXIT = 15, 60
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Program:
    """The objects of one process."""

    def __init__(self) -> None:
        self._area = mmap.mmap(-1, _SIZE)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._area))
        self._locked = 0
        self._objects: deque[Callable[[], None]] = deque()

    def lock(self, most: int) -> str:
        """Return the locked bytes and `errno`."""
        error = 0
        while self._locked < most and not error:
            if _libc.mlock(
                ctypes.c_void_p(self._start + self._locked), ctypes.c_size_t(mmap.PAGESIZE)
            ):
                error = ctypes.get_errno()
            else:
                self._locked += mmap.PAGESIZE
        return f"{self._locked} {error}"

    def unlock(self) -> str:
        """Unlock all."""
        _libc.munlock(ctypes.c_void_p(self._start), ctypes.c_size_t(_SIZE))
        self._locked = 0
        return "ok"

    def name(self, kind: str, name: bytes) -> str:
        """Use a name."""
        match kind:
            case "comm":
                _libc.prctl(_PR_SET_NAME, name, 0, 0, 0)
            case "memfd":
                descriptor = os.memfd_create(os.fsdecode(name[:249]))
                os.ftruncate(descriptor, mmap.PAGESIZE)
                area = mmap.mmap(descriptor, mmap.PAGESIZE)
                area[0] = 1
                os.close(descriptor)
                self._keep(area.close)
            case "shm":
                path = b"/dev/shm/" + name
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                self._keep(lambda: os.unlink(path))
            case "exe":
                self._execute(name)
        return "ok"

    def leave(self) -> str:
        """Start a child whose first thread ends."""
        if (child := os.fork()) == 0:
            threading.Thread(target=signal.pause).start()
            _libc.syscall(_SYS_EXIT, 0)
        self._keep(lambda: _end(child))
        return "ok"

    def call(self, number: int, *arguments: int) -> str:
        """Return the `errno` of a call in a child."""
        if (child := os.fork()) == 0:
            _libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
            os._exit(ctypes.get_errno() & 0xFF)
        _, status = os.waitpid(child, 0)
        return str(os.waitstatus_to_exitcode(status))

    def _execute(self, name: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, os.fsdecode(name))
            shutil.copy("/bin/sleep", path)
            child = os.posix_spawn(path, [name, b"3600"], {})
        self._keep(lambda: _end(child))

    def _keep(self, end: Callable[[], object]) -> None:
        self._objects.append(lambda: _quietly(end))
        while len(self._objects) > _KEPT:
            self._objects.popleft()()


def _quietly(end: Callable[[], object]) -> None:
    with suppress(OSError):
        end()


def _end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def obey(program: Program, order: str) -> str:
    """Return the answer to one order."""
    command, *arguments = order.split()
    match command:
        case "lock":
            return program.lock(int(arguments[0]))
        case "unlock":
            return program.unlock()
        case "leave":
            return program.leave()
        case "call":
            return program.call(*map(int, arguments))
    return program.name(command, bytes.fromhex(arguments[0]))


def main() -> None:
    """Follow all orders."""
    program = Program()
    print("ready", flush=True)
    for order in sys.stdin:
        try:
            answer = obey(program, order)
        except (OSError, ValueError) as error:
            answer = f"error {error!r}".replace("\n", " ")
        print(answer, flush=True)


if __name__ == "__main__":
    main()
