"""What a call is answered: let through, refused, or that it must wait.

It must wait

- for the constraints of a pod that the configuration does not list yet, once per pod; then `unknownPods` holds,
- for the agent, which raises the rlimits of a pod with a grant, once per listener: the kernel would refuse what fits,
- for earlier calls that may still add what this one needs, or that are as many as one pod may have under way,
- for what is read of its memory.

A call that maps something must be one that no group of shared memory has anything against (`lending`), before its pin is decided.

Each wait has an end. A call that cannot be counted after it is refused: what is not known is never let through (P1). A call that loosens
the pod (`calls`) is let through where it fits, unless a limit asks for Deny.
"""

import errno
import logging
import mmap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.common.guard import Guard
from pinwarden.node.gate import call_names, map_requests, pin_requests
from pinwarden.node.gate.async_reads import AsyncRead, ReadPool
from pinwarden.node.gate.borrow_gate import BorrowCheck, BorrowGate, Ranges
from pinwarden.node.gate.budgets import BudgetKey, Budgets, ContainerRef, Fit
from pinwarden.node.gate.caller import SyscallExit
from pinwarden.node.gate.journal import Journal
from pinwarden.node.gate.pending import ContainerListener, PendingNotification
from pinwarden.node.gate.pin_requests import Growth, PinRequest
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.gate.publisher import Denial, GatePublisher
from pinwarden.node.linux.procfs import (
    AddressSpace,
    address_space,
    command,
    locked_within,
    read_memory,
    soft_memlock,
)
from pinwarden.node.linux.seccomp_notify import Notification
from pinwarden.node.shm.objects import ObjectSet

UNLISTED_SECONDS = 5.0
RAISED_SECONDS = 5.0
RETURN_SECONDS = 2.0
MAX_IN_FLIGHT = 64
READERS, READERS_OF_A_POD = 64, 8
_LOOK_AGAIN_SECONDS = 0.01
_MOST = 2**62
_CHANGEABLE = "a call at the limit depends on others that do not end"
_log = logging.getLogger(__name__)


class _NotYetError(OSError):
    """What is needed is still being read."""


class NotificationHandler:
    """Decides, answers, and follows what it let through. `record` is told what others must know. Times are monotonic, in seconds."""

    def __init__(
        self, journal: Journal, pods: PodLimits, proc_root: Path, publisher: GatePublisher, guard: Guard
    ) -> None:
        """`guard` knows the kind `call`."""
        self._guard = guard
        self._journal = journal
        self._pods = pods
        self._proc_root = proc_root
        self._publisher = publisher
        self._budgets = Budgets()
        self._borrow_gate = BorrowGate(proc_root, pods)
        self._readers = ReadPool(READERS, READERS_OF_A_POD, "reader")
        self._exits: dict[int, tuple[int, SyscallExit]] = {}
        self._first_seen: dict[str, float] = {}

    def configure(self, groups: Iterable[NodeGroup] | None = None) -> None:
        """What the pods are held to has changed; the groups of shared memory too, where they are given."""
        self._budgets.configure(self._pods.budget_keys())
        if groups is not None:
            self._borrow_gate.configure(groups)

    def set_objects(self, extents: Mapping[str, ObjectSet]) -> None:
        """What belongs to each group of shared memory, by its uid, is now this."""
        self._borrow_gate.set_objects(extents)

    def receive(
        self, slot: int, call: Notification, origin: ContainerListener, now: float
    ) -> PendingNotification:
        """A call that was just received; what its thread called before is over."""
        self.end(call.tid)
        return PendingNotification(slot, call, origin, now, AsyncRead(self._readers, origin.ref.pod))

    def receive_again(self, pending: PendingNotification, slot: int, call: Notification) -> None:
        """A signal came, and the thread of a call that waits makes it again, or another one: that takes its place."""
        self.end(call.tid)
        self._journal.free(pending.slot)
        if call.arguments != pending.call.arguments or call.number != pending.call.number:
            pending.async_read = AsyncRead(self._readers, pending.origin.ref.pod)
            pending.borrow_check = None
        pending.slot, pending.call = slot, call

    def track(
        self, slot: int, call: Notification, ref: ContainerRef, amount: int, ranges: Ranges = None
    ) -> None:
        """A call of this place is let through, by this gate or by an earlier one: to pin at most so many bytes, and to map these ranges.

        None stands for any, of a call that maps something.
        """
        if amount:
            self._budgets.track(call.tid, ref, amount)
        if ranges is None and map_requests.read(call):
            self._borrow_gate.track(call.tid, ref.pod, None)
        elif ranges:
            self._borrow_gate.track(call.tid, ref.pod, ranges)
        self._exits[call.tid] = (slot, SyscallExit(self._proc_root, call))

    def forget(self, pod: str) -> None:
        """The pod is gone."""
        self._first_seen.pop(pod, None)
        self._readers.forget(pod)
        self._borrow_gate.forget(pod)

    def close(self) -> None:
        """Ends the readers that can be ended."""
        self._readers.close()
        self._borrow_gate.close()

    def handle(self, pending: PendingNotification, now: float) -> float:
        """Answers the call, or says in how many seconds to look at it again."""
        if pending.began is None:
            pending.began = now
        waited = now - pending.began
        try:
            return self._decide(pending, now, waited)
        except OSError as error:  # the wait may have begun anew meanwhile
            return self._cannot_tell(pending, 0.0 if pending.began is None else now - pending.began, error)
        except Exception as error:  # noqa: BLE001 - a program chose what led here, and its call is not let through for it
            self._guard.failed("call", pending.origin.ref.pod, error)
            return self._cannot_tell(pending, waited, error)

    def end(self, tid: int, *, ran: bool = True) -> None:
        """The call that this thread made last is over."""
        self._budgets.end(tid, ran=ran)
        self._borrow_gate.end(tid)
        if known := self._exits.pop(tid, None):
            self._journal.free(known[0])

    def end_returned(self, tids: Iterable[int] | None = None) -> None:
        """Looks which of these threads' calls are counted by now; with None at all of them."""
        for tid in list(self._exits) if tids is None else tids:
            if self._exits[tid][1].returned():
                self.end(tid)

    def _decide(self, pending: PendingNotification, now: float, waited: float) -> float:
        """The same. Raises OSError where what it takes cannot be read, also not yet."""
        call, ref = pending.call, pending.origin.ref
        try:
            request = pin_requests.read(call)
        except KeyError:
            _log.error("call %d of architecture %#x is not one to be sent here", call.number, call.arch)
            return self._refuse(pending, errno.ENOSYS)
        if pending.borrow_check is None:
            pending.borrow_check = self._borrow_gate.begin(call, ref.pod)
        if pending.borrow_check and not self._borrow_gate.is_settled(pending.borrow_check):
            if (answer := self._borrow(pending, pending.borrow_check, now, waited)) is not None:
                return answer
            pending.began, waited = now, 0.0
        if request is None:
            return self._allow(pending, None, 0)
        if wait := self._unlisted(ref.pod, now):
            pending.began = None
            return wait if pending.origin.listener.is_valid(call.id) else self._drop(pending)
        if request.inexact and not self._may_loosen(pending, request, request.inexact):
            return 0.0
        if not self._budgets.is_limited(ref):
            return self._allow(pending, request, 0)
        if self._budgets.count_in_flight(ref) >= MAX_IN_FLIGHT:
            self.end_returned(self._budgets.in_flight(ref))
            if self._budgets.count_in_flight(ref) >= MAX_IN_FLIGHT:
                raise _NotYetError(f"{MAX_IN_FLIGHT} calls of it are under way and do not end")
        most = self._most(pending, request)
        if not pending.origin.raised:
            if wait := self._unraised(pending, most, waited):
                return wait
            if pending.origin.raised:  # what it may wait for next is counted from now
                pending.began, waited = now, 0.0
        fit, _ = self._budgets.fit(ref, most, now)
        if fit is Fit.FITS:
            return self._allow(pending, request, most)
        return self._decide_exactly(pending, request, most, now, waited)

    def _borrow(
        self, pending: PendingNotification, one: BorrowCheck, now: float, waited: float
    ) -> float | None:
        """Whether groups have anything against a call: None when they do not, else as `decide`."""
        pod = pending.origin.ref.pod
        refusal = self._borrow_gate.decide(one, pod, self.end_returned)
        if refusal is None:
            return None
        if not pending.origin.listener.is_valid(pending.call.id):
            return self._drop(pending)
        if refusal.not_member and (wait := self._unlisted(pod, now)):
            pending.began = None
            return wait
        if not refusal.final and waited < RETURN_SECONDS:
            return self._later(pending)
        self._borrow_gate.log(refusal, pending.call, pod, now)
        if refusal.group is None:
            self._borrow_gate.settle(one)
            return None
        self._publisher.record_group_denial(refusal.group.uid, pod)
        return self._refuse(pending, refusal.error)

    def _decide_exactly(
        self, pending: PendingNotification, request: PinRequest, most: int, now: float, waited: float
    ) -> float:
        """The same, by what the kernel counts at this moment."""
        call, ref = pending.call, pending.origin.ref
        self.end_returned(self._budgets.in_flight(ref))
        self._budgets.update(self._pods.sample(ref), now)
        space = address_space(self._proc_root, call.tid)
        if space is None:
            raise ProcessLookupError(f"thread {call.tid} has no address space")
        if self._pods.has_deep_stack(ref.pod):
            self._publisher.mark_inexact(ref.pod, "a stack that is deeper than stacks are looked for")
        if not self._pods.contains(ref.pod, space.pid):
            self._publisher.mark_inexact(ref.pod, "a process of it is in another cgroup")
        amount = self._adds(pending, request, most, space)
        fit, key = self._budgets.fit(ref, amount, now)
        if fit is not Fit.FITS:
            self._budgets.update(self._pods.totals(ref, distinct=True), now)
            fit, key = self._budgets.fit(ref, amount, now)
        if fit is Fit.FITS:
            if self._depends(ref, amount, most, now):
                if waited < RETURN_SECONDS:
                    return self._later(pending)
                if not self._may_loosen(pending, request, _CHANGEABLE):
                    return 0.0
            return self._allow(pending, request, most)
        if not pending.origin.listener.is_valid(call.id):
            return self._drop(pending)
        if fit is Fit.MAYBE and waited < RETURN_SECONDS:
            return self._later(pending)
        self._deny(pending, request, amount, key)
        limit = self._pods.limit(key) if key else None
        return self._refuse(pending, request.refusal if limit is None or limit.limit else errno.EPERM)

    def _depends(self, ref: ContainerRef, amount: int, most: int, now: float) -> bool:
        """Whether a call that fits by what it adds now would not if calls that are under way changed its range first.

        Once it is let through, others wait for it; and what changes a range without being asked about adds nothing, but for moving locked
        memory away, which loosens (`calls`).
        """
        if amount == most or not self._budgets.in_flight(ref):
            return False
        return self._budgets.fit(ref, most, now)[0] is not Fit.FITS

    def _may_loosen(self, pending: PendingNotification, request: PinRequest, reason: str) -> bool:
        """Whether a call may go on after which the pod is not held exactly, which is told then; else it is refused."""
        pod = pending.origin.ref.pod
        if (key := self._pods.deny_limit(pending.origin.ref)) is None:
            self._publisher.mark_inexact(pod, reason)
            return True
        self._deny(pending, request, request.most, key, f"minimumLevel is Deny; {reason}")
        self._refuse(pending, request.refusal)
        return False

    def _unlisted(self, pod: str, now: float) -> float:
        """Seconds to wait for the configuration to list a pod, 0 for no longer."""
        if self._pods.is_listed(pod):
            return 0.0
        return _LOOK_AGAIN_SECONDS if now < self._first_seen.setdefault(pod, now) + UNLISTED_SECONDS else 0.0

    def _unraised(self, pending: PendingNotification, most: int, waited: float) -> float:
        """Seconds to wait for the agent to raise a soft rlimit that would refuse this call, 0 for no longer."""
        granted = self._pods.rlimit_grant(pending.origin.ref.pod)
        soft = soft_memlock(self._proc_root, pending.call.tid)
        if soft is None or soft >= granted or waited > RAISED_SECONDS:
            pending.origin.raised = True
            return 0.0
        space = address_space(self._proc_root, pending.call.tid)
        fits = space is None or max(space.locked, space.pinned) + most <= soft
        return 0.0 if fits else _LOOK_AGAIN_SECONDS

    def _most(self, pending: PendingNotification, request: PinRequest) -> int:
        """What a call adds at most, in bytes. Raises OSError."""
        if request.most is not None:
            return request.most
        root, tid, in_memory = self._proc_root, pending.call.tid, request.in_memory
        if in_memory is None:
            space = address_space(root, tid)
            return space.size - space.locked if space else 0
        try:
            return self._read(
                pending, lambda: in_memory(lambda address, size: read_memory(root, tid, address, size))
            )
        except (PermissionError, _NotYetError):
            raise
        except OSError:
            return 0  # the kernel cannot read it either

    def _adds(self, pending: PendingNotification, request: PinRequest, most: int, space: AddressSpace) -> int:
        """What a call really adds, in bytes. Raises OSError."""
        if request.adds not in (Growth.NOT_LOCKED, Growth.IF_LOCKED):
            return most
        root, tid = self._proc_root, pending.call.tid
        if not space.locked:
            return most if request.adds is Growth.NOT_LOCKED else 0
        size = most if request.adds is Growth.NOT_LOCKED else mmap.PAGESIZE
        inside = self._read(pending, lambda: locked_within(root, tid, request.start, size))
        if request.adds is Growth.NOT_LOCKED:
            return most - inside
        return most if inside else 0

    def _read(self, pending: PendingNotification, read: Callable[[], int]) -> int:
        """What may wait for a lock of the caller's. Raises OSError."""
        found = pending.async_read.get(read)
        if found is None:
            raise _NotYetError("its address space stays locked")
        return found

    def _later(self, pending: PendingNotification) -> float:
        retry = pending.retry
        pending.retry = min(2 * retry, _LOOK_AGAIN_SECONDS)
        return retry

    def _cannot_tell(self, pending: PendingNotification, waited: float, error: Exception) -> float:
        """What is needed for the decision could not be read."""
        if not pending.origin.listener.is_valid(pending.call.id):
            return self._drop(pending)
        if waited < RETURN_SECONDS:
            return self._later(pending)
        request = pin_requests.read(pending.call)
        _log.error("a call of pod %s is refused, it cannot be counted: %s", pending.origin.ref.pod, error)
        if request is not None:
            self._deny(pending, request, request.most, None, f"what the pod has cannot be counted: {error}")
        return self._refuse(pending, request.refusal if request else errno.ENOMEM)

    def _deny(
        self,
        pending: PendingNotification,
        request: PinRequest,
        amount: int | None,
        key: BudgetKey | None,
        message: str = "",
    ) -> None:
        ref, tid = pending.origin.ref, pending.call.tid
        limit = self._pods.limit(key) if key else None
        self._publisher.record_denial(
            Denial(
                ref=ref,
                tid=tid,
                process=command(self._proc_root, tid),
                source=request.source,
                asked=amount,
                used=self._budgets.use(key) if key else None,
                limit=limit,
                message=message,
                call=call_names.describe(pending.call),
            )
        )

    def _allow(self, pending: PendingNotification, request: PinRequest | None, amount: int) -> float:
        call, amount = pending.call, min(amount, _MOST)
        ranges = pending.borrow_check.ranges if pending.borrow_check else ()
        if not amount and ranges == ():
            pending.origin.listener.continue_(call.id)
            self._journal.free(pending.slot)
            return 0.0
        if not pending.origin.listener.is_valid(call.id):
            return self._drop(pending)  # its thread's number may be another's by now, whose call is under way
        self._journal.track(pending.slot, amount)
        self.track(pending.slot, call, pending.origin.ref, amount, ranges)
        if not pending.origin.listener.continue_(call.id):
            self.end(call.tid, ran=False)
        return 0.0

    def _refuse(self, pending: PendingNotification, error: int) -> float:
        pending.origin.listener.fail(pending.call.id, error)
        return self._drop(pending)

    def _drop(self, pending: PendingNotification) -> float:
        """The call needs no answer any more."""
        self._journal.free(pending.slot)
        return 0.0
