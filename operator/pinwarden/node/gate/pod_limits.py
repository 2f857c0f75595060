"""The limits of a call, and the locked and pinned bytes of its pod now.

The gate reads the same configuration, finds the same cgroups and counts in the same way as the
agent. It is more exact in two cases. The container runtime names the container of each listener, so
scope Container is exact before the kubelet reports an id. If two processes share one address space,
as after `vfork(2)`, the gate counts their use once.
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
    """The pods with limits, and the pods with listeners. `clock` is monotonic, in seconds.

    `existing_pods` are the pods with cgroups at the last change of configuration or containers.
    """

    def __init__(
        self, cgroup_root: Path, proc_root: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ValueError if there is no cgroup hierarchy."""
        self._finder = PodFinder(process_hierarchy(cgroup_root))
        self._proc_root = proc_root
        self._table = ProcessTable(proc_root)
        self._clock = clock
        self._policy: NodePolicy | None = None
        self._gated_containers: tuple[GatedContainer, ...] = ()
        self._gated: frozenset[str] = frozenset()
        self._subjects: dict[str, Subject] = {}
        self._groups: dict[str, list[Subject]] = {}
        self._cgroup_paths: dict[str, tuple[Path, ...]] = {}
        self.existing_pods: frozenset[str] = frozenset()

    def configure(self, policy: NodePolicy | None) -> None:
        """Apply a configuration, None before the first. Raises OSError."""
        self._policy = policy
        self._refresh()

    def set_containers(self, containers: Iterable[GatedContainer]) -> None:
        """Set the containers with listeners. Raises OSError."""
        self._gated_containers = tuple(containers)
        self._gated = frozenset(container.id for container in self._gated_containers)
        self._refresh(everywhere=True)

    def is_listed(self, pod: str) -> bool:
        """Return whether the configuration lists the pod, with or without limits."""
        return self._policy is not None and pod in self._policy.listed

    def budget_keys(self) -> dict[ContainerRef, tuple[BudgetKey, ...]]:
        """Return the enforced limits of each container."""
        return {
            ref: tuple(
                key for limit in self._enforced(ref.pod) if (key := _key(limit, ref)) is not None
            )
            for ref in {container.ref for container in self._gated_containers}
        }

    def fingerprints(self) -> dict[str, str]:
        """Return the policy's fingerprint of each gated pod with limits; none in mode Release."""
        if self._policy is None or self._policy.release:
            return {}
        pods = {container.ref.pod for container in self._gated_containers}
        return {
            pod: policy.fingerprint for pod in pods if (policy := self._policy_of(pod)) is not None
        }

    def limit(self, key: BudgetKey) -> NodeLimit | None:
        """Return the limit of a key."""
        return next((limit for limit in self._enforced(key.pod) if limit.name == key.limit), None)

    def deny_limit(self, ref: ContainerRef) -> BudgetKey | None:
        """Return a limit of the container with minimumLevel Deny, or None."""
        for limit in self._enforced(ref.pod):
            key = _key(limit, ref)
            if key is not None and limit.minimum_level is Level.DENY:
                return key
        return None

    def rlimit_grant(self, pod: str) -> int:
        """Return the bytes to which the agent raises the rlimits of the pod's processes.

        The amount is the largest grant, but at most the lowest limit; 0 without a grant.
        """
        limits = self._enforced(pod)
        grant = max((limit.grant for limit in limits if limit.grant is not None), default=0)
        return min([grant, *(limit.limit for limit in limits)])

    def queue_key(self, pod: str) -> str:
        """Return the same key for pods with a common limit of scope Node.

        Their notifications are decided in one order.
        """
        return self._groups[pod][0].uid if pod in self._groups else pod

    def has_deep_stack(self, pod: str) -> bool:
        """Return whether a stack of the pod reached below the stack region at the last sample."""
        subject = self._subjects.get(pod)
        return subject is not None and any(
            self._table[key].status.stack > STACK_GAP for key in subject.keys
        )

    def contains(self, pod: str, pid: int) -> bool:
        """Return whether a process was in the pod's cgroup at the last sample."""
        subject = self._subjects.get(pod)
        return subject is not None and any(key.pid == pid for key in subject.keys)

    def cgroup_paths(self, pod: str) -> tuple[Path, ...]:
        """Return the cgroup folders of any pod. Raises OSError, also if there are none."""
        paths = self._cgroup_paths.get(pod) or self._finder.find(self._clock()).get(pod, ())
        self._cgroup_paths[pod] = paths
        members = tuple(path for path in explore(pod, paths).members if path.exists())
        if not members:
            self._cgroup_paths.pop(pod)
            raise FileNotFoundError(f"no cgroup of pod {pod} is found")
        return members

    def sample(self, ref: ContainerRef) -> dict[BudgetKey, LimitUsage]:
        """Sample the usage of all limits in the container's pod and in pods with a common limit.

        Raises OSError, also if the pod has no process in a known cgroup. The caller must be there.
        """
        subjects = self._groups.get(ref.pod, [])
        now = self._clock()
        for subject in subjects:
            if not subject.paths:
                subject.move(self._finder.find(now).get(subject.uid, ()))
            if subject.sample(self._table, now):
                self._drop_unlisted()
            if subject.uid == ref.pod and not subject.keys:
                raise FileNotFoundError(f"no cgroup of pod {ref.pod} with processes is found")
        return self.totals(ref)

    def totals(self, ref: ContainerRef, *, distinct: bool = False) -> dict[BudgetKey, LimitUsage]:
        """Return the usage at the last sample.

        With `distinct`, a shared address space counts once. This is slower.
        """
        subjects = self._groups.get(ref.pod, [])
        gated = frozenset[ProcessKey]().union(*(self._gated_keys(subject) for subject in subjects))
        seen: dict[BudgetKey, LimitUsage] = {}
        for constraint in constraints_on(subjects):
            if constraint.limit.enforcement is Enforcement.ENFORCE:
                key = BudgetKey(constraint.limit.name, constraint.pod, constraint.container)
                seen[key] = LimitUsage(
                    constraint.limit.limit,
                    self._use(constraint.members, distinct=distinct),
                    constraint.members <= gated,
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
        """Return the processes in the sandbox and in containers with a listener."""
        sandboxes = {
            container.sandbox
            for container in self._gated_containers
            if container.ref.pod == subject.uid
        }
        return frozenset[ProcessKey]().union(
            *(
                keys
                for identity, keys in subject.by_container.items()
                if identity in self._gated or identity in sandboxes
            )
        )

    def _drop_unlisted(self) -> None:
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
            use
            for before, (pid, use) in pairwise(uses)
            if not compare_address_spaces(before[0], pid)
        )

    def _use_of(self, process: Process) -> int:
        if process.usage_state is UsageState.UNKNOWN:
            return use_of_threads(self._proc_root, process.key.pid)
        return process.use

    def _enforced(self, pod: str | None) -> tuple[NodeLimit, ...]:
        """Return the enforced limits of a pod, or of all pods with None."""
        if self._policy is None or self._policy.release:
            return ()
        policy = self._policy.of_pod(pod) if pod is not None else None
        limits = self._policy.limits if pod is None else policy.limits if policy else ()
        return tuple(limit for limit in limits if limit.enforcement is Enforcement.ENFORCE)

    def _policy_of(self, pod: str) -> SubjectPolicy | None:
        return self._policy.of_pod(pod) if self._policy else None

    def _refresh(self, *, everywhere: bool = False) -> None:
        paths_by_pod = self._finder.find(self._clock(), everywhere=everywhere)
        self.existing_pods = frozenset(paths_by_pod)
        self._cgroup_paths.clear()
        before, self._subjects = self._subjects, {}
        listed = self._policy.listed if self._policy else ()
        for pod in {container.ref.pod for container in self._gated_containers}.union(
            paths_by_pod, listed
        ):
            policy = self._policy_of(pod)
            if policy is None:
                continue
            paths = paths_by_pod.get(pod, ())
            subject = before.get(pod) or Subject(pod, paths, policy)
            if paths and subject.paths != paths:
                subject.move(paths)
            subject.policy = replace(policy, containers=self._known_containers(pod, policy))
            self._subjects[pod] = subject
        self._groups = {
            subject.uid: subjects
            for subjects in batches(self._subjects.values())
            for subject in subjects
        }
        self._drop_unlisted()

    def _known_containers(self, pod: str, policy: SubjectPolicy) -> tuple[PodContainer, ...]:
        """Return the known containers of a pod by name.

        The runtime's id precedes the kubelet's, which may be of an earlier start.
        """
        known = {container.name: container.id for container in policy.containers}
        known |= {
            container.ref.container: container.id
            for container in self._gated_containers
            if container.ref.pod == pod
        }
        return tuple(PodContainer(name=name, id=identity) for name, identity in known.items())


def _by_address_space(first: tuple[int, int], other: tuple[int, int]) -> int:
    return compare_address_spaces(first[0], other[0])


def _key(limit: NodeLimit, ref: ContainerRef) -> BudgetKey | None:
    """Return the budget key of a limit for a container, or None if the limit does not apply."""
    if limit.scope is Scope.NODE:
        return BudgetKey(limit.name)
    if limit.scope is Scope.POD:
        return BudgetKey(limit.name, ref.pod)
    if limit.containers and ref.container not in limit.containers:
        return None
    return BudgetKey(limit.name, ref.pod, ref.container)
