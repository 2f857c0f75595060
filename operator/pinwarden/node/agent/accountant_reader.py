"""Reads the accountant's state file for the agent's report, whenever it changes.

The accountant is another process and can be down. Then its last figures stay, with the time of
their sample and the reason (H2). A group that the accountant never reported is Pending, with a
reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pinwarden.api.nodepinconfig import FairReport, GroupReport, NodeGroup
from pinwarden.api.reasons import ACCOUNTANT_SILENT, NOT_LOOKED_AT
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.node.state.accountant_status import SILENT_SECONDS, AccountantStatus, load
from pinwarden.node.state.statefile import PolledFile

_AWAY = "the accountant of shared memory (pinwarden accountant) does not answer"


class AccountantReader:
    """Reads the state file at `path`. With None there is no accountant."""

    def __init__(self, path: Path | None) -> None:
        self._file = PolledFile(path) if path else None
        self._told = AccountantStatus()

    def poll(self) -> None:
        """Reload the file if it changed. If it cannot be parsed, the last figures stay."""
        if self._file:
            self._told = self._file.read_if_changed(load) or self._told

    @property
    def failures(self) -> Mapping[str, int]:
        """How often the accountant's work on an item failed, by kind."""
        return self._told.failures

    @property
    def silent(self) -> bool:
        """Whether the accountant has not renewed its file lately."""
        return self._file is None or self._file.age > SILENT_SECONDS

    def groups(self, asked: Iterable[NodeGroup]) -> list[GroupReport]:
        """Return a report of each requested group."""
        told = {each.uid: each for each in self._told.groups}
        return [self._of(group, told.get(group.uid)) for group in asked]

    def fair_view(self, asked: Sequence[NodeGroup]) -> list[FairReport]:
        """Return the fair view of attached pods (M11), empty without groups."""
        return list(self._told.fair_view) if asked else []

    def _of(self, group: NodeGroup, told: GroupReport | None) -> GroupReport:
        if told is None:
            reason, message = (ACCOUNTANT_SILENT, _AWAY) if self.silent else (NOT_LOOKED_AT, "")
            return GroupReport(uid=group.uid, phase=Phase.PENDING, reason=reason, message=message)
        if self.silent:
            return told.model_copy(
                update={"reason": ACCOUNTANT_SILENT, "message": f"{_AWAY}; these figures are old"}
            )
        return told
