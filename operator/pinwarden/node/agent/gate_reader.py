"""Reads which pods the seccomp gate enforces exactly, whenever the gate's state file changes.

A pod is enforced *exactly* if each of its processes is in a container with a listener, or in its
sandbox. In addition, no driver has pinned memory for the pod, and the gate has seen no call that
makes it inexact. Only then is the level Deny (H1), and each process gets the whole limit as its
rlimit, because the gate enforces the sum. A gate that does not answer changes no level: calls wait,
and the message says so.

The gate reads the configuration by itself. The agent acknowledges the limits of a pod only when the
gate reports the same fingerprint. If that takes longer than `BEHIND_SECONDS`, the pod is not
enforced exactly.
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
    """How far the gate enforces the limits of one pod.

    `why` is the reason against exact enforcement, or, if that is in force, a message that calls
    wait. `behind`: the gate enforces other limits exactly than the agent has.
    """

    gated: bool = False
    exact: bool = False
    lost: bool = False
    behind: bool = False
    why: str = ""


class GateReader:
    """Reads the state file at `path`.

    With None there is no gate. `clock` is monotonic, in seconds.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = PolledFile(path) if path else None
        self._clock = clock
        self._behind: dict[str, float] = {}
        self.told: GateStatus | None = None

    @property
    def silent(self) -> bool:
        """Whether the gate exists and has not renewed its file for a while."""
        return self._file is not None and SILENT_SECONDS < self._file.age < float("inf")

    def poll(self) -> bool:
        """Reload the file if it changed and return whether it did.

        If it cannot be parsed, no pod counts as gated.
        """
        change = self._file.read_if_changed(lambda path: (load(path),)) if self._file else None
        if change is None:
            return False
        (self.told,) = change
        there = {pod for pod, _, _ in self.told.containers.values()} if self.told else set()
        self._behind = {pod: since for pod, since in self._behind.items() if pod in there}
        return True

    def coverage(self, subject: Subject) -> GateCoverage:
        """Return the coverage of a pod that was sampled."""
        told = self.told
        if told is None:
            return GateCoverage()
        running = subject.by_container.keys()
        gated = {
            identity
            for identity in running
            if identity in told.containers and told.containers[identity][0] == subject.uid
        }
        if not told.lost.isdisjoint(running):
            return GateCoverage(
                True,
                lost=True,
                why="the descriptors of its gate are lost: its pinning calls end with ENOSYS",
            )
        if not gated:
            return GateCoverage(why=UNGATED)
        sandboxes = {told.containers[identity][2] for identity in gated}
        covered = frozenset().union(
            *(
                subject.by_container[identity]
                for identity in running
                if identity in gated | sandboxes
            )
        )
        why = "; ".join(told.inexact.get(subject.uid, ()))
        if not subject.keys <= covered:
            why = "a container, or a process in none, has not the gate's profile"
        elif subject.pinned and not why:
            why = "a driver has pinned memory for it"
        behind = not why and self._is_behind(subject, told)
        if (
            behind
            and not self.silent
            and self._clock() - self._behind[subject.uid] > BEHIND_SECONDS
        ):
            why = BEHIND
        if not why:
            return GateCoverage(True, exact=True, behind=behind, why=SILENT if self.silent else "")
        return GateCoverage(True, why=why)

    def _is_behind(self, subject: Subject, told: GateStatus) -> bool:
        """Return whether the gate enforces other limits than the agent has, and record since when."""
        if told.held.get(subject.uid, "") == subject.policy.fingerprint:
            self._behind.pop(subject.uid, None)
            return False
        self._behind.setdefault(subject.uid, self._clock())
        return True
