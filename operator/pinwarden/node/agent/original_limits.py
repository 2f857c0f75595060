"""The original limits of each process, on disk, so that a later agent can restore them too (H3).

The kernel keeps no earlier limits. So a record is written before a process is changed for the first
time. `save` returns when the file is on disk: a crash in between leaves a record too many, never
one too few. A record also holds the limits that were applied last. A limit that differs from these
was set by the program itself, and is the limit that the process shall have from then on.

The file is one JSON object: a version, the boot id of the kernel, a digest of the processes, and
the processes. It is replaced as a whole (`statefile`). No process outlives a reboot, so a file of
another boot id counts as empty. A file that is truncated, altered or of another version is set
aside with a warning.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.state.statefile import load_or_set_aside, write_atomically

_VERSION = 1


@dataclass(frozen=True, slots=True)
class RlimitRecord:
    """The `original` limits of a process and those that the agent `applied` last, in bytes."""

    original: Limits
    applied: Limits

    def updated(self, current: Limits) -> "RlimitRecord":
        """Return the record with the soft and hard limits that the program set since the last
        allocation.

        A lowered limit stays lowered, and a soft limit that a program chose is kept. A raised hard
        limit (`CAP_SYS_RESOURCE`) becomes the original one. The allowance is enforced all the same,
        because it is computed from use and not from the original limits (P1).
        """
        hard = self.original.hard if current.hard == self.applied.hard else current.hard
        soft = self.original.soft if current.soft == self.applied.soft else current.soft
        return replace(self, original=Limits(min(soft, hard), hard))

    def for_child(self, current: Limits) -> "RlimitRecord":
        """Return the record of a child whose limits are `current`, forked since the first
        allocation.

        The child inherited limits that were applied, not its parent's original ones. A limit that
        the child set before its first sample looks the same, and is not kept.
        """
        return RlimitRecord(self.original, current)


class RlimitRecordStore:
    """The file, with one writer at a time. `boot_id` is `/proc/sys/kernel/random/boot_id`."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id

    def load(self) -> dict[ProcessKey, RlimitRecord]:
        """Return the record of every process, including ended ones; empty without a usable file.

        Raises OSError.
        """
        boot_id, records = load_or_set_aside(self._path, _decode) or ("", {})
        return records if boot_id == self._boot_id else {}

    def save(self, records: Mapping[ProcessKey, RlimitRecord]) -> None:
        """Replace the file and sync it. Raises OSError, and then the earlier file stays."""
        write_atomically(self._path, _encode(self._boot_id, records))


def _encode(boot_id: str, records: Mapping[ProcessKey, RlimitRecord]) -> bytes:
    rows = [[*key, *record.original, *record.applied] for key, record in sorted(records.items())]
    return json.dumps(
        {
            "version": _VERSION,
            "bootId": boot_id,
            "digest": _digest(boot_id, rows),
            "processes": rows,
        }
    ).encode()


def _decode(data: bytes) -> tuple[str, dict[ProcessKey, RlimitRecord]]:
    """Return the boot id and the records. Raises ValueError if `_encode` did not write the file."""
    content: Any = json.loads(data)
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError(f"not a file of version {_VERSION}")
    boot_id: Any = content.get("bootId")
    rows: Any = content.get("processes")
    if not isinstance(boot_id, str) or content.get("digest") != _digest(boot_id, rows):
        raise ValueError("the digest does not fit")
    if not all(type(number) is int and 0 <= number < 2**64 for row in rows for number in row):
        raise ValueError("a process of it is not described by numbers")
    return boot_id, {
        ProcessKey(pid, start): RlimitRecord(Limits(soft, hard), Limits(applied_soft, applied_hard))
        for pid, start, soft, hard, applied_soft, applied_hard in rows
    }


def _digest(boot_id: str, rows: object) -> str:
    return hashlib.sha256(json.dumps([boot_id, rows]).encode()).hexdigest()
