"""Random operations that pin memory, for workers of the ledger's tests."""

import os
import random
from collections.abc import Sequence
from contextlib import suppress

from pinwarden.node.linux import pinning, sysvshm

from .ledger import PAGE

MCL_ONFAULT = 4
MOST_PAGES = 32
MOST_AREAS = 24


def lock_at_random(seed: int, count: int) -> None:
    """Do operations that change `mm->locked_vm`. A failed system call is an operation too."""
    chance = random.Random(seed)
    areas: list[tuple[int, int]] = []
    for _ in range(count):
        size = chance.randint(1, MOST_PAGES) * PAGE
        kind = chance.choice(KINDS)
        with suppress(OSError):
            if kind == "map" and len(areas) < MOST_AREAS:
                flags = chance.choice((0, pinning.MAP_LOCKED))
                areas.append((pinning.map_memory(size, flags), size))
            elif kind in GENERAL:
                _change_all(kind, chance)
            elif areas:
                _change_area(kind, areas, chance)


def _change_all(kind: str, chance: random.Random) -> None:
    if kind == "lock all":
        flags = chance.choice((1, 2, 3))
        pinning.lock_all(flags | MCL_ONFAULT)
    elif kind == "unlock all":
        pinning.unlock_all()
    elif kind == "heap":
        size = chance.randint(1, MOST_PAGES) * PAGE
        end = pinning.move_break(size) + size
        if chance.random() < 0.5 and pinning.move_break(0) == end:
            pinning.move_break(-size)
    elif kind == "stack":
        pinning.grow_stack(chance.randint(1, 8) * PAGE)
    else:
        _fork(chance)


def _fork(chance: random.Random) -> None:
    """Fork a process that locks a page, or none, and exits."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        if chance.random() < 0.5:
            pinning.map_memory(PAGE, pinning.MAP_LOCKED)
    finally:
        os._exit(0)


def _change_area(kind: str, areas: list[tuple[int, int]], chance: random.Random) -> None:
    index = chance.randrange(len(areas))
    address, size = areas[index]
    part = chance.randint(1, size // PAGE) * PAGE
    start = address + chance.randint(0, (size - part) // PAGE) * PAGE
    if kind == "lock":
        pinning.lock(start, part)
    elif kind == "lock on fault":
        pinning.lock_on_fault(start, part)
    elif kind == "unlock":
        pinning.unlock(start, part)
    elif kind == "unmap":
        del areas[index]
        pinning.unmap_memory(address, size)
    elif kind == "unmap the end" and size > PAGE:
        areas[index] = (address, size - PAGE)
        pinning.unmap_memory(address + size - PAGE, PAGE)
    elif kind == "resize":
        new_size = chance.randint(1, MOST_PAGES) * PAGE
        areas[index] = (pinning.resize_mapping(address, size, new_size), new_size)


GENERAL = ("lock all", "unlock all", "heap", "stack", "fork")
KINDS = (
    *("map", "map", "map", "lock", "lock", "lock on fault", "unlock", "unmap", "unmap the end"),
    *("resize", "resize", "heap", "stack", "fork", "lock all", "unlock all"),
)


def register_at_random(seed: int, count: int, *, clones: bool) -> None:
    """Register buffers with rings, clone them, and release them in several ways."""
    chance = random.Random(seed)
    rings: list[int] = []
    for _ in range(count):
        kind = chance.choice(("open", "open", "register", "register", "unregister", "close"))
        with suppress(OSError):
            if kind == "open" and len(rings) < 8:
                rings.append(pinning.open_ring())
            elif rings and kind == "register" and clones and chance.random() < 0.5:
                pinning.clone_buffers(chance.choice(rings), chance.choice(rings))
            elif rings and kind == "register":
                _register(chance.choice(rings), chance)
            elif rings and kind == "unregister":
                pinning.unregister_buffers(chance.choice(rings))
            elif rings and kind == "close":
                os.close(rings.pop(chance.randrange(len(rings))))


def share_rings_at_random(seed: int, count: int, rings: Sequence[int], *, clones: bool) -> None:
    """Register, clone and release the buffers of rings that other processes use too."""
    chance = random.Random(seed)
    for _ in range(count):
        ring, kind = chance.choice(rings), chance.choice(("register", "clone", "unregister"))
        with suppress(OSError):
            if kind == "clone" and clones:
                pinning.clone_buffers(ring, chance.choice(rings))
            elif kind == "unregister":
                pinning.unregister_buffers(ring)
            else:
                _register(ring, chance)


def _register(ring: int, chance: random.Random) -> None:
    """Register buffers that begin and end within pages, and unmap some of them at once."""
    size = MOST_PAGES * PAGE
    areas = [pinning.map_memory(size) for _ in range(chance.randint(1, 4))]
    buffers = []
    for address in areas:
        offset = chance.randint(0, size - 1)
        buffers.append((address + offset, chance.randint(1, size - offset)))
    pinning.register_buffers(ring, buffers)
    for address in areas:
        if chance.random() < 0.5:
            pinning.unmap_memory(address, size)


def lock_segments_at_random(seed: int, count: int, segments: Sequence[int]) -> None:
    """Lock and unlock segments that other processes lock and unlock too."""
    chance = random.Random(seed)
    for _ in range(count):
        sysvshm.set_locked(chance.choice(segments), locked=chance.random() < 0.5)
