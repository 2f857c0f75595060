"""Processes of a pod that lock memory at the same moments, in rounds.

Arguments: the number of processes, and the most pages of each. Each line of standard input is a
seed and starts a round. In a round each process unlocks some of its memory and waits for the
others. Then each process locks until not even one page is allowed. A round prints a JSON object
with the locked bytes of each process, and with every call: process, start and end (monotonic, in
seconds), bytes, errno.
"""

import ctypes
import json
import mmap
import os
import random
import signal
import sys
import time
from typing import Any, TextIO

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
libc.munmap.argtypes = libc.mlock.argtypes = libc.munlock.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
]
count, most = int(sys.argv[1]), int(sys.argv[2])


class Racer:
    def __init__(self, number: int) -> None:
        self.number = number
        self.area = libc.mmap(None, most * PAGE, 3, 0x22, -1, 0)
        self.used = 0  # pages from the start that are locked by mlock
        self.maps: list[tuple[int, int]] = []

    def free(self, choice: random.Random) -> None:
        keep = choice.randint(0, self.used)
        if keep < self.used:
            libc.munlock(self.area + keep * PAGE, (self.used - keep) * PAGE)
            self.used = keep
        for each in list(self.maps):
            if choice.random() < 0.7:
                libc.munmap(*each)
                self.maps.remove(each)

    def round(self, choice: random.Random) -> list[tuple[int, float, float, int, int]]:
        calls = []
        pages = choice.choice((1, 4, 64, most // 2))
        while True:
            pages = min(choice.randint(1, max(1, pages)), most - self.used) or 1
            began = time.monotonic()
            if choice.random() < 0.7 and self.used + pages <= most:
                failed = libc.mlock(self.area + self.used * PAGE, pages * PAGE)
                self.used += 0 if failed else pages
            else:
                start = libc.mmap(None, pages * PAGE, 3, 0x2022, -1, 0)
                failed = start == 2**64 - 1
                if not failed:
                    self.maps.append((start, pages * PAGE))
            calls.append(
                (
                    self.number,
                    began,
                    time.monotonic(),
                    pages * PAGE,
                    ctypes.get_errno() if failed else 0,
                )
            )
            if failed and pages == 1:
                return calls
            if failed:
                pages //= 2

    @property
    def locked(self) -> int:
        return self.used * PAGE + sum(size for _, size in self.maps)


def serve(number: int, orders: int, answers: int) -> None:
    racer = Racer(number)
    with os.fdopen(orders) as lines, os.fdopen(answers, "w") as out:
        while line := lines.readline():
            order, seed = line.split()
            choice = random.Random(f"{seed} {number}")
            if order == "free":
                racer.free(choice)
                print(json.dumps(racer.locked), file=out, flush=True)
            else:
                calls = racer.round(choice)
                print(json.dumps([racer.locked, calls]), file=out, flush=True)


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
processes: list[tuple[TextIO, TextIO]] = []
for number in range(count):
    orders, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(orders[1])
        os.close(answers[0])
        for order, answer in processes:
            order.close()
            answer.close()
        serve(number, orders[0], answers[1])
        os._exit(0)
    os.close(orders[0])
    os.close(answers[1])
    processes.append((os.fdopen(orders[1], "w"), os.fdopen(answers[0])))
print("ready", flush=True)


def ask(order: str, seed: str) -> list[Any]:
    for out, _ in processes:
        print(order, seed, file=out, flush=True)
    return [json.loads(answer.readline()) for _, answer in processes]


for line in sys.stdin:
    seed = line.strip()
    freed = ask("free", seed)
    print(json.dumps({"freed": freed, "rounds": ask("race", seed)}), flush=True)
