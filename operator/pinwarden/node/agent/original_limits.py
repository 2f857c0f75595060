"""What each process had before the first deal, so that it can be given back, also by a later agent (H3).

The kernel keeps no earlier limits. So a caller writes them down here before it touches a process for the first time: `save` returns when
the file is on disk, and a crash in between leaves a line too many, never one too few. `Saved` also holds what was dealt last: a limit
that differs from it was set by the program itself, and is what it shall have from then on.

The file is one JSON object: a version, the boot id of the kernel, a digest over the processes, and the processes. It is replaced as a
whole (written beside, synced, renamed). After a reboot no process of the file lives, so a file of another boot id is empty. A file that
is truncated, altered or of another version is set aside as `<name>.corrupt-<n>` with a warning, and is never read again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pinwarden.node.linux.prlimit import Limits
from pinwarden.node.linux.procfs import ProcessKey
from pinwarden.node.state.statefile import UNUSABLE, read_whole, set_aside, write_atomically

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """Of one process: what it had `before` the first deal, and what it was `dealt` last. In bytes."""

    before: Limits
    dealt: Limits

    def seen(self, current: Limits) -> "Saved":
        """Takes over what the program set since the last deal, the soft and the hard limit each by itself.

        A lowered limit stays lowered and a soft limit that a program chose is kept. A raised hard limit (CAP_SYS_RESOURCE) becomes what
        the process had; allowances hold for it all the same, because they are dealt from use and not from what it had (P1).
        """
        hard = self.before.hard if current.hard == self.dealt.hard else current.hard
        soft = self.before.soft if current.soft == self.dealt.soft else current.soft
        return replace(self, before=Limits(min(soft, hard), hard))

    def inherited(self, current: Limits) -> "Saved":
        """What holds for a child, forked at any time since this process's first deal, whose limits are `current`.

        It came with some earlier deal's limits, not with its parent's own. A limit that the child set itself before it was first seen
        cannot be told from those, and is not kept.
        """
        return Saved(self.before, current)


class SavedStore:
    """The file. `boot_id` is /proc/sys/kernel/random/boot_id; one writer at a time."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id

    def load(self) -> dict[ProcessKey, Saved]:
        """Every process of the file, also those that ended since. Empty when there is no usable file. Raises OSError."""
        try:
            boot_id, processes = _decode(read_whole(self._path))
        except FileNotFoundError:
            return {}
        except UNUSABLE as error:
            set_aside(self._path, str(error))
            return {}
        return processes if boot_id == self._boot_id else {}

    def save(self, processes: Mapping[ProcessKey, Saved]) -> None:
        """Replaces the file; it is on disk on return. Raises OSError, and the earlier file stays then."""
        write_atomically(self._path, _encode(self._boot_id, processes))


def _encode(boot_id: str, processes: Mapping[ProcessKey, Saved]) -> bytes:
    rows = [[*key, *saved.before, *saved.dealt] for key, saved in sorted(processes.items())]
    return json.dumps(
        {"version": _VERSION, "bootId": boot_id, "digest": _digest(boot_id, rows), "processes": rows}
    ).encode()


def _decode(data: bytes) -> tuple[str, dict[ProcessKey, Saved]]:
    """The boot id and the processes. Raises ValueError when the file is not one that `_encode` wrote."""
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
        ProcessKey(pid, start): Saved(Limits(soft, hard), Limits(dealt_soft, dealt_hard))
        for pid, start, soft, hard, dealt_soft, dealt_hard in rows
    }


def _digest(boot_id: str, rows: object) -> str:
    return hashlib.sha256(json.dumps([boot_id, rows]).encode()).hexdigest()
