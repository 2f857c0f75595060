"""Brings the node to its configuration: lists subjects, samples them and sets their rlimits.

The reconciler has no thread and never waits. The caller sets a configuration, and calls `tick` at
the time returned by the last tick. A tick lists the pods and directories, samples the due subjects,
saves the original limits of new processes, allocates, and restores. Pods without a limit are listed
and not read. Sampling takes at most about a quarter of a core. Subjects with a common limit of
scope Node, or a common process, are allocated together as a batch.

A failure of a subject, a batch or a pattern affects nothing else (`guard`). The subject is reported
as not readable, its limits are not acknowledged, and the work is tried again.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from pinwarden.api.nodepinconfig import (
    NodePinConfigSpec,
    NodePinConfigStatus,
    UnsupportedLimit,
)
from pinwarden.common.guard import Guard
from pinwarden.node.agent.accountant_reader import AccountantReader
from pinwarden.node.agent.enforcer import RlimitEnforcer
from pinwarden.node.agent.gate_reader import GateReader
from pinwarden.node.agent.lowered_reader import LoweredReader
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.overshoots import Overshoots
from pinwarden.node.agent.releaser import Releaser
from pinwarden.node.agent.status import StatusBuilder
from pinwarden.node.agent.subject_finder import SubjectFinder
from pinwarden.node.linux.cgroupfs import detect_layout, process_hierarchy
from pinwarden.node.linux.prlimit import GateAbility, Prlimit, prlimit_memlock
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.batches import batches
from pinwarden.node.pods.constraints import (
    Constraint,
    constraints_on,
    covered_by,
    running_containers,
)
from pinwarden.node.pods.policy import UNKNOWN_PODS, NodePolicy, SubjectPolicy, reported_name
from pinwarden.node.pods.process import ProcessTable
from pinwarden.node.pods.subject import IDLE_SECONDS, Subject, keys_of

_SHORTEST_SECONDS = 0.01
_LONGEST_SECONDS = 1.0
_PAUSE_PER_WORK = 3
KINDS = ("subject", "group", "pattern", "release", "record", "report")
"""Kinds of items guarded by the reconciler."""
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
Batch = tuple[list[Subject], list[Constraint]]
"""The subjects of one allocation, and the constraints on them."""


class Reconciler:
    """`clock` is monotonic, in seconds; `page_size` in bytes. `gate`, `nri` and `accountant` are
    the paths of their state files. `guard` knows the `KINDS`.
    """

    def __init__(
        self,
        *,
        cgroup_root: Path,
        proc_root: Path,
        store: RlimitRecordStore,
        ability: GateAbility,
        gate: Path | None = None,
        nri: Path | None = None,
        accountant: Path | None = None,
        page_size: int = os.sysconf("SC_PAGE_SIZE"),
        clock: Callable[[], float] = time.monotonic,
        prlimit: Prlimit = prlimit_memlock,
        guard: Guard | None = None,
    ) -> None:
        """Raises ValueError without a cgroup hierarchy, OSError if the store is unreadable."""
        self._guard = guard or Guard(KINDS, clock)
        self._root = process_hierarchy(cgroup_root)
        self._table = ProcessTable(proc_root)
        lowered = LoweredReader(nri)
        self._finder = SubjectFinder(self._root, lowered, self._guard)
        self._enforcer = RlimitEnforcer(self._table, store, prlimit, page_size, lowered)
        self._releaser = Releaser(self._table, self._enforcer)
        self._gate = GateReader(gate)
        self._accountant = AccountantReader(accountant)
        self._status = StatusBuilder(
            ability, detect_layout(cgroup_root).value, self._gate, self._accountant, self._guard
        )
        self._overshoots = Overshoots()
        self._ability = ability
        self._clock = clock
        self._policy: NodePolicy | None = None
        self._acknowledged: NodePolicy | None = None
        self._subjects: dict[str, Subject] = {}
        self._batches: list[list[Subject]] = []
        self._list_due = float("-inf")
        self._sampled: datetime | None = None

    def configure(
        self,
        spec: NodePinConfigSpec,
        unsupported: Sequence[UnsupportedLimit],
        generation: int | None,
        gone: frozenset[str] = frozenset(),
    ) -> None:
        """Accept a configuration, which the next ticks apply and then acknowledge.

        `gone` are the pods in the configuration that the operator no longer lists.
        """
        self._policy = NodePolicy(spec, unsupported, generation, gone)
        self._overshoots.keep({limit.uid for limit in self._policy.limits} | {UNKNOWN_PODS})
        self._list_due = float("-inf")

    def tick(self) -> float:
        """Do what is due, and return the seconds until the next tick.

        Before the first configuration nothing is changed (H3).
        """
        policy, now = self._policy, self._clock()
        if policy is None:
            return _LONGEST_SECONDS
        self._guarded("record", "gate", self._gate.poll)
        if policy.release:
            if (self._acknowledged is not policy or self._releaser) and self._release_all():
                self._acknowledged = policy
            self._sampled = datetime.now(UTC)
            return _LONGEST_SECONDS
        self._guarded("record", "accountant", self._accountant.poll)
        acknowledged, listed, sample_all = self._acknowledged, False, False
        if now >= self._list_due:
            try:
                sample_all = self._list(policy, now)
                acknowledged, listed = policy, True
            except OSError as error:
                _log.error("cannot list pods, known pods keep their limits: %s", error)
                self._list_due = now + _LONGEST_SECONDS
        moved = self._sample(now, everything=sample_all)
        if listed or moved:
            self._guarded("release", "", partial(self._drop_unowned, now))
        self._acknowledged = acknowledged
        self._sampled = datetime.now(UTC)
        return self._pace(now)

    def report(self) -> NodePinConfigStatus:
        """Return the status after the last tick: a pod without limits is not in the report."""
        subjects = [
            subject for _, subject in sorted(self._subjects.items()) if subject.policy.names
        ]
        parts = self._table, self._enforcer, self._overshoots, self._sampled
        return self._status.build(self._acknowledged, subjects, *parts)

    @property
    def limit_names(self) -> dict[str, tuple[str, ...]]:
        """The names of each subject's limits in the configuration, by reported name."""
        return {reported_name(uid): subject.policy.names for uid, subject in self._subjects.items()}

    @property
    def failures(self) -> dict[tuple[str, str], int]:
        """How often the work on an item failed, by process and kind, on the whole node."""
        by_process = {
            "agent": self._guard.failures,
            "gate": self._gate.failures,
            "accountant": self._accountant.failures,
        }
        return {
            (process, kind): count
            for process, counts in by_process.items()
            for kind, count in counts.items()
        }

    def release(self) -> None:
        """Restore every process, including the processes of an earlier agent.

        Raises PermissionError if a process could not be restored.
        """
        if not self._release_all():
            raise PermissionError("the original limits of some processes could not be restored")

    def close(self) -> None:
        """Close all descriptors. Limits stay in force (H3)."""
        self._table.close()
        self._subjects.clear()
        self._batches.clear()

    def _list(self, policy: NodePolicy, now: float) -> bool:
        """List the subjects of the policy. Raises OSError.

        Return whether all subjects must be sampled: the policy is new, or a subject is gone.
        """
        listed = self._finder.find(policy, now)
        self._list_due = now + IDLE_SECONDS
        gone = self._subjects.keys() - listed.keys()
        for uid in gone:
            self._releaser.begin(self._subjects.pop(uid))
            self._overshoots.end(uid)
        sample_all = policy is not self._acknowledged or bool(gone)
        changed = sample_all
        for uid, (paths, subject_policy) in listed.items():
            subject = self._subjects.get(uid)
            if subject is None:
                subject = self._subjects[uid] = Subject(uid, paths, subject_policy)
                self._releaser.cancel(uid)
            elif subject.paths != paths:
                subject.move(paths)
            elif subject.policy == subject_policy:
                continue
            subject.policy = subject_policy
            subject.heat(now)
            changed = True
        if changed:
            self._batches = batches(self._subjects.values())
        return sample_all

    def _guarded(self, kind: str, name: str, work: Callable[[], _Result]) -> _Result | None:
        """Return the result of `work` on an item, None after a failure and during its backoff."""
        if self._guard.due(kind, name):
            with self._guard.item(kind, name):
                return work()
        return None

    def _sample(self, now: float, *, everything: bool) -> bool:
        """Sample and enforce due subjects, all if a process moved, and return whether one did."""
        self._observe_gate(set(), now)  # a pod whose coverage changed is sampled at once
        due = {subject for subject in self._subjects.values() if everything or subject.wants(now)}
        left = [key for subject in due for key in self._sample_subject(subject, now)]
        moved = any(self._table.lives(key) for key in left)
        if moved:  # perhaps to another subject
            others = set(self._subjects.values()) - due
            for subject in others:
                self._sample_subject(subject, now)
            due |= others
        due |= self._observe_gate(due, now)
        self._enforce(due, now)
        return moved

    def _observe_gate(self, sampled: set[Subject], now: float) -> set[Subject]:
        """Update the coverage of subjects, and return those whose exact enforcement changed."""
        observe = partial(self._gate.observe, self._subjects.values(), sampled)
        changed = self._guarded("record", "coverage", observe) or ()
        for subject in changed:
            subject.heat(now)
        return set(changed)

    def _sample_subject(self, subject: Subject, now: float) -> set[ProcessKey]:
        """Sample a subject, and return the processes that left."""
        with self._guard.item("subject", subject.uid):
            left = subject.sample(self._table, now)
            subject.failure = ""
            return left
        subject.failure = self._guard.cause("subject", subject.uid)
        subject.due = now + _LONGEST_SECONDS
        return set()

    def _enforce(self, due: set[Subject], now: float) -> None:
        """Enforce and evaluate the constraints of each batch with a sampled subject."""
        sampled: list[Batch] = [
            (subjects, constraints)
            for subjects in self._batches
            if not due.isdisjoint(subjects)
            for constraints in self._of_batch(
                "scope", subjects, now, partial(constraints_on, subjects)
            )
        ]
        if self._ability.available:
            self._allocate(sampled, now)
        for subjects, constraints in sampled:
            self._of_batch(
                "evaluate", subjects, now, partial(self._evaluate, subjects, constraints, now)
            )

    def _of_batch(
        self, step: str, subjects: Sequence[Subject], now: float, work: Callable[[], _Result]
    ) -> list[_Result]:
        """Return the result of `work` in a list, empty after a failure of each subject."""
        name = f"{step} {subjects[0].uid}"
        with self._guard.item("group", name):
            return [work()]
        for subject in subjects:
            subject.failure = self._guard.cause("group", name)
            subject.due = now + _LONGEST_SECONDS
        return []

    def _allocate(self, sampled: Iterable[Batch], now: float) -> None:
        """Save the original limits of new processes, then set the limits of all."""
        enforced = [
            (subjects, [constraint for constraint in constraints if constraint.enforced])
            for subjects, constraints in sampled
        ]
        for subjects, constraints in enforced:
            self._of_batch("adopt", subjects, now, partial(self._adopt, subjects, constraints, now))
        self._enforcer.save(now)
        for subjects, constraints in enforced:
            work = partial(self._enforcer.enforce, subjects, constraints)
            for settled in self._of_batch("allocate", subjects, now, work):
                for subject in () if settled else subjects:
                    subject.heat(now)

    def _adopt(
        self, subjects: Iterable[Subject], constraints: Iterable[Constraint], now: float
    ) -> None:
        """Find the original limits of new processes, and accept limits set by programs."""
        covered = covered_by(constraints)
        for subject in subjects:
            self._enforcer.adopt(subject, subject.keys & covered)
            if not subject.policy.enforced and not subject.hot(now):
                self._enforcer.clear_history(subject)
            if self._enforcer.adopt_external_changes(subject.keys):
                subject.heat(now)

    def _evaluate(
        self, subjects: Iterable[Subject], constraints: Iterable[Constraint], now: float
    ) -> None:
        """Compare use with limits, including audited ones, and record peaks."""
        time = datetime.now(UTC)
        for constraint in constraints:
            limit = constraint.limit
            excess = self._use(constraint.members) - limit.limit
            self._overshoots.sample(
                limit.uid, constraint.pod, constraint.container, excess, now, time
            )
        for subject in subjects:
            peaks = subject.peaks.containers
            for name, keys in running_containers(subject.policy.by_container, subject).items():
                peaks[name] = max(peaks.get(name, 0), self._use(keys))

    def _use(self, keys: Iterable[ProcessKey]) -> int:
        return sum(self._table[key].use for key in keys)

    def _drop_unowned(self, now: float) -> None:
        """Restore and drop the processes outside all subjects, also of an earlier agent."""
        able = self._ability.available
        if able:
            self._restore_released(now)
        kept = self._releaser.keys | keys_of(self._subjects.values())
        for process in self._table:
            if process.key not in kept and (not able or self._enforcer.restore(process)):
                self._table.drop(process)
                self._enforcer.forget(process.key)
        self._enforcer.keep_histories(self._subjects.keys() | self._releaser.uids)

    def _restore_released(self, now: float) -> None:
        """Continue the releases. A process in an unreadable subject keeps its limits."""
        readable = not any(subject.failure for subject in self._subjects.values())
        if readable:
            try:
                self._releaser.begin_unclaimed(self._root, self._subjects)
            except OSError as error:
                _log.error(
                    "cannot find the pods of processes limited by a previous agent: %s", error
                )
        self._releaser.sweep(now)
        if readable:
            self._enforcer.restore_unclaimed(self._subjects.values())

    def _release_all(self) -> bool:
        """Return whether every process was restored. Then the store is empty."""
        if not self._ability.available:
            return not self._enforcer.unclaimed()
        now = self._clock()
        if self._policy is None or self._acknowledged is not self._policy:
            try:
                lowered = self._finder.find_lowered(now)
            except OSError as error:
                _log.error("cannot list pods, so the node is not released yet: %s", error)
                return False
            for uid in lowered.keys() - self._subjects.keys() - self._releaser.uids:
                self._subjects[uid] = Subject(uid, lowered[uid], SubjectPolicy(()))
        for subject in self._subjects.values():
            self._releaser.begin(subject)
        self._subjects.clear()
        self._batches.clear()
        self._drop_unowned(now)
        saved = self._enforcer.save(now, at_once=True)
        return saved and not (self._enforcer.unclaimed() or self._enforcer.records)

    def _pace(self, now: float) -> float:
        """Return the seconds until the next tick: when work is due, after a pause."""
        end = self._clock()
        due = min([self._list_due, *(subject.due for subject in self._subjects.values())]) - end
        return min(max(due, _PAUSE_PER_WORK * (end - now), _SHORTEST_SECONDS), _LONGEST_SECONDS)
