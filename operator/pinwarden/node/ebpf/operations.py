"""The operations of the self-test: each way to pin `SIZE` bytes, and the way to release them.

One process prepares, and its child pins. So the descriptor of an object can outlive the process
with the pin. A segment is marked for removal at once, and goes with its last process.
"""

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pinwarden.node.ebpf.accounts import PinSource
from pinwarden.node.linux import pinning, sysvshm

PAGES: Final = 16
SIZE: Final = PAGES * mmap.PAGESIZE


def _unmap(_: int, address: int) -> None:
    pinning.unmap_memory(address, SIZE)


@dataclass(frozen=True)
class Operation:
    """One way to pin memory. All functions raise OSError.

    `prepare` returns a descriptor, a segment id, or -1, for the child. `pin` takes this number and
    returns an address. `unpin` and `unmap` take both. An `exact` operation locks `SIZE` bytes only.
    Every other operation locks more mappings of the process.
    """

    name: str
    source: PinSource
    pin: Callable[[int], int]
    unpin: Callable[[int, int], None]
    unmap: Callable[[int, int], None] = _unmap
    prepare: Callable[[], int] = lambda: -1
    exact: bool = True


def _lock(_: int) -> int:
    address = pinning.map_memory(SIZE)
    pinning.lock(address, SIZE)
    return address


def _lock_on_fault(_: int) -> int:
    address = pinning.map_memory(SIZE)
    pinning.lock_on_fault(address, SIZE)
    return address


def _unlock(_: int, address: int) -> None:
    pinning.unlock(address, SIZE)


def _lock_all(_: int) -> int:
    address = pinning.map_memory(SIZE)
    pinning.lock_all(pinning.MCL_CURRENT)
    return address


def _unlock_all(_descriptor: int, _address: int) -> None:
    pinning.unlock_all()


def _map_locked(_: int) -> int:
    return pinning.map_memory(SIZE, pinning.MAP_LOCKED)


def _map_later(_: int) -> int:
    pinning.lock_all(pinning.MCL_FUTURE)
    return pinning.map_memory(SIZE)


def _grow_heap(_: int) -> int:
    pinning.lock_all(pinning.MCL_FUTURE)
    return pinning.move_break(SIZE)


def _grow_mapping(_: int) -> int:
    pinning.lock_all(pinning.MCL_FUTURE)
    address = pinning.map_memory(mmap.PAGESIZE)
    return pinning.resize_mapping(address, mmap.PAGESIZE, SIZE)


def _grow_stack(_: int) -> int:
    return pinning.grow_stack(SIZE)


def _create_segment() -> int:
    segment = sysvshm.create(sysvshm.IPC_PRIVATE, SIZE, sysvshm.IPC_CREAT | 0o600)
    try:
        sysvshm.attach(segment)
    finally:
        sysvshm.remove(segment)
    return segment


def _lock_segment(segment: int) -> int:
    address = sysvshm.attach(segment)
    sysvshm.set_locked(segment, locked=True)
    return address


def _register_buffer(ring: int) -> int:
    address = pinning.map_memory(SIZE)
    pinning.register_buffers(ring, [(address, SIZE)])
    return address


OPERATIONS: Final[Sequence[Operation]] = (
    Operation("mlock", PinSource.MLOCK, _lock, _unlock),
    Operation("mlock2(MLOCK_ONFAULT)", PinSource.MLOCK, _lock_on_fault, _unlock),
    Operation("mlockall(MCL_CURRENT)", PinSource.MLOCK, _lock_all, _unlock_all, exact=False),
    Operation("mmap(MAP_LOCKED)", PinSource.MLOCK, _map_locked, _unlock),
    Operation("MCL_FUTURE, mmap", PinSource.MLOCK, _map_later, _unlock_all, exact=False),
    Operation("MCL_FUTURE, brk", PinSource.MLOCK, _grow_heap, _unlock_all, exact=False),
    Operation("MCL_FUTURE, mremap", PinSource.MLOCK, _grow_mapping, _unlock_all, exact=False),
    Operation("growth of a locked stack", PinSource.MLOCK, _grow_stack, _unlock_all, exact=False),
    Operation(
        "memfd_secret",
        PinSource.MLOCK,
        lambda descriptor: pinning.map_memory(SIZE, descriptor=descriptor),
        _unmap,
        prepare=lambda: pinning.open_secret_memory(SIZE),
    ),
    Operation(
        "shmctl(SHM_LOCK)",
        PinSource.SHM_LOCK,
        _lock_segment,
        lambda segment, _: sysvshm.set_locked(segment, locked=False),
        unmap=lambda _, address: sysvshm.detach(address),
        prepare=_create_segment,
    ),
    Operation(
        "io_uring registered buffer",
        PinSource.IO_URING,
        _register_buffer,
        lambda ring, _: pinning.unregister_buffers(ring),
        prepare=pinning.open_ring,
    ),
)
