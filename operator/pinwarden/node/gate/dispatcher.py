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
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.gate.handler import NotificationHandler
from pinwarden.node.gate.journal import Journal
from pinwarden.node.gate.pending import ContainerListener, PendingNotification
from pinwarden.node.gate.pod_limits import PodLimits
from pinwarden.node.gate.publisher import GatePublisher
from pinwarden.node.linux.seccomp_notify import Listener
from pinwarden.node.pods.policy import NodePolicy
from pinwarden.node.shm.objects import ObjectSet

SHARE = 0.25
BURST_SECONDS = 0.1
MAX_PENDING = 128
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

    pending: deque[PendingNotification] = field(default_factory=deque)
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


class Dispatcher:
    """Answers calls as long as `turn` is called. `record` is told what others must know. `clock` is monotonic, in seconds.

    `guard` knows the `KINDS`.
    """

    def __init__(
        self,
        journal: Journal,
        pods: PodLimits,
        proc_root: Path,
        publisher: GatePublisher,
        clock: Callable[[], float] = time.monotonic,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard or Guard(KINDS, clock)
        self._failed: set[int] = set()
        self._journal = journal
        self._pods = pods
        self._publisher = publisher
        self._handler = NotificationHandler(journal, pods, proc_root, publisher, self._guard)
        self._clock = clock
        self._epoll = select.epoll()
        self._origins: dict[int, ContainerListener] = {}
        self._groups: dict[str, _Group] = {}
        self._busy: dict[int, _Group] = {}
        self._pending_by_tid: dict[int, PendingNotification] = {}
        self._used = time.process_time()
        self._others: dict[int, Callable[[], None]] = {}
        self._current = True

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Has `ready` called when the descriptor is readable, until `forget`."""
        self._others[descriptor] = ready
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """No longer."""
        self._epoll.unregister(descriptor)
        del self._others[descriptor]

    def add(self, number: int, descriptor: int, container: GatedContainer) -> None:
        """Takes over a listener of this container; `number` tells it from others, also in the journal.

        Raises OSError, and ValueError for a descriptor that is no listener; then it stays the caller's.
        """
        if os.readlink(f"/proc/self/fd/{descriptor}") != _LISTENER:
            raise ValueError("the descriptor is no seccomp listener")
        self._origins[descriptor] = ContainerListener(number, Listener(descriptor), container)
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        self._current = False

    @property
    def listeners(self) -> dict[int, tuple[int, GatedContainer]]:
        """Descriptor and container of every listener, by its number."""
        return {origin.number: (descriptor, origin.container) for descriptor, origin in self._origins.items()}

    def configure(self, policy: NodePolicy | None, groups: Iterable[NodeGroup] = ()) -> None:
        """Takes a configuration; it holds for the next call, and for those that wait (P12). Raises OSError."""
        self._pods.configure(policy)
        self._publisher.set_fingerprints(self._pods.fingerprints())
        self._handler.configure(() if policy is None or policy.release else groups)
        before, self._groups, self._busy = self._groups, {}, {}
        for group in before.values():
            self._arm_again(group)
        pending = [each for group in before.values() for each in group.pending]
        for each in sorted(pending, key=lambda each: each.received):
            self._wait(each)

    def set_objects(self, extents: Mapping[str, ObjectSet]) -> None:
        """Takes what belongs to each group of shared memory, by its uid."""
        self._handler.set_objects(extents)

    def recover(self) -> None:
        """Takes up what an earlier gate left in the journal; all listeners must have been added. Raises OSError."""
        self._refresh_containers()
        self._publisher.finish_recovery()
        numbers = {origin.number: origin for origin in self._origins.values()}
        for slot, call, number, amount in list(self._journal.left()):
            origin = numbers.get(number)
            with self._guard.item("slot"):
                if origin is not None and origin.listener.is_valid(call.id):
                    self._wait(self._handler.receive(slot, call, origin, self._clock()))
                    continue
                if origin is not None and amount is not None:
                    self._handler.track(slot, call, origin.ref, amount)
                    continue
            self._journal.free(slot)

    def turn(self) -> None:
        """Receives and answers once; waits a little where there is nothing to do. Raises OSError when pods cannot be listed."""
        self._refresh_containers()
        self._publisher.flush(self._clock())
        self._try_again()
        acted: list[_Group] = []
        for descriptor, event in self._poll():
            origin = self._origins.get(descriptor)
            if origin is None:
                if ready := self._others.get(descriptor):
                    ready()
            elif event & select.EPOLLIN:
                with self._guard.item("listener", origin.container.id):
                    acted.append(self._receive(descriptor, origin))
                    continue
                self._failed.add(descriptor)
            else:
                self._remove(descriptor, origin)
        for group in [group for group in self._busy.values() if group.not_before <= self._clock()]:
            try:
                self._step(group)
            except Exception as error:  # noqa: BLE001 - whatever a program's call causes, others are answered
                pod = group.pending[0].origin.ref.pod if group.pending else ""
                group.not_before = self._clock() + self._guard.failed("call", pod, error)
            acted.append(group)
        self._charge(acted)

    def _try_again(self) -> None:
        """Arms the listeners that could not be received from, once their time has come."""
        for descriptor in list(self._failed):
            origin = self._origins.get(descriptor)
            if origin is None or self._guard.due("listener", origin.container.id):
                self._failed.discard(descriptor)
                if origin is not None:
                    self._arm(descriptor)

    def end(self) -> None:
        """No other turn will follow; nobody hears of a gate that held no pod. Raises OSError."""
        if not self._origins:
            self._publisher.remove_if_unused()

    def close(self) -> None:
        """Gives its copies of the listeners back."""
        for origin in self._origins.values():
            origin.listener.close()
        self._epoll.close()
        self._handler.close()

    def _poll(self) -> list[tuple[int, int]]:
        now = self._clock()
        due = (group.not_before for group in self._busy.values())
        pause = min(due, default=now + _IDLE_SECONDS) - now
        if pause > 1e-3:
            return self._epoll.poll(min(pause, _IDLE_SECONDS))
        if pause > 0:  # epoll_wait(2) counts in milliseconds
            select.select([self._epoll], [], [], pause)
        return self._epoll.poll(0)

    def _refresh_containers(self) -> None:
        """Nothing is decided before it is known which limits cover the calls of every listener."""
        if self._current:
            return
        self._pods.set_containers(origin.container for origin in self._origins.values())
        self._handler.configure()
        self._publisher.set_containers(
            (origin.container for origin in self._origins.values()), self._pods.existing_pods
        )
        self._publisher.set_fingerprints(self._pods.fingerprints())
        kept = {self._pods.queue_key(origin.ref.pod) for origin in self._origins.values()}
        self._groups = {key: group for key, group in self._groups.items() if key in kept or group.pending}
        self._current = True

    def _group(self, ref: ContainerRef) -> _Group:
        return self._groups.setdefault(self._pods.queue_key(ref.pod), _Group())

    def _wait(self, pending: PendingNotification) -> None:
        """Puts a call into its group, behind those that came before."""
        group = self._group(pending.origin.ref)
        group.pending.append(pending)
        self._pending_by_tid[pending.tid] = pending
        self._busy[id(group)] = group

    def _forget(self, pending: PendingNotification) -> None:
        """It waits no longer."""
        if self._pending_by_tid.get(pending.tid) is pending:
            del self._pending_by_tid[pending.tid]

    def _charge(self, acted: list[_Group]) -> None:
        """Shares what was used of the processor since the last turn among those that it was used for."""
        used, self._used = self._used, time.process_time()
        for group in acted:
            group.spend((self._used - used) / len(acted), self._clock())

    def _receive(self, descriptor: int, origin: ContainerListener) -> _Group:
        group = self._group(origin.ref)
        if self._journal.full:
            self._handler.end_returned()
        received = self._journal.receive(origin.listener, origin.number)
        if received is None:
            self._arm(descriptor)
            return group
        slot, call = received
        before = self._pending_by_tid.get(call.tid)
        if before is not None and before.origin is origin:
            self._handler.receive_again(before, slot, call)
        else:
            self._wait(self._handler.receive(slot, call, origin, self._clock()))
        if len(group.pending) < MAX_PENDING:
            self._arm(descriptor)
        else:
            group.disarmed.append(descriptor)
        return group

    def _arm(self, descriptor: int) -> None:
        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def _arm_again(self, group: _Group) -> None:
        for descriptor in group.disarmed:
            if descriptor in self._origins:
                self._arm(descriptor)
        group.disarmed.clear()

    def _remove(self, descriptor: int, origin: ContainerListener) -> None:
        """Nobody is left who could make a call."""
        self._epoll.unregister(descriptor)
        origin.listener.close()
        del self._origins[descriptor]
        for group in self._groups.values():
            for each in [each for each in group.pending if each.origin is origin]:
                group.pending.remove(each)
                self._forget(each)
                self._journal.free(each.slot)
            if not group.pending:
                self._busy.pop(id(group), None)
        if all(each.ref.pod != origin.ref.pod for each in self._origins.values()):
            self._handler.forget(origin.ref.pod)
        self._current = False

    def _step(self, group: _Group) -> None:
        """Answers the first call of a group, or has all of them wait."""
        began = self._clock()
        pending = group.pending[0]
        wait = self._handler.handle(pending, began)
        if wait:
            group.not_before = began + wait
        else:
            group.pending.popleft()
            self._forget(pending)
            if len(group.pending) < MAX_PENDING:
                self._arm_again(group)
        if not group.pending:
            del self._busy[id(group)]
