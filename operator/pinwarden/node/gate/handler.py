"""Decides each notification: continue the call, make it fail, or try again later.

A notification waits for

- the configuration to list the pod, once per pod; after that `unknownPods` applies,
- the agent to raise the rlimits of a pod with a grant, once per listener, because the kernel's
  limit is lower until then,
- calls in flight, if they may still add bytes, or if the pod has too many of them,
- a read of the caller's memory.

The groups of shared memory (`borrow_gate`) decide a mapping first, then the limits on pinned bytes.

Every wait ends. A call with an unknown amount then fails and is never allowed (P1). If the pod is
inexact after a call (`pin_requests`), the call is allowed unless a limit requires the level Deny.
The call must fit in both cases.
"""

import errno
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.common.guard import Guard
from pinwarden.node.gate import amounts, call_names, map_requests, pin_requests
from pinwarden.node.gate.async_reads import AsyncRead, ReadPool
from pinwarden.node.gate.borrow_gate import BorrowGate, Ranges
from pinwarden.node.gate.budgets import BudgetKey, Budgets, Fit
from pinwarden.node.gate.caller import SyscallExit
from pinwarden.node.gate.container import ContainerRef
from pinwarden.node.gate.decision import Allow, Decision, Fail, Retry
from pinwarden.node.gate.journal import Journal
from pinwarden.node.gate.pending import (
    UNLISTED_SECONDS,
    ContainerListener,
    PendingNotification,
    WaitReason,
)
from pinwarden.node.gate.pin_requests import PinRequest
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.gate.publisher import Denial, GatePublisher
from pinwarden.node.linux.procfs import address_space, command, soft_memlock
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.shm.objects import ObjectSet

MAX_IN_FLIGHT = 64
_POLL_SECONDS = 0.01
_MOST = 2**62
_CHANGEABLE = "a call at the limit depends on calls in flight that do not return"
_log = logging.getLogger(__name__)


class NotificationHandler:
    """Decides and answers notifications, and tracks the continued calls.

    Times are monotonic, in seconds. `guard` knows the kind `call`.
    """

    def __init__(
        self,
        journal: Journal,
        pods: PodLimits,
        proc_root: Path,
        publisher: GatePublisher,
        guard: Guard,
    ) -> None:
        self._guard = guard
        self._journal = journal
        self._pods = pods
        self._proc_root = proc_root
        self._publisher = publisher
        self._budgets = Budgets()
        self._borrow_gate = BorrowGate(proc_root, pods)
        self._read_pool = ReadPool("reader")
        self._exits: dict[int, tuple[int, SyscallExit]] = {}
        self._unlisted_deadlines: dict[str, float] = {}

    def configure(self, groups: Iterable[NodeGroup] | None = None) -> None:
        """Apply changed limits or containers, and changed groups unless None."""
        self._budgets.configure(self._pods.budget_keys())
        if groups is not None:
            self._borrow_gate.configure(groups)

    def set_objects(self, objects: Mapping[str, ObjectSet]) -> None:
        """Set the objects of each group of shared memory, by the group's UID."""
        self._borrow_gate.set_objects(objects)

    def receive(
        self, slot: int, notification: Notification, origin: ContainerListener, now: float
    ) -> PendingNotification:
        """Return a new pending notification. The previous call of its thread has returned."""
        self.end(notification.tid)
        read = AsyncRead[int](self._read_pool, origin.ref.pod)
        return PendingNotification(slot, notification, origin, now, read)

    def receive_again(
        self, pending: PendingNotification, slot: int, notification: Notification
    ) -> None:
        """Replace a pending notification after a signal interrupted its thread.

        The thread makes the same call again, or another call.
        """
        self.end(notification.tid)
        self._journal.free(pending.slot)
        before = pending.notification
        if (notification.number, notification.arguments) != (before.number, before.arguments):
            pending.async_read = AsyncRead(self._read_pool, pending.pod)
            pending.borrow_check = None
        pending.slot, pending.notification = slot, notification

    def track(
        self,
        slot: int,
        notification: Notification,
        ref: ContainerRef,
        amount: int,
        ranges: Ranges = None,
    ) -> None:
        """Track a call of this gate or its predecessor.

        The call pins at most `amount` bytes and maps `ranges`; None stands for any ranges if the
        call maps an object.
        """
        if amount:
            self._budgets.track(notification.tid, ref, amount)
        if ranges is None and map_requests.read(notification):
            self._borrow_gate.track(notification.tid, ref.pod, None)
        elif ranges:
            self._borrow_gate.track(notification.tid, ref.pod, ranges)
        self._exits[notification.tid] = (slot, SyscallExit(self._proc_root, notification))

    def forget(self, pod: str) -> None:
        """Forget a deleted pod."""
        self._unlisted_deadlines.pop(pod, None)
        self._read_pool.forget(pod)
        self._borrow_gate.forget(pod)

    def close(self) -> None:
        """Stop the reads."""
        self._read_pool.close()
        self._borrow_gate.close()

    def end(self, tid: int, *, ran: bool = True) -> None:
        """Stop to track the last call of a thread. With `ran` false the call added nothing."""
        self._budgets.end(tid, ran=ran)
        self._borrow_gate.end(tid)
        if tracked := self._exits.pop(tid, None):
            self._journal.free(tracked[0])

    def end_returned(self, tids: Iterable[int] | None = None) -> None:
        """Stop to track the returned calls of these threads, or of all threads."""
        for tid in list(self._exits) if tids is None else tids:
            if self._exits[tid][1].returned():
                self.end(tid)

    def handle(self, pending: PendingNotification, now: float) -> float:
        """Answer a notification, or return the seconds until the next attempt.

        Return 0 once the notification needs no further attempt.
        """
        try:
            return self._answer(pending, self._decide(pending, now), now)
        except OSError as error:
            decision = self._decide_unreadable(pending, now, error)
        except Exception as error:  # noqa: BLE001 - a program caused it, and must not gain by it
            self._guard.failed("call", pending.pod, error)
            decision = self._decide_unreadable(pending, now, error)
        return self._answer(pending, decision, now)

    # -- answers ----------------------------------------------------------------------------------

    def _answer(self, pending: PendingNotification, decision: Decision, now: float) -> float:
        """Carry out a decision and return the seconds until the next attempt, 0 for none."""
        if isinstance(decision, Allow):
            self._continue(pending, min(decision.amount, _MOST))
        elif not pending.is_valid():
            self._journal.free(pending.slot)
        elif isinstance(decision, Retry):
            return decision.seconds
        else:
            self._record(pending, decision, now)
            pending.fail(decision.error)
            self._journal.free(pending.slot)
        return 0.0

    def _continue(self, pending: PendingNotification, amount: int) -> None:
        ranges = pending.borrow_check.ranges if pending.borrow_check else ()
        if not amount and ranges == ():
            pending.continue_()
            self._journal.free(pending.slot)
            return
        if not pending.is_valid():  # its thread id may be reused, by a thread with a call in flight
            self._journal.free(pending.slot)
            return
        self._journal.track(pending.slot, amount)
        self.track(pending.slot, pending.notification, pending.ref, amount, ranges)
        if not pending.continue_():
            self.end(pending.tid, ran=False)

    def _record(self, pending: PendingNotification, decision: Fail, now: float) -> None:
        if decision.cause is not None:
            _log.error(
                "a call of pod %s is denied because its bytes cannot be counted: %s",
                pending.pod,
                decision.cause,
            )
        denial = decision.denial
        if isinstance(denial, Denial):
            self._publisher.record_denial(denial)
        elif denial is not None:
            self._borrow_gate.log(denial, pending.notification, pending.pod, now)
            if denial.group is not None:
                self._publisher.record_group_denial(denial.group.uid, pending.pod)

    # -- decisions --------------------------------------------------------------------------------

    def _decide(self, pending: PendingNotification, now: float) -> Decision:
        """Return the decision. Raises OSError if data for it cannot be read, or not yet."""
        notification, ref = pending.notification, pending.ref
        try:
            request = pin_requests.read(notification)
        except KeyError:
            _log.error(
                "system call %d of architecture %#x is not gated, and fails with ENOSYS",
                notification.number,
                notification.arch,
            )
            return Fail(errno.ENOSYS)
        if (decision := self._decide_borrow(pending, now)) is not None:
            return decision
        if request is None:
            return Allow()
        if self._waits_for_listing(pending, now):
            return Retry(_POLL_SECONDS)
        if request.inexact and (failure := self._deny_inexact(pending, request, request.inexact)):
            return failure
        if not self._budgets.is_limited(ref):
            return Allow()
        if self._budgets.count_in_flight(ref) >= MAX_IN_FLIGHT:
            self.end_returned(self._budgets.in_flight(ref))
            if self._budgets.count_in_flight(ref) >= MAX_IN_FLIGHT:
                raise amounts.NotYetError(f"{MAX_IN_FLIGHT} calls in flight do not return")
        most = amounts.maximum(self._proc_root, pending, request)
        if self._waits_for_rlimit(pending, most, now):
            return Retry(_POLL_SECONDS)
        if self._budgets.fit(ref, most, now)[0] is Fit.FITS:
            return Allow(most)
        return self._decide_exactly(pending, request, most, now)

    def _decide_borrow(self, pending: PendingNotification, now: float) -> Decision | None:
        """Return the decision of the groups of shared memory, or None if no group objects."""
        if pending.borrow_check is None:
            pending.borrow_check = self._borrow_gate.begin(pending.notification, pending.pod)
        check = pending.borrow_check
        if check is None or self._borrow_gate.is_settled(check):
            return None
        denial = self._borrow_gate.decide(check, pending.pod, self.end_returned)
        if denial is not None:
            if denial.not_member and self._waits_for_listing(pending, now):
                return Retry(_POLL_SECONDS)
            if not denial.final and not pending.expired(WaitReason.BORROW, now):
                return Retry(pending.next_retry())
            if not denial.allowed:
                return Fail(denial.error, denial)
            self._borrow_gate.log(denial, pending.notification, pending.pod, now)
            self._borrow_gate.settle(check)
        pending.deadlines.clear()
        return None

    def _decide_exactly(
        self, pending: PendingNotification, request: PinRequest, most: int, now: float
    ) -> Decision:
        """Return the decision by the kernel's counters at this moment. Raises OSError."""
        ref = pending.ref
        self.end_returned(self._budgets.in_flight(ref))
        self._budgets.update(self._pods.sample(ref), now)
        space = address_space(self._proc_root, pending.tid)
        if space is None:
            raise ProcessLookupError(f"thread {pending.tid} has no address space")
        if self._pods.has_deep_stack(ref.pod):
            self._publisher.mark_inexact(
                ref.pod, "a stack grew below the addresses that are gated as stacks"
            )
        if not self._pods.contains(ref.pod, space.pid):
            self._publisher.mark_inexact(ref.pod, "a process of the pod is in another cgroup")
        amount = amounts.exact(self._proc_root, pending, request, most, space)
        fit, key = self._budgets.fit(ref, amount, now)
        if fit is not Fit.FITS:
            self._budgets.update(self._pods.totals(ref, distinct=True), now)
            fit, key = self._budgets.fit(ref, amount, now)
        depends = fit is Fit.FITS and self._depends_on_calls_in_flight(ref, amount, most, now)
        if fit is Fit.MAYBE or depends:
            if not pending.expired(WaitReason.AMOUNT, now):
                return Retry(pending.next_retry())
            if depends and (failure := self._deny_inexact(pending, request, _CHANGEABLE)):
                return failure
        if fit is Fit.FITS:
            return Allow(most)
        limit = self._pods.limit(key) if key else None
        error = request.refusal if limit is None or limit.limit else errno.EPERM
        return Fail(error, self._denial(pending, request, amount, key))

    def _decide_unreadable(
        self, pending: PendingNotification, now: float, error: Exception
    ) -> Decision:
        """Return the decision if data for it cannot be read: retry, and fail in the end."""
        if not pending.expired(WaitReason.AMOUNT, now):
            return Retry(pending.next_retry())
        request = pin_requests.read(pending.notification)
        if request is None:
            return Fail(errno.ENOMEM, cause=error)
        message = f"the pod's locked and pinned bytes cannot be counted: {error}"
        denial = self._denial(pending, request, request.most, None, message)
        return Fail(request.refusal, denial, error)

    def _deny_inexact(
        self, pending: PendingNotification, request: PinRequest, reason: str
    ) -> Fail | None:
        """Return a failure if a limit requires Deny, else mark the pod as inexact. Raises OSError.

        The mark is written before the call is continued (H1).
        """
        key = self._pods.deny_limit(pending.ref)
        if key is None:
            self._publisher.mark_inexact(pending.pod, reason)
            return None
        message = f"minimumLevel is Deny; {reason}"
        return Fail(request.refusal, self._denial(pending, request, request.most, key, message))

    def _depends_on_calls_in_flight(
        self, ref: ContainerRef, amount: int, most: int, now: float
    ) -> bool:
        """Return whether calls in flight could make a fitting call exceed a limit.

        Later calls wait for this call once it is continued. Ungated calls can change its range too,
        but then the range needs no more bytes. The exception is a call to move locked memory away,
        and then the pod is inexact (`pin_requests`).
        """
        if amount == most or not self._budgets.in_flight(ref):
            return False
        return self._budgets.fit(ref, most, now)[0] is not Fit.FITS

    def _waits_for_listing(self, pending: PendingNotification, now: float) -> bool:
        """Return whether to wait until the configuration lists the pod."""
        if self._pods.is_listed(pending.pod):
            return False
        deadline = self._unlisted_deadlines.setdefault(pending.pod, now + UNLISTED_SECONDS)
        if now >= deadline:
            return False
        pending.deadlines.clear()
        return True

    def _waits_for_rlimit(self, pending: PendingNotification, most: int, now: float) -> bool:
        """Return whether to wait for the agent to raise the soft rlimit before the call."""
        if pending.origin.raised:
            return False
        soft = soft_memlock(self._proc_root, pending.tid)
        if soft is not None and soft < self._pods.rlimit_grant(pending.pod):
            space = address_space(self._proc_root, pending.tid)
            if space is None or max(space.locked, space.pinned) + most <= soft:
                return False
            if not pending.expired(WaitReason.RLIMIT, now):
                return True
        pending.origin.raised = True
        pending.deadlines.clear()
        return False

    def _denial(
        self,
        pending: PendingNotification,
        request: PinRequest,
        amount: int | None,
        key: BudgetKey | None,
        message: str = "",
    ) -> Denial:
        return Denial(
            ref=pending.ref,
            tid=pending.tid,
            process=command(self._proc_root, pending.tid),
            source=request.source,
            asked=amount,
            used=self._budgets.use(key) if key else None,
            limit=self._pods.limit(key) if key else None,
            message=message,
            call=call_names.describe(pending.notification),
        )
