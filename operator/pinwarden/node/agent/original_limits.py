"""The original limits of each process, on disk, so that a later agent can restore them too (H3).

The kernel keeps no earlier limits. So a record is written before a process is changed for the first
time. `save` returns when the file is on disk: a crash in between leaves a record too many, never a
record too few. A record also has the last applied limits. Any other current limit was set by the
program itself, and becomes the original limit.

The file is a `StateFile` with the boot id of the kernel and the processes. No process outlives a
reboot, so a file with another boot id counts as empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.state.statefile import StateFile

_VERSION = 1
_FIELDS = ("bootId", "processes")


@dataclass(frozen=True, slots=True)
class RlimitRecord:
    """The `original` limits of a process and the last limits `applied` by an agent, in bytes.

    `upcoming` are the limits that the runtime has yet to set: the process joins the cgroup of its
    container first.
    """

    original: Limits
    applied: Limits
    upcoming: Limits | None = None

    def updated(self, current: Limits) -> "RlimitRecord":
        """Return the record with the limits set by the program since the last allocation.

        A lowered limit stays lowered, and the program's soft limit is kept. A raised hard limit
        (`CAP_SYS_RESOURCE`) becomes the original limit. The allowance is enforced all the same,
        because it is computed from use and not from the original limits (P1).
        """
        applied, upcoming = self.applied, self.upcoming
        if upcoming is not None and current.hard == upcoming.hard:
            applied, upcoming = upcoming, None
        hard = self.original.hard if current.hard == applied.hard else current.hard
        soft = self.original.soft if current.soft == applied.soft else current.soft
        return replace(self, original=Limits(min(soft, hard), hard), upcoming=upcoming)

    def for_child(self, current: Limits) -> "RlimitRecord":
        """Return the record of a child with these `current` limits.

        The child was forked since the first allocation. So it inherited applied limits, not the
        original limits of its parent. A limit set by the child before its first sample looks the
        same, and is lost.
        """
        return RlimitRecord(self.original, current)


class RlimitRecordStore:
    """The file, with one writer at a time. `boot_id` is `/proc/sys/kernel/random/boot_id`."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._file = _RecordFile(path, _VERSION)
        self._boot_id = boot_id

    def load(self) -> dict[ProcessKey, RlimitRecord]:
        """Return the record of every process, including ended ones; empty without a usable file.

        Raises OSError.
        """
        boot_id, records = self._file.load(_parse) or ("", {})
        return records if boot_id == self._boot_id else {}

    def save(self, records: Mapping[ProcessKey, RlimitRecord]) -> None:
        """Replace the file and sync it. Raises OSError, and then the earlier file stays."""
        rows = [
            [*key, *record.original, *record.applied] for key, record in sorted(records.items())
        ]
        self._file.save([self._boot_id, rows])


class _RecordFile(StateFile):
    """A state file with two fields instead of `content`, as agents before `StateFile` read it."""

    def _to_fields(self, content: Any) -> dict[str, Any]:
        return dict(zip(_FIELDS, content, strict=True))

    def _from_fields(self, whole: dict[str, Any]) -> Any:
        return [whole.get(field) for field in _FIELDS]


def _parse(content: Any) -> tuple[str, dict[ProcessKey, RlimitRecord]]:
    """Return the boot id and the records. Raises one of `UNUSABLE` for other content."""
    boot_id, rows = content
    if not isinstance(boot_id, str):
        raise ValueError("the boot id is not a text")
    if not all(type(number) is int and 0 <= number < 2**64 for row in rows for number in row):
        raise ValueError("a process is not described by numbers")
    return boot_id, {
        ProcessKey(pid, start): RlimitRecord(Limits(soft, hard), Limits(applied_soft, applied_hard))
        for pid, start, soft, hard, applied_soft, applied_hard in rows
    }
