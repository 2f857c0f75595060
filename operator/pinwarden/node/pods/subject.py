"""One governed subject: its directories, its processes, and the time of its next sample.

An idle subject is due every `IDLE_SECONDS`, and is sampled if one of its processes ran since: a
sleeping process cannot pin. The kernel can change the use of a subject from outside, and a sleeping
process can be moved into a subject. Both are sampled within `QUIET_SECONDS`.

A subject is hot after a change of its use, its processes or its policy. A hot subject is sampled
every `HOT_INTERVAL_SECONDS` for `HOT_SECONDS`, so that free room is allocated again soon.

The directory tree is walked again after a change. Each sample compares the link count of every
known directory, which in cgroupfs is 2 plus the number of subdirectories. If all known directories
exist with the expected counts, there are no other directories.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pinwarden.node.linux.cgroupfs import cpu_time, member_pids
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.cgroups import explore
from pinwarden.node.pods.policy import SubjectPolicy
from pinwarden.node.pods.process import Process, ProcessTable, UsageState

IDLE_SECONDS = 0.5
QUIET_SECONDS = 1.5
HOT_SECONDS = 3.0
ENDED_SECONDS = 10.0
"""A subject counts as ended for this long after its last process.

By then the kubelet has reported the end.
"""
HOT_INTERVAL_SECONDS = 0.01
MOST_THREADS = 256
"""The most threads read by one sample of a subject, in about 10 ms. The next sample continues."""
STRAY = ""
"""The container id of a pod's processes outside all container directories."""


@dataclass(frozen=True, slots=True)
class GateCoverage:
    """How far the seccomp gate enforces the limits of one pod.

    `gated`: a container has a listener. `lost`: a listener is lost. `exact`: the gate enforces the
    sum over the pod. `behind`: the gate enforces other limits than the agent has. `why` is the
    reason against exact enforcement.
    """

    gated: bool = False
    exact: bool = False
    lost: bool = False
    behind: bool = False
    why: str = ""


NO_COVERAGE = GateCoverage()


@dataclass
class Peaks:
    """The largest sampled amounts, in bytes: lower bounds (H2)."""

    pod: int = 0
    containers: dict[str, int] = field(default_factory=dict)


class Subject:
    """One subject.

    `keys` are its processes with an address space, and `by_container` the processes of each
    container, by id or `STRAY`. `failure` is why the subject cannot be read, or empty. `ended`: the
    last process ended less than `ENDED_SECONDS` ago.
    """

    def __init__(self, uid: str, paths: tuple[Path, ...], policy: SubjectPolicy) -> None:
        self.uid = uid
        self.paths = paths
        self.policy = policy
        self.due = float("-inf")
        self.keys: frozenset[ProcessKey] = frozenset()
        self.by_container: Mapping[str, frozenset[ProcessKey]] = {}
        self.truncated = False
        self.coverage = NO_COVERAGE
        self.failure = ""
        self.ended = False
        self.peaks = Peaks()
        self.locked = 0
        self.pinned = 0
        self._hot_until = self._sampled = self._populated = float("-inf")
        self._cpu_times: list[bytes | None] = []
        self._directories: dict[str, tuple[str | None, int]] | None = None

    def heat(self, now: float) -> None:
        """Sample often for a while, beginning with the next tick."""
        self._hot_until = now + HOT_SECONDS
        self.due = min(self.due, now)

    def hot(self, now: float) -> bool:
        """Return whether the subject changed lately."""
        return now < self._hot_until

    def move(self, paths: tuple[Path, ...]) -> None:
        """Set new directories."""
        self.paths = paths
        self._directories = None
        self._sampled = float("-inf")

    def wants(self, now: float) -> bool:
        """Return whether the subject is due and can have changed since the last sample."""
        if now < self.due or self.hot(now):
            return now >= self.due
        before, self._cpu_times = self._cpu_times, [cpu_time(path) for path in self.paths]
        slept = None not in before and before == self._cpu_times
        if slept and now < self._sampled + QUIET_SECONDS:
            self.due = now + IDLE_SECONDS
            return False
        return True

    def sample(self, table: ProcessTable, now: float) -> set[ProcessKey]:
        """Sample all processes and update the sums.

        Return the processes that ended or moved away.
        """
        self._sampled = now
        containers: dict[str, set[ProcessKey]] = {}
        processes: dict[ProcessKey, Process] = {}
        changed, unread = False, MOST_THREADS
        for pid, identity in self._members().items():
            process, news = table.sample(pid)
            changed |= news
            if process is None or process.usage_state is UsageState.ENDED:
                continue
            unread -= process.check_privileges(now, unread)
            processes[process.key] = process
            if identity is not None:
                containers.setdefault(identity, set()).add(process.key)
        left = set(self.keys - processes.keys())
        if changed or left or processes.keys() != self.keys:
            self.heat(now)
        self.keys = frozenset(processes)
        self._populated = now if processes else self._populated
        self.ended = now < self._populated + ENDED_SECONDS and not processes
        self.by_container = {identity: frozenset(keys) for identity, keys in containers.items()}
        self.locked = sum(process.locked for process in processes.values())
        self.pinned = sum(process.pinned for process in processes.values())
        self.peaks.pod = max(self.peaks.pod, self.locked + self.pinned)
        self.due = now + (HOT_INTERVAL_SECONDS if self.hot(now) else IDLE_SECONDS)
        return left

    def _members(self) -> dict[int, str | None]:
        """Return the process ids, each with the id of its container."""
        if self._directories is not None and (members := self._read()) is not None:
            return members
        self._walk()
        return self._read(walked=True) or {}

    def _walk(self) -> None:
        pod = explore(self.uid, self.paths)
        self.truncated = pod.truncated
        identities = dict.fromkeys(pod.strays, STRAY)
        identities |= {
            path: container.id for container in pod.containers for path in container.members
        }
        below = dict.fromkeys(pod.members, 0)
        for path in pod.members:
            if path.parent in below:
                below[path.parent] += 1
        self._directories = {
            str(path): (identities.get(path), count) for path, count in below.items()
        }

    def _read(self, *, walked: bool = False) -> dict[int, str | None] | None:
        """Read all directories. Return None if the tree changed since the last walk.

        Just after a walk a change is ignored: the next sample finds the change.
        """
        members: dict[int, str | None] = {}
        for path, (identity, subdirectories) in (self._directories or {}).items():
            if not walked and not _unchanged(path, subdirectories):
                return None
            members |= dict.fromkeys(member_pids(path), identity)
        return members


def keys_of(subjects: Iterable[Subject]) -> frozenset[ProcessKey]:
    """Return the processes of all these subjects."""
    return frozenset[ProcessKey]().union(*(subject.keys for subject in subjects))


def _unchanged(path: str, subdirectories: int) -> bool:
    try:
        return os.stat(path).st_nlink == 2 + subdirectories
    except FileNotFoundError:
        return False
