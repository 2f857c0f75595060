"""What the gate knows of pods: which limits cover a call, and what their processes have locked and pinned now.

It reads the same configuration, finds the same cgroups and counts by the same ledger as the rest of the agent. Two things it knows better.
The runtime told which container each listener is of, so that scope Container is exact before the kubelet has reported an id. And where two
processes show the same use because they have one address space, as after vfork(2), it counts it once.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cmp_to_key
from itertools import pairwise
from pathlib import Path

from pinwarden.api.nodepinconfig import NodeLimit, PodContainer
from pinwarden.api.pinlimit import Enforcement, Level, Scope
from pinwarden.node.gate.budgets import BudgetKey, LimitUsage
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.gate.pin_requests import STACK_GAP
from pinwarden.node.linux.cgroupfs import process_hierarchy
from pinwarden.node.linux.procfs import ProcessKey, use_of_threads
from pinwarden.node.linux.syscalls import compare_address_spaces
from pinwarden.node.pods.batches import batches
from pinwarden.node.pods.cgroups import explore
from pinwarden.node.pods.constraints import constraints_on
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.pods.policy import NodePolicy, SubjectPolicy
from pinwarden.node.pods.process import Process, ProcessTable, UsageState
from pinwarden.node.pods.subject import Subject


class PodLimits:
    """The pods that a configuration holds limits for, and those that calls come from. `clock` is monotonic, in seconds.

    `there` are the pods whose cgroups were there when configuration or containers changed last.
    """

    def __init__(
        self, cgroup_root: Path, proc_root: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ValueError when there is no cgroup hierarchy."""
        self._finder = PodFinder(process_hierarchy(cgroup_root))
        self._proc_root = proc_root
        self._table = ProcessTable(proc_root)
        self._clock = clock
        self._policy: NodePolicy | None = None
        self._gated_containers: tuple[GatedContainer, ...] = ()
        self._gated: frozenset[str] = frozenset()
        self._subjects: dict[str, Subject] = {}
        self._groups: dict[str, list[Subject]] = {}
        self._folders: dict[str, tuple[Path, ...]] = {}
        self.existing_pods: frozenset[str] = frozenset()

    def configure(self, policy: NodePolicy | None) -> None:
        """Takes a configuration, or None where there is none yet. Raises OSError."""
        self._policy = policy
        self._refresh()

    def set_containers(self, containers: Iterable[GatedContainer]) -> None:
        """The containers that calls can come from. Raises OSError."""
        self._gated_containers = tuple(containers)
        self._gated = frozenset(identity.id for identity in self._gated_containers)
        self._refresh(everywhere=True)

    def is_listed(self, pod: str) -> bool:
        """Whether the configuration names the pod, as one with limits or a free one."""
        return self._policy is not None and pod in self._policy.listed

    def budget_keys(self) -> dict[ContainerRef, tuple[BudgetKey, ...]]:
        """The limits that hold for the calls of each place, those that are only audited left out."""
        return {
            ref: tuple(key for limit in self._enforced(ref.pod) if (key := _key(limit, ref)) is not None)
            for ref in {identity.ref for identity in self._gated_containers}
        }

    def fingerprints(self) -> dict[str, str]:
        """By what each pod that calls can come from is held, as `SubjectPolicy.fingerprint`; a free one is not in it."""
        pods = {identity.ref.pod for identity in self._gated_containers}
        return {pod: held.fingerprint for pod in pods if (held := self._held(pod)) is not None}

    def limit(self, key: BudgetKey) -> NodeLimit | None:
        """The limit behind a key."""
        return next((limit for limit in self._enforced(key.pod) if limit.name == key.limit), None)

    def deny_limit(self, ref: ContainerRef) -> BudgetKey | None:
        """A limit on calls of this place that asks for Deny; None where none does."""
        for limit in self._enforced(ref.pod):
            key = _key(limit, ref)
            if key is not None and limit.minimum_level is Level.DENY:
                return key
        return None

    def rlimit_grant(self, pod: str) -> int:
        """Bytes up to which the agent raises the rlimits of the pod's processes: the largest grant, held to every limit; 0 without one."""
        limits = self._enforced(pod)
        grant = max((limit.grant for limit in limits if limit.grant is not None), default=0)
        return min([grant, *(limit.limit for limit in limits)])

    def queue_key(self, pod: str) -> str:
        """Names the pods whose calls are decided in one order: those that share a limit of scope Node."""
        return self._groups[pod][0].uid if pod in self._groups else pod

    def has_deep_stack(self, pod: str) -> bool:
        """Whether a process of the pod had a stack, at the last look, that reaches below where stacks are looked for."""
        subject = self._subjects.get(pod)
        return subject is not None and any(self._table[key].status.stack > STACK_GAP for key in subject.keys)

    def contains(self, pod: str, pid: int) -> bool:
        """Whether a process was in the pod's cgroup at the last look."""
        subject = self._subjects.get(pod)
        return subject is not None and any(key.pid == pid for key in subject.keys)

    def cgroup_paths(self, pod: str) -> tuple[Path, ...]:
        """All cgroup folders of a pod, also of one that no limit holds for. Raises OSError, also when none is found."""
        paths = self._folders.get(pod) or self._finder.find(self._clock()).get(pod, ())
        self._folders[pod] = paths
        found = tuple(path for path in explore(pod, paths).members if path.exists())
        if not found:
            self._folders.pop(pod)
            raise FileNotFoundError(f"no cgroup of pod {pod} is found")
        return found

    def sample(self, ref: ContainerRef) -> dict[BudgetKey, LimitUsage]:
        """What every limit that covers this place, or one that shares a limit with it, has and uses.

        Raises OSError, also when the pod has no processes in any cgroup that is known: the one that called must be there.
        """
        subjects = self._groups.get(ref.pod, [])
        now = self._clock()
        for subject in subjects:
            if not subject.paths:
                subject.move(self._finder.find(now).get(subject.uid, ()))
            if subject.sample(self._table, now):
                self._drop_strangers()
            if subject.uid == ref.pod and not subject.keys:
                raise FileNotFoundError(f"no cgroup of pod {ref.pod} is found that has processes")
        return self.totals(ref)

    def totals(self, ref: ContainerRef, *, distinct: bool = False) -> dict[BudgetKey, LimitUsage]:
        """The same as of the last look; with `distinct` an address space that processes share counts once, which takes longer to tell."""
        subjects = self._groups.get(ref.pod, [])
        gated = frozenset[ProcessKey]().union(*(self._gated_keys(subject) for subject in subjects))
        seen: dict[BudgetKey, LimitUsage] = {}
        for one in constraints_on(subjects):
            if one.limit.enforcement is Enforcement.ENFORCE:
                key = BudgetKey(one.limit.name, one.pod, one.container)
                seen[key] = LimitUsage(
                    one.limit.limit, self._use(one.members, distinct=distinct), one.members <= gated
                )
        for subject in subjects:
            for limit in self._enforced(subject.uid):
                missing = _key(limit, ContainerRef(subject.uid, ref.container))
                if missing is not None and missing not in seen:
                    seen[missing] = LimitUsage(
                        limit.limit, self._use(subject.keys, distinct=distinct), all_gated=False
                    )
        return seen

    def _gated_keys(self, subject: Subject) -> frozenset[ProcessKey]:
        """The processes in containers that have a listener, and the sandbox."""
        sandboxes = {each.sandbox for each in self._gated_containers if each.ref.pod == subject.uid}
        return frozenset[ProcessKey]().union(
            *(
                keys
                for identity, keys in subject.by_container.items()
                if identity in self._gated or identity in sandboxes
            )
        )

    def _drop_strangers(self) -> None:
        kept = {key for subject in self._subjects.values() for key in subject.keys}
        for process in self._table:
            if process.key not in kept:
                self._table.drop(process)

    def _use(self, members: Iterable[ProcessKey], *, distinct: bool) -> int:
        uses = [(key.pid, use) for key in members if (use := self._use_of(self._table[key]))]
        if not distinct:
            return sum(use for _, use in uses)
        uses.sort(key=cmp_to_key(_by_address_space))
        return sum(use for _, use in uses) - sum(
            use for before, (pid, use) in pairwise(uses) if not compare_address_spaces(before[0], pid)
        )

    def _use_of(self, process: Process) -> int:
        if process.usage_state is UsageState.UNKNOWN:
            return use_of_threads(self._proc_root, process.key.pid)
        return process.use

    def _enforced(self, pod: str | None) -> tuple[NodeLimit, ...]:
        """The limits that refuse in this pod; with None all that do."""
        if self._policy is None or self._policy.release:
            return ()
        held = self._policy.of_pod(pod) if pod is not None else None
        limits = self._policy.limits if pod is None else held.limits if held else ()
        return tuple(limit for limit in limits if limit.enforcement is Enforcement.ENFORCE)

    def _held(self, pod: str) -> SubjectPolicy | None:
        return self._policy.of_pod(pod) if self._policy else None

    def _refresh(self, *, everywhere: bool = False) -> None:
        found = self._finder.find(self._clock(), everywhere=everywhere)
        self.existing_pods = frozenset(found)
        self._folders.clear()
        before, self._subjects = self._subjects, {}
        listed = self._policy.listed if self._policy else ()
        for pod in {each.ref.pod for each in self._gated_containers}.union(found, listed):
            held = self._held(pod)
            if held is None:
                continue
            paths = found.get(pod, ())
            subject = before.get(pod) or Subject(pod, paths, held)
            if paths and subject.paths != paths:
                subject.move(paths)
            subject.policy = replace(held, containers=self._known_containers(pod, held))
            self._subjects[pod] = subject
        self._groups = {
            subject.uid: subjects for subjects in batches(self._subjects.values()) for subject in subjects
        }
        self._drop_strangers()

    def _known_containers(self, pod: str, held: SubjectPolicy) -> tuple[PodContainer, ...]:
        """All that are known, by name; what the runtime said goes before what the kubelet reported, which may be of an earlier start."""
        known = {each.name: each.id for each in held.containers}
        known |= {each.ref.container: each.id for each in self._gated_containers if each.ref.pod == pod}
        return tuple(PodContainer(name=name, id=identity) for name, identity in known.items())


def _by_address_space(one: tuple[int, int], other: tuple[int, int]) -> int:
    return compare_address_spaces(one[0], other[0])


def _key(limit: NodeLimit, ref: ContainerRef) -> BudgetKey | None:
    """The account of a limit for calls of this place; None when the limit does not hold there."""
    if limit.scope is Scope.NODE:
        return BudgetKey(limit.name)
    if limit.scope is Scope.POD:
        return BudgetKey(limit.name, ref.pod)
    if limit.containers and ref.container not in limit.containers:
        return None
    return BudgetKey(limit.name, ref.pod, ref.container)
