"""How many bytes a call adds: at most, and exactly at this moment. Needs CAP_SYS_PTRACE."""

import mmap
from collections.abc import Callable
from pathlib import Path

from pinwarden.node.gate.pending import PendingNotification
from pinwarden.node.gate.pin_requests import Growth, PinRequest
from pinwarden.node.linux.procfs import AddressSpace, address_space, locked_within, read_memory


class NotYetError(OSError):
    """A read has not finished yet."""


def maximum(proc_root: Path, pending: PendingNotification, request: PinRequest) -> int:
    """Return the most bytes a call can add. Raises OSError while they are unknown."""
    if request.most is not None:
        return request.most
    tid, in_memory = pending.tid, request.in_memory
    if in_memory is None:
        space = address_space(proc_root, tid)
        return space.size - space.locked if space else 0

    def read(address: int, size: int) -> bytes:
        return read_memory(proc_root, tid, address, size)

    try:
        return _read(pending, lambda: in_memory(read))
    except (PermissionError, NotYetError):
        raise
    except OSError:
        return 0  # the kernel cannot read the memory either


def exact(
    proc_root: Path,
    pending: PendingNotification,
    request: PinRequest,
    most: int,
    space: AddressSpace,
) -> int:
    """Return the bytes a call adds now. Raises OSError while they are unknown."""
    if request.adds not in (Growth.NOT_LOCKED, Growth.IF_LOCKED):
        return most
    whole_range = request.adds is Growth.NOT_LOCKED
    if not space.locked:
        return most if whole_range else 0
    size = most if whole_range else mmap.PAGESIZE
    locked = _read(pending, lambda: locked_within(proc_root, pending.tid, request.start, size))
    if whole_range:
        return most - locked
    return most if locked else 0


def _read(pending: PendingNotification, read: Callable[[], int]) -> int:
    result = pending.async_read.get(read)
    if result is None:
        raise NotYetError("another thread keeps the lock of its address space")
    return result
