"""Reads the accountant's state file for the agent's report, after each change.

The accountant is another process and can be down. Then its last figures stay, with the time of
their sample and the reason (H2). A group without any report is Pending, with a reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pinwarden.api.nodepinconfig import FairReport, GroupReport, NodeGroup
from pinwarden.api.reasons import ACCOUNTANT_SILENT, NOT_LOOKED_AT
from pinwarden.api.sharedmemorygroup import Phase
from pinwarden.node.state.accountant_status import SILENT_SECONDS, AccountantStatus, load
from pinwarden.node.state.statefile import PolledFile

_SILENT = "the accountant of shared memory (pinwarden accountant) does not answer"


class AccountantReader:
    """Reads the state file at `path`. With None there is no accountant."""

    def __init__(self, path: Path | None) -> None:
        self._file = PolledFile(path) if path else None
        self._status = AccountantStatus()

    def poll(self) -> None:
        """Reload the file after a change. If parsing fails, the last figures stay."""
        if self._file:
            self._status = self._file.read_if_changed(load) or self._status

    @property
    def failures(self) -> Mapping[str, int]:
        """How often the accountant's work on an item failed, by kind."""
        return self._status.failures

    @property
    def silent(self) -> bool:
        """Whether the accountant has not renewed its file lately."""
        return self._file is None or self._file.age > SILENT_SECONDS

    def groups(self, asked: Iterable[NodeGroup]) -> list[GroupReport]:
        """Return a report of each requested group."""
        reports = {report.uid: report for report in self._status.groups}
        return [self._report(group, reports.get(group.uid)) for group in asked]

    def fair_view(self, asked: Sequence[NodeGroup]) -> list[FairReport]:
        """Return the fair view of attached pods (M11), empty without groups."""
        return list(self._status.fair_view) if asked else []

    def _report(self, group: NodeGroup, report: GroupReport | None) -> GroupReport:
        if report is None:
            reason, message = (ACCOUNTANT_SILENT, _SILENT) if self.silent else (NOT_LOOKED_AT, "")
            return GroupReport(uid=group.uid, phase=Phase.PENDING, reason=reason, message=message)
        if self.silent:
            return report.model_copy(
                update={"reason": ACCOUNTANT_SILENT, "message": f"{_SILENT}; these figures are old"}
            )
        return report
