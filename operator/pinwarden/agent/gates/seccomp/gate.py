"""The gate: answers every gated call of the node's pods, one pod's calls in order, and each pod in its turn.

One thread does it all. A turn receives what waits, one call of each listener, and then takes one step for each pod (or group of pods that
share a limit of scope Node) that has calls: pods that make many calls wait for their own, not others for them. A group that takes more than
`SHARE` of the processor's time pauses, once it has used up what it may take at a stretch (`BURST_SECONDS`). Calls of a group that waits are
received all the same, up to `WAITING` of them: a thread that makes a call has ended its last one.

A step answers the group's oldest call, or finds that it must wait, and others of the group behind it:

- for the constraints of a pod that the configuration does not list yet, once per pod; then `unknownPods` holds,
- for the agent, which raises the rlimits of a pod with a grant, once per listener: the kernel would refuse what fits,
- for earlier calls that may still add what this one needs, or that are as many as one pod may have under way.

Each wait has an end. A call that cannot be counted after it is refused: what is not known is never let through (P1). A call that loosens
the pod (`calls`) is let through where it fits, unless a limit asks for Deny.
"""

import errno
import logging
import mmap
import select
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pinwarden.agent.gates.seccomp import calls
from pinwarden.agent.gates.seccomp.accounts import Accounts, Fit, Key, Place
from pinwarden.agent.gates.seccomp.calls import Adds, Ask
from pinwarden.agent.gates.seccomp.identity import Identity
from pinwarden.agent.gates.seccomp.journal import Journal
from pinwarden.agent.gates.seccomp.notify import Call, Listener
from pinwarden.agent.gates.seccomp.pods import Pods
from pinwarden.agent.gates.seccomp.record import Denial, Record
from pinwarden.agent.gates.seccomp.threads import (
    Aside,
    Leaving,
    address_space,
    command,
    locked_within,
    read_memory,
    soft_limit,
)
from pinwarden.agent.subjects import Plan

UNLISTED_SECONDS = 5.0
RAISED_SECONDS = 5.0
LEAVING_SECONDS = 2.0
SHARE = 0.25
BURST_SECONDS = 0.1
UNDER_WAY = 64
WAITING = 128
READERS = 64
_LOOK_AGAIN_SECONDS = 0.01
_FIRST_RETRY_SECONDS = 50e-6
_IDLE_SECONDS = 0.05
_MOST = 2**62
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Gated:
    """A listener: a container's, or that of a process that was started into it. `raised`: its first process has the rlimit it may have."""

    number: int
    listener: Listener
    identity: Identity
    raised: bool = False


@dataclass(slots=True)
class _Waiting:
    """A call that waits for its answer, since `began`; `retry` is how long to wait for others next, in seconds.

    `aside` is what is being read of its memory.
    """

    slot: int
    call: Call
    gated: _Gated
    began: float
    aside: Aside
    retry: float = _FIRST_RETRY_SECONDS


@dataclass(slots=True)
class _Group:
    """Pods whose calls are decided in one order.

    `disarmed` are listeners that nothing is received from for now. `budget` is the processor time it may take at once, in seconds, as of
    `counted`.
    """

    waiting: deque[_Waiting] = field(default_factory=deque)
    disarmed: list[int] = field(default_factory=list)
    not_before: float = 0.0
    budget: float = BURST_SECONDS
    counted: float = 0.0

    def spend(self, seconds: float, now: float) -> None:
        """It took so much; with its budget overdrawn it pauses until that is earned again."""
        self.budget = min(BURST_SECONDS, self.budget + (now - self.counted) * SHARE) - seconds
        self.counted = now
        if self.budget < 0:
            self.not_before = max(self.not_before, now - self.budget / SHARE)


class _NotYetError(Exception):
    """What is needed is still being read."""


class Gate:
    """Answers calls as long as `turn` is called. `record` is told what others must know. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        journal: Journal,
        pods: Pods,
        proc_root: Path,
        record: Record,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._pods = pods
        self._proc_root = proc_root
        self._record = record
        self._clock = clock
        self._epoll = select.epoll()
        self._accounts = Accounts()
        self._gated: dict[int, _Gated] = {}
        self._groups: dict[str, _Group] = {}
        self._busy: dict[int, _Group] = {}
        self._pool = ThreadPoolExecutor(READERS, "reader")
        self._asking: dict[int, _Waiting] = {}
        self._used = time.process_time()
        self._leaving: dict[int, tuple[int, Leaving]] = {}
        self._others: dict[int, Callable[[], None]] = {}
        self._first_seen: dict[str, float] = {}
        self._placed = True

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Has `ready` called when the descriptor is readable, until `forget`."""
        self._others[descriptor] = ready
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """No longer."""
        self._epoll.unregister(descriptor)
        del self._others[descriptor]

    def add(self, number: int, descriptor: int, identity: Identity) -> None:
        """Takes over a listener of this container; `number` tells it from others, also in the journal. Raises OSError."""
        self._gated[descriptor] = _Gated(number, Listener(descriptor), identity)
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        self._placed = False

    @property
    def listeners(self) -> dict[int, tuple[int, Identity]]:
        """Descriptor and container of every listener, by its number."""
        return {gated.number: (descriptor, gated.identity) for descriptor, gated in self._gated.items()}

    def configure(self, plan: Plan | None) -> None:
        """Takes a configuration; it holds for the next call, and for those that wait (P12). Raises OSError."""
        self._pods.configure(plan)
        self._accounts.configure(self._pods.covering())
        before, self._groups, self._busy = self._groups, {}, {}
        for group in before.values():
            self._arm_again(group)
        waiting = [each for group in before.values() for each in group.waiting]
        for each in sorted(waiting, key=lambda each: each.began):
            self._wait(each)

    def recover(self) -> None:
        """Takes up what an earlier gate left in the journal; all listeners must have been added. Raises OSError."""
        self._place()
        self._record.complete()
        numbers = {gated.number: gated for gated in self._gated.values()}
        for slot, call, number, amount in list(self._journal.left()):
            gated = numbers.get(number)
            if gated is not None and gated.listener.waits(call.id):
                self._wait(self._waiting(slot, call, gated))
            elif gated is not None and amount and (ask := calls.read(call)):
                self._leave(slot, call, ask, gated.identity.place, amount)
            else:
                self._journal.free(slot)

    def turn(self) -> None:
        """Receives and answers once; waits a little where there is nothing to do. Raises OSError when pods cannot be listed."""
        self._place()
        self._record.flush(self._clock())
        acted: list[_Group] = []
        for descriptor, event in self._poll():
            gated = self._gated.get(descriptor)
            if gated is None:
                if ready := self._others.get(descriptor):
                    ready()
            elif event & select.EPOLLIN:
                acted.append(self._receive(descriptor, gated))
            else:
                self._remove(descriptor, gated)
        for group in [group for group in self._busy.values() if group.not_before <= self._clock()]:
            self._step(group)
            acted.append(group)
        self._charge(acted)

    def close(self) -> None:
        """Gives its copies of the listeners back."""
        for gated in self._gated.values():
            gated.listener.close()
        self._epoll.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _poll(self) -> list[tuple[int, int]]:
        now = self._clock()
        due = (group.not_before for group in self._busy.values())
        pause = min(due, default=now + _IDLE_SECONDS) - now
        if pause > 1e-3:
            return self._epoll.poll(min(pause, _IDLE_SECONDS))
        if pause > 0:  # epoll_wait(2) counts in milliseconds
            select.select([self._epoll], [], [], pause)
        return self._epoll.poll(0)

    def _place(self) -> None:
        """Nothing is decided before it is known which limits cover the calls of every listener."""
        if self._placed:
            return
        self._pods.place(gated.identity for gated in self._gated.values())
        self._accounts.configure(self._pods.covering())
        self._record.gated(gated.identity for gated in self._gated.values())
        kept = {self._pods.group_of(gated.identity.place.pod) for gated in self._gated.values()}
        self._groups = {key: group for key, group in self._groups.items() if key in kept or group.waiting}
        self._placed = True

    def _group(self, place: Place) -> _Group:
        return self._groups.setdefault(self._pods.group_of(place.pod), _Group())

    def _waiting(self, slot: int, call: Call, gated: _Gated) -> _Waiting:
        return _Waiting(slot, call, gated, self._clock(), Aside(self._pool))

    def _wait(self, waiting: _Waiting) -> _Group:
        """Puts a call into its group, behind those that came before."""
        group = self._group(waiting.gated.identity.place)
        group.waiting.append(waiting)
        self._asking[waiting.call.tid] = waiting
        self._busy[id(group)] = group
        return group

    def _forget(self, waiting: _Waiting) -> None:
        """It waits no longer."""
        if self._asking.get(waiting.call.tid) is waiting:
            del self._asking[waiting.call.tid]

    def _charge(self, acted: list[_Group]) -> None:
        """Shares what was used of the processor since the last turn among those that it was used for."""
        used, self._used = self._used, time.process_time()
        for group in acted:
            group.spend((self._used - used) / len(acted), self._clock())

    def _receive(self, descriptor: int, gated: _Gated) -> _Group:
        group = self._group(gated.identity.place)
        if self._journal.full:
            self._end_those_counted(list(self._leaving))
        received = self._journal.receive(gated.listener, gated.number)
        if received is None:
            self._arm(descriptor)
            return group
        slot, call = received
        self._ended(call.tid)
        before = self._asking.get(call.tid)
        if before is not None and before.gated is gated:  # a signal came, and the call is made again
            self._journal.free(before.slot)
            before.slot, before.call = slot, call
        else:
            self._wait(self._waiting(slot, call, gated))
        if len(group.waiting) < WAITING:
            self._arm(descriptor)
        else:
            group.disarmed.append(descriptor)
        return group

    def _arm(self, descriptor: int) -> None:
        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def _arm_again(self, group: _Group) -> None:
        for descriptor in group.disarmed:
            if descriptor in self._gated:
                self._arm(descriptor)
        group.disarmed.clear()

    def _remove(self, descriptor: int, gated: _Gated) -> None:
        """Nobody is left who could make a call."""
        self._epoll.unregister(descriptor)
        gated.listener.close()
        del self._gated[descriptor]
        for group in self._groups.values():
            for each in [each for each in group.waiting if each.gated is gated]:
                group.waiting.remove(each)
                self._forget(each)
                self._journal.free(each.slot)
            if not group.waiting:
                self._busy.pop(id(group), None)
        if all(each.identity.place.pod != gated.identity.place.pod for each in self._gated.values()):
            self._first_seen.pop(gated.identity.place.pod, None)
        self._placed = False

    def _step(self, group: _Group) -> None:
        """Answers the first call of a group, or has all of them wait."""
        began = self._clock()
        waiting = group.waiting[0]
        try:
            wait = self._decide(waiting, began)
        except _NotYetError:
            held_up = TimeoutError("its address space stays locked")
            wait = self._cannot_tell(waiting, began, held_up)
        except OSError as error:
            wait = self._cannot_tell(waiting, began, error)
        if wait:
            group.not_before = began + wait
        else:
            group.waiting.popleft()
            self._forget(waiting)
            if len(group.waiting) < WAITING:
                self._arm_again(group)
        if not group.waiting:
            del self._busy[id(group)]

    def _decide(self, waiting: _Waiting, now: float) -> float:
        """Answers the call, or says in how many seconds to look at it again. Raises OSError."""
        call, place = waiting.call, waiting.gated.identity.place
        try:
            ask = calls.read(call)
        except KeyError:
            _log.error("call %d of architecture %#x is not one to be sent here", call.number, call.arch)
            return self._refuse(waiting, errno.ENOSYS)
        if ask is None:
            return self._let_through(waiting, None, 0)
        if wait := self._unlisted(place.pod, now):
            return wait if waiting.gated.listener.waits(call.id) else self._drop(waiting)
        if ask.loosens:
            if (key := self._pods.strict(place)) is not None:
                self._deny(waiting, ask, ask.most, key, f"minimumLevel is Deny; {ask.loosens}")
                return self._refuse(waiting, ask.refusal)
            self._record.loosened(place.pod, ask.loosens)
        if not self._accounts.covers(place):
            return self._let_through(waiting, ask, 0)
        if self._accounts.under_way_in(place) >= UNDER_WAY:
            self._end_those_counted(self._accounts.under_way(place))
            if self._accounts.under_way_in(place) >= UNDER_WAY:
                return self._later(waiting)
        most = self._most(waiting, ask)
        if not waiting.gated.raised and (wait := self._unraised(waiting, most, now)):
            return wait
        fit, _ = self._accounts.fit(place, most, now)
        if fit is Fit.FITS:
            return self._let_through(waiting, ask, most)
        return self._decide_exactly(waiting, ask, most, now)

    def _decide_exactly(self, waiting: _Waiting, ask: Ask, most: int, now: float) -> float:
        """The same, by what the kernel counts at this moment."""
        call, place = waiting.call, waiting.gated.identity.place
        self._end_those_counted(self._accounts.under_way(place))
        self._accounts.renew(self._pods.look(place), now)
        if self._pods.deep_stack(place.pod):
            self._record.loosened(place.pod, "a stack that is deeper than stacks are looked for")
        amount = self._adds(waiting, ask, most)
        fit, key = self._accounts.fit(place, amount, now)
        if fit is Fit.FITS:
            return self._let_through(waiting, ask, most)
        if not waiting.gated.listener.waits(call.id):
            return self._drop(waiting)
        if fit is Fit.MAYBE and now < waiting.began + LEAVING_SECONDS:
            return self._later(waiting)
        self._deny(waiting, ask, amount, key)
        limit = self._pods.limit(key) if key else None
        return self._refuse(waiting, ask.refusal if limit is None or limit.limit else errno.EPERM)

    def _unlisted(self, pod: str, now: float) -> float:
        """Seconds to wait for the configuration to list a pod, 0 for no longer."""
        if self._pods.listed(pod):
            return 0.0
        return _LOOK_AGAIN_SECONDS if now < self._first_seen.setdefault(pod, now) + UNLISTED_SECONDS else 0.0

    def _unraised(self, waiting: _Waiting, most: int, now: float) -> float:
        """Seconds to wait for the agent to raise a soft rlimit that would refuse this call, 0 for no longer."""
        granted = self._pods.granted(waiting.gated.identity.place.pod)
        soft = soft_limit(self._proc_root, waiting.call.tid)
        if soft is None or soft >= granted or now > waiting.began + RAISED_SECONDS:
            waiting.gated.raised = True
            return 0.0
        space = address_space(self._proc_root, waiting.call.tid)
        fits = space is None or max(space.locked, space.pinned) + most <= soft
        return 0.0 if fits else _LOOK_AGAIN_SECONDS

    def _most(self, waiting: _Waiting, ask: Ask) -> int:
        """What a call adds at most, in bytes. Raises OSError, and _NotYetError."""
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
        except PermissionError:
            raise
        except OSError:
            return 0  # the kernel cannot read it either

    def _adds(self, waiting: _Waiting, ask: Ask, most: int) -> int:
        """What a call really adds, in bytes. Raises OSError, and _NotYetError."""
        if ask.adds not in (Adds.NOT_LOCKED, Adds.IF_LOCKED):
            return most
        root, tid = self._proc_root, waiting.call.tid
        space = address_space(root, tid)
        if space is None or not space.locked:
            return most if ask.adds is Adds.NOT_LOCKED else 0
        size = most if ask.adds is Adds.NOT_LOCKED else mmap.PAGESIZE
        inside = self._read(waiting, lambda: locked_within(root, tid, ask.start, size))
        if ask.adds is Adds.NOT_LOCKED:
            return most - inside
        return most if inside else 0

    def _read(self, waiting: _Waiting, read: Callable[[], int]) -> int:
        """What may wait for a lock of the caller's. Raises OSError, and _NotYetError."""
        found = waiting.aside.get(read)
        if found is None:
            raise _NotYetError
        return found

    def _later(self, waiting: _Waiting) -> float:
        retry = waiting.retry
        waiting.retry = min(2 * retry, _LOOK_AGAIN_SECONDS)
        return retry

    def _cannot_tell(self, waiting: _Waiting, now: float, error: OSError) -> float:
        """What is needed for the decision could not be read."""
        if not waiting.gated.listener.waits(waiting.call.id):
            return self._drop(waiting)
        if now < waiting.began + LEAVING_SECONDS:
            return self._later(waiting)
        ask = calls.read(waiting.call)
        _log.error(
            "a call of pod %s is refused, it cannot be counted: %s", waiting.gated.identity.place.pod, error
        )
        if ask is not None:
            self._deny(waiting, ask, ask.most, None, f"what the pod has cannot be counted: {error}")
        return self._refuse(waiting, ask.refusal if ask else errno.ENOMEM)

    def _deny(
        self, waiting: _Waiting, ask: Ask, amount: int | None, key: Key | None, message: str = ""
    ) -> None:
        place, tid = waiting.gated.identity.place, waiting.call.tid
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
            )
        )

    def _let_through(self, waiting: _Waiting, ask: Ask | None, amount: int) -> float:
        call, amount = waiting.call, min(amount, _MOST)
        if ask is None or not amount:
            waiting.gated.listener.let_through(call.id)
            self._journal.free(waiting.slot)
            return 0.0
        self._journal.let_through(waiting.slot, amount)
        self._leave(waiting.slot, call, ask, waiting.gated.identity.place, amount)
        if not waiting.gated.listener.let_through(call.id):
            self._ended(call.tid, ran=False)
        return 0.0

    def _leave(self, slot: int, call: Call, ask: Ask, place: Place, amount: int) -> None:
        self._accounts.let_through(call.tid, place, amount)
        self._leaving[call.tid] = (slot, Leaving(self._proc_root, call, ask, self._pool))

    def _refuse(self, waiting: _Waiting, error: int) -> float:
        waiting.gated.listener.refuse(waiting.call.id, error)
        return self._drop(waiting)

    def _drop(self, waiting: _Waiting) -> float:
        """The call needs no answer any more."""
        self._journal.free(waiting.slot)
        return 0.0

    def _ended(self, tid: int, *, ran: bool = True) -> None:
        """The call that this thread made last is over."""
        self._accounts.end(tid, ran=ran)
        if known := self._leaving.pop(tid, None):
            self._journal.free(known[0])

    def _end_those_counted(self, tids: list[int]) -> None:
        for tid in tids:
            if self._leaving[tid][1].counted():
                self._ended(tid)
