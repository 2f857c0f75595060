"""Decides when the agent's status is written to the API server, and writes it.

`WritePolicy` is pure: with thousands of nodes each write counts. A write is due at once for an
acknowledgement, a changed level, a new, gated or ended pod, another reason why a pod is not exact,
an overshoot, a denial, or an amount moved by more than 2 % of the pod's smallest limit. Two writes
are at least a second apart, and the later write includes all changes. Without a change, a write
follows after at most five minutes, a little earlier at random, so that agents do not stay in step.
A failed write stays due.
"""

import logging
import mmap
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from pinwarden.api.nodepinconfig import (
    GroupReport,
    NodePinConfigSpec,
    NodePinConfigStatus,
    PodReport,
)
from pinwarden.api.reasons import RLIMIT_GATE
from pinwarden.common.backoff import Backoff
from pinwarden.node.agent.api_client import ApiError, NodePinConfigClient
from pinwarden.node.agent.threads import Snapshot, SnapshotBoard

PAGE_BYTES = mmap.PAGESIZE
SHARE_OF_LIMIT = 0.02
BETWEEN_WRITES_SECONDS = 1.0
HEARTBEAT_SECONDS = (270.0, 300.0)
_log = logging.getLogger(__name__)


def smallest_limits(spec: NodePinConfigSpec) -> dict[str, int]:
    """Return the smallest limit of each governed pod and the capacity of each group, by uid."""
    capacities = {group.uid: group.capacity for group in spec.groups if group.capacity is not None}
    amounts = {limit.name: limit.limit for limit in spec.limits}
    known = {
        pod.uid: [amounts[name] for name in pod.limits if name in amounts] for pod in spec.pods
    }
    return {uid: min(limits) for uid, limits in known.items() if limits} | capacities


def worth_writing(
    written: NodePinConfigStatus, report: NodePinConfigStatus, limits: Mapping[str, int]
) -> bool:
    """Return whether `report` differs enough from `written`.

    `limits` is the result of `smallest_limits`.
    """
    if _statement(written) != _statement(report):
        return True
    before = {pod.uid: pod for pod in written.pods}
    if any(_moved(before[pod.uid], pod, limits.get(pod.uid, 0)) for pod in report.pods):
        return True
    pairs = zip(written.groups, report.groups, strict=True)
    return any(_group_moved(old, new, limits.get(new.uid, new.charge or 0)) for old, new in pairs)


def _statement(report: NodePinConfigStatus) -> tuple[object, ...]:
    """Return a report without its amounts and times."""
    return (
        report.observed_generation,
        report.agent_version,
        report.kernel_version,
        report.cgroup_version,
        report.truncated,
        {(limit.uid, limit.hash) for limit in report.applied_limits},
        report.unsupported_limits,
        report.sources,
        {
            (pod.uid, pod.level, pod.reason, *(container.name for container in pod.containers))
            for pod in report.pods
        },
        {pod.uid: pod.message for pod in report.pods if pod.reason == RLIMIT_GATE},
        {pod.uid: pod.denials for pod in report.pods},
        {(denial.number, denial.time) for denial in report.recent_denials},
        report.denials_dropped,
        report.gated_pods,
        {(overshoot.limit, overshoot.pod, overshoot.count) for overshoot in report.overshoots},
        [_group_statement(group) for group in report.groups],
    )


def _group_statement(group: GroupReport) -> tuple[object, ...]:
    """Return the report of a group without its amounts and times."""
    borrowers = {
        (borrow.pod, borrow.member, borrow.level, borrow.reason, borrow.denials)
        for borrow in group.borrowers
    }
    return (
        group.uid,
        group.hash,
        group.phase,
        group.reason,
        group.message,
        group.objects,
        group.truncated,
        group.omitted,
        frozenset(borrowers),
        frozenset(name for name, amount in _group_amounts(group).items() if amount is None),
    )


def _group_amounts(group: GroupReport) -> dict[str, int | None]:
    """Return the amounts of a group and its borrowers, in bytes."""
    own = {"charge": group.charge, "orphaned": group.orphaned, "dead": group.dead, "own": group.own}
    borrowed = {f"{borrow.pod} borrowed": borrow.borrowed for borrow in group.borrowers}
    mapped = {f"{borrow.pod} mapped": borrow.mapped for borrow in group.borrowers}
    return {**own, **borrowed, **mapped}


def _group_moved(before: GroupReport, now: GroupReport, capacity: int) -> bool:
    threshold = max(PAGE_BYTES, capacity * SHARE_OF_LIMIT)
    old, new = _group_amounts(before), _group_amounts(now)
    return any(abs((new[name] or 0) - (old.get(name) or 0)) > threshold for name in new)


def _moved(before: PodReport, now: PodReport, limit: int) -> bool:
    threshold = max(PAGE_BYTES, limit * SHARE_OF_LIMIT)
    return any(
        abs(new - old) > threshold for old, new in zip(_amounts(before), _amounts(now), strict=True)
    )


def _amounts(pod: PodReport) -> list[int]:
    containers = [
        amount for container in pod.containers for amount in (container.pinned, container.peak)
    ]
    return [pod.vm_lck, pod.vm_pin, pod.peak, *containers]


class WritePolicy:
    """Computes how long a write can wait since the last one. Times are seconds of one clock."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._written: tuple[str, NodePinConfigStatus] | None = None
        self._not_before = 0.0
        self._heartbeat = 0.0

    def wait(
        self, now: float, uid: str, report: NodePinConfigStatus, limits: Mapping[str, int]
    ) -> float:
        """Return the seconds until `report` is to be written to the object `uid`, 0 for now."""
        if (
            self._written is None
            or self._written[0] != uid
            or worth_writing(self._written[1], report, limits)
        ):
            return max(0.0, self._not_before - now)
        return max(0.0, max(self._heartbeat, self._not_before) - now)

    def written(self, now: float, uid: str, report: NodePinConfigStatus) -> None:
        """Record that the object `uid` has this report."""
        self._written = (uid, report)
        self._not_before = now + BETWEEN_WRITES_SECONDS
        self._heartbeat = now + self._uniform(*HEARTBEAT_SECONDS)

    def failed(self, now: float, delay: float) -> None:
        """Record a failed write. The next try follows after at least `delay` seconds."""
        self._not_before = now + delay


class StatusWriter:
    """Writes snapshots to the NodePinConfig of the node while it exists.

    `failed` and `succeeded` count.
    """

    def __init__(
        self,
        client: NodePinConfigClient,
        board: SnapshotBoard,
        *,
        failed: Callable[[], None],
        succeeded: Callable[[], None],
    ) -> None:
        self._client = client
        self._board = board
        self._failed = failed
        self._succeeded = succeeded
        self._policy = WritePolicy()
        self._backoff = Backoff(first=0.2, cap=5.0, asked_cap=5.0)
        self._outage = False
        self._target: str | None = None
        self._announced = threading.Event()

    def announce(self, uid: str | None) -> None:
        """Set the uid of the node's object, None without an object.

        Called from the watcher's thread.
        """
        self._target = uid
        if uid is None:
            self._announced.clear()
        else:
            self._announced.set()

    def run(self) -> NoReturn:
        """Write for ever. A failure of the API server is tried again."""
        snapshot: Snapshot | None = None
        wait: float | None = None
        while True:
            self._announced.wait()
            snapshot = self._board.wait_for_newer(snapshot, wait)
            wait = self._step(snapshot) if snapshot else None

    def _step(self, snapshot: Snapshot) -> float:
        """Write the snapshot if that is due.

        Return the seconds until the next check without a newer one.
        """
        uid = self._target
        nothing_known = snapshot.configuration is None and snapshot.problem is None
        if uid is None or nothing_known:
            return BETWEEN_WRITES_SECONDS
        report = report_on(snapshot, uid)
        limits = smallest_limits(snapshot.configuration.spec) if snapshot.configuration else {}
        wait = self._policy.wait(time.monotonic(), uid, report, limits)
        if wait == 0:
            self._write(uid, report)
        return max(wait, 0.05)

    def _write(self, uid: str, report: NodePinConfigStatus) -> None:
        try:
            self._client.replace_status(uid, report.to_wire())
        except ApiError as error:
            self._failed()
            if not self._outage:
                _log.warning("cannot write the status, trying again: %s", error)
            self._outage = True
            self._policy.failed(time.monotonic(), self._backoff.failed(error.retry_after))
            return
        self._succeeded()
        self._outage = False
        self._backoff.succeeded()
        self._policy.written(time.monotonic(), uid, report)


def report_on(snapshot: Snapshot, uid: str) -> NodePinConfigStatus:
    """Return the report for the object `uid`, without the generation of another object."""
    report = snapshot.report
    if snapshot.configuration is None or snapshot.configuration.uid != uid:
        report = report.model_copy(update={"observed_generation": None})
    return report
