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
from pinwarden.node.gate.borrow_rules import CALLS_UNDER_WAY, Groups, Range, Refusal
from pinwarden.node.gate.caller import Aside, Readers, command
from pinwarden.node.gate.map_requests import Maps
from pinwarden.node.gate.map_targets import Target, mapped, target
from pinwarden.node.gate.pod_limits import Pods
from pinwarden.node.linux.seccomp_notify import Call
from pinwarden.node.shm.objects import Extent

UNDER_WAY = 64
READERS, READERS_OF_A_POD = 32, 8
BETWEEN_LINES_SECONDS = 1.0
Ranges = tuple[Range, ...] | None
"""What a call maps; None for what is not known, which stands for anything."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Borrowing:
    """A call that maps something, until it is answered.

    `before` is what was under way when a look began, while that is made. `ranges` are what is to be followed once the call is let through,
    None for what is not known. `settled` are the groups that have nothing against it.
    """

    call: Call
    maps: Maps
    seeking: Aside[Target]
    looking: Aside[tuple[Groups, list[Range]]]
    found: Target | None = None
    before: tuple[Ranges, ...] | None = None
    ranges: Ranges = ()
    settled: Groups | None = None


@dataclass(slots=True)
class _Lines:
    """What is logged of one pod's refusals by one group: not more than a line each second."""

    due: float = float("-inf")
    left_out: int = 0


class Lending:
    """Decides, and follows what was let through. Times are monotonic, in seconds."""

    def __init__(self, proc_root: Path, pods: Pods) -> None:
        self._proc_root = proc_root
        self._pods = pods
        self._readers = Readers(READERS, READERS_OF_A_POD, "lending")
        self._configured: tuple[NodeGroup, ...] = ()
        self._extents: Mapping[str, Extent] = {}
        self._groups = Groups()
        self._under_way: dict[str, dict[int, Ranges]] = {}
        self._pod_of: dict[int, str] = {}
        self._lines: dict[tuple[str, str], _Lines] = {}

    def configure(self, groups: Iterable[NodeGroup]) -> None:
        """Takes the groups of a configuration."""
        self._configured = tuple(groups)
        self._groups = Groups(self._configured, self._extents)

    def learn(self, extents: Mapping[str, Extent]) -> None:
        """Takes what belongs to each group, by its uid."""
        if extents != self._extents:
            self._extents = extents
            self._groups = Groups(self._configured, extents)

    def begin(self, call: Call, pod: str) -> Borrowing | None:
        """What there is to decide of a call of this pod; None when there is nothing."""
        maps = map_requests.read(call) if self._groups else None
        return Borrowing(call, maps, Aside(self._readers, pod), Aside(self._readers, pod)) if maps else None

    def decide(
        self, one: Borrowing, pod: str, end_those_counted: Callable[[Iterable[int]], None]
    ) -> Refusal | None:
        """What any group has against a call of this pod. `end_those_counted` looks which of these threads' calls are over."""
        try:
            refusal = self._decide(one, pod, end_those_counted)
        except OSError as error:
            refusal = self._untold(one, str(error))
            refusal = replace(refusal, final=refusal.group is None)
        if refusal is None:
            self.settle(one)
        return refusal

    def settle(self, one: Borrowing) -> None:
        """No group that there is has anything against it."""
        one.settled = self._groups

    def settled(self, one: Borrowing) -> bool:
        """Whether that is so."""
        return one.settled is self._groups

    def let_through(self, tid: int, pod: str, ranges: Ranges) -> None:
        """The call of this thread is let through, to map these ranges; None for what is not known."""
        self.end(tid)
        self._pod_of[tid] = pod
        self._under_way.setdefault(pod, {})[tid] = ranges

    def end(self, tid: int) -> None:
        """The call of this thread that was let through is over, if there is one."""
        pod = self._pod_of.pop(tid, None)
        if pod is not None:
            del self._under_way[pod][tid]
            if not self._under_way[pod]:
                del self._under_way[pod]

    def forget(self, pod: str) -> None:
        """The pod is gone."""
        self._readers.forget(pod)
        for key in [key for key in self._lines if key[1] == pod]:
            del self._lines[key]

    def tell(self, refusal: Refusal, call: Call, pod: str, now: float) -> None:
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
            refusal.why,
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
        self, one: Borrowing, pod: str, end_those_counted: Callable[[Iterable[int]], None]
    ) -> Refusal | None:
        groups, root, tid = self._groups, self._proc_root, one.call.tid
        if one.found is None:
            one.found = one.seeking.get(lambda: target(root, tid, one.maps, groups))
            if one.found is None:
                return self._untold(one, "what it is for is still being read")
        wanted = one.found.range
        having = groups.having(wanted.object) if wanted else ()
        if wanted is None or not having:
            return None
        if refusal := next(filter(None, (groups.stranger(group, pod) for group in having)), None):
            return refusal
        asking = [group for group in having if groups.asks(group, pod)]
        if not asking:
            return None
        if one.before is None:
            end_those_counted(list(self._under_way.get(pod, ())))
            under_way = self._under_way.get(pod, {})
            if len(under_way) >= UNDER_WAY:
                return self._untold(one, CALLS_UNDER_WAY)
            one.before = tuple(under_way.values())
        folders = self._pods.folders(pod)
        looked = one.looking.get(lambda: (groups, mapped(root, folders, groups.wanted)))
        if looked is None:
            return self._untold(one, "what the pod has mapped is still being read")
        before, one.before = one.before, None
        looked_for, has = looked
        if looked_for is not groups:
            return self._untold(one, "the groups have changed")
        coming = None if None in before else [each for some in before if some for each in some]
        refusals = [refusal for group in asking if (refusal := groups.judge(group, pod, wanted, has, coming))]
        if refusals:
            return min(refusals, key=lambda refusal: not refusal.final)
        if any(groups.limit(group, pod) is not None for group in asking):
            one.ranges = (wanted,)
        return None

    def _untold(self, one: Borrowing, why: str) -> Refusal:
        """What it takes cannot be read, or not yet."""
        wanted = one.found.range if one.found else None
        group = next(iter(self._groups.having(wanted.object)), None) if wanted else None
        return Refusal(group, errno.ENOMEM, why, final=False)
