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
from pinwarden.node.gate.borrow_gate import Borrowing, Lending, Ranges
from pinwarden.node.gate.budgets import Accounts, Fit, Key, Place
from pinwarden.node.gate.caller import (
    AddressSpace,
    Aside,
    Leaving,
    Readers,
    address_space,
    command,
    locked_within,
    read_memory,
    soft_limit,
)
from pinwarden.node.gate.journal import Journal
from pinwarden.node.gate.pending import Gated, Waiting
from pinwarden.node.gate.pin_requests import Adds, Ask
from pinwarden.node.gate.pod_limits import Pods
from pinwarden.node.gate.publisher import Denial, Record
from pinwarden.node.linux.seccomp_notify import Call
from pinwarden.node.shm.objects import Extent

UNLISTED_SECONDS = 5.0
RAISED_SECONDS = 5.0
LEAVING_SECONDS = 2.0
UNDER_WAY = 64
READERS, READERS_OF_A_POD = 64, 8
_LOOK_AGAIN_SECONDS = 0.01
_MOST = 2**62
_CHANGEABLE = "a call at the limit depends on others that do not end"
_log = logging.getLogger(__name__)


class _NotYetError(OSError):
    """What is needed is still being read."""


class Decider:
    """Decides, answers, and follows what it let through. `record` is told what others must know. Times are monotonic, in seconds."""

    def __init__(self, journal: Journal, pods: Pods, proc_root: Path, record: Record, guard: Guard) -> None:
        """`guard` knows the kind `call`."""
        self._guard = guard
        self._journal = journal
        self._pods = pods
        self._proc_root = proc_root
        self._record = record
        self._accounts = Accounts()
        self._lending = Lending(proc_root, pods)
        self._readers = Readers(READERS, READERS_OF_A_POD, "reader")
        self._leaving: dict[int, tuple[int, Leaving]] = {}
        self._first_seen: dict[str, float] = {}

    def configure(self, groups: Iterable[NodeGroup] | None = None) -> None:
        """What the pods are held to has changed; the groups of shared memory too, where they are given."""
        self._accounts.configure(self._pods.covering())
        if groups is not None:
            self._lending.configure(groups)

    def learn(self, extents: Mapping[str, Extent]) -> None:
        """What belongs to each group of shared memory, by its uid, is now this."""
        self._lending.learn(extents)

    def received(self, slot: int, call: Call, gated: Gated, now: float) -> Waiting:
        """A call that was just received; what its thread called before is over."""
        self.ended(call.tid)
        return Waiting(slot, call, gated, now, Aside(self._readers, gated.place.pod))

    def received_again(self, waiting: Waiting, slot: int, call: Call) -> None:
        """A signal came, and the thread of a call that waits makes it again, or another one: that takes its place."""
        self.ended(call.tid)
        self._journal.free(waiting.slot)
        if call.arguments != waiting.call.arguments or call.number != waiting.call.number:
            waiting.aside = Aside(self._readers, waiting.gated.place.pod)
            waiting.borrowing = None
        waiting.slot, waiting.call = slot, call

    def follow(self, slot: int, call: Call, place: Place, amount: int, ranges: Ranges = None) -> None:
        """A call of this place is let through, by this gate or by an earlier one: to pin at most so many bytes, and to map these ranges.

        None stands for any, of a call that maps something.
        """
        if amount:
            self._accounts.let_through(call.tid, place, amount)
        if ranges is None and map_requests.read(call):
            self._lending.let_through(call.tid, place.pod, None)
        elif ranges:
            self._lending.let_through(call.tid, place.pod, ranges)
        self._leaving[call.tid] = (slot, Leaving(self._proc_root, call))

    def forget(self, pod: str) -> None:
        """The pod is gone."""
        self._first_seen.pop(pod, None)
        self._readers.forget(pod)
        self._lending.forget(pod)

    def close(self) -> None:
        """Ends the readers that can be ended."""
        self._readers.close()
        self._lending.close()

    def decide(self, waiting: Waiting, now: float) -> float:
        """Answers the call, or says in how many seconds to look at it again."""
        if waiting.began is None:
            waiting.began = now
        waited = now - waiting.began
        try:
            return self._decide(waiting, now, waited)
        except OSError as error:  # the wait may have begun anew meanwhile
            return self._cannot_tell(waiting, 0.0 if waiting.began is None else now - waiting.began, error)
        except Exception as error:  # noqa: BLE001 - a program chose what led here, and its call is not let through for it
            self._guard.failed("call", waiting.gated.place.pod, error)
            return self._cannot_tell(waiting, waited, error)

    def ended(self, tid: int, *, ran: bool = True) -> None:
        """The call that this thread made last is over."""
        self._accounts.end(tid, ran=ran)
        self._lending.end(tid)
        if known := self._leaving.pop(tid, None):
            self._journal.free(known[0])

    def end_those_counted(self, tids: Iterable[int] | None = None) -> None:
        """Looks which of these threads' calls are counted by now; with None at all of them."""
        for tid in list(self._leaving) if tids is None else tids:
            if self._leaving[tid][1].counted():
                self.ended(tid)

    def _decide(self, waiting: Waiting, now: float, waited: float) -> float:
        """The same. Raises OSError where what it takes cannot be read, also not yet."""
        call, place = waiting.call, waiting.gated.place
        try:
            ask = pin_requests.read(call)
        except KeyError:
            _log.error("call %d of architecture %#x is not one to be sent here", call.number, call.arch)
            return self._refuse(waiting, errno.ENOSYS)
        if waiting.borrowing is None:
            waiting.borrowing = self._lending.begin(call, place.pod)
        if waiting.borrowing and not self._lending.settled(waiting.borrowing):
            if (answer := self._borrow(waiting, waiting.borrowing, now, waited)) is not None:
                return answer
            waiting.began, waited = now, 0.0
        if ask is None:
            return self._let_through(waiting, None, 0)
        if wait := self._unlisted(place.pod, now):
            waiting.began = None
            return wait if waiting.gated.listener.waits(call.id) else self._drop(waiting)
        if ask.loosens and not self._may_loosen(waiting, ask, ask.loosens):
            return 0.0
        if not self._accounts.covers(place):
            return self._let_through(waiting, ask, 0)
        if self._accounts.under_way_in(place) >= UNDER_WAY:
            self.end_those_counted(self._accounts.under_way(place))
            if self._accounts.under_way_in(place) >= UNDER_WAY:
                raise _NotYetError(f"{UNDER_WAY} calls of it are under way and do not end")
        most = self._most(waiting, ask)
        if not waiting.gated.raised:
            if wait := self._unraised(waiting, most, waited):
                return wait
            if waiting.gated.raised:  # what it may wait for next is counted from now
                waiting.began, waited = now, 0.0
        fit, _ = self._accounts.fit(place, most, now)
        if fit is Fit.FITS:
            return self._let_through(waiting, ask, most)
        return self._decide_exactly(waiting, ask, most, now, waited)

    def _borrow(self, waiting: Waiting, one: Borrowing, now: float, waited: float) -> float | None:
        """Whether groups have anything against a call: None when they do not, else as `decide`."""
        pod = waiting.gated.place.pod
        refusal = self._lending.decide(one, pod, self.end_those_counted)
        if refusal is None:
            return None
        if not waiting.gated.listener.waits(waiting.call.id):
            return self._drop(waiting)
        if refusal.stranger and (wait := self._unlisted(pod, now)):
            waiting.began = None
            return wait
        if not refusal.final and waited < LEAVING_SECONDS:
            return self._later(waiting)
        self._lending.tell(refusal, waiting.call, pod, now)
        if refusal.group is None:
            self._lending.settle(one)
            return None
        self._record.group_denied(refusal.group.uid, pod)
        return self._refuse(waiting, refusal.error)

    def _decide_exactly(self, waiting: Waiting, ask: Ask, most: int, now: float, waited: float) -> float:
        """The same, by what the kernel counts at this moment."""
        call, place = waiting.call, waiting.gated.place
        self.end_those_counted(self._accounts.under_way(place))
        self._accounts.renew(self._pods.look(place), now)
        space = address_space(self._proc_root, call.tid)
        if space is None:
            raise ProcessLookupError(f"thread {call.tid} has no address space")
        if self._pods.deep_stack(place.pod):
            self._record.loosened(place.pod, "a stack that is deeper than stacks are looked for")
        if not self._pods.has(place.pod, space.pid):
            self._record.loosened(place.pod, "a process of it is in another cgroup")
        amount = self._adds(waiting, ask, most, space)
        fit, key = self._accounts.fit(place, amount, now)
        if fit is not Fit.FITS:
            self._accounts.renew(self._pods.sums(place, distinct=True), now)
            fit, key = self._accounts.fit(place, amount, now)
        if fit is Fit.FITS:
            if self._depends(place, amount, most, now):
                if waited < LEAVING_SECONDS:
                    return self._later(waiting)
                if not self._may_loosen(waiting, ask, _CHANGEABLE):
                    return 0.0
            return self._let_through(waiting, ask, most)
        if not waiting.gated.listener.waits(call.id):
            return self._drop(waiting)
        if fit is Fit.MAYBE and waited < LEAVING_SECONDS:
            return self._later(waiting)
        self._deny(waiting, ask, amount, key)
        limit = self._pods.limit(key) if key else None
        return self._refuse(waiting, ask.refusal if limit is None or limit.limit else errno.EPERM)

    def _depends(self, place: Place, amount: int, most: int, now: float) -> bool:
        """Whether a call that fits by what it adds now would not if calls that are under way changed its range first.

        Once it is let through, others wait for it; and what changes a range without being asked about adds nothing, but for moving locked
        memory away, which loosens (`calls`).
        """
        if amount == most or not self._accounts.under_way(place):
            return False
        return self._accounts.fit(place, most, now)[0] is not Fit.FITS

    def _may_loosen(self, waiting: Waiting, ask: Ask, reason: str) -> bool:
        """Whether a call may go on after which the pod is not held exactly, which is told then; else it is refused."""
        pod = waiting.gated.place.pod
        if (key := self._pods.strict(waiting.gated.place)) is None:
            self._record.loosened(pod, reason)
            return True
        self._deny(waiting, ask, ask.most, key, f"minimumLevel is Deny; {reason}")
        self._refuse(waiting, ask.refusal)
        return False

    def _unlisted(self, pod: str, now: float) -> float:
        """Seconds to wait for the configuration to list a pod, 0 for no longer."""
        if self._pods.listed(pod):
            return 0.0
        return _LOOK_AGAIN_SECONDS if now < self._first_seen.setdefault(pod, now) + UNLISTED_SECONDS else 0.0

    def _unraised(self, waiting: Waiting, most: int, waited: float) -> float:
        """Seconds to wait for the agent to raise a soft rlimit that would refuse this call, 0 for no longer."""
        granted = self._pods.granted(waiting.gated.place.pod)
        soft = soft_limit(self._proc_root, waiting.call.tid)
        if soft is None or soft >= granted or waited > RAISED_SECONDS:
            waiting.gated.raised = True
            return 0.0
        space = address_space(self._proc_root, waiting.call.tid)
        fits = space is None or max(space.locked, space.pinned) + most <= soft
        return 0.0 if fits else _LOOK_AGAIN_SECONDS

    def _most(self, waiting: Waiting, ask: Ask) -> int:
        """What a call adds at most, in bytes. Raises OSError."""
        if ask.most is not None:
            return ask.most
        root, tid, in_memory = self._proc_root, waiting.call.tid, ask.in_memory
        if in_memory is None:
            space = address_space(root, tid)
            return space.size - space.locked if space else 0
        try:
            return self._read(
                waiting, lambda: in_memory(lambda address, size: read_memory(root, tid, address, size))
            )
        except (PermissionError, _NotYetError):
            raise
        except OSError:
            return 0  # the kernel cannot read it either

    def _adds(self, waiting: Waiting, ask: Ask, most: int, space: AddressSpace) -> int:
        """What a call really adds, in bytes. Raises OSError."""
        if ask.adds not in (Adds.NOT_LOCKED, Adds.IF_LOCKED):
            return most
        root, tid = self._proc_root, waiting.call.tid
        if not space.locked:
            return most if ask.adds is Adds.NOT_LOCKED else 0
        size = most if ask.adds is Adds.NOT_LOCKED else mmap.PAGESIZE
        inside = self._read(waiting, lambda: locked_within(root, tid, ask.start, size))
        if ask.adds is Adds.NOT_LOCKED:
            return most - inside
        return most if inside else 0

    def _read(self, waiting: Waiting, read: Callable[[], int]) -> int:
        """What may wait for a lock of the caller's. Raises OSError."""
        found = waiting.aside.get(read)
        if found is None:
            raise _NotYetError("its address space stays locked")
        return found

    def _later(self, waiting: Waiting) -> float:
        retry = waiting.retry
        waiting.retry = min(2 * retry, _LOOK_AGAIN_SECONDS)
        return retry

    def _cannot_tell(self, waiting: Waiting, waited: float, error: Exception) -> float:
        """What is needed for the decision could not be read."""
        if not waiting.gated.listener.waits(waiting.call.id):
            return self._drop(waiting)
        if waited < LEAVING_SECONDS:
            return self._later(waiting)
        ask = pin_requests.read(waiting.call)
        _log.error("a call of pod %s is refused, it cannot be counted: %s", waiting.gated.place.pod, error)
        if ask is not None:
            self._deny(waiting, ask, ask.most, None, f"what the pod has cannot be counted: {error}")
        return self._refuse(waiting, ask.refusal if ask else errno.ENOMEM)

    def _deny(
        self, waiting: Waiting, ask: Ask, amount: int | None, key: Key | None, message: str = ""
    ) -> None:
        place, tid = waiting.gated.place, waiting.call.tid
        limit = self._pods.limit(key) if key else None
        self._record.denied(
            Denial(
                place=place,
                tid=tid,
                process=command(self._proc_root, tid),
                source=ask.source,
                asked=amount,
                used=self._accounts.use(key) if key else None,
                limit=limit,
                message=message,
                call=call_names.describe(waiting.call),
            )
        )

    def _let_through(self, waiting: Waiting, ask: Ask | None, amount: int) -> float:
        call, amount = waiting.call, min(amount, _MOST)
        ranges = waiting.borrowing.ranges if waiting.borrowing else ()
        if not amount and ranges == ():
            waiting.gated.listener.let_through(call.id)
            self._journal.free(waiting.slot)
            return 0.0
        if not waiting.gated.listener.waits(call.id):
            return self._drop(waiting)  # its thread's number may be another's by now, whose call is under way
        self._journal.let_through(waiting.slot, amount)
        self.follow(waiting.slot, call, waiting.gated.place, amount, ranges)
        if not waiting.gated.listener.let_through(call.id):
            self.ended(call.tid, ran=False)
        return 0.0

    def _refuse(self, waiting: Waiting, error: int) -> float:
        waiting.gated.listener.refuse(waiting.call.id, error)
        return self._drop(waiting)

    def _drop(self, waiting: Waiting) -> float:
        """The call needs no answer any more."""
        self._journal.free(waiting.slot)
        return 0.0
