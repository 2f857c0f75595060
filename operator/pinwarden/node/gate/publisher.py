"""The writer of `gate.json` (`state.gate_status`): whom the gate holds, whom not exactly, and what it refused.

The file lies in a tmpfs and is replaced as a whole. A new gate goes on from it: what was loosened stays so, counts go on, and a container
that an earlier gate held, and nobody has a descriptor of any more, is *lost*: its gated calls end with ENOSYS for as long as it runs, also
when an exec into it brings a descriptor for its own processes. What loosened a pod is forgotten with the pod: what it locked may outlive a
container, as a System V segment does.
What loosens a pod is written before the call that does it is let through (H1); the rest at most every `BETWEEN_WRITES_SECONDS`. The file's
time is renewed every `BEAT_SECONDS`: with an older one, no gate answers. A gate that is told to end, and holds nobody, takes the file away.
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
# what a DenialReport has room for
_POD, _NAME, _COMMAND, _MESSAGE, _CALL, _MOST = 1024, 63, 16, 256, 128, 2**62
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Denial:
    """A refused call: who asked for how many bytes, what was used, and the limit that said no, or else why, in words.

    `call` is its name with the flags that matter (`naming`).

    `tid` is the thread's number on the node. `asked` and `used` are None where that cannot be told.
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
    """The writing side. `now` is of a monotonic clock, in seconds."""

    def __init__(self, path: Path, failures: Mapping[str, int] | None = None) -> None:
        """Goes on from what an earlier gate left; `failures` is told as it is at each write. Raises OSError."""
        self._path = path
        self._failures = failures or {}
        told = load(path) or GateStatus()
        self._earlier = dict(told.containers)
        self._containers: dict[str, tuple[str, str, str]] = {}
        self._lost = set(told.lost)
        self._inexact = {pod: list(reasons) for pod, reasons in told.loosened.items()}
        self._denials = {pod: dict(counts) for pod, counts in told.denials.items()}
        self._recent = deque(told.recent, LISTED)
        self._number = told.number
        self._group_denials = {uid: dict(counts) for uid, counts in told.group_denials.items()}
        self._mapping: frozenset[str] = frozenset()
        self._held: Mapping[str, str] = {}
        self._told_failures: Mapping[str, int] = {}
        self._written: tuple[int, int] | None = None
        self._changed = True
        self._due = self._beat = float("-inf")

    def set_containers(
        self, containers: Iterable[GatedContainer], existing_pods: Collection[str] = ()
    ) -> None:
        """These containers have a listener, and no others; what is known of pods is kept for them, and for those that are `there`."""
        containers = tuple(containers)
        self._containers = {each.id: (*each.ref, each.sandbox) for each in containers}
        pods = {*existing_pods, *(pod for pod, _, _ in self._containers.values())}
        self._inexact = {pod: reasons for pod, reasons in self._inexact.items() if pod in pods}
        self._denials = {pod: counts for pod, counts in self._denials.items() if pod in pods}
        kept = {
            uid: {pod: count for pod, count in counts.items() if pod in pods}
            for uid, counts in self._group_denials.items()
        }
        self._group_denials = {uid: counts for uid, counts in kept.items() if counts}
        self._mapping = frozenset(each.id for each in containers if each.maps)
        self._changed = True

    def set_fingerprints(self, held: Mapping[str, str]) -> None:
        """By this the pods with a listener are held from now on; told without delay, since the agent waits for it."""
        if held != self._held:
            self._held, self._changed, self._due = held, True, float("-inf")

    def finish_recovery(self) -> None:
        """All listeners that there are were told of: what an earlier gate held besides is lost."""
        newly = self._earlier.keys() - self._containers.keys()
        self._lost = set([*sorted(newly), *sorted(self._lost - newly)][:_LOST])
        self._earlier.clear()
        self._changed = True

    def mark_inexact(self, pod: str, reason: str) -> None:
        """The pod is not held exactly from now on; written at once, where it is news. Raises OSError, and then it is news still."""
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
        """A call is refused."""
        uid = denial.limit.uid if denial.limit else ""
        counts = self._denials.setdefault(denial.ref.pod, {})
        counts[uid] = counts.get(uid, 0) + 1
        self._number += 1
        self._recent.append(_wire(denial, self._number))
        self._changed = True

    def record_group_denial(self, group: str, pod: str) -> None:
        """A mapping of an object of this group (its uid) is refused to the pod."""
        counts = self._group_denials.setdefault(group, {})
        counts[pod] = counts.get(pod, 0) + 1
        self._changed = True

    def flush(self, now: float) -> None:
        """Writes what changed, when that is due."""
        if self._changed and now >= self._due:
            self._due = now + BETWEEN_WRITES_SECONDS
            try:
                self._write()
            except OSError as error:
                _log.error("%s cannot be written: %s", self._path, error)
        elif now >= self._beat:
            self._beat = now + BEAT_SECONDS
            told = self._told_failures == dict(self._failures) and self._written == self._file_identity()
            self._changed = self._changed or not told
            with suppress(OSError):
                os.utime(self._path)

    def remove_if_unused(self) -> None:
        """The gate goes: where it holds and lost nothing, no file says any longer that there is one. Raises OSError."""
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
        self._told_failures = dict(self._failures)
        self._written = self._file_identity()
        self._changed = False

    def _file_identity(self) -> tuple[int, int] | None:
        """Which file is existing_pods: another one than was written last is somebody else's, and is replaced."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_size


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
