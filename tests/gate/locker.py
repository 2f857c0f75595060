"""A process of a pod that answers each line of standard input with a line.

The argument is the size of its area in bytes.

- `lock BYTES`: mlock of so many bytes after the locked ones; answers locked bytes and errno.
- `unlock BYTES`: munlock of the last so many locked bytes.
- `until BYTES`: locks page by page up to so many bytes, or until a call is denied.
- `again`: mlock of all locked memory.
- `call NAME ARGUMENTS...`: another call of the C library with integers; answers result and errno.
- `fork NUMBER`: so many children, one after the other; each locks page by page until denied, and
  answers its locked bytes.
- `python CODE`: runs the code with these names; answers `result`.
"""

import ctypes
import mmap
import os
import signal
import sys

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
for name in ("mmap", "mremap", "mlock", "munlock", "munmap", "syscall"):
    getattr(libc, name).restype = ctypes.c_long
size = int(sys.argv[1])
area = libc.mmap(None, ctypes.c_size_t(size), 3, 0x22, -1, ctypes.c_long(0))
locked = 0


def call(name: str, *arguments: int) -> tuple[int, int]:
    ctypes.set_errno(0)
    result = getattr(libc, name)(*map(ctypes.c_long, arguments))
    return result, ctypes.get_errno()


def lock(amount: int) -> int:
    global locked
    failed, error = call("mlock", area + locked, amount)
    locked += 0 if failed else amount
    return error


def until(most: int) -> int:
    while locked + PAGE <= most:
        if error := lock(PAGE):
            return error
    return 0


def fork(number: int) -> list[int]:
    """Bytes that each child holds; they stay until this process ends."""
    global locked
    ends = []
    for _ in range(number):
        reading, writing = os.pipe()
        if os.fork() == 0:
            locked = 0
            until(size)
            os.write(writing, str(locked).encode())
            os.close(writing)
            signal.pause()
        os.close(writing)
        ends.append(reading)
    return [int(os.read(end, 100)) for end in ends]


print("ready", flush=True)
for line in sys.stdin:
    order, *rest = line.split(maxsplit=1)
    text = rest[0].strip() if rest else ""
    if order == "lock":
        print(locked, error) if (error := lock(int(text))) else print(locked, 0)
    elif order == "unlock":
        locked -= int(text)
        print(locked, call("munlock", area + locked, int(text))[1])
    elif order == "until":
        error = until(int(text))
        print(locked, error)
    elif order == "again":
        print(*call("mlock", area, locked))
    elif order == "call":
        name, *words = text.split()
        print(*call(name, *(eval(word) for word in words)))
    elif order == "fork":
        print(*fork(int(text)))
    else:
        scope: dict[str, object] = globals()
        exec(text.replace("\\n", "\n"), scope)
        print(scope.get("result"))
    sys.stdout.flush()
