"""A listener, and a call of it that waits for its answer."""

from dataclasses import dataclass

from pinwarden.node.gate.async_reads import AsyncRead
from pinwarden.node.gate.borrow_gate import BorrowCheck
from pinwarden.node.gate.budgets import ContainerRef
from pinwarden.node.gate.container import GatedContainer
from pinwarden.node.linux.seccomp_notify import Listener, Notification

_FIRST_RETRY_SECONDS = 50e-6


@dataclass(slots=True)
class ContainerListener:
    """A listener: a container's, or that of a process that was started into it. `raised`: its first process has the rlimit it may have."""

    number: int
    listener: Listener
    container: GatedContainer
    raised: bool = False

    @property
    def ref(self) -> ContainerRef:
        """Where its calls are made."""
        return self.container.ref


@dataclass(slots=True)
class PendingNotification:
    """A call in a slot of the journal that waits for its answer since it was `received`.

    `began` is when it began to wait for what it waits for now, None before: not when it was received, because it waited for others then.
    `retry` is how long to wait next, in seconds. `aside` is what is being read of its memory. `borrowing` is what groups may have against
    it, None when it was not looked at yet or maps nothing.
    """

    slot: int
    call: Notification
    origin: ContainerListener
    received: float
    async_read: AsyncRead[int]
    borrow_check: BorrowCheck | None = None
    began: float | None = None
    retry: float = _FIRST_RETRY_SECONDS
