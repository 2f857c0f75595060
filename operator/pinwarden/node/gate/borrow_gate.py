"""Decides mappings of group objects, by the pod's mappings and its calls in flight.

A continued call is *in flight* until it has returned (`caller.SyscallExit`). Its range may or may
not show in `/proc`, so the range is added to the mapped ranges, each byte once. If a call fits only
without the calls in flight, the call waits for them for a while.

The object of a call is read in a thread (`map_targets`). If a member's read does not end in time,
the call is denied: the member itself can delay the read, which waits for the lock of its address
space. The call is also denied if a member's mapping at an address cannot be read. Other calls with
an unknown object are allowed: most mappings belong to no group, and the accountant sees each
mapping later. If the object belongs to a group, and the rest cannot be read in time, the call is
denied.

On a node whose groups deny nothing, this gate reads no file of any process.
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
from pinwarden.node.gate.map_requests import MapRequest, NamedBy
from pinwarden.node.gate.map_targets import MapTarget, mapped, target
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.linux.procfs import command
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.shm.objects import ObjectSet

MAX_IN_FLIGHT = 64
BETWEEN_LINES_SECONDS = 1.0
Ranges = tuple[ObjectRange, ...] | None
"""The ranges that a call maps. None stands for any ranges."""
EndReturned = Callable[[Iterable[int]], None]
"""Stops to track those calls of these threads that have returned."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class BorrowCheck:
    """The state of a decision about the mapping of an object.

    `in_flight` are the pod's calls in flight when the current read of its mappings began, None
    before the read. `ranges` are the ranges to track once the call is continued. `settled_by` are
    the rules by which the call is allowed.
    """

    notification: Notification
    request: MapRequest
    target_read: AsyncRead[MapTarget]
    mapped_read: AsyncRead[tuple[BorrowRules, list[ObjectRange]]]
    target: MapTarget | None = None
    in_flight: tuple[Ranges, ...] | None = None
    ranges: Ranges = ()
    settled_by: BorrowRules | None = None


@dataclass(slots=True)
class _LogRate:
    """Limits the log to one line a second for the denials of a pod by a group."""

    due: float = float("-inf")
    left_out: int = 0


class BorrowGate:
    """Decides calls, and tracks continued calls. Times are monotonic, in seconds."""

    def __init__(self, proc_root: Path, pods: PodLimits) -> None:
        self._proc_root = proc_root
        self._pods = pods
        self._read_pool = ReadPool("borrow")
        self._groups: tuple[NodeGroup, ...] = ()
        self._objects: Mapping[str, ObjectSet] = {}
        self._rules = BorrowRules()
        self._in_flight: dict[str, dict[int, Ranges]] = {}
        self._pod_by_tid: dict[int, str] = {}
        self._log_rates: dict[tuple[str, str], _LogRate] = {}

    def configure(self, groups: Iterable[NodeGroup]) -> None:
        """Set the groups of a configuration."""
        self._groups = tuple(groups)
        self._rules = BorrowRules(self._groups, self._objects)

    def set_objects(self, objects: Mapping[str, ObjectSet]) -> None:
        """Set the objects of each group, by the group's UID."""
        if objects != self._objects:
            self._objects = objects
            self._rules = BorrowRules(self._groups, objects)

    def begin(self, notification: Notification, pod: str) -> BorrowCheck | None:
        """Return a new check, or None if no group can deny the call."""
        request = map_requests.read(notification) if self._rules else None
        if request is None:
            return None
        pool = self._read_pool
        return BorrowCheck(notification, request, AsyncRead(pool, pod), AsyncRead(pool, pod))

    def decide(
        self, check: BorrowCheck, pod: str, end_returned: EndReturned
    ) -> BorrowDenial | None:
        """Return a denial, or settle the check and return None."""
        try:
            denial = self._decide(check, pod, end_returned)
        except OSError as error:
            denial = self._unknown(check, pod, str(error))
            if check.target is None and check.request.by is not NamedBy.ADDRESS:
                denial = replace(denial, allowed=True)
            denial = replace(denial, final=denial.allowed)
        if denial is None:
            self.settle(check)
        return denial

    def settle(self, check: BorrowCheck) -> None:
        """Mark a call as allowed by the current rules."""
        check.settled_by = self._rules

    def is_settled(self, check: BorrowCheck) -> bool:
        """Return whether the current rules allow the call."""
        return check.settled_by is self._rules

    def track(self, tid: int, pod: str, ranges: Ranges) -> None:
        """Track a thread's continued call."""
        self.end(tid)
        self._pod_by_tid[tid] = pod
        self._in_flight.setdefault(pod, {})[tid] = ranges

    def end(self, tid: int) -> None:
        """Stop to track a thread's call, if there is one."""
        pod = self._pod_by_tid.pop(tid, None)
        if pod is not None:
            del self._in_flight[pod][tid]
            if not self._in_flight[pod]:
                del self._in_flight[pod]

    def forget(self, pod: str) -> None:
        """Forget a deleted pod."""
        self._read_pool.forget(pod)
        for key in [key for key in self._log_rates if key[1] == pod]:
            del self._log_rates[key]

    def log(self, denial: BorrowDenial, notification: Notification, pod: str, now: float) -> None:
        """Log why a call is denied, or is allowed although its object is unknown."""
        name = denial.group.name if denial.group else ""
        rate = self._log_rates.setdefault((name, pod), _LogRate())
        if now < rate.due:
            rate.left_out += 1
            return
        outcome = "allowed" if denial.allowed else "denied"
        _log.warning(
            "a mapping of %s is %s: pod %s, process %r (%d): %s; "
            "asked %s, mapped %s, limit %s bytes; %d more lines left out",
            f"group {name}" if name else "an unknown object",
            outcome,
            pod,
            command(self._proc_root, notification.tid),
            notification.tid,
            denial.reason,
            denial.asked,
            denial.mapped,
            denial.limit,
            rate.left_out,
        )
        rate.due, rate.left_out = now + BETWEEN_LINES_SECONDS, 0

    def close(self) -> None:
        """Stop the reads."""
        self._read_pool.close()

    def _decide(
        self, check: BorrowCheck, pod: str, end_returned: EndReturned
    ) -> BorrowDenial | None:
        rules, root, tid = self._rules, self._proc_root, check.notification.tid
        if check.target is None:
            check.target = check.target_read.get(lambda: target(root, tid, check.request, rules))
            if check.target is None:
                return self._unknown(check, pod, "its object is still being read")
        wanted = check.target.range
        groups = rules.groups_of(wanted.object) if wanted else ()
        if wanted is None or not groups:
            return None
        not_member = (rules.check_member(group, pod) for group in groups)
        if denial := next(filter(None, not_member), None):
            return denial
        deciding = [group for group in groups if rules.depends_on_mapped(group, pod)]
        if not deciding:
            return None
        if check.in_flight is None:
            end_returned(list(self._in_flight.get(pod, ())))
            in_flight = self._in_flight.get(pod, {})
            if len(in_flight) >= MAX_IN_FLIGHT:
                return self._unknown(check, pod, CALLS_IN_FLIGHT)
            check.in_flight = tuple(in_flight.values())
        paths = self._pods.cgroup_paths(pod)
        read = check.mapped_read.get(lambda: (rules, mapped(root, paths, rules.region_filter)))
        if read is None:
            return self._unknown(check, pod, "the pod's mappings are still being read")
        before, check.in_flight = check.in_flight, None
        rules_of_read, mapped_ranges = read
        if rules_of_read is not rules:
            return self._unknown(check, pod, "the groups have changed")
        pending = None
        if None not in before:
            pending = [item for ranges in before if ranges for item in ranges]
        checks = (rules.check(group, pod, wanted, mapped_ranges, pending) for group in deciding)
        if denials := [denial for denial in checks if denial]:
            return min(denials, key=lambda denial: not denial.final)
        if any(rules.limit(group, pod) is not None for group in deciding):
            check.ranges = (wanted,)
        return None

    def _unknown(self, check: BorrowCheck, pod: str, reason: str) -> BorrowDenial:
        """Return a denial for missing data."""
        wanted = check.target.range if check.target else None
        groups = self._rules.groups_of(wanted.object) if wanted else ()
        group = next(iter(groups), None)
        allowed = group is None and not self._rules.has_member(pod)
        return BorrowDenial(group, errno.ENOMEM, reason, final=False, allowed=allowed)
