"""A process that maps shared memory at random on request; started by test_borrow.py.

The argument is a JSON list of objects: path or number of a System V segment, size, page size, and
whether MAP_PRIVATE is tried. Each line of standard input is a seed and a number of operations.
After them the process prints `done`, and it stands still with its children.
"""

import ctypes
import json
import mmap
import os
import random
import signal
import sys
from collections.abc import Sequence

PAGE = mmap.PAGESIZE
SHARED, PRIVATE, FIXED = 1, 2, 0x10
READ_WRITE = 3
MAYMOVE, DONTNEED = 1, 4
MOST_CHILDREN, MOST_AREAS = 2, 10
FAILED = ctypes.c_void_p(-1).value
libc = ctypes.CDLL(None, use_errno=True)
word, pointer = ctypes.c_size_t, ctypes.c_void_p
libc.mmap.restype = libc.mremap.restype = libc.shmat.restype = pointer
libc.mmap.argtypes = (pointer, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.mremap.argtypes = (pointer, word, word, ctypes.c_int)
libc.munmap.argtypes = (pointer, word)
libc.madvise.argtypes = (pointer, word, ctypes.c_int)
libc.shmat.argtypes = (ctypes.c_int, pointer, ctypes.c_int)


class Object:
    def __init__(self, path: str | int, size: int, unit: int, private: bool) -> None:
        self.segment = path if isinstance(path, int) else None
        self.file = -1 if self.segment is not None else os.open(str(path), os.O_RDWR)
        self.size, self.unit, self.private = size, unit, private


class Area:
    def __init__(self, address: int, length: int, offset: int, one: Object) -> None:
        self.address, self.length, self.offset, self.object = address, length, offset, one


objects = [Object(*each) for each in json.loads(sys.argv[1])]
areas: list[Area] = []
children: list[int] = []
choose = random.Random()


def map_some() -> None:
    one = choose.choice(objects)
    if one.segment is not None:
        address = libc.shmat(one.segment, None, 0)
        if address != FAILED:
            areas.append(Area(address, one.size, 0, one))
            touch(areas[-1])
        return
    pages = one.size // one.unit
    first = choose.randrange(pages)
    length = choose.choice((1, choose.randint(1, pages - first), pages - first)) * one.unit
    flags = PRIVATE if one.private and choose.random() < 0.4 else SHARED
    address = libc.mmap(None, length, READ_WRITE, flags, one.file, first * one.unit)
    if address != FAILED:
        areas.append(Area(address, length, first * one.unit, one))
        touch(areas[-1])


def touch(area: Area) -> None:
    """Read or write no page, some pages, each n-th, or all, but none past the object's end."""
    steps: Sequence[int] = range(0, min(area.length, area.object.size - area.offset), PAGE)
    which = choose.random()
    if which < 0.5:
        steps = choose.sample(steps, choose.randint(0, min(len(steps), 20)))
    elif which < 0.8:
        steps = steps[choose.randrange(3) :: choose.randint(2, 9)]
    write = choose.random() < 0.5
    for step in steps:
        byte = ctypes.c_uint8.from_address(area.address + step)
        if write:
            byte.value = 1
        else:
            _ = byte.value


def a_part(area: Area) -> tuple[int, int]:
    unit = area.object.unit
    count = area.length // unit
    first = choose.randrange(count)
    return first * unit, choose.randint(first + 1, count) * unit


def forget(area: Area, first: int, last: int) -> None:
    areas.remove(area)
    if first:
        areas.append(Area(area.address, first, area.offset, area.object))
    if last < area.length:
        areas.append(Area(area.address + last, area.length - last, area.offset + last, area.object))


def unmap_some() -> None:
    if areas:
        area = choose.choice(areas)
        first, last = (0, area.length) if len(areas) > MOST_AREAS else a_part(area)
        if libc.munmap(area.address + first, last - first) == 0:
            forget(area, first, last)


def map_over() -> None:
    """Anonymous memory, written, in place of a part."""
    if areas:
        area = choose.choice(areas)
        first, last = a_part(area)
        flags = PRIVATE | FIXED | mmap.MAP_ANONYMOUS
        if libc.mmap(area.address + first, last - first, READ_WRITE, flags, -1, 0) != FAILED:
            ctypes.memset(area.address + first, 1, PAGE)
            forget(area, first, last)


def move() -> None:
    """mremap to another size, perhaps past the object's end."""
    if areas:
        area = choose.choice(areas)
        length = choose.randint(1, 2 * area.length // area.object.unit) * area.object.unit
        address = libc.mremap(area.address, area.length, length, MAYMOVE)
        if address != FAILED:
            area.address, area.length = address, length
            touch(area)


def drop() -> None:
    if areas:
        area = choose.choice(areas)
        first, last = a_part(area)
        libc.madvise(area.address + first, last - first, DONTNEED)


def touch_more() -> None:
    if areas:
        touch(choose.choice(areas))


def fork() -> None:
    """A child that does something and stands still; or the end of one."""
    if len(children) == MOST_CHILDREN:
        child = children.pop(0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return
    reader, writer = os.pipe()
    seed = choose.random()
    child = os.fork()
    if child == 0:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        choose.seed(seed)
        for _ in range(choose.randrange(6)):
            choose.choice(ALONE)()
        os.write(writer, b"1")
        while True:
            signal.pause()
    os.close(writer)
    if not os.read(reader, 1):
        sys.exit("a child ended")
    os.close(reader)
    children.append(child)


ALONE = (map_some, map_some, map_some, touch_more, unmap_some, unmap_some, map_over, move, drop)
print("ready", flush=True)
for line in sys.stdin:
    number, count = line.split()
    choose.seed(int(number))
    for _ in range(int(count)):
        choose.choice((*ALONE, fork))()
    print("done", flush=True)
