"""Whether a call fits: what each limit has left, between two looks at what the kernel counts. Pure.

For each limit the gate keeps an upper bound of its use:

    bound = the sum at the last look + the most that every call let through ended_since may have added

A call that fits below the bound is let through without a look. Otherwise the sum is looked at again, which takes into account what was
unlocked, unmapped or ended meanwhile: these need no call that the gate sees. The sum of what many processes have is not read in one
moment; it is true nevertheless, because nothing in it rises meanwhile but by calls that were let through:

- A call that had *ended* before the look began is in the sum, with what it really added.
- One that had not may be in it already, or may still come. It is counted besides, and where a call is refused for that alone, it must wait
  for the other's end instead (P5).

So no call is let through that could pass a limit, whatever the order in which calls take effect (P1), and none is refused that fitted when
the look began.

That holds where every process under the limit is gated. Where one is not, its use may rise unseen: such an account is *open*, and good for
one decision. Any account is good for `GOOD_SECONDS`, because a process that is not gated may come.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pinwarden.node.gate.container import ContainerRef

VALID_SECONDS = 1.0


class BudgetKey(NamedTuple):
    """A limit where it holds: its name in the configuration, the pod's uid (None with scope Node), and with scope Container its name."""

    limit: str
    pod: str | None = None
    container: str | None = None


class Fit(Enum):
    """What the accounts say of a call."""

    FITS = "fits"
    MAYBE = "fits, unless a call that is under way adds what it may"
    EXCEEDS = "exceeds"


class LimitUsage(NamedTuple):
    """What a look found of a limit: its bytes and those used; `closed` when every process under it is gated."""

    limit: int
    use: int
    all_gated: bool = True


@dataclass(slots=True)
class Budget:
    """One limit in bytes, its `use` at the last look, and what calls may have added: those that ended `ended_since`, and those `under_way`.

    It is good `until` a moment, in seconds.
    """

    limit: int
    use: int
    valid_until: float
    ended_since: int = 0
    in_flight: int = 0

    def fit(self, amount: int) -> Fit:
        """Whether `amount` more bytes fit. What adds nothing always does, also above the limit (P8, P11)."""
        if amount == 0 or self.use + self.ended_since + self.in_flight + amount <= self.limit:
            return Fit.FITS
        return Fit.MAYBE if self.use + self.ended_since + amount <= self.limit else Fit.EXCEEDS


class Budgets:
    """The accounts of a node, and the calls under way by thread, which makes one at a time."""

    def __init__(self) -> None:
        self._keys_by_ref: Mapping[ContainerRef, tuple[BudgetKey, ...]] = {}
        self._budgets_by_key: dict[BudgetKey, Budget] = {}
        self._in_flight: dict[ContainerRef, dict[int, int]] = {}
        self._refs: dict[int, ContainerRef] = {}

    def configure(self, keys_by_ref: Mapping[ContainerRef, tuple[BudgetKey, ...]]) -> None:
        """From now on these limits cover the calls of each place; each is looked at again before it is decided by."""
        self._keys_by_ref = keys_by_ref
        self._budgets_by_key.clear()

    def fit(self, ref: ContainerRef, amount: int, now: float) -> tuple[Fit, BudgetKey | None]:
        """Whether `amount` bytes fit into every account that covers the place, and the one that says no. `now` is in seconds.

        An account that is not good any more, or that was never looked at, says MAYBE.
        """
        worst, where = Fit.FITS, None
        for key in self._keys_by_ref.get(ref, ()):
            budget = self._budgets_by_key.get(key)
            fit = budget.fit(amount) if budget is not None and now <= budget.valid_until else Fit.MAYBE
            if fit is Fit.EXCEEDS:
                return fit, key
            if fit is Fit.MAYBE:
                worst, where = fit, key
        return worst, where

    def is_limited(self, ref: ContainerRef) -> bool:
        """Whether any limit holds for calls of the place."""
        return bool(self._keys_by_ref.get(ref))

    def count_in_flight(self, ref: ContainerRef) -> int:
        """How many calls of this very place are under way."""
        return len(self._in_flight.get(ref, ()))

    def use(self, key: BudgetKey) -> int:
        """Bytes used at the last look; 0 before the first."""
        budget = self._budgets_by_key.get(key)
        return budget.use if budget else 0

    def track(self, tid: int, ref: ContainerRef, amount: int) -> None:
        """The call of this thread, at most `amount` bytes, is let through."""
        self.end(tid)
        self._refs[tid] = ref
        self._in_flight.setdefault(ref, {})[tid] = amount
        for budget in self._covering(ref):
            budget.in_flight += amount

    def end(self, tid: int, *, ran: bool = True) -> None:
        """The call of this thread that was let through is over, if there is one. With `ran` false it certainly added nothing."""
        ref = self._refs.pop(tid, None)
        if ref is None:
            return
        amount = self._in_flight[ref].pop(tid)
        if not self._in_flight[ref]:
            del self._in_flight[ref]
        for budget in self._covering(ref):
            budget.in_flight -= amount
            budget.ended_since += amount if ran else 0

    def in_flight(self, ref: ContainerRef) -> list[int]:
        """The threads whose calls are under way in places that share a limit with this one, or in this one itself."""
        keys = set(self._keys_by_ref.get(ref, ()))
        return [
            tid
            for other, calls in self._in_flight.items()
            if other == ref or not keys.isdisjoint(self._keys_by_ref.get(other, ()))
            for tid in calls
        ]

    def update(self, seen: Mapping[BudgetKey, LimitUsage], now: float) -> None:
        """What a look at `now` found, before which every call that had ended was told of."""
        for key, look in seen.items():
            self._budgets_by_key[key] = Budget(
                look.limit, look.use, now + (VALID_SECONDS if look.all_gated else 0)
            )
        for ref, calls in self._in_flight.items():
            for key in self._keys_by_ref.get(ref, ()):
                if key in seen:
                    self._budgets_by_key[key].in_flight += sum(calls.values())

    def _covering(self, ref: ContainerRef) -> list[Budget]:
        return [
            self._budgets_by_key[key] for key in self._keys_by_ref.get(ref, ()) if key in self._budgets_by_key
        ]
