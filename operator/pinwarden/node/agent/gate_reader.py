"""Reads from the gate's state file which pods the seccomp gate enforces exactly.

A pod is enforced *exactly* if each of its processes is in a container with a listener, or in its
sandbox. In addition, no driver has pinned memory for the pod, and no call made the pod inexact.
Only then the level is Deny (H1), and each process gets the whole limit as its rlimit, because the
gate enforces the sum. A silent gate changes no level: calls wait, and the report says so.

The gate reads the configuration itself. The agent acknowledges the limits of a pod only when the
gate reports the same fingerprint. If the gate needs longer than `BEHIND_SECONDS`, the pod is not
enforced exactly.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pinwarden.api.reasons import RESTART_GATES
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.subject import NO_COVERAGE, GateCoverage, Subject
from pinwarden.node.state import nri_status
from pinwarden.node.state.gate_status import GateStatus, load
from pinwarden.node.state.nri_status import NriStatus
from pinwarden.node.state.statefile import PolledFile

SILENT_SECONDS = 10.0
BEHIND_SECONDS = 5.0
BEHIND = "its gate has not read its limits yet"
UNGATED = "created without the gate's profile"
_SILENT_PLUGIN = NriStatus()
RESTART = f"created without the gate; {RESTART_GATES}"


class GateReader:
    """Reads the state file at `path`.

    With None there is no gate. `clock` is monotonic, in seconds.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = PolledFile(path) if path else None
        self._nri = PolledFile(path.with_name(nri_status.NAME)) if path else None
        self._nri_status = _SILENT_PLUGIN
        self._clock = clock
        self._behind_since: dict[str, float] = {}
        self._observed: tuple[GateStatus | None, NriStatus] = (None, self._nri_status)
        self.status: GateStatus | None = None

    @property
    def silent(self) -> bool:
        """Whether the gate exists and has not renewed its file for `SILENT_SECONDS`."""
        return self._file is not None and SILENT_SECONDS < self._file.age < float("inf")

    @property
    def failures(self) -> Mapping[str, int]:
        """How often the gate's work on an item failed, by kind."""
        return self.status.failures if self.status else {}

    @property
    def gated_pods(self) -> list[str] | None:
        """The sorted UIDs of pods with a listener; None without a gate: unknown, not empty (H2)."""
        if self.status is None:
            return None
        return sorted({uid for uid, *_ in self.status.containers.values()})

    def poll(self) -> None:
        """Reload the file if it changed. If it cannot be parsed, no pod counts as gated."""
        if self._file and (change := self._file.read_if_changed(lambda path: (load(path),))):
            (self.status,) = change
        nri = self._nri.read_if_changed(nri_status.load) if self._nri else None
        nri = nri and replace(nri, lowered={})
        if nri is not None and nri != self._nri_status:  # not only renewed
            self._nri_status = nri
        if self._nri and self._nri.age > nri_status.SILENT_SECONDS:
            self._nri_status = _SILENT_PLUGIN

    def observe(self, subjects: Iterable[Subject], sampled: Collection[Subject]) -> list[Subject]:
        """Update the coverage of all subjects, of which some were `sampled` since the last call.

        Return the subjects whose exact enforcement began or ended.
        """
        now, silent, status = self._clock(), self.silent, self.status
        before, self._observed = self._observed, (status, self._nri_status)
        reloaded = before[0] is not status or before[1] is not self._nri_status
        changed: list[Subject] = []
        if not (reloaded or sampled or self._behind_since):
            return changed
        behind_since: dict[str, float] = {}
        for subject in subjects:
            if not (reloaded or subject in sampled or subject.uid in self._behind_since):
                continue
            coverage = _coverage(subject, status, self._nri_status) if status else NO_COVERAGE
            if status and coverage.exact and not _has_limits(status, subject):
                since = behind_since[subject.uid] = self._behind_since.get(subject.uid, now)
                if silent or now - since <= BEHIND_SECONDS:
                    coverage = GateCoverage(True, exact=True, behind=True)
                else:
                    coverage = GateCoverage(True, why=BEHIND)
            if coverage.exact != subject.coverage.exact:
                changed.append(subject)
            subject.coverage = coverage
        self._behind_since = behind_since
        return changed


def _has_limits(status: GateStatus, subject: Subject) -> bool:
    """Return whether the gate has the same limits of the pod as the agent."""
    return status.fingerprints.get(subject.uid, "") == subject.policy.fingerprint


def _coverage(subject: Subject, status: GateStatus, nri: NriStatus) -> GateCoverage:
    """Return the coverage of a sampled pod, without a check of the gate's limits."""
    running = subject.by_container.keys()
    if not status.lost.isdisjoint(running):
        why = "the descriptors of its gate are lost: its pinning calls end with ENOSYS"
        return GateCoverage(True, lost=True, why=why)
    gated = {
        identity
        for identity in running & status.containers.keys()
        if status.containers[identity][0] == subject.uid
    }
    reasons = sorted({nri.ungated[identity] for identity in running & nri.ungated.keys()})
    if not gated:
        failure = f"; new containers do not get the gate: {nri.failure}" if nri.failure else ""
        why = RESTART if nri.runtime else UNGATED + failure
        return GateCoverage(why="; ".join(reasons) or why)
    sandboxes = {status.containers[identity][2] for identity in gated}
    covered = frozenset[ProcessKey]().union(
        *(subject.by_container[identity] for identity in running & (gated | sandboxes))
    )
    why = "; ".join(status.inexact.get(subject.uid, ()))
    if not subject.keys <= covered:
        why = "a container, or a process outside all containers, lacks the gate's profile"
        why = "; ".join([why, *reasons])
    elif subject.pinned and not why:
        why = "a driver has pinned memory for it"
    return GateCoverage(True, exact=not why, why=why)
