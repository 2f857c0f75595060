"""The possible answers to a notification."""

from dataclasses import dataclass

from pinwarden.node.gate.borrow_rules import BorrowDenial
from pinwarden.node.gate.publisher import Denial


@dataclass(frozen=True, slots=True)
class Allow:
    """The kernel executes the call, which adds at most `amount` bytes."""

    amount: int = 0


@dataclass(frozen=True, slots=True)
class Fail:
    """The call fails with an errno value. `denial` is to be recorded.

    `cause` is the error because of which the call cannot be counted.
    """

    error: int
    denial: Denial | BorrowDenial | None = None
    cause: Exception | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The notification is decided again after `seconds`."""

    seconds: float


Decision = Allow | Fail | Retry
