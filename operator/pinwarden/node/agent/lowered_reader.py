"""Reads which containers got a lowered RLIMIT_MEMLOCK at their creation.

The NRI plugin writes the file before such a container exists. So the file names the container of
each sampled process. The plugin's end changes nothing: its containers keep their limits.
"""

from collections.abc import Mapping
from pathlib import Path

from pinwarden.node.agent.original_limits import RlimitRecord
from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.pods.subject import Subject
from pinwarden.node.state import nri_status
from pinwarden.node.state.statefile import PolledFile


class LoweredReader:
    """Reads the plugin's state file at `path`. With None there is no plugin."""

    def __init__(self, path: Path | None) -> None:
        self._file = PolledFile(path) if path else None
        self._by_container: Mapping[str, RlimitRecord] = {}
        self.pods: frozenset[str] = frozenset()
        """The UIDs of the pods with such containers."""

    def poll(self) -> None:
        """Reload the file if it changed."""
        status = self._file.read_if_changed(nri_status.load) if self._file else None
        if status is not None:
            self._by_container = {
                identity: RlimitRecord(limits.inherited, limits.applied)
                for identity, limits in status.lowered.items()
            }
            self.pods = frozenset(limits.pod for limits in status.lowered.values())

    def concerns(self, subject: Subject) -> bool:
        """Return whether the subject has such a container."""
        return not self._by_container.keys().isdisjoint(subject.by_container)

    def record(self, subject: Subject, key: ProcessKey, current: Limits) -> RlimitRecord:
        """Return the record of a process that the runtime started, with its `current` limits.

        The original limits are inherited, or set by the process itself.
        """
        for identity, keys in subject.by_container.items():
            if key in keys and identity in self._by_container:
                created = self._by_container[identity]
                upcoming = created.applied if current == created.original else None
                return RlimitRecord(created.updated(current).original, current, upcoming)
        return RlimitRecord(current, current)
