"""Writes `gate.json` (`state.gate_status`): the gated pods, the inexact pods, and the denials.

The file is in a tmpfs and is replaced as a whole. A new gate starts from its content: inexact pods
stay inexact, and counts continue. A container of an earlier gate is *lost* if no descriptor of its
listener exists any more. Its gated calls then end with ENOSYS until the container ends. The
listener of a later exec does not change this.

A pod stays inexact until it is gone, because its locked memory may outlive a container, as a System
V segment does. The gate writes the mark of an inexact pod before the call continues (H1), and all
else at most every `BETWEEN_WRITES_SECONDS`. The gate renews the time of the file every
`BEAT_SECONDS`. With an older file, no gate answers. On shutdown, a gate without pods deletes the
file.
"""

import json
import logging
import os
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.api.pinlimit import Source
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.state.gate_status import GateStatus, load
from pinwarden.node.state.statefile import write_atomically

BETWEEN_WRITES_SECONDS = 0.2
BEAT_SECONDS = 2.0
LISTED = 32
_LOST = 1024
_VERSION = 1
# the maximum lengths in a DenialReport
_POD, _NAME, _COMMAND, _MESSAGE, _CALL, _MOST = 1024, 63, 16, 256, 128, 2**62
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Denial:
    """A denied call, the exceeded limit or else a message, and the bytes asked and in use.

    `call` is its name with the flags of interest (`call_names`). `tid` is the thread id on the
    node. `asked` and `used` are None if unknown.
    """

    ref: ContainerRef
    tid: int
    process: str
    source: Source
    asked: int | None
    used: int | None
    limit: NodeLimit | None
    message: str = ""
    call: str = ""


class GatePublisher:
    """Collects the status of the gate and writes it. `now` is monotonic, in seconds."""

    def __init__(self, path: Path, failures: Mapping[str, int] | None = None) -> None:
        """Start from the file of an earlier gate. Each write contains `failures` as it is then.

        Raises OSError.
        """
        self._path = path
        self._failures = failures or {}
        earlier = load(path) or GateStatus()
        self._earlier = dict(earlier.containers)
        self._containers: dict[str, tuple[str, str, str]] = {}
        self._lost = set(earlier.lost)
        self._inexact = {pod: list(reasons) for pod, reasons in earlier.inexact.items()}
        self._denials = {pod: dict(counts) for pod, counts in earlier.denials.items()}
        self._recent = deque(earlier.recent, LISTED)
        self._number = earlier.number
        self._group_denials = {uid: dict(counts) for uid, counts in earlier.group_denials.items()}
        self._mapping: frozenset[str] = frozenset()
        self._held: Mapping[str, str] = {}
        self._written_failures: Mapping[str, int] = {}
        self._written: tuple[int, int] | None = None
        self._changed = True
        self._due = self._beat = float("-inf")

    def set_containers(
        self, containers: Iterable[GatedContainer], existing_pods: Collection[str] = ()
    ) -> None:
        """Set the containers with a listener, and forget deleted pods."""
        containers = tuple(containers)
        self._containers = {
            container.id: (*container.ref, container.sandbox) for container in containers
        }
        pods = {*existing_pods, *(pod for pod, _, _ in self._containers.values())}
        self._inexact = {pod: reasons for pod, reasons in self._inexact.items() if pod in pods}
        self._denials = {pod: counts for pod, counts in self._denials.items() if pod in pods}
        kept = {
            uid: {pod: count for pod, count in counts.items() if pod in pods}
            for uid, counts in self._group_denials.items()
        }
        self._group_denials = {uid: counts for uid, counts in kept.items() if counts}
        self._mapping = frozenset(container.id for container in containers if container.maps)
        self._changed = True

    def set_fingerprints(self, held: Mapping[str, str]) -> None:
        """Set the policy fingerprints of gated pods. The next flush writes them: the agent waits."""
        if held != self._held:
            self._held, self._changed, self._due = held, True, float("-inf")

    def finish_recovery(self) -> None:
        """Mark as lost all containers of an earlier gate without a listener now."""
        newly = self._earlier.keys() - self._containers.keys()
        self._lost = set([*sorted(newly), *sorted(self._lost - newly)][:_LOST])
        self._earlier.clear()
        self._changed = True

    def mark_inexact(self, pod: str, reason: str) -> None:
        """Mark a pod as inexact, and write a new reason at once.

        Raises OSError; the reason then counts as not written.
        """
        reasons = self._inexact.setdefault(pod, [])
        if reason in reasons:
            return
        reasons.append(reason)
        try:
            self._write()
        except OSError:
            reasons.remove(reason)
            raise

    def record_denial(self, denial: Denial) -> None:
        """Count and list a denied call."""
        uid = denial.limit.uid if denial.limit else ""
        counts = self._denials.setdefault(denial.ref.pod, {})
        counts[uid] = counts.get(uid, 0) + 1
        self._number += 1
        self._recent.append(_wire(denial, self._number))
        self._changed = True

    def record_group_denial(self, group: str, pod: str) -> None:
        """Count a mapping of a pod, denied by a group (its UID)."""
        counts = self._group_denials.setdefault(group, {})
        counts[pod] = counts.get(pod, 0) + 1
        self._changed = True

    def flush(self, now: float) -> None:
        """Write changes, or renew the time of the file, if due."""
        if self._changed and now >= self._due:
            self._due = now + BETWEEN_WRITES_SECONDS
            try:
                self._write()
            except OSError as error:
                _log.error("%s cannot be written: %s", self._path, error)
        elif now >= self._beat:
            self._beat = now + BEAT_SECONDS
            current = (
                self._written_failures == dict(self._failures)
                and self._written == self._file_identity()
            )
            self._changed = self._changed or not current
            with suppress(OSError):
                os.utime(self._path)

    def remove_if_unused(self) -> None:
        """Delete the file on shutdown if no container is gated or lost. Raises OSError."""
        if not self._containers and not self._lost:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        content = {
            "version": _VERSION,
            "containers": self._containers,
            "lost": sorted(self._lost),
            "loosened": self._inexact,
            "denials": self._denials,
            "recent": list(self._recent),
            "number": self._number,
            "groupDenials": self._group_denials,
            "mapping": sorted(self._mapping),
            "held": self._held,
            "failures": self._failures,
        }
        write_atomically(self._path, json.dumps(content).encode())
        self._written_failures = dict(self._failures)
        self._written = self._file_identity()
        self._changed = False

    def _file_identity(self) -> tuple[int, int] | None:
        """Return which file exists. The gate replaces a file of another writer."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_size


def _wire(denial: Denial, number: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "number": number,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "pod": denial.ref.pod[:_POD],
        "container": denial.ref.container[:_NAME],
        "process": denial.process[:_COMMAND],
        "pid": denial.tid,
        "source": denial.source.value,
    }
    if denial.asked is not None:
        content["asked"] = min(denial.asked, _MOST)
    if denial.used is not None:
        content["used"] = denial.used
    if denial.limit is not None:
        content |= {"limit": denial.limit.limit, "name": denial.limit.name, "uid": denial.limit.uid}
    if denial.call:
        content["call"] = denial.call[:_CALL]
    if denial.message:
        content["message"] = denial.message[:_MESSAGE]
    return content
