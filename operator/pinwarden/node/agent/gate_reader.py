"""Which pods the seccomp gate holds exactly, as far as its record tells; read again when the file is another one or was renewed.

A pod is held *exactly* when each of its processes is in a container that has a listener (or in its sandbox), none has pinned anything
through a driver, and the gate has seen no call that loosens it. Only then is its level Deny (H1), and only then does the agent give each
process the whole limit as its rlimit, because the gate holds the sum. A gate that is away changes no level: calls wait, which is said.

The gate follows the configuration by itself. Until it tells that it holds a pod to the very limits that the agent does, these are not
acknowledged; when that takes longer than `BEHIND_SECONDS`, as where the configuration cannot be kept on disk, the pod is not held exactly.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pinwarden.node.pods.subject import Subject
from pinwarden.node.state.gate_status import GateStatus, load
from pinwarden.node.state.statefile import PolledFile

SILENT_SECONDS = 10.0
SILENT = "its gate does not answer: pinning calls wait"
BEHIND_SECONDS = 5.0
BEHIND = "its gate has not taken its limits"
UNGATED = "created without the gate's profile"


@dataclass(frozen=True, slots=True)
class GateCoverage:
    """How the gate stands to one pod. `why` says for people why it is not held exactly, or, where it is, that its calls wait.

    `behind`: it is held exactly, and to other limits than the agent's.
    """

    gated: bool = False
    exact: bool = False
    lost: bool = False
    behind: bool = False
    why: str = ""


class GateReader:
    """The record at `path`; with None there is no gate, and no pod is gated. `clock` is monotonic, in seconds."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = PolledFile(path) if path else None
        self._clock = clock
        self._behind: dict[str, float] = {}
        self.told: GateStatus | None = None

    @property
    def silent(self) -> bool:
        """Whether there is a gate that has not answered for a while."""
        return self._file is not None and SILENT_SECONDS < self._file.age < float("inf")

    def poll(self) -> bool:
        """Reads the file if it is another one; whether it was. Of one that is not understood nobody is held."""
        news = self._file.read_if_changed(lambda path: (load(path),)) if self._file else None
        if news is None:
            return False
        (self.told,) = news
        there = {pod for pod, _, _ in self.told.containers.values()} if self.told else set()
        self._behind = {pod: since for pod, since in self._behind.items() if pod in there}
        return True

    def coverage(self, subject: Subject) -> GateCoverage:
        """How the gate stands to a pod that was looked at."""
        told = self.told
        if told is None:
            return GateCoverage()
        running = subject.by_container.keys()
        gated = {one for one in running if one in told.containers and told.containers[one][0] == subject.uid}
        if not told.lost.isdisjoint(running):
            return GateCoverage(
                True, lost=True, why="the descriptors of its gate are lost: its pinning calls end with ENOSYS"
            )
        if not gated:
            return GateCoverage(why=UNGATED)
        sandboxes = {told.containers[one][2] for one in gated}
        covered = frozenset().union(
            *(subject.by_container[one] for one in running if one in gated | sandboxes)
        )
        why = "; ".join(told.inexact.get(subject.uid, ()))
        if not subject.keys <= covered:
            why = "a container, or a process in none, has not the gate's profile"
        elif subject.pinned and not why:
            why = "a driver has pinned memory for it"
        behind = not why and self._is_behind(subject, told)
        if behind and not self.silent and self._clock() - self._behind[subject.uid] > BEHIND_SECONDS:
            why = BEHIND
        if not why:
            return GateCoverage(True, exact=True, behind=behind, why=SILENT if self.silent else "")
        return GateCoverage(True, why=why)

    def _is_behind(self, subject: Subject, told: GateStatus) -> bool:
        """Whether the gate holds it to other limits than the agent; notes since when."""
        if told.held.get(subject.uid, "") == subject.policy.fingerprint:
            self._behind.pop(subject.uid, None)
            return False
        self._behind.setdefault(subject.uid, self._clock())
        return True
