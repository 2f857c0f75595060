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

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pinwarden.api.nodepinconfig import NodeLimit
from pinwarden.api.pinlimit import Source
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.state.gate_status import empty, load
from pinwarden.node.state.statefile import write_atomically

BETWEEN_WRITES_SECONDS = 0.2
BEAT_SECONDS = 2.0
LISTED = 32
_LOST = 1024
# the maximum lengths in a DenialReport
_POD, _NAME, _COMMAND, _MESSAGE, _CALL, _MOST = 1024, 63, 16, 256, 128, 2**62
_Value = TypeVar("_Value")
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
        self._status = load(path) or empty()
        self._earlier = self._status.containers
        self._status.containers, self._status.mapping = {}, frozenset()
        self._status.fingerprints = {}
        self._written_failures: Mapping[str, int] = {}
        self._written: tuple[int, int] | None = None
        self._changed = True
        self._due = self._beat = float("-inf")

    def set_containers(
        self, containers: Iterable[GatedContainer], existing_pods: Collection[str] = ()
    ) -> None:
        """Set the containers with a listener, and forget deleted pods."""
        status, containers = self._status, tuple(containers)
        status.containers = {
            container.id: (*container.ref, container.sandbox) for container in containers
        }
        status.mapping = frozenset(container.id for container in containers if container.maps)
        pods = {*existing_pods, *(container.ref.pod for container in containers)}
        status.inexact = _of_pods(status.inexact, pods)
        status.denials = _of_pods(status.denials, pods)
        kept = {uid: _of_pods(counts, pods) for uid, counts in status.group_denials.items()}
        status.group_denials = {uid: counts for uid, counts in kept.items() if counts}
        self._changed = True

    def set_fingerprints(self, fingerprints: dict[str, str]) -> None:
        """Set the policy fingerprints of gated pods.

        The next flush writes them, because the agent waits for them.
        """
        if fingerprints != self._status.fingerprints:
            self._status.fingerprints = fingerprints
            self._changed, self._due = True, float("-inf")

    def finish_recovery(self) -> None:
        """Mark as lost all containers of an earlier gate without a listener now."""
        status = self._status
        newly = self._earlier.keys() - status.containers.keys()
        status.lost = frozenset([*sorted(newly), *sorted(status.lost - newly)][:_LOST])
        self._earlier = {}
        self._changed = True

    def mark_inexact(self, pod: str, reason: str) -> None:
        """Mark a pod as inexact, and write a new reason at once.

        Raises OSError; the reason then counts as not written.
        """
        inexact = self._status.inexact
        reasons = inexact.get(pod, ())
        if reason in reasons:
            return
        inexact[pod] = (*reasons, reason)
        try:
            self._write()
        except OSError:
            inexact[pod] = reasons
            raise

    def record_denial(self, denial: Denial) -> None:
        """Count and list a denied call."""
        status = self._status
        _count(status.denials, denial.ref.pod, denial.limit.uid if denial.limit else "")
        status.number += 1
        status.recent = (*status.recent, _wire(denial, status.number))[-LISTED:]
        self._changed = True

    def record_group_denial(self, group: str, pod: str) -> None:
        """Count a mapping of a pod, denied by a group (its UID)."""
        _count(self._status.group_denials, group, pod)
        self._changed = True

    def flush(self, now: float) -> None:
        """Write changes, or renew the time of the file, if due."""
        if self._changed and now >= self._due:
            self._due = now + BETWEEN_WRITES_SECONDS
            try:
                self._write()
            except OSError as error:
                _log.error("%s cannot be written, trying again: %s", self._path, error)
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
        if not self._status.containers and not self._status.lost:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._status.failures = dict(self._failures)
        write_atomically(self._path, self._status.dump())
        self._written_failures = self._status.failures
        self._written = self._file_identity()
        self._changed = False

    def _file_identity(self) -> tuple[int, int] | None:
        """Return which file exists. The gate replaces a file of another writer."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_size


def _of_pods(by_pod: Mapping[str, _Value], pods: Collection[str]) -> dict[str, _Value]:
    return {pod: value for pod, value in by_pod.items() if pod in pods}


def _count(counts: dict[str, dict[str, int]], outer: str, inner: str) -> None:
    by_inner = counts.setdefault(outer, {})
    by_inner[inner] = by_inner.get(inner, 0) + 1


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
