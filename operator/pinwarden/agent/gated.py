"""Which pods the seccomp gate holds exactly, as far as its record tells; read again when the file is another one or was renewed.

A pod is held *exactly* when each of its processes is in a container that has a listener (or in its sandbox), none has pinned anything
through a driver, and the gate has seen no call that loosens it. Only then is its level Deny (H1), and only then does the agent give each
process the whole limit as its rlimit, because the gate holds the sum. A gate that is away changes no level: calls wait, which is said.
"""

from dataclasses import dataclass
from pathlib import Path

from pinwarden.agent.gates.seccomp.record import Told, load
from pinwarden.agent.governed import Governed
from pinwarden.agent.statefile import Glance

SILENT_SECONDS = 10.0
SILENT = "its gate does not answer: pinning calls wait"
UNGATED = "created without the gate's profile"


@dataclass(frozen=True, slots=True)
class Standing:
    """How the gate stands to one pod. `why` says for people why it is not held exactly, or, where it is, that its calls wait."""

    gated: bool = False
    exact: bool = False
    lost: bool = False
    why: str = ""


class GateRecord:
    """The record at `path`; with None there is no gate, and no pod is gated."""

    def __init__(self, path: Path | None) -> None:
        self._glance = Glance(path) if path else None
        self.told: Told | None = None

    @property
    def silent(self) -> bool:
        """Whether there is a gate that has not answered for a while."""
        return self._glance is not None and SILENT_SECONDS < self._glance.age < float("inf")

    def look(self) -> bool:
        """Reads the file if it is another one; whether it was. Of one that is not understood nobody is held."""
        told = self._glance.newer(lambda path: load(path) or Told()) if self._glance else None
        self.told = told or self.told
        return told is not None

    def standing(self, subject: Governed) -> Standing:
        """How the gate stands to a pod that was looked at."""
        told = self.told
        if told is None:
            return Standing()
        running = subject.by_container.keys()
        gated = {one for one in running if one in told.containers}
        if not told.lost.isdisjoint(running):
            return Standing(
                True, lost=True, why="the descriptors of its gate are lost: its pinning calls end with ENOSYS"
            )
        if not gated:
            return Standing(why=UNGATED)
        sandboxes = {told.containers[one][2] for one in gated}
        covered = frozenset().union(
            *(subject.by_container[one] for one in running if one in gated | sandboxes)
        )
        why = "; ".join(told.loosened.get(subject.uid, ()))
        if not subject.keys <= covered:
            why = "a container, or a process in none, has not the gate's profile"
        elif subject.pinned and not why:
            why = "a driver has pinned memory for it"
        if not why:
            return Standing(True, exact=True, why=SILENT if self.silent else "")
        return Standing(True, why=why)
