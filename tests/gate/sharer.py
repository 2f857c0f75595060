"""Processes of a pod that map shared memory; each line of standard input is answered with a line.

The argument is the number of children. An order begins with the number of a child, or with 0 for
this process. `each` orders all children to do the same at one moment, and the answer is a list. The
rest of an order is Python, and the answer is its value. A call answers with address and 0, or with
-1 and errno. The names are

- `opened(path)`: a descriptor, the same one for the same path,
- `map(path, offset, size, more=0)`: mmap with MAP_SHARED and more flags,
- `grow(address, old, new, more=1)`: mremap,
- `unmap(address, size)`, `attach(segment)`, `detach(address)`, `remap(address, size, page)`,
- `fill(path, unit, most)`: maps units in a range of its own until one is denied; answers their
  number, and errno,
- `empty()`: unmaps everything that `fill` has mapped.
"""

import ctypes
import mmap
import os
import sys
import threading  # noqa: F401 - for orders
from typing import Any, TextIO

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
for name in ("mmap", "mremap", "munmap", "shmat", "shmdt", "remap_file_pages", "syscall"):
    getattr(libc, name).restype = ctypes.c_long
descriptors: dict[str, int] = {}
filled: list[tuple[int, int]] = []
number = 0
Result = tuple[int, int]


def call(name: str, *arguments: int) -> Result:
    ctypes.set_errno(0)
    result = getattr(libc, name)(*(ctypes.c_long(each) for each in arguments))
    return result, ctypes.get_errno()


def opened(path: str) -> int:
    if path not in descriptors:
        descriptors[path] = os.open(path, os.O_RDWR)
    return descriptors[path]


def map(path: str, offset: int, size: int, more: int = 0) -> Result:
    return call("mmap", 0, size, 3, 1 | more, opened(path), offset)


def grow(address: int, old: int, new: int, more: int = 1) -> Result:
    return call("mremap", address, old, new, more)


def unmap(address: int, size: int) -> Result:
    return call("munmap", address, size)


def attach(segment: int) -> Result:
    return call("shmat", segment, 0, 0)


def detach(address: int) -> Result:
    return call("shmdt", address)


def remap(address: int, size: int, page: int) -> Result:
    return call("remap_file_pages", address, size, 0, page, 0)


def fill(path: str, unit: int, most: int) -> Result:
    for count in range(most // unit):
        address, error = map(path, (number * 1024 + count) * unit, unit)
        if error:
            return count, error
        filled.append((address, unit))
    return most // unit, 0


def empty() -> int:
    for address, size in filled:
        unmap(address, size)
    filled.clear()
    return 0


def do(line: str) -> Any:
    return eval(line, globals())


children: list[tuple[TextIO, TextIO]] = []
together = os.pipe()
for child in range(1, int(sys.argv[1]) + 1):
    orders, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        number = child
        for order, answer in children:
            order.close()
            answer.close()
        os.close(orders[1])
        os.close(answers[0])
        os.close(together[1])
        with os.fdopen(orders[0]) as lines, os.fdopen(answers[1], "w") as out:
            while line := lines.readline():
                if line.startswith("each "):
                    print(file=out, flush=True)
                    os.read(together[0], 1)
                    line = line.removeprefix("each ")
                print(do(line), file=out, flush=True)
        os._exit(0)
    os.close(orders[0])
    os.close(answers[1])
    children.append((os.fdopen(orders[1], "w"), os.fdopen(answers[0])))
print("ready", flush=True)
for line in sys.stdin:
    who, _, rest = line.strip().partition(" ")
    if who == "each":
        for order, answer in children:
            print("each", rest, file=order, flush=True)
            answer.readline()
        os.write(together[1], bytes(len(children)))
        print([eval(answer.readline()) for _, answer in children], flush=True)
    elif who == "0":
        print(do(rest), flush=True)
    else:
        order, answer = children[int(who) - 1]
        print(rest, file=order, flush=True)
        print(answer.readline().strip(), flush=True)
