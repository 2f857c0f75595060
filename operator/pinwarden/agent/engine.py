"""The engine: finds the governed pods, samples them, deals to their processes and says what it found.

It has no thread and never waits: the caller gives it a configuration and ticks, each as soon as the last one asked for. A tick does what is
due, in this order: find pods, sample those that are due, save what their new processes had, deal, give back. Pods that no limit holds for
are listed and not read. Looking takes at most about a quarter of a core's time, also when many busy pods want to be looked at at once.

Subjects that share a limit of scope Node, or a process, are dealt together as one group.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pinwarden.agent.accounted import AccountantRecord
from pinwarden.agent.cgroups import detect_layout, process_hierarchy
from pinwarden.agent.dealing import Dealer
from pinwarden.agent.discovery import PodFinder, match_directories
from pinwarden.agent.followed import ProcessTable
from pinwarden.agent.gated import GateRecord
from pinwarden.agent.gates.rlimit import GateAbility, Prlimit, prlimit_memlock
from pinwarden.agent.governed import IDLE_SECONDS, DealtPairs, Governed
from pinwarden.agent.groups import group
from pinwarden.agent.ledger import ProcessKey
from pinwarden.agent.overshoots import Overshoots
from pinwarden.agent.parting import Partings
from pinwarden.agent.report import Reporter
from pinwarden.agent.saved import SavedStore
from pinwarden.agent.scopes import Scoped, running_containers, scoped
from pinwarden.agent.subjects import UNKNOWN_PODS, Held, Plan
from pinwarden.api.nodepinconfig import NodePinConfigSpec, NodePinConfigStatus, UnsupportedLimit
from pinwarden.api.pinlimit import Enforcement

_SHORTEST_SECONDS = 0.01
_LONGEST_SECONDS = 1.0
_PAUSE_PER_WORK = 3
_log = logging.getLogger(__name__)

Dealing = tuple[list[Governed], list[Scoped]]
"""A group and the constraints on it."""


class Engine:
    """Single-threaded: one caller owns it. `clock` is monotonic, in seconds; `page_size` in bytes; `gate` and `accountant` are records."""

    def __init__(
        self,
        *,
        cgroup_root: Path,
        proc_root: Path,
        store: SavedStore,
        ability: GateAbility,
        gate: Path | None = None,
        accountant: Path | None = None,
        page_size: int = os.sysconf("SC_PAGE_SIZE"),
        clock: Callable[[], float] = time.monotonic,
        prlimit: Prlimit = prlimit_memlock,
    ) -> None:
        """Raises ValueError when there is no cgroup hierarchy, OSError when the store cannot be read."""
        self._root = process_hierarchy(cgroup_root)
        self._finder = PodFinder(self._root)
        self._table = ProcessTable(proc_root)
        self._dealer = Dealer(self._table, store, prlimit, page_size)
        self._partings = Partings(self._table, self._dealer)
        self._gate = GateRecord(gate)
        self._accountant = AccountantRecord(accountant)
        self._reporter = Reporter(ability, detect_layout(cgroup_root).value, self._gate, self._accountant)
        self._overshoots = Overshoots()
        self._ability = ability
        self._clock = clock
        self._plan: Plan | None = None
        self._acknowledged: Plan | None = None
        self._subjects: dict[str, Governed] = {}
        self._groups: list[list[Governed]] = []
        self._find_due = float("-inf")
        self._sampled: datetime | None = None

    def configure(
        self,
        spec: NodePinConfigSpec,
        unsupported: Sequence[UnsupportedLimit],
        generation: int | None,
        gone: frozenset[str] = frozenset(),
    ) -> None:
        """Takes a configuration; the next tick acts, and acknowledges it when all of it is dealt. `gone` are pods without an object."""
        self._plan = Plan(spec, unsupported, generation, gone)
        self._overshoots.keep({limit.uid for limit in self._plan.limits} | {UNKNOWN_PODS})
        self._find_due = float("-inf")

    def tick(self) -> float:
        """Does what is due; seconds until the next tick is wanted. Before the first configuration nothing is touched (H3)."""
        plan, now = self._plan, self._clock()
        if plan is None:
            return _LONGEST_SECONDS
        if plan.release:
            if (self._acknowledged is not plan or self._partings) and self._give_all_back():
                self._acknowledged = plan
            self._sampled = datetime.now(UTC)
            return _LONGEST_SECONDS
        self._accountant.look()
        if self._gate.look():
            for subject in self._subjects.values():
                if self._gate.standing(subject).exact != subject.exact:
                    subject.heat(now)
        fresh, finding, thorough = self._acknowledged is not plan, now >= self._find_due, False
        if finding:
            try:
                thorough = self._find(plan, now, fresh=fresh)
            except OSError as error:
                _log.error("pods cannot be listed, known ones stay as they are: %s", error)
                self._find_due = now + _LONGEST_SECONDS
                finding, plan = False, self._acknowledged
        self._act(now, thorough=thorough, sweep=finding)
        self._acknowledged = plan
        self._sampled = datetime.now(UTC)
        return self._pace(now)

    def report(self) -> NodePinConfigStatus:
        """What was found at the last tick."""
        subjects = [subject for _, subject in sorted(self._subjects.items())]
        return self._reporter.report(
            self._acknowledged, subjects, self._table, self._overshoots, self._sampled
        )

    def release(self) -> None:
        """Gives every process back what it had, also those of an earlier agent. Raises PermissionError when the kernel refuses some."""
        if not self._give_all_back():
            raise PermissionError("some processes could not be given back what they had")

    def close(self) -> None:
        """Gives descriptors back. Limits stay in force (H3)."""
        self._table.close()
        self._subjects.clear()
        self._groups.clear()

    def _find(self, plan: Plan, now: float, *, fresh: bool) -> bool:
        """Brings the subjects up to date; whether all are to be looked at, because the plan is new or some are gone. Raises OSError."""
        found = self._wanted(plan, now)
        self._find_due = now + IDLE_SECONDS
        gone = self._subjects.keys() - found.keys()
        for uid in gone:
            self._partings.begin(self._subjects.pop(uid))
            self._overshoots.end(uid)
        changed = fresh or bool(gone)
        for uid, (paths, held) in found.items():
            subject = self._subjects.get(uid)
            if subject is None:
                subject = self._subjects[uid] = Governed(uid, paths, held)
                subject.deals = self._partings.end(uid) or subject.deals
            elif subject.paths != paths:
                subject.move(paths)
            elif subject.held == held:
                continue
            subject.held = held
            subject.heat(now)
            changed = True
        if changed:
            self._groups = group(self._subjects.values())
        return fresh or bool(gone)

    def _wanted(self, plan: Plan, now: float) -> dict[str, tuple[tuple[Path, ...], Held]]:
        found = {
            uid: (paths, held)
            for uid, paths in self._finder.find(now).items()
            if (held := plan.of_pod(uid)) is not None
        }
        patterns = plan.patterns
        for path, matching in match_directories(self._root, patterns).items():
            limits = tuple(limit for pattern in matching for limit in patterns[pattern].limits)
            found[path.relative_to(self._root).as_posix()] = ((path,), Held(limits))
        return found

    def _act(self, now: float, *, thorough: bool, sweep: bool) -> None:
        """Samples what is due, or with `thorough` everything, and deals; with `sweep` forgets what is in no subject any more."""
        due = {subject for subject in self._subjects.values() if thorough or subject.wants(now)}
        left = [key for subject in due for key in self._look(subject, now)]
        if any(self._table.lives(key) for key in left):  # moved away, perhaps to another subject
            for subject in self._subjects.values():
                if subject not in due:
                    self._look(subject, now)
            due, sweep = set(self._subjects.values()), True
        touched = [(subjects, scoped(subjects)) for subjects in self._groups if not due.isdisjoint(subjects)]
        if self._ability.available:
            self._deal(touched, now)
        self._evaluate(touched, now)
        if sweep:
            self._drop_strangers(now)

    def _look(self, subject: Governed, now: float) -> set[ProcessKey]:
        """The processes that are the subject's no longer."""
        try:
            left = subject.look(self._table, now)
        except OSError as error:
            if not subject.failure:
                _log.warning("%s cannot be read: %s", subject.uid, error)
            subject.failure = str(error)
            subject.due = now + _LONGEST_SECONDS
            return set()
        subject.failure = ""
        subject.exact = self._gate.standing(subject).exact
        return left

    def _deal(self, touched: Iterable[Dealing], now: float) -> None:
        enforced = [
            (subjects, [one for one in constraints if one.limit.enforcement is Enforcement.ENFORCE])
            for subjects, constraints in touched
        ]
        for subjects, constraints in enforced:
            covered = frozenset[ProcessKey]().union(*(one.members for one in constraints))
            for subject in subjects:
                self._dealer.adopt(subject, subject.keys & covered)
                if not subject.held.enforced and not subject.hot(now):
                    subject.deals = DealtPairs()
                if self._dealer.see(subject.keys):
                    subject.heat(now)
        self._dealer.save(now)
        for subjects, constraints in enforced:
            if not self._dealer.deal(subjects, constraints):
                for subject in subjects:
                    subject.heat(now)

    def _evaluate(self, touched: Iterable[Dealing], now: float) -> None:
        """Compares use with limits, those that are only audited too, and keeps peaks."""
        time = datetime.now(UTC)
        for subjects, constraints in touched:
            for one in constraints:
                excess = self._use(one.members) - one.amount
                self._overshoots.sample(one.limit.uid, one.pod, one.container, excess, now, time)
            for subject in subjects:
                peaks = subject.peaks.containers
                for name, keys in running_containers(subject.held.by_container, subject).items():
                    peaks[name] = max(peaks.get(name, 0), self._use(keys))

    def _use(self, keys: Iterable[ProcessKey]) -> int:
        return sum(self._table[key].use for key in keys)

    def _drop_strangers(self, now: float) -> None:
        """Gives back to, and forgets, the processes that are in no subject; also those that an earlier agent dealt to."""
        if self._ability.available and not any(subject.failure for subject in self._subjects.values()):
            self._part(now)
            self._dealer.give_back_left()
        kept = self._partings.keys.union(*(subject.keys for subject in self._subjects.values()))
        for process in self._table:
            if process.key in kept:
                continue
            if not self._ability.available or self._dealer.give_back(process):
                self._table.drop(process)

    def _part(self, now: float) -> None:
        try:
            self._partings.begin_left(self._root)
        except OSError as error:
            _log.error("what an earlier agent dealt to cannot be found by its pods: %s", error)
        self._partings.sweep(now)

    def _give_all_back(self) -> bool:
        """Whether everything could be given back; then the store is empty."""
        if not self._ability.available:
            return not self._dealer.left()
        for subject in self._subjects.values():
            self._partings.begin(subject)
        self._subjects.clear()
        self._groups.clear()
        now = self._clock()
        self._drop_strangers(now)
        owes = self._dealer.left() or any(process.saved for process in self._table)
        return self._dealer.save(float("inf")) and not owes

    def _pace(self, now: float) -> float:
        """When what is due next comes, but after a pause in proportion to the work that was just done."""
        end = self._clock()
        due = min([self._find_due, *(subject.due for subject in self._subjects.values())]) - end
        return min(max(due, _PAUSE_PER_WORK * (end - now), _SHORTEST_SECONDS), _LONGEST_SECONDS)
