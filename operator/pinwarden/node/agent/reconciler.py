"""The engine: finds the governed pods, samples them, deals to their processes and says what it found.

It has no thread and never waits: the caller gives it a configuration and ticks, each as soon as the last one asked for. A tick does what is
due, in this order: find pods, sample those that are due, save what their new processes had, deal, give back. Pods that no limit holds for
are listed and not read. Looking takes at most about a quarter of a core's time, also when many busy pods want to be looked at at once.

Subjects that share a limit of scope Node, or a process, are dealt together as one batches.

A subject, a batches or a pattern that fails costs itself (`guard`): it is reported as not readable, none of its limits is acknowledged, and
it is tried again. All others are sampled and dealt as if it were not there.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from pinwarden.api.nodepinconfig import NodeLimit, NodePinConfigSpec, NodePinConfigStatus, UnsupportedLimit
from pinwarden.api.pinlimit import Enforcement
from pinwarden.common.guard import Guard
from pinwarden.common.patterns import directories
from pinwarden.node.agent.accountant_reader import AccountantReader
from pinwarden.node.agent.enforcer import RlimitEnforcer
from pinwarden.node.agent.gate_reader import GateReader
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.overshoots import Overshoots
from pinwarden.node.agent.releaser import Releaser
from pinwarden.node.agent.status import StatusBuilder
from pinwarden.node.linux.cgroupfs import detect_layout, process_hierarchy
from pinwarden.node.linux.prlimit import GateAbility, Prlimit, prlimit_memlock
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.batches import batches
from pinwarden.node.pods.constraints import Constraint, constraints_on, running_containers
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.pods.policy import UNKNOWN_PODS, NodePolicy, SubjectPolicy, reported_name
from pinwarden.node.pods.process import ProcessTable
from pinwarden.node.pods.subject import IDLE_SECONDS, Subject

_SHORTEST_SECONDS = 0.01
_LONGEST_SECONDS = 1.0
_PAUSE_PER_WORK = 3
KINDS = ("subject", "group", "pattern", "release", "record", "report")
"""Kinds of items that the engine guards."""
_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
Dealing = tuple[list[Subject], list[Constraint]]
"""A batches and the constraints on it."""


class Reconciler:
    """Single-threaded: one caller owns it. `clock` is monotonic, in seconds; `page_size` in bytes; `gate` and `accountant` are records.

    `guard` knows the `KINDS`.
    """

    def __init__(
        self,
        *,
        cgroup_root: Path,
        proc_root: Path,
        store: RlimitRecordStore,
        ability: GateAbility,
        gate: Path | None = None,
        accountant: Path | None = None,
        page_size: int = os.sysconf("SC_PAGE_SIZE"),
        clock: Callable[[], float] = time.monotonic,
        prlimit: Prlimit = prlimit_memlock,
        guard: Guard | None = None,
    ) -> None:
        """Raises ValueError when there is no cgroup hierarchy, OSError when the store cannot be read."""
        self._guard = guard or Guard(KINDS, clock)
        self._root = process_hierarchy(cgroup_root)
        self._finder = PodFinder(self._root)
        self._table = ProcessTable(proc_root)
        self._enforcer = RlimitEnforcer(self._table, store, prlimit, page_size)
        self._releaser = Releaser(self._table, self._enforcer)
        self._gate = GateReader(gate)
        self._accountant = AccountantReader(accountant)
        self._reporter = StatusBuilder(
            ability, detect_layout(cgroup_root).value, self._gate, self._accountant, self._guard
        )
        self._overshoots = Overshoots()
        self._ability = ability
        self._clock = clock
        self._policy: NodePolicy | None = None
        self._acknowledged: NodePolicy | None = None
        self._subjects: dict[str, Subject] = {}
        self._groups: list[list[Subject]] = []
        self._matched: dict[str, list[Path]] = {}
        self._find_due = float("-inf")
        self._sampled: datetime | None = None

    def configure(
        self,
        spec: NodePinConfigSpec,
        unsupported: Sequence[UnsupportedLimit],
        generation: int | None,
        gone: frozenset[str] = frozenset(),
    ) -> None:
        """Takes a configuration; the next tick acts, and acknowledges it when all of it is dealt. `gone`: not listed any more."""
        self._policy = NodePolicy(spec, unsupported, generation, gone)
        self._overshoots.keep({limit.uid for limit in self._policy.limits} | {UNKNOWN_PODS})
        self._find_due = float("-inf")

    def tick(self) -> float:
        """Does what is due; seconds until the next tick is wanted. Before the first configuration nothing is touched (H3)."""
        policy, now = self._policy, self._clock()
        if policy is None:
            return _LONGEST_SECONDS
        if policy.release:
            if (self._acknowledged is not policy or self._releaser) and self._give_all_back():
                self._acknowledged = policy
            self._sampled = datetime.now(UTC)
            return _LONGEST_SECONDS
        self._guarded("record", "accountant", self._accountant.poll)
        if self._guarded("record", "gate", self._gate.poll):
            for subject in self._subjects.values():
                if self._gate.coverage(subject).exact != subject.exact:
                    subject.heat(now)
        fresh, finding, thorough = self._acknowledged is not policy, now >= self._find_due, False
        if finding:
            try:
                thorough = self._find(policy, now, fresh=fresh)
            except OSError as error:
                _log.error("pods cannot be listed, known ones stay as they are: %s", error)
                self._find_due = now + _LONGEST_SECONDS
                finding, policy = False, self._acknowledged
        self._act(now, thorough=thorough, sweep=finding)
        self._acknowledged = policy
        self._sampled = datetime.now(UTC)
        return self._pace(now)

    def report(self) -> NodePinConfigStatus:
        """What was found at the last tick."""
        subjects = [subject for _, subject in sorted(self._subjects.items())]
        return self._reporter.report(
            self._acknowledged, subjects, self._table, self._enforcer, self._overshoots, self._sampled
        )

    @property
    def names(self) -> dict[str, str]:
        """Subjects whose name the report cannot bear: the real name by the reported one."""
        reported = {reported_name(uid): uid for uid in self._subjects}
        return {name: uid for name, uid in reported.items() if name != uid}

    @property
    def failures(self) -> dict[tuple[str, str], int]:
        """How often the work on items failed, by process and kind, as far as the other processes' records tell."""
        return {
            (process, kind): count
            for process, counts in (
                ("agent", self._guard.failures),
                ("gate", self._gate.told.failures if self._gate.told else {}),
                ("accountant", self._accountant.failures),
            )
            for kind, count in counts.items()
        }

    def release(self) -> None:
        """Gives every process back what it had, also those of an earlier agent. Raises PermissionError when the kernel refuses some."""
        if not self._give_all_back():
            raise PermissionError("some processes could not be given back what they had")

    def close(self) -> None:
        """Gives descriptors back. Limits stay in force (H3)."""
        self._table.close()
        self._subjects.clear()
        self._groups.clear()

    def _find(self, policy: NodePolicy, now: float, *, fresh: bool) -> bool:
        """Brings the subjects up to date; whether all are to be looked at, because the policy is new or some are gone. Raises OSError."""
        found = self._wanted(policy, now)
        self._find_due = now + IDLE_SECONDS
        gone = self._subjects.keys() - found.keys()
        for uid in gone:
            self._releaser.begin(self._subjects.pop(uid))
            self._overshoots.end(uid)
        changed = fresh or bool(gone)
        for uid, (paths, held) in found.items():
            subject = self._subjects.get(uid)
            if subject is None:
                subject = self._subjects[uid] = Subject(uid, paths, held)
                self._releaser.cancel(uid)
            elif subject.paths != paths:
                subject.move(paths)
            elif subject.policy == held:
                continue
            subject.policy = held
            subject.heat(now)
            changed = True
        if changed:
            self._groups = batches(self._subjects.values())
        return fresh or bool(gone)

    def _wanted(self, policy: NodePolicy, now: float) -> dict[str, tuple[tuple[Path, ...], SubjectPolicy]]:
        found = {
            uid: (paths, held)
            for uid, paths in self._finder.find(now).items()
            if (held := policy.of_pod(uid)) is not None
        }
        matching: dict[Path, list[NodeLimit]] = {}
        for pattern, held in policy.patterns.items():
            paths = self._guarded("pattern", pattern, partial(directories, self._root, pattern))
            if paths is None:  # what it matched before stays held
                paths = [path for path in self._matched.get(pattern, ()) if path.is_dir()]
            self._matched[pattern] = paths
            for path in paths:
                matching.setdefault(path, []).extend(held.limits)
        self._matched = {pattern: self._matched[pattern] for pattern in policy.patterns}
        for path, limits in matching.items():
            found[path.relative_to(self._root).as_posix()] = ((path,), SubjectPolicy(tuple(limits)))
        return found

    def _guarded(self, kind: str, name: str, work: Callable[[], _Result]) -> _Result | None:
        """What `work` on an item returns; None while it fails, or waits after a failure."""
        if self._guard.due(kind, name):
            with self._guard.item(kind, name):
                return work()
        return None

    def _act(self, now: float, *, thorough: bool, sweep: bool) -> None:
        """Samples what is due, or with `thorough` everything, and deals; with `sweep` forgets what is in no subject any more."""
        due = {subject for subject in self._subjects.values() if thorough or subject.wants(now)}
        left = [key for subject in due for key in self._look(subject, now)]
        if any(self._table.lives(key) for key in left):  # moved away, perhaps to another subject
            for subject in self._subjects.values():
                if subject not in due:
                    self._look(subject, now)
            due, sweep = set(self._subjects.values()), True
        touched = [
            (subjects, constraints)
            for subjects in self._groups
            if not due.isdisjoint(subjects)
            for constraints in self._of_group("scope", subjects, now, partial(constraints_on, subjects))
        ]
        if self._ability.available:
            self._deal(touched, now)
        for subjects, constraints in touched:
            self._of_group("evaluate", subjects, now, partial(self._evaluate, subjects, constraints, now))
        if sweep:
            self._guarded("release", "", partial(self._drop_strangers, now))

    def _of_group(
        self, step: str, subjects: Sequence[Subject], now: float, work: Callable[[], _Result]
    ) -> list[_Result]:
        """What `work` on a batches returns, as the one entry; none where it failed, which is then each subject's failure."""
        name = f"{step} {subjects[0].uid}"
        with self._guard.item("group", name):
            return [work()]
        for subject in subjects:
            subject.failure = self._guard.cause("group", name)
            subject.due = now + _LONGEST_SECONDS
        return []

    def _look(self, subject: Subject, now: float) -> set[ProcessKey]:
        """The processes that are the subject's no longer."""
        with self._guard.item("subject", subject.uid):
            left = subject.sample(self._table, now)
            subject.exact = self._gate.coverage(subject).exact
            subject.failure = ""
            return left
        subject.failure = self._guard.cause("subject", subject.uid)
        subject.due = now + _LONGEST_SECONDS
        return set()

    def _deal(self, touched: Iterable[Dealing], now: float) -> None:
        enforced = [
            (subjects, [one for one in constraints if one.limit.enforcement is Enforcement.ENFORCE])
            for subjects, constraints in touched
        ]
        for subjects, constraints in enforced:
            self._of_group("adopt", subjects, now, partial(self._adopt, subjects, constraints, now))
        self._enforcer.save(now)
        for subjects, constraints in enforced:
            work = partial(self._enforcer.enforce, subjects, constraints)
            for settled in self._of_group("deal", subjects, now, work):
                for subject in () if settled else subjects:
                    subject.heat(now)

    def _adopt(self, subjects: Iterable[Subject], constraints: Iterable[Constraint], now: float) -> None:
        covered = frozenset[ProcessKey]().union(*(one.members for one in constraints))
        for subject in subjects:
            self._enforcer.adopt(subject, subject.keys & covered)
            if not subject.policy.enforced and not subject.hot(now):
                self._enforcer.clear_history(subject)
            if self._enforcer.adopt_external_changes(subject.keys):
                subject.heat(now)

    def _evaluate(self, subjects: Iterable[Subject], constraints: Iterable[Constraint], now: float) -> None:
        """Compares use with limits, those that are only audited too, and keeps peaks."""
        time = datetime.now(UTC)
        for one in constraints:
            excess = self._use(one.members) - one.limit.limit
            self._overshoots.sample(one.limit.uid, one.pod, one.container, excess, now, time)
        for subject in subjects:
            peaks = subject.peaks.containers
            for name, keys in running_containers(subject.policy.by_container, subject).items():
                peaks[name] = max(peaks.get(name, 0), self._use(keys))

    def _use(self, keys: Iterable[ProcessKey]) -> int:
        return sum(self._table[key].use for key in keys)

    def _drop_strangers(self, now: float) -> None:
        """Gives back to, and forgets, the processes that are in no subject; also those that an earlier agent dealt to."""
        if self._ability.available:
            self._part(now)
        kept = self._releaser.keys.union(*(subject.keys for subject in self._subjects.values()))
        for process in self._table:
            if process.key in kept:
                continue
            if not self._ability.available or self._enforcer.restore(process):
                self._table.drop(process)
                self._enforcer.forget(process.key)
        self._enforcer.keep_histories(self._subjects.keys() | self._releaser.uids)

    def _part(self, now: float) -> None:
        """Goes on with what is parted from. What an earlier agent left may be in a subject that cannot be read, and then stays."""
        readable = not any(subject.failure for subject in self._subjects.values())
        if readable:
            try:
                self._releaser.begin_unclaimed(self._root)
            except OSError as error:
                _log.error("what an earlier agent dealt to cannot be found by its pods: %s", error)
        self._releaser.sweep(now)
        if readable:
            self._enforcer.restore_unclaimed()

    def _give_all_back(self) -> bool:
        """Whether everything could be given back; then the store is empty."""
        if not self._ability.available:
            return not self._enforcer.unclaimed()
        for subject in self._subjects.values():
            self._releaser.begin(subject)
        self._subjects.clear()
        self._groups.clear()
        now = self._clock()
        self._drop_strangers(now)
        owes = self._enforcer.unclaimed() or self._enforcer.records
        return self._enforcer.save(float("inf")) and not owes

    def _pace(self, now: float) -> float:
        """When what is due next comes, but after a pause in proportion to the work that was just done."""
        end = self._clock()
        due = min([self._find_due, *(subject.due for subject in self._subjects.values())]) - end
        return min(max(due, _PAUSE_PER_WORK * (end - now), _SHORTEST_SECONDS), _LONGEST_SECONDS)
