"""Sets the rlimits of processes and restores them: the only module that changes a process.

A process is changed only after its original limits are on disk (H3). All new processes of a tick
are saved together. If the write fails, these processes stay unchanged. A process forked with
applied limits is already changed. Its record is written within a second, so that fast forks do not
keep the disk busy.

The original limits of a new process come from the first existing source:

- the record of this process from an earlier agent,
- the record of its parent, if the parent's limits were changed before the fork,
- the history of its subject, if a process of the subject recently got exactly these limits: the
  parent has ended since. If two such processes had different originals, the smaller is used. After
  a restart of the agent, the ended parents are in the file. Such a record is used only if a living
  process of the subject had the same original limits in the file too,
- the inherited limits of its container, if the NRI plugin lowered the limits of the container at
  its creation. A limit set by the process itself stays,
- its current limits: the runtime started the process, as for an exec into a container.

A process without any constraint gets its original limits, even if it was forked with applied
limits and is new.

Limits are written only where they differ. Lowered limits are written first, so that no amount is
allocated twice. A process can exceed its new limit between its sample and the write. Then the
allocation is repeated before any limit is raised. So with Reserve no race lets a pod exceed its
limit. A process of unknown use keeps its limits.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace

from pinwarden.node.agent.allocation_history import AllocationHistory
from pinwarden.node.agent.allocator import ProcessUsage, allocate
from pinwarden.node.agent.limit_change import LimitChange
from pinwarden.node.agent.lowered_reader import LoweredReader
from pinwarden.node.agent.original_limits import RlimitRecord, RlimitRecordStore
from pinwarden.node.linux.prlimit import UNLIMITED, Limits, Prlimit, ProcessHandle
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.constraints import Constraint, covered_by
from pinwarden.node.pods.process import Process, ProcessTable, UsageState
from pinwarden.node.pods.subject import Subject, keys_of

_log = logging.getLogger(__name__)
_SAVE_SECONDS = 1.0
_ROUNDS = 4
_YOUNG_SECONDS = 30.0
"""The runtime has set the limits of a new process by then."""
NOT_SAVED = "its original limits could not be written to disk"


class RlimitEnforcer:
    """Owns the rlimit state of the processes in a table.

    `_unclaimed` are records of an earlier agent, neither adopted nor restored yet.
    """

    def __init__(
        self,
        table: ProcessTable,
        store: RlimitRecordStore,
        prlimit: Prlimit,
        page_size: int,
        lowered: LoweredReader,
    ) -> None:
        """Load the records of an earlier agent. Raises OSError if the store cannot be read."""
        self._table = table
        self._store = store
        self._prlimit = prlimit
        self._page_size = page_size
        self._lowered = lowered
        self._unclaimed = store.load()
        self._earlier = dict(self._unclaimed)
        self._records: dict[ProcessKey, RlimitRecord] = {}
        self._failures: dict[ProcessKey, str] = {}
        self._histories: defaultdict[str, AllocationHistory] = defaultdict(AllocationHistory)
        self._unwritten: set[ProcessKey] = set()
        self._unsaved = False
        self._save_due = float("-inf")
        self._refused = False

    @property
    def records(self) -> Mapping[ProcessKey, RlimitRecord]:
        """The record of each process whose limits are or will be changed."""
        return self._records

    @property
    def failures(self) -> Mapping[ProcessKey, str]:
        """Why the limits of a process could not be read or set."""
        return self._failures

    def adopt(self, subject: Subject, keys: Iterable[ProcessKey]) -> None:
        """Find the original limits of these processes. No process is changed before `save`."""
        new = self._recall_all(
            subject, self._oldest_first(key for key in keys if key not in self._records)
        )
        if new:
            self._lowered.poll()
        untouched = {process.key for process in new}
        for process in new:
            if self._find_original(subject, process, untouched):
                untouched.discard(process.key)

    def save(self, now: float, *, at_once: bool = False) -> bool:
        """Write changed records: at once if there are new processes, else within `_SAVE_SECONDS`.

        Return False if the write failed. Then new processes stay unchanged and have a failure.
        `now` is in seconds, monotonic.
        """
        at_once = at_once or now >= self._save_due
        if not self._unsaved or not (at_once or self._unwritten):
            return True
        if at_once or not self._refused:
            self._save_due = now + _SAVE_SECONDS
            self._refused = not self._write()
        if self._refused:
            for key in self._unwritten:
                self._records.pop(key, None)
                self._failures[key] = NOT_SAVED
        self._unwritten.clear()
        return not self._refused

    def _write(self) -> bool:
        try:
            self._store.save(self._unclaimed | self._records)
        except OSError as error:
            _log.error("new processes keep their limits: %s: %s", NOT_SAVED, error)
            return False
        self._unsaved = False
        return True

    def enforce(self, subjects: Sequence[Subject], constraints: Sequence[Constraint]) -> bool:
        """Set the limits of all members of the constraints, and restore all other processes.

        Return False if use changed meanwhile: the subjects should be sampled again soon.
        """
        covered = covered_by(constraints)
        settled = True
        for _ in range(_ROUNDS):
            changes = self._changes(subjects, covered, constraints)
            lowered = [change for change in changes if change.lowers]
            self._set_all(subjects, lowered)
            grown = [change for change in lowered if change.exceeded()]
            if not grown:
                self._set_all(subjects, [change for change in changes if change not in lowered])
                break
            settled = False
        for subject in subjects:
            self.restore_all(subject, subject.keys - covered)
        return settled

    def _changes(
        self,
        subjects: Sequence[Subject],
        covered: frozenset[ProcessKey],
        constraints: Sequence[Constraint],
    ) -> list[LimitChange]:
        exact = keys_of(subject for subject in subjects if subject.coverage.exact)
        wanted = allocate(
            (self._described(key, exact=key in exact) for key in covered),
            constraints,
            page_size=self._page_size,
        )
        return [
            LimitChange(process, record, wanted[key], process.use)
            for key in covered
            if (record := self._records.get(key)) is not None
            and (process := self._table[key]).usage_state is UsageState.KNOWN
            and record.applied != wanted[key]
        ]

    def _set_all(self, subjects: Sequence[Subject], changes: Iterable[LimitChange]) -> None:
        for change in changes:
            if not self._set(change.process, change.record, change.limits):
                continue
            for subject in subjects:
                if change.process.key in subject.keys:
                    self._histories[subject.uid].remember(change.limits, change.record.original)

    def restore_all(self, subject: Subject, keys: frozenset[ProcessKey]) -> bool:
        """Restore these processes of the subject, which no constraint covers.

        Return True if no process had applied limits. Otherwise a further sample can find children
        of these processes.
        """
        history = self._histories[subject.uid]
        new = self._oldest_first(keys - history.restored)
        if new:
            self._lowered.poll()
        lowered = self._lowered.concerns(subject)
        for process in self._recall_all(subject, new):
            if not self._inherit(subject, process) and lowered:
                self._find_lowered(subject, process)
        clean = all(process.key not in self._records for process in new)
        restored = {
            process.key
            for process in new
            if process.key not in self._unclaimed and self.restore(process)
        }
        starting = {process.key for process in new if lowered and process.age < _YOUNG_SECONDS}
        history.restored = (history.restored & keys) | restored - starting
        return clean and len(restored) == len(new)

    def adopt_external_changes(self, keys: Iterable[ProcessKey]) -> bool:
        """Accept limits set by programs since the last allocation. Return whether any exist."""
        return sum(self._adopt_external_change(key) for key in keys) > 0

    def restore(self, process: Process) -> bool:
        """Restore the original limits if they were changed. Return False on failure."""
        record = self._records.get(process.key)
        if record is None:
            return True
        if current := self._prlimit_on(process):
            self._prlimit_on(process, record.updated(current).original)
        if process.key in self._failures:
            return False
        del self._records[process.key]
        self._unsaved = True
        return True

    def restore_unclaimed(self, subjects: Iterable[Subject]) -> None:
        """Restore the processes of an earlier agent outside these subjects.

        A process stays in the store if its restore failed.
        """
        owned = keys_of(subjects)
        for key, record in list(self._unclaimed.items()):
            if key in owned:
                continue
            try:
                process = self._living(key)
            except OSError:
                continue
            if process is not None:
                self._prlimit_on(process, record.original)
                if key in self._failures:
                    continue
            del self._unclaimed[key]
            self._unsaved = True

    def unclaimed(self) -> list[ProcessKey]:
        """Return the living processes of an earlier agent, neither adopted nor restored yet."""
        return [key for key in self._unclaimed if self._may_live(key)]

    def clear_history(self, subject: Subject) -> None:
        """Forget which limits were applied to the subject's processes."""
        self._histories[subject.uid].clear()

    def keep_histories(self, uids: Collection[str]) -> None:
        """Forget the history of all other subjects."""
        for uid in self._histories.keys() - set(uids):
            del self._histories[uid]

    def forget(self, key: ProcessKey) -> None:
        """Forget the state of a process outside the table."""
        self._records.pop(key, None)
        self._failures.pop(key, None)

    def _may_live(self, key: ProcessKey) -> bool:
        try:
            return self._living(key) is not None
        except OSError:
            return True

    def _living(self, key: ProcessKey) -> Process | None:
        """Return the process, None if it is gone. Raises OSError if unknown."""
        process, _ = self._table.sample(key.pid)
        return process if process is not None and process.key == key else None

    def _prlimit_on(self, process: Process, limits: Limits | None = None) -> Limits | None:
        """Set the limits of a process, or read them without `limits`. Return the limits before.

        Return None if the process is gone, or after a failure, which is recorded.
        """
        before = None
        try:
            if not process.gone:
                with ProcessHandle(process.reader, self._prlimit) as handle:
                    before = handle.get() if limits is None else handle.set(limits)
        except ProcessLookupError:
            pass
        except OSError as error:
            failure = f"prlimit: {error.strerror}"
            if self._failures.get(process.key) != failure:
                _log.warning("cannot set the limits of process %d: %s", process.key.pid, failure)
            self._failures[process.key] = failure
            return None
        self._failures.pop(process.key, None)
        return before

    def _described(self, key: ProcessKey, *, exact: bool) -> ProcessUsage:
        """Return the allocator's input. An unknown use counts as unlimited: nothing is allowed."""
        process, record = self._table[key], self._records.get(key)
        locked = UNLIMITED if process.usage_state is UsageState.UNKNOWN else process.locked
        original = record.original if record else Limits(0, 0)
        return ProcessUsage(key, locked, process.pinned, original.soft, original.hard, exact)

    def _oldest_first(self, keys: Iterable[ProcessKey]) -> list[Process]:
        """Return these processes by start time, so that a parent comes before its children."""
        return [
            self._table[key] for key in sorted(keys, key=lambda key: (key.start_ticks, key.pid))
        ]

    def _recall_all(self, subject: Subject, processes: Iterable[Process]) -> list[Process]:
        """Adopt the records of an earlier agent. Return the processes without any record."""
        new = [process for process in processes if process.key not in self._records]
        recalled = [record for process in new if (record := self._recall(process))]
        if recalled:
            originals = {record.original for record in recalled}
            ended = [record for record in self._earlier.values() if record.original in originals]
            for record in (*recalled, *ended):
                self._histories[subject.uid].remember(record.applied, record.original)
        return [
            process
            for process in new
            if process.key not in self._records and process.key not in self._unclaimed
        ]

    def _recall(self, process: Process) -> RlimitRecord | None:
        """Adopt and return the record of the process from an earlier agent, if any."""
        earlier = self._unclaimed.get(process.key)
        if earlier is None or (current := self._prlimit_on(process)) is None:
            return None
        record = self._records[process.key] = earlier.for_child(current)
        del self._unclaimed[process.key]
        return record

    def _find_original(
        self, subject: Subject, process: Process, untouched: Container[ProcessKey]
    ) -> bool:
        """Add a record by the rules of the module. Return whether the process inherited limits.

        The limits of `untouched` processes are not changed yet, so their children inherit nothing.
        """
        if self._inherit(subject, process, untouched):
            return True
        if (current := self._prlimit_on(process)) is not None:
            self._records[process.key] = self._lowered.record(subject, process.key, current)
            self._unsaved = True
            self._unwritten.add(process.key)
        return False

    def _find_lowered(self, subject: Subject, process: Process) -> None:
        """Add a record if the plugin lowered the limits of the process's container."""
        if (current := self._prlimit_on(process)) is None:
            return
        record = self._lowered.record(subject, process.key, current)
        if record.original != current:
            self._records[process.key], self._unsaved = record, True

    def _inherit(
        self, subject: Subject, process: Process, untouched: Container[ProcessKey] = ()
    ) -> bool:
        """Add a record if the process inherited applied limits, and return whether it did."""
        parent, history = self._table.get(process.status.parent), self._histories[subject.uid]
        of_parent = (
            self._records.get(parent.key) if parent and parent.key not in untouched else None
        )
        if not (of_parent or history) or (current := self._prlimit_on(process)) is None:
            return False
        original = of_parent.original if of_parent else history.original(current)
        if original is None:
            return False
        self._records[process.key], self._unsaved = RlimitRecord(original, current), True
        return True

    def _adopt_external_change(self, key: ProcessKey) -> bool:
        record = self._records.get(key)
        if record is None:
            return False
        try:
            current = self._prlimit(key.pid, None)
        except OSError:
            return False
        if current == record.applied:
            return False
        self._update(key, record, current, current)
        return True

    def _set(self, process: Process, record: RlimitRecord, limits: Limits) -> bool:
        if (previous := self._prlimit_on(process, limits)) is None:
            return False
        self._update(process.key, record, previous, limits)
        return True

    def _update(
        self, key: ProcessKey, record: RlimitRecord, current: Limits, applied: Limits
    ) -> None:
        updated = record.updated(current)
        self._unsaved |= updated.original != record.original
        self._records[key] = replace(updated, applied=applied)
