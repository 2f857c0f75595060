"""One governed subject: its directories, its processes, and the time of its next sample.

An idle subject is due every `IDLE_SECONDS`, and is sampled if a process in it ran since: a sleeping
process cannot pin. The kernel can change its use from outside, and a sleeping process can be moved
into it. Both are sampled within `QUIET_SECONDS`. After a change of its use, its processes or its
policy, a subject is hot: it is sampled every `HOT_INTERVAL_SECONDS` for `HOT_SECONDS`, so that free
room is allocated again soon.

The directory tree is walked again only if it changed. Each sample compares the link count of every
known directory, which in cgroupfs is 2 plus the number of subdirectories. If all known directories
exist with the expected counts, there are no other directories.
"""

import os
from collections.abc import Mapping
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
"""The most threads that one sample of a subject reads, in about 10 ms.

The next sample continues.
"""
STRAY = ""
"""The container id of the processes of a pod that are in no directory of a container."""


@dataclass(frozen=True, slots=True)
class GateCoverage:
    """How far the seccomp gate enforces the limits of one pod.

    `exact`: the gate enforces the sum. `behind`: the sum of other limits than the agent has.
    `lost`: the listener of a container is lost. `why` is the reason against exact enforcement.
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

    `keys` are its processes with an address space, `by_container` those of each container, by id or
    `STRAY`. `failure` is why the subject cannot be read, or empty. `ended`: the last process ended
    less than `ENDED_SECONDS` ago.
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
        """Whether the subject changed lately."""
        return now < self._hot_until

    def move(self, paths: tuple[Path, ...]) -> None:
        """Set new directories."""
        self.paths = paths
        self._directories = None
        self._sampled = float("-inf")

    def wants(self, now: float) -> bool:
        """Whether the subject is due and can have changed since the last sample."""
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
        found: dict[ProcessKey, Process] = {}
        changed, unread = False, MOST_THREADS
        for pid, identity in self._members().items():
            process, news = table.sample(pid)
            changed |= news
            if process is None or process.usage_state is UsageState.ENDED:
                continue
            unread -= process.check_privileges(now, unread)
            found[process.key] = process
            if identity is not None:
                containers.setdefault(identity, set()).add(process.key)
        left = set(self.keys - found.keys())
        if changed or left or found.keys() != self.keys:
            self.heat(now)
        self.keys = frozenset(found)
        self._populated = now if found else self._populated
        self.ended = now < self._populated + ENDED_SECONDS and not found
        self.by_container = {identity: frozenset(keys) for identity, keys in containers.items()}
        self.locked = sum(process.locked for process in found.values())
        self.pinned = sum(process.pinned for process in found.values())
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
        """Read all directories. Return None if the tree changed since it was walked.

        Just after a walk a change is ignored: the next sample finds it.
        """
        members: dict[int, str | None] = {}
        for path, (identity, subdirectories) in (self._directories or {}).items():
            if not walked and not _unchanged(path, subdirectories):
                return None
            members |= dict.fromkeys(member_pids(path), identity)
        return members


def _unchanged(path: str, subdirectories: int) -> bool:
    try:
        return os.stat(path).st_nlink == 2 + subdirectories
    except FileNotFoundError:
        return False
