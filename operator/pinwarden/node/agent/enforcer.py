"""Deals what constraints have left, and gives back: the one place that touches processes.

Before a process is touched for the first time, what it had is on disk (H3): all that are new in a tick are saved together, and where that
fails they are not touched. One that was forked with some deal's limits is touched already; it is saved within a second, so that a pod that
forks fast does not keep the disk busy. What a process had (`Saved.before`) is, when it is first seen:

- what an earlier agent saved of it,
- else, when its parent was dealt to already, what that one had: it was forked with some deal's limits,
- else, when its limits are exactly what was dealt to a process of the same subject lately, what that one had (the smaller where two had
  different limits): its parent was dealt to and has ended. After a restart of the agent the ended parents are in the file; such a one is
  taken only where a living process of the subject had the same limits before, which an earlier agent saved too,
- else the limits that it has: the runtime started it, as it does for an exec into a container.

A process that no constraint covers any more gets back what it had, and so does one that came with dealt limits and
is first seen then.

Limits are written only where they differ. The lowered ones come first, so that what is taken from one process is not given to another
before; and when one of these grew past its new limit between its sample and the write, all is dealt anew before any is raised. So with
Reserve no moment of a race lets a pod past its limit. A process whose use is unknown is left as it is, and nothing more is let into its
constraints.
"""

import logging
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from pinwarden.node.agent.allocator import Constraint, Process, deal
from pinwarden.node.agent.original_limits import Saved, SavedStore
from pinwarden.node.linux.prlimit import UNLIMITED, Limits, Prlimit
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.constraints import Scoped
from pinwarden.node.pods.privileges import HeldBackReason
from pinwarden.node.pods.process import Followed, Knowledge, ProcessTable
from pinwarden.node.pods.subject import Governed

_log = logging.getLogger(__name__)
_SAVE_SECONDS = 1.0
_ROUNDS = 4
NOT_SAVED = "what it had could not be written to disk"


class _Change(NamedTuple):
    """A process, what is kept of its limits, those that it is to have, and the use in bytes that they were dealt for."""

    process: Followed
    saved: Saved
    limits: Limits
    use: int


def _grew_past(change: _Change) -> bool:
    """Samples a process that was just lowered; whether it had taken more than its new limit by then, where that can hold it at all."""
    process = change.process
    try:
        process.look()
    except OSError:  # it is gone, or its pod's next look says why not
        return False
    past = max(process.locked, process.pinned) > change.limits.hard
    obeys = process.held in (None, HeldBackReason.THREADS_UNREAD)
    return past and process.use > change.use and obeys


class Dealer:
    """Deals to the processes of a table. What an earlier agent left in the store is its own until it is given back."""

    def __init__(self, table: ProcessTable, store: SavedStore, prlimit: Prlimit, page_size: int) -> None:
        """Raises OSError when the store cannot be read."""
        self._table = table
        self._store = store
        self._prlimit = prlimit
        self._page_size = page_size
        self._left = store.load()
        self._earlier = dict(self._left)
        self._unwritten: set[ProcessKey] = set()
        self._unsaved = False
        self._save_due = float("-inf")
        self._refused = False

    def adopt(self, subject: Governed, keys: Iterable[ProcessKey]) -> None:
        """Finds out what these processes of the subject had; nothing is touched before `save`."""
        new = [process for key in keys if (process := self._table[key]).saved is None]
        self._recall_all(subject, new)
        first = {process.key for process in new if process.saved is None}
        for process in sorted(new, key=lambda process: (process.key.start_ticks, process.key.pid)):
            if process.saved is None and self._find_before(subject, process, first):
                first.discard(process.key)

    def save(self, now: float) -> bool:
        """Writes down what changed: at once what new processes had, the rest within `_SAVE_SECONDS`. `now` is in seconds, monotonic.

        False when the disk refused; then new processes stay untouched and have a `failure`.
        """
        if not self._unsaved or (now < self._save_due and not self._unwritten):
            return True
        if now >= self._save_due or not self._refused:
            self._save_due = now + _SAVE_SECONDS
            self._refused = not self._write()
        if self._refused:
            for key in self._unwritten:
                self._table[key].saved, self._table[key].failure = None, NOT_SAVED
        self._unwritten.clear()
        return not self._refused

    def _write(self) -> bool:
        kept = {process.key: process.saved for process in self._table if process.saved is not None}
        try:
            self._store.save(self._left | kept)
        except OSError as error:
            _log.error("no new process is dealt to: %s: %s", NOT_SAVED, error)
            return False
        self._unsaved = False
        return True

    def deal(self, subjects: Sequence[Governed], constraints: Sequence[Scoped]) -> bool:
        """Deals to all members of the constraints, and gives back to those processes of the subjects that are in none.

        False when use moved meanwhile, so that it is to be looked at again soon.
        """
        covered = frozenset[ProcessKey]().union(*(one.members for one in constraints))
        settled = True
        for _ in range(_ROUNDS):
            changes = self._changes(subjects, covered, constraints)
            lowered = [change for change in changes if change.limits.hard < change.saved.dealt.hard]
            self._set_all(subjects, lowered)
            grown = [change for change in lowered if _grew_past(change)]
            if not grown:
                self._set_all(subjects, [change for change in changes if change not in lowered])
                break
            settled = False
        for subject in subjects:
            self.part(subject, subject.keys - covered)
        return settled

    def _changes(
        self,
        subjects: Sequence[Governed],
        covered: frozenset[ProcessKey],
        constraints: Sequence[Scoped],
    ) -> list[_Change]:
        exact = frozenset[ProcessKey]().union(*(subject.keys for subject in subjects if subject.exact))
        wanted = deal(
            (self._described(key, exact=key in exact) for key in covered),
            [
                Constraint(one.amount, one.members, one.limit.contention, one.limit.grant)
                for one in constraints
            ],
            page_size=self._page_size,
        )
        return [
            _Change(process, process.saved, wanted[key], process.use)
            for key in covered
            if (process := self._table[key]).saved is not None
            and process.knowledge is Knowledge.KNOWN
            and process.saved.dealt != wanted[key]
        ]

    def _set_all(self, subjects: Sequence[Governed], changes: Iterable[_Change]) -> None:
        for change in changes:
            if self._set(change.process, change.saved, change.limits):
                for subject in subjects:
                    if change.process.key in subject.keys:
                        subject.deals.remember(change.limits, change.saved.before)

    def part(self, subject: Governed, keys: frozenset[ProcessKey]) -> bool:
        """Gives back to these processes of the subject, which no constraint covers, also to those that came with dealt limits.

        True when there was nothing to give back; a further look may find a process that was forked before.
        """
        new = [self._table[key] for key in keys - subject.parted]
        self._recall_all(subject, [process for process in new if process.saved is None])
        for process in sorted(new, key=lambda process: (process.key.start_ticks, process.key.pid)):
            if process.saved is None:
                self._inherit(subject, process)
        clean = all(process.saved is None for process in new)
        given = {process.key for process in new if self.give_back(process)}
        subject.parted = (subject.parted & keys) | given
        return clean and len(given) == len(new)

    def see(self, keys: Iterable[ProcessKey]) -> bool:
        """Takes over the limits that programs set since the last deal; whether there were any."""
        return sum(self._see(self._table[key]) for key in keys) > 0

    def give_back(self, process: Followed) -> bool:
        """Gives back what it had, where something was dealt to it; False when that failed."""
        saved = process.saved
        if saved is None:
            return True
        current = self._current(process)
        if process.failure or (current and not self._restore(process, saved.seen(current).before)):
            return False
        process.saved, self._unsaved = None, True
        return True

    def give_back_left(self) -> None:
        """Gives back to what an earlier agent dealt to and nothing holds any more. What cannot be given back stays in the store."""
        for key, saved in list(self._left.items()):
            try:
                process = self._living(key)
            except OSError:
                continue
            if process is None or self._restore(process, saved.before):
                del self._left[key]
                self._unsaved = True

    def left(self) -> list[ProcessKey]:
        """What an earlier agent dealt to, still lives, and was neither given back nor dealt to again."""
        return [key for key in self._left if self._may_live(key)]

    def _may_live(self, key: ProcessKey) -> bool:
        try:
            return self._living(key) is not None
        except OSError:
            return True

    def _living(self, key: ProcessKey) -> Followed | None:
        """Raises OSError when that cannot be told."""
        process, _ = self._table.look(key.pid)
        return process if process is not None and process.key == key else None

    def _restore(self, process: Followed, before: Limits) -> bool:
        try:
            with process.handle(self._prlimit) as handle:
                handle.set(before)
        except ProcessLookupError:
            return True
        except OSError as error:
            self._fail(process, f"prlimit: {error.strerror}")
            return False
        return True

    def _described(self, key: ProcessKey, *, exact: bool) -> Process:
        """An unknown use is taken for all there is: then nothing more is let into its constraints."""
        process = self._table[key]
        locked = UNLIMITED if process.knowledge is Knowledge.UNKNOWN else process.locked
        before = process.saved.before if process.saved is not None else Limits(0, 0)
        return Process(key, locked, process.pinned, before.soft, before.hard, exact)

    def _current(self, process: Followed) -> Limits | None:
        """Its limits of now; None when it is gone, or when they cannot be read, which is its `failure` then."""
        try:
            with process.handle(self._prlimit) as handle:
                current = handle.get()
        except ProcessLookupError:
            return None
        except OSError as error:
            self._fail(process, f"prlimit: {error.strerror}")
            return None
        process.failure = ""
        return current

    def _recall_all(self, subject: Governed, processes: Iterable[Followed]) -> None:
        recalled = [process for process in processes if self._recall(process)]
        if recalled:
            self._learn_of_ended(subject, recalled)

    def _recall(self, process: Followed) -> bool:
        """Takes what an earlier agent saved of it, if it did."""
        earlier = self._left.get(process.key)
        if earlier is None or (current := self._current(process)) is None:
            return False
        process.saved = earlier.inherited(current)
        del self._left[process.key]
        return True

    def _learn_of_ended(self, subject: Governed, recalled: Sequence[Followed]) -> None:
        befores = {process.saved.before for process in recalled if process.saved is not None}
        for process in recalled:
            if process.saved is not None:
                subject.deals.remember(process.saved.dealt, process.saved.before)
        for saved in self._earlier.values():
            if saved.before in befores:
                subject.deals.remember(saved.dealt, saved.before)

    def _find_before(self, subject: Governed, process: Followed, first: set[ProcessKey]) -> bool:
        """Sets `saved` by the rules of the module; whether it came with dealt limits. `first` are those that are untouched yet."""
        if self._inherit(subject, process, first):
            return True
        if (current := self._current(process)) is not None:
            process.saved, self._unsaved = Saved(current, current), True
            self._unwritten.add(process.key)
        return False

    def _inherit(self, subject: Governed, process: Followed, first: Container[ProcessKey] = ()) -> bool:
        """Sets `saved` of a process that came with dealt limits; whether it did."""
        parent = self._table.get(process.status.parent)
        of_parent = parent.saved if parent is not None and parent.key not in first else None
        if not (of_parent or subject.deals) or (current := self._current(process)) is None:
            return False
        before = of_parent.before if of_parent else subject.deals.before(current)
        if before is None:
            return False
        process.saved, self._unsaved = Saved(before, current), True
        return True

    def _see(self, process: Followed) -> bool:
        saved = process.saved
        if saved is None:
            return False
        try:
            current = self._prlimit(process.key.pid, None)
        except OSError:
            return False
        if current == saved.dealt:
            return False
        self._take_over(process, saved, current, current)
        return True

    def _set(self, process: Followed, saved: Saved, limits: Limits) -> bool:
        try:
            with process.handle(self._prlimit) as handle:
                previous = handle.set(limits)
        except ProcessLookupError:
            return False
        except OSError as error:
            self._fail(process, f"prlimit: {error.strerror}")
            return False
        process.failure = ""
        self._take_over(process, saved, previous, limits)
        return True

    def _take_over(self, process: Followed, saved: Saved, current: Limits, dealt: Limits) -> None:
        before = saved.seen(current).before
        self._unsaved |= before != saved.before
        process.saved = Saved(before, dealt)

    def _fail(self, process: Followed, message: str) -> None:
        if process.failure != message:
            _log.warning("process %d cannot be dealt to: %s", process.key.pid, message)
        process.failure = message
