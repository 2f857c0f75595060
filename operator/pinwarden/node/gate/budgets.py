"""Decides whether a call fits, between two samples of the kernel's counters. Pure.

The gate keeps an upper bound for the use of each limit:

    bound = the sum at the last sample + the maximum of all calls continued since then

If a call fits under the bound, the gate allows the call without a sample. Otherwise the gate
samples again. A new sample also shows unlocked and unmapped memory and ended processes, which the
gate does not see otherwise. The kernel has no sum over many processes at one moment. The sum is
still an upper bound, because only continued calls raise the use of a process:

- A call is in the sum with its real bytes if the call *returned* before the sample began.
- A call *in flight* may or may not be in the sum, so its full amount is added. If a call exceeds
  the limit only for this reason, the call waits until the calls in flight return (P5).

So the allowed calls cannot exceed a limit, whatever their order (P1). A call is never denied if
there was room for its bytes when the sample began.

This needs every process under the limit to be gated. The use of other processes rises unseen. A
budget with such a process is valid for one decision. Every budget is valid for at most
`VALID_SECONDS`, because such a process may start at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pinwarden.node.gate.container import ContainerRef

VALID_SECONDS = 1.0


class BudgetKey(NamedTuple):
    """A limit's name in the configuration, and where it applies.

    The pod's UID is None with scope Node. The container's name is None except with scope
    Container.
    """

    limit: str
    pod: str | None = None
    container: str | None = None


class Fit(Enum):
    """Whether a call fits into its budgets."""

    FITS = "fits"
    MAYBE = "fits, unless a call in flight adds its full amount"
    EXCEEDS = "exceeds"


class LimitUsage(NamedTuple):
    """A sample of a limit: its bytes, the bytes in use, and whether every process is gated."""

    limit: int
    use: int
    all_gated: bool = True


@dataclass(slots=True)
class Budget:
    """A limit, its use at the last sample, and the bytes of calls since then. All in bytes.

    `ended_since` is of calls with a return since the sample, `in_flight` of calls without.
    `valid_until` is in seconds.
    """

    limit: int
    use: int
    valid_until: float
    ended_since: int = 0
    in_flight: int = 0

    def fit(self, amount: int) -> Fit:
        """Return whether `amount` more bytes fit.

        A call without new bytes fits, also above the limit (P8, P11).
        """
        if amount == 0 or self.use + self.ended_since + self.in_flight + amount <= self.limit:
            return Fit.FITS
        return Fit.MAYBE if self.use + self.ended_since + amount <= self.limit else Fit.EXCEEDS


class Budgets:
    """The budgets of a node, and its calls in flight by thread. A thread has at most one call."""

    def __init__(self) -> None:
        self._keys_by_ref: Mapping[ContainerRef, tuple[BudgetKey, ...]] = {}
        self._budgets: dict[BudgetKey, Budget] = {}
        self._in_flight: dict[ContainerRef, dict[int, int]] = {}
        self._refs: dict[int, ContainerRef] = {}

    def configure(self, keys_by_ref: Mapping[ContainerRef, tuple[BudgetKey, ...]]) -> None:
        """Set the limits of each container. Each needs a new sample."""
        self._keys_by_ref = keys_by_ref
        self._budgets.clear()

    def fit(self, ref: ContainerRef, amount: int, now: float) -> tuple[Fit, BudgetKey | None]:
        """Return whether `amount` bytes fit into every budget of a container, and into which not.

        A budget without a valid sample answers MAYBE. `now` is in seconds.
        """
        worst, worst_key = Fit.FITS, None
        for key in self._keys_by_ref.get(ref, ()):
            budget = self._budgets.get(key)
            valid = budget is not None and now <= budget.valid_until
            fit = budget.fit(amount) if budget is not None and valid else Fit.MAYBE
            if fit is Fit.EXCEEDS:
                return fit, key
            if fit is Fit.MAYBE:
                worst, worst_key = fit, key
        return worst, worst_key

    def is_limited(self, ref: ContainerRef) -> bool:
        """Return whether any limit applies to a container."""
        return bool(self._keys_by_ref.get(ref))

    def count_in_flight(self, ref: ContainerRef) -> int:
        """Return how many calls of this one container are in flight."""
        return len(self._in_flight.get(ref, ()))

    def use(self, key: BudgetKey) -> int:
        """Return the bytes in use at the last sample, 0 before the first."""
        budget = self._budgets.get(key)
        return budget.use if budget else 0

    def track(self, tid: int, ref: ContainerRef, amount: int) -> None:
        """Add a thread's call of at most `amount` bytes, which is about to be continued."""
        self.end(tid)
        self._refs[tid] = ref
        self._in_flight.setdefault(ref, {})[tid] = amount
        for budget in self._sampled(ref):
            budget.in_flight += amount

    def end(self, tid: int, *, ran: bool = True) -> None:
        """Remove a thread's call, if it has one. With `ran` false the call added nothing."""
        ref = self._refs.pop(tid, None)
        if ref is None:
            return
        amount = self._in_flight[ref].pop(tid)
        if not self._in_flight[ref]:
            del self._in_flight[ref]
        for budget in self._sampled(ref):
            budget.in_flight -= amount
            budget.ended_since += amount if ran else 0

    def in_flight(self, ref: ContainerRef) -> list[int]:
        """Return the threads with calls in flight in this container or under one of its limits."""
        keys = set(self._keys_by_ref.get(ref, ()))
        return [
            tid
            for other, calls in self._in_flight.items()
            if other == ref or not keys.isdisjoint(self._keys_by_ref.get(other, ()))
            for tid in calls
        ]

    def update(self, usage: Mapping[BudgetKey, LimitUsage], now: float) -> None:
        """Store a sample of `now`. Call `end` first for each call with an earlier return."""
        for key, sample in usage.items():
            valid_until = now + (VALID_SECONDS if sample.all_gated else 0)
            self._budgets[key] = Budget(sample.limit, sample.use, valid_until)
        for ref, calls in self._in_flight.items():
            for key in self._keys_by_ref.get(ref, ()):
                if key in usage:
                    self._budgets[key].in_flight += sum(calls.values())

    def _sampled(self, ref: ContainerRef) -> list[Budget]:
        keys = self._keys_by_ref.get(ref, ())
        return [self._budgets[key] for key in keys if key in self._budgets]
