"""Whether a call fits: what each limit has left, between two looks at what the kernel counts. Pure.

For each limit the gate keeps an upper bound of its use:

    bound = the sum at the last look + the most that every call let through since may have added

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

GOOD_SECONDS = 1.0


class Place(NamedTuple):
    """Where a call is made: the pod's uid and the container's name."""

    pod: str
    container: str


class Key(NamedTuple):
    """A limit where it holds: its name in the configuration, the pod's uid (None with scope Node), and with scope Container its name."""

    limit: str
    pod: str | None = None
    container: str | None = None


class Fit(Enum):
    """What the accounts say of a call."""

    FITS = "fits"
    MAYBE = "fits, unless a call that is under way adds what it may"
    EXCEEDS = "exceeds"


class Look(NamedTuple):
    """What a look found of a limit: its bytes and those used; `closed` when every process under it is gated."""

    limit: int
    use: int
    closed: bool = True


@dataclass(slots=True)
class Account:
    """One limit in bytes, its `use` at the last look, and what calls may have added: those that ended `since`, and those `under_way`.

    It is good `until` a moment, in seconds.
    """

    limit: int
    use: int
    until: float
    since: int = 0
    under_way: int = 0

    def fit(self, amount: int) -> Fit:
        """Whether `amount` more bytes fit. What adds nothing always does, also above the limit (P8, P11)."""
        if amount == 0 or self.use + self.since + self.under_way + amount <= self.limit:
            return Fit.FITS
        return Fit.MAYBE if self.use + self.since + amount <= self.limit else Fit.EXCEEDS


class Accounts:
    """The accounts of a node, and the calls under way by thread, which makes one at a time."""

    def __init__(self) -> None:
        self._covering: Mapping[Place, tuple[Key, ...]] = {}
        self._by_key: dict[Key, Account] = {}
        self._under_way: dict[Place, dict[int, int]] = {}
        self._places: dict[int, Place] = {}

    def configure(self, covering: Mapping[Place, tuple[Key, ...]]) -> None:
        """From now on these limits cover the calls of each place; each is looked at again before it is decided by."""
        self._covering = covering
        self._by_key.clear()

    def fit(self, place: Place, amount: int, now: float) -> tuple[Fit, Key | None]:
        """Whether `amount` bytes fit into every account that covers the place, and the one that says no. `now` is in seconds.

        An account that is not good any more, or that was never looked at, says MAYBE.
        """
        worst, where = Fit.FITS, None
        for key in self._covering.get(place, ()):
            account = self._by_key.get(key)
            fit = account.fit(amount) if account is not None and now <= account.until else Fit.MAYBE
            if fit is Fit.EXCEEDS:
                return fit, key
            if fit is Fit.MAYBE:
                worst, where = fit, key
        return worst, where

    def covers(self, place: Place) -> bool:
        """Whether any limit holds for calls of the place."""
        return bool(self._covering.get(place))

    def under_way_in(self, place: Place) -> int:
        """How many calls of this very place are under way."""
        return len(self._under_way.get(place, ()))

    def use(self, key: Key) -> int:
        """Bytes used at the last look; 0 before the first."""
        account = self._by_key.get(key)
        return account.use if account else 0

    def let_through(self, tid: int, place: Place, amount: int) -> None:
        """The call of this thread, at most `amount` bytes, is let through."""
        self.end(tid)
        self._places[tid] = place
        self._under_way.setdefault(place, {})[tid] = amount
        for account in self._accounts(place):
            account.under_way += amount

    def end(self, tid: int, *, ran: bool = True) -> None:
        """The call of this thread that was let through is over, if there is one. With `ran` false it certainly added nothing."""
        place = self._places.pop(tid, None)
        if place is None:
            return
        amount = self._under_way[place].pop(tid)
        if not self._under_way[place]:
            del self._under_way[place]
        for account in self._accounts(place):
            account.under_way -= amount
            account.since += amount if ran else 0

    def under_way(self, place: Place) -> list[int]:
        """The threads whose calls are under way in places that share a limit with this one, or in this one itself."""
        keys = set(self._covering.get(place, ()))
        return [
            tid
            for other, calls in self._under_way.items()
            if other == place or not keys.isdisjoint(self._covering.get(other, ()))
            for tid in calls
        ]

    def renew(self, seen: Mapping[Key, Look], now: float) -> None:
        """What a look at `now` found, before which every call that had ended was told of."""
        for key, look in seen.items():
            self._by_key[key] = Account(look.limit, look.use, now + (GOOD_SECONDS if look.closed else 0))
        for place, calls in self._under_way.items():
            for key in self._covering.get(place, ()):
                if key in seen:
                    self._by_key[key].under_way += sum(calls.values())

    def _accounts(self, place: Place) -> list[Account]:
        return [self._by_key[key] for key in self._covering.get(place, ()) if key in self._by_key]
