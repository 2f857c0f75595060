"""Listeners of containers, and notifications without an answer."""

from dataclasses import dataclass, field
from enum import Enum

from pinwarden.node.gate.async_reads import AsyncRead
from pinwarden.node.gate.borrow_gate import BorrowCheck
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.linux.seccomp_notify import Listener, Notification

UNLISTED_SECONDS = 5.0
RAISED_SECONDS = 5.0
RETURN_SECONDS = 2.0
_FIRST_RETRY_SECONDS = 50e-6
_MAX_RETRY_SECONDS = 0.01


class WaitReason(Enum):
    """A reason for which a notification may wait. The value is how long, in seconds."""

    BORROW = "borrow", RETURN_SECONDS
    RLIMIT = "rlimit", RAISED_SECONDS
    AMOUNT = "amount", RETURN_SECONDS

    @property
    def seconds(self) -> float:
        """How long a notification may wait for this reason."""
        return self.value[1]


@dataclass(slots=True)
class ContainerListener:
    """A listener of a container, or of a later exec in the container.

    `number` names the listener in the journal and at the holder. `raised` is true once the agent
    has raised RLIMIT_MEMLOCK for the listener's first process, or had its time to do so.
    """

    number: int
    listener: Listener
    container: GatedContainer
    raised: bool = False

    @property
    def ref(self) -> ContainerRef:
        """The container of the calls."""
        return self.container.ref


@dataclass(slots=True)
class PendingNotification:
    """A notification in a slot of the journal, unanswered since it was `received`.

    `async_read` reads the caller's memory. `borrow_check` is None before the first decision, and
    for other calls than mappings. `deadlines` has an entry for each reason of an earlier wait. The
    end of a wait for the configuration, the rlimit or the groups clears them. A later wait then has
    its full time.
    """

    slot: int
    notification: Notification
    origin: ContainerListener
    received: float
    async_read: AsyncRead[int]
    borrow_check: BorrowCheck | None = None
    deadlines: dict[WaitReason, float] = field(default_factory=dict)
    retry_seconds: float = _FIRST_RETRY_SECONDS

    @property
    def tid(self) -> int:
        """The thread of the call."""
        return self.notification.tid

    @property
    def ref(self) -> ContainerRef:
        """The container of the call."""
        return self.origin.ref

    @property
    def pod(self) -> str:
        """The UID of the call's pod."""
        return self.origin.ref.pod

    def is_valid(self) -> bool:
        """Return whether the thread still waits for the answer."""
        return self.origin.listener.is_valid(self.notification.id)

    def continue_(self) -> bool:
        """Let the kernel execute the call. Return False if the thread no longer waits."""
        return self.origin.listener.continue_(self.notification.id)

    def fail(self, error: int) -> None:
        """Make the call fail with an errno value."""
        self.origin.listener.fail(self.notification.id, error)

    def expired(self, reason: WaitReason, now: float) -> bool:
        """Return whether the time for a reason is over. The first question starts the time."""
        return now >= self.deadlines.setdefault(reason, now + reason.seconds)

    def next_retry(self) -> float:
        """Return the seconds until the next attempt, twice as long each time up to a maximum."""
        seconds = self.retry_seconds
        self.retry_seconds = min(2 * seconds, _MAX_RETRY_SECONDS)
        return seconds
