"""A governed subject while it exists: its directories, its processes, and when it wants to be looked at again.

An idle subject is due every `IDLE_SECONDS`, and is looked at when anything ran in it since: who does not run cannot pin. What the kernel
does to it from outside, and a process that was moved into it and sleeps on, are seen within `QUIET_SECONDS`. When its use, its processes
or what holds for it changed, it is hot for `HOT_SECONDS` and looked at every `HOT_INTERVAL_SECONDS`, so that what a constraint has left
is dealt again soon.

Its tree is walked again only when it changed. Each look compares the link count of every known directory, which in cgroupfs is 2 plus its
subdirectories: when all known ones exist and are as many as are counted, there are no others.
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
"""For so long a subject without processes counts as one whose processes ended: the kubelet tells within that time that they did."""
HOT_INTERVAL_SECONDS = 0.01
MOST_THREADS = 256
"""So many threads of a subject are read in one look, which takes some 10 ms; the next look goes on."""
STRAY = ""
"""Stands for the id of a container that cannot be told: all processes of a pod that are in no directory of a container."""


@dataclass
class Peaks:
    """The most that was seen, in bytes: lower bounds (H2)."""

    pod: int = 0
    containers: dict[str, int] = field(default_factory=dict)


class Subject:
    """One subject. `keys` are its processes that have an address space, `by_container` those of each container, by its id or `STRAY`.

    `failure` is why it cannot be read, or empty.
    `ended`: it has no processes, and had some less than `ENDED_SECONDS` ago. `exact`: the seccomp gate holds the sum.
    """

    def __init__(self, uid: str, paths: tuple[Path, ...], policy: SubjectPolicy) -> None:
        self.uid = uid
        self.paths = paths
        self.policy = policy
        self.due = float("-inf")
        self.keys: frozenset[ProcessKey] = frozenset()
        self.by_container: Mapping[str, frozenset[ProcessKey]] = {}
        self.truncated = False
        self.exact = False
        self.failure = ""
        self.ended = False
        self.peaks = Peaks()
        self.locked = 0
        self.pinned = 0
        self._hot_until = self._looked = self._peopled = float("-inf")
        self._cpu_times: list[bytes | None] = []
        self._directories: dict[str, tuple[str | None, int]] | None = None

    def heat(self, now: float) -> None:
        """Something changed: look often for a while, beginning with the next tick."""
        self._hot_until = now + HOT_SECONDS
        self.due = min(self.due, now)

    def hot(self, now: float) -> bool:
        """Whether something changed lately."""
        return now < self._hot_until

    def move(self, paths: tuple[Path, ...]) -> None:
        """Its directories are others now."""
        self.paths = paths
        self._directories = None
        self._looked = float("-inf")

    def wants(self, now: float) -> bool:
        """Whether it is due, and may be another than at the last look."""
        if now < self.due or self.hot(now):
            return now >= self.due
        before, self._cpu_times = self._cpu_times, [cpu_time(path) for path in self.paths]
        slept = None not in before and before == self._cpu_times
        if slept and now < self._looked + QUIET_SECONDS:
            self.due = now + IDLE_SECONDS
            return False
        return True

    def sample(self, table: ProcessTable, now: float) -> set[ProcessKey]:
        """Samples all its processes, and sets its sums; the processes that are its own no longer, ended or moved away."""
        self._looked = now
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
        self._peopled = now if found else self._peopled
        self.ended = now < self._peopled + ENDED_SECONDS and not found
        self.by_container = {identity: frozenset(keys) for identity, keys in containers.items()}
        self.locked = sum(process.locked for process in found.values())
        self.pinned = sum(process.pinned for process in found.values())
        self.peaks.pod = max(self.peaks.pod, self.locked + self.pinned)
        self.due = now + (HOT_INTERVAL_SECONDS if self.hot(now) else IDLE_SECONDS)
        return left

    def _members(self) -> dict[int, str | None]:
        """Its process ids, each with the id of its container."""
        if self._directories is not None and (members := self._read()) is not None:
            return members
        self._walk()
        return self._read(walked=True) or {}

    def _walk(self) -> None:
        pod = explore(self.uid, self.paths)
        self.truncated = pod.truncated
        identities = dict.fromkeys(pod.strays, STRAY)
        identities |= {path: container.id for container in pod.containers for path in container.members}
        below = dict.fromkeys(pod.members, 0)
        for path in pod.members:
            if path.parent in below:
                below[path.parent] += 1
        self._directories = {str(path): (identities.get(path), count) for path, count in below.items()}

    def _read(self, *, walked: bool = False) -> dict[int, str | None] | None:
        """None when the tree is not as it was walked; just after a walk that does not matter, and the next look sees it again."""
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
