"""The gate: answers every gated call of the node's pods, one pod's calls in order, and each pod in its turn.

One thread does it all. A turn receives what waits, one call of each listener, and then takes one step for each pod (or group of pods that
share a limit of scope Node) that has calls: pods that make many calls wait for their own, not others for them. A group that takes more than
`SHARE` of the processor's time pauses, once it has used up what it may take at a stretch (`BURST_SECONDS`). Calls of a group that waits are
received all the same, up to `WAITING` of them: a thread that makes a call has ended its last one.

A step has the group's oldest call decided (`decision`), or finds that it must wait, and others of the group behind it.

A listener that cannot be received from, or a group whose step fails, costs itself (`guard`): it is tried again after a backoff, and all
others are answered meanwhile.
"""

import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pinwarden.api.nodepinconfig import NodeGroup
from pinwarden.common.guard import Guard
from pinwarden.node.gate.budgets import Place
from pinwarden.node.gate.container import Identity
from pinwarden.node.gate.handler import Decider
from pinwarden.node.gate.journal import Journal
from pinwarden.node.gate.pending import Gated, Waiting
from pinwarden.node.gate.pod_limits import Pods
from pinwarden.node.gate.publisher import Record
from pinwarden.node.linux.seccomp_notify import Listener
from pinwarden.node.pods.policy import Plan
from pinwarden.node.shm.objects import Extent

SHARE = 0.25
BURST_SECONDS = 0.1
WAITING = 128
_IDLE_SECONDS = 0.05
_LISTENER = "anon_inode:seccomp notify"
KINDS = ("listener", "call", "slot")
"""Kinds of items that the gate guards."""


@dataclass(slots=True)
class _Group:
    """Pods whose calls are decided in one order.

    `disarmed` are listeners that nothing is received from for now. `budget` is the processor time it may take at once, in seconds, as of
    `counted`.
    """

    waiting: deque[Waiting] = field(default_factory=deque)
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


class Gate:
    """Answers calls as long as `turn` is called. `record` is told what others must know. `clock` is monotonic, in seconds.

    `guard` knows the `KINDS`.
    """

    def __init__(
        self,
        journal: Journal,
        pods: Pods,
        proc_root: Path,
        record: Record,
        clock: Callable[[], float] = time.monotonic,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard or Guard(KINDS, clock)
        self._failed: set[int] = set()
        self._journal = journal
        self._pods = pods
        self._record = record
        self._decider = Decider(journal, pods, proc_root, record, self._guard)
        self._clock = clock
        self._epoll = select.epoll()
        self._gated: dict[int, Gated] = {}
        self._groups: dict[str, _Group] = {}
        self._busy: dict[int, _Group] = {}
        self._asking: dict[int, Waiting] = {}
        self._used = time.process_time()
        self._others: dict[int, Callable[[], None]] = {}
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
        """Takes over a listener of this container; `number` tells it from others, also in the journal.

        Raises OSError, and ValueError for a descriptor that is no listener; then it stays the caller's.
        """
        if os.readlink(f"/proc/self/fd/{descriptor}") != _LISTENER:
            raise ValueError("the descriptor is no seccomp listener")
        self._gated[descriptor] = Gated(number, Listener(descriptor), identity)
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        self._placed = False

    @property
    def listeners(self) -> dict[int, tuple[int, Identity]]:
        """Descriptor and container of every listener, by its number."""
        return {gated.number: (descriptor, gated.identity) for descriptor, gated in self._gated.items()}

    def configure(self, plan: Plan | None, groups: Iterable[NodeGroup] = ()) -> None:
        """Takes a configuration; it holds for the next call, and for those that wait (P12). Raises OSError."""
        self._pods.configure(plan)
        self._record.holds(self._pods.fingerprints())
        self._decider.configure(() if plan is None or plan.release else groups)
        before, self._groups, self._busy = self._groups, {}, {}
        for group in before.values():
            self._arm_again(group)
        waiting = [each for group in before.values() for each in group.waiting]
        for each in sorted(waiting, key=lambda each: each.received):
            self._wait(each)

    def learn(self, extents: Mapping[str, Extent]) -> None:
        """Takes what belongs to each group of shared memory, by its uid."""
        self._decider.learn(extents)

    def recover(self) -> None:
        """Takes up what an earlier gate left in the journal; all listeners must have been added. Raises OSError."""
        self._place()
        self._record.complete()
        numbers = {gated.number: gated for gated in self._gated.values()}
        for slot, call, number, amount in list(self._journal.left()):
            gated = numbers.get(number)
            with self._guard.item("slot"):
                if gated is not None and gated.listener.waits(call.id):
                    self._wait(self._decider.received(slot, call, gated, self._clock()))
                    continue
                if gated is not None and amount is not None:
                    self._decider.follow(slot, call, gated.place, amount)
                    continue
            self._journal.free(slot)

    def turn(self) -> None:
        """Receives and answers once; waits a little where there is nothing to do. Raises OSError when pods cannot be listed."""
        self._place()
        self._record.flush(self._clock())
        self._try_again()
        acted: list[_Group] = []
        for descriptor, event in self._poll():
            gated = self._gated.get(descriptor)
            if gated is None:
                if ready := self._others.get(descriptor):
                    ready()
            elif event & select.EPOLLIN:
                with self._guard.item("listener", gated.identity.id):
                    acted.append(self._receive(descriptor, gated))
                    continue
                self._failed.add(descriptor)
            else:
                self._remove(descriptor, gated)
        for group in [group for group in self._busy.values() if group.not_before <= self._clock()]:
            try:
                self._step(group)
            except Exception as error:  # noqa: BLE001 - whatever a program's call causes, others are answered
                pod = group.waiting[0].gated.place.pod if group.waiting else ""
                group.not_before = self._clock() + self._guard.failed("call", pod, error)
            acted.append(group)
        self._charge(acted)

    def _try_again(self) -> None:
        """Arms the listeners that could not be received from, once their time has come."""
        for descriptor in list(self._failed):
            gated = self._gated.get(descriptor)
            if gated is None or self._guard.due("listener", gated.identity.id):
                self._failed.discard(descriptor)
                if gated is not None:
                    self._arm(descriptor)

    def end(self) -> None:
        """No other turn will follow; nobody hears of a gate that held no pod. Raises OSError."""
        if not self._gated:
            self._record.end()

    def close(self) -> None:
        """Gives its copies of the listeners back."""
        for gated in self._gated.values():
            gated.listener.close()
        self._epoll.close()
        self._decider.close()

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
        self._decider.configure()
        self._record.gated((gated.identity for gated in self._gated.values()), self._pods.there)
        self._record.holds(self._pods.fingerprints())
        kept = {self._pods.group_of(gated.place.pod) for gated in self._gated.values()}
        self._groups = {key: group for key, group in self._groups.items() if key in kept or group.waiting}
        self._placed = True

    def _group(self, place: Place) -> _Group:
        return self._groups.setdefault(self._pods.group_of(place.pod), _Group())

    def _wait(self, waiting: Waiting) -> None:
        """Puts a call into its group, behind those that came before."""
        group = self._group(waiting.gated.place)
        group.waiting.append(waiting)
        self._asking[waiting.call.tid] = waiting
        self._busy[id(group)] = group

    def _forget(self, waiting: Waiting) -> None:
        """It waits no longer."""
        if self._asking.get(waiting.call.tid) is waiting:
            del self._asking[waiting.call.tid]

    def _charge(self, acted: list[_Group]) -> None:
        """Shares what was used of the processor since the last turn among those that it was used for."""
        used, self._used = self._used, time.process_time()
        for group in acted:
            group.spend((self._used - used) / len(acted), self._clock())

    def _receive(self, descriptor: int, gated: Gated) -> _Group:
        group = self._group(gated.place)
        if self._journal.full:
            self._decider.end_those_counted()
        received = self._journal.receive(gated.listener, gated.number)
        if received is None:
            self._arm(descriptor)
            return group
        slot, call = received
        before = self._asking.get(call.tid)
        if before is not None and before.gated is gated:
            self._decider.received_again(before, slot, call)
        else:
            self._wait(self._decider.received(slot, call, gated, self._clock()))
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

    def _remove(self, descriptor: int, gated: Gated) -> None:
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
        if all(each.place.pod != gated.place.pod for each in self._gated.values()):
            self._decider.forget(gated.place.pod)
        self._placed = False

    def _step(self, group: _Group) -> None:
        """Answers the first call of a group, or has all of them wait."""
        began = self._clock()
        waiting = group.waiting[0]
        wait = self._decider.decide(waiting, began)
        if wait:
            group.not_before = began + wait
        else:
            group.waiting.popleft()
            self._forget(waiting)
            if len(group.waiting) < WAITING:
                self._arm_again(group)
        if not group.waiting:
            del self._busy[id(group)]
