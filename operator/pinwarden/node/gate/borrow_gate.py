"""The borrow gate: decides calls that map objects of groups, by what the pod has mapped now and by calls that are under way.

A call that was let through is *under way* until its thread is seen to have left it (`threads.Leaving`): what it maps may show in /proc or
may not yet, so it counts beside what shows, each byte once. A call that fits but for those waits for their end, for a while.

The object of a call is looked for aside (`targets`). Where that cannot be told, the call is let through: most mappings are of no group, and
the accountant sees later what was mapped. Once it is known to be a group's, what cannot be told in time is refused.

A node without groups that refuse costs nothing here: no file of a process is read.
"""

import errno
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.node.gate import map_requests
from pinwarden.node.gate.async_reads import AsyncRead, ReadPool
from pinwarden.node.gate.borrow_rules import CALLS_IN_FLIGHT, BorrowDenial, BorrowRules, ObjectRange
from pinwarden.node.gate.map_requests import MapRequest
from pinwarden.node.gate.map_targets import MapTarget, mapped, target
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.linux.procfs import command
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.shm.objects import ObjectSet

MAX_IN_FLIGHT = 64
READERS, READERS_OF_A_POD = 32, 8
BETWEEN_LINES_SECONDS = 1.0
Ranges = tuple[ObjectRange, ...] | None
"""What a call maps; None for what is not known, which stands for anything."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class BorrowCheck:
    """A call that maps something, until it is answered.

    `before` is what was under way when a look began, while that is made. `ranges` are what is to be followed once the call is let through,
    None for what is not known. `settled` are the groups that have nothing against it.
    """

    call: Notification
    request: MapRequest
    seeking: AsyncRead[MapTarget]
    looking: AsyncRead[tuple[BorrowRules, list[ObjectRange]]]
    found: MapTarget | None = None
    before: tuple[Ranges, ...] | None = None
    ranges: Ranges = ()
    is_settled: BorrowRules | None = None


@dataclass(slots=True)
class _Lines:
    """What is logged of one pod's refusals by one group: not more than a line each second."""

    due: float = float("-inf")
    left_out: int = 0


class BorrowGate:
    """Decides, and follows what was let through. Times are monotonic, in seconds."""

    def __init__(self, proc_root: Path, pods: PodLimits) -> None:
        self._proc_root = proc_root
        self._pods = pods
        self._readers = ReadPool(READERS, READERS_OF_A_POD, "lending")
        self._configured: tuple[NodeGroup, ...] = ()
        self._extents: Mapping[str, ObjectSet] = {}
        self._groups = BorrowRules()
        self._in_flight: dict[str, dict[int, Ranges]] = {}
        self._pod_of: dict[int, str] = {}
        self._lines: dict[tuple[str, str], _Lines] = {}

    def configure(self, groups: Iterable[NodeGroup]) -> None:
        """Takes the groups of a configuration."""
        self._configured = tuple(groups)
        self._groups = BorrowRules(self._configured, self._extents)

    def set_objects(self, extents: Mapping[str, ObjectSet]) -> None:
        """Takes what belongs to each group, by its uid."""
        if extents != self._extents:
            self._extents = extents
            self._groups = BorrowRules(self._configured, extents)

    def begin(self, call: Notification, pod: str) -> BorrowCheck | None:
        """What there is to decide of a call of this pod; None when there is nothing."""
        request = map_requests.read(call) if self._groups else None
        return (
            BorrowCheck(call, request, AsyncRead(self._readers, pod), AsyncRead(self._readers, pod))
            if request
            else None
        )

    def decide(
        self, one: BorrowCheck, pod: str, end_returned: Callable[[Iterable[int]], None]
    ) -> BorrowDenial | None:
        """What any group has against a call of this pod. `end_those_counted` looks which of these threads' calls are over."""
        try:
            refusal = self._decide(one, pod, end_returned)
        except OSError as error:
            refusal = self._untold(one, str(error))
            refusal = replace(refusal, final=refusal.group is None)
        if refusal is None:
            self.settle(one)
        return refusal

    def settle(self, one: BorrowCheck) -> None:
        """No group that there is has anything against it."""
        one.is_settled = self._groups

    def is_settled(self, one: BorrowCheck) -> bool:
        """Whether that is so."""
        return one.is_settled is self._groups

    def track(self, tid: int, pod: str, ranges: Ranges) -> None:
        """The call of this thread is let through, to map these ranges; None for what is not known."""
        self.end(tid)
        self._pod_of[tid] = pod
        self._in_flight.setdefault(pod, {})[tid] = ranges

    def end(self, tid: int) -> None:
        """The call of this thread that was let through is over, if there is one."""
        pod = self._pod_of.pop(tid, None)
        if pod is not None:
            del self._in_flight[pod][tid]
            if not self._in_flight[pod]:
                del self._in_flight[pod]

    def forget(self, pod: str) -> None:
        """The pod is gone."""
        self._readers.forget(pod)
        for key in [key for key in self._lines if key[1] == pod]:
            del self._lines[key]

    def log(self, refusal: BorrowDenial, call: Notification, pod: str, now: float) -> None:
        """Logs why a call is not let through, or why although nobody knows what it maps; not when one like it was logged just now."""
        name = refusal.group.name if refusal.group else ""
        lines = self._lines.setdefault((name, pod), _Lines())
        if now < lines.due:
            lines.left_out += 1
            return
        _log.warning(
            "%s: pod %s, process %r (%d): %s; asked %s, mapped %s, limit %s bytes; %d more were left out",
            f"a mapping of group {name} is refused" if name else "what a mapping is of is not known",
            pod,
            command(self._proc_root, call.tid),
            call.tid,
            refusal.reason,
            refusal.asked,
            refusal.mapped,
            refusal.limit,
            lines.left_out,
        )
        lines.due, lines.left_out = now + BETWEEN_LINES_SECONDS, 0

    def close(self) -> None:
        """Ends the readers that can be ended."""
        self._readers.close()

    def _decide(
        self, one: BorrowCheck, pod: str, end_returned: Callable[[Iterable[int]], None]
    ) -> BorrowDenial | None:
        groups, root, tid = self._groups, self._proc_root, one.call.tid
        if one.found is None:
            one.found = one.seeking.get(lambda: target(root, tid, one.request, groups))
            if one.found is None:
                return self._untold(one, "what it is for is still being read")
        wanted = one.found.range
        having = groups.groups_of(wanted.object) if wanted else ()
        if wanted is None or not having:
            return None
        if refusal := next(filter(None, (groups.check_member(group, pod) for group in having)), None):
            return refusal
        asking = [group for group in having if groups.depends_on_mapped(group, pod)]
        if not asking:
            return None
        if one.before is None:
            end_returned(list(self._in_flight.get(pod, ())))
            in_flight = self._in_flight.get(pod, {})
            if len(in_flight) >= MAX_IN_FLIGHT:
                return self._untold(one, CALLS_IN_FLIGHT)
            one.before = tuple(in_flight.values())
        folders = self._pods.cgroup_paths(pod)
        looked = one.looking.get(lambda: (groups, mapped(root, folders, groups.wanted)))
        if looked is None:
            return self._untold(one, "what the pod has mapped is still being read")
        before, one.before = one.before, None
        looked_for, has = looked
        if looked_for is not groups:
            return self._untold(one, "the groups have changed")
        coming = None if None in before else [each for some in before if some for each in some]
        refusals = [refusal for group in asking if (refusal := groups.check(group, pod, wanted, has, coming))]
        if refusals:
            return min(refusals, key=lambda refusal: not refusal.final)
        if any(groups.limit(group, pod) is not None for group in asking):
            one.ranges = (wanted,)
        return None

    def _untold(self, one: BorrowCheck, reason: str) -> BorrowDenial:
        """What it takes cannot be read, or not yet."""
        wanted = one.found.range if one.found else None
        group = next(iter(self._groups.groups_of(wanted.object)), None) if wanted else None
        return BorrowDenial(group, errno.ENOMEM, reason, final=False)
