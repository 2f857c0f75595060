"""Receives all notifications of a node and handles them in fair turns between pods.

One thread does all of this. Each pod has a queue. Pods with a common limit of scope Node have one
queue together. A turn receives at most one notification of each listener, and then handles the
first notification of each queue. So a pod with many calls delays only its own calls.

A queue pauses after a burst of `BURST_SECONDS` if its share of the processor is larger than
`SHARE`. A waiting queue still receives up to `MAX_PENDING` notifications. Each of them proves the
return of its thread's last call.

The handler answers the first notification of a queue, or makes the whole queue wait.

If a listener cannot be received from, or a queue cannot be handled, the `guard` tries it again
after a backoff. All others continue.
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
"""The kinds of items that the dispatcher guards."""


@dataclass(slots=True)
class _PodQueue:
    """The notifications of one or more pods, in order.

    `disarmed` are the paused listeners. `burst` is the processor time for one burst, in seconds, at
    the time `counted`.
    """

    pending: deque[PendingNotification] = field(default_factory=deque)
    disarmed: list[int] = field(default_factory=list)
    not_before: float = 0.0
    burst: float = BURST_SECONDS
    counted: float = 0.0

    def spend(self, seconds: float, now: float) -> None:
        """Subtract processor time. A queue with a negative rest pauses until the rest is 0."""
        self.burst = min(BURST_SECONDS, self.burst + (now - self.counted) * SHARE) - seconds
        self.counted = now
        if self.burst < 0:
            self.not_before = max(self.not_before, now - self.burst / SHARE)


class Dispatcher:
    """Answers notifications as long as `turn` is called.

    `clock` is monotonic, in seconds. `guard` knows the `KINDS`.
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
        self._queues: dict[str, _PodQueue] = {}
        self._busy: dict[int, _PodQueue] = {}
        self._pending_by_tid: dict[int, PendingNotification] = {}
        self._used = time.process_time()
        self._others: dict[int, Callable[[], None]] = {}
        self._up_to_date = True

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever a descriptor is readable, until `forget`."""
        self._others[descriptor] = ready
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """Stop to watch a descriptor."""
        self._epoll.unregister(descriptor)
        del self._others[descriptor]

    def add(self, number: int, descriptor: int, container: GatedContainer) -> None:
        """Take over a container's listener. `number` names it, also in the journal.

        Raises OSError, and ValueError if the descriptor is not a listener. The caller then still
        owns the descriptor.
        """
        if os.readlink(f"/proc/self/fd/{descriptor}") != _LISTENER:
            raise ValueError("the descriptor is not a seccomp listener")
        self._origins[descriptor] = ContainerListener(number, Listener(descriptor), container)
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        self._up_to_date = False

    @property
    def listeners(self) -> dict[int, tuple[int, GatedContainer]]:
        """The descriptor and the container of each listener, by its number."""
        return {
            origin.number: (descriptor, origin.container)
            for descriptor, origin in self._origins.items()
        }

    def configure(self, policy: NodePolicy | None, groups: Iterable[NodeGroup] = ()) -> None:
        """Apply a configuration to all pending and later notifications (P12). Raises OSError."""
        self._pods.configure(policy)
        self._publisher.set_fingerprints(self._pods.fingerprints())
        self._handler.configure(() if policy is None or policy.release else groups)
        before, self._queues, self._busy = self._queues, {}, {}
        for queue in before.values():
            self._arm_again(queue)
        pending = [item for queue in before.values() for item in queue.pending]
        for item in sorted(pending, key=lambda item: item.received):
            self._enqueue(item)

    def set_objects(self, objects: Mapping[str, ObjectSet]) -> None:
        """Set the objects of each group of shared memory, by the group's UID."""
        self._handler.set_objects(objects)

    def recover(self) -> None:
        """Continue the work in the journal of an earlier gate, once all listeners are added.

        Raises OSError.
        """
        self._refresh_containers()
        self._publisher.finish_recovery()
        numbers = {origin.number: origin for origin in self._origins.values()}
        for slot, notification, number, amount in list(self._journal.left()):
            origin = numbers.get(number)
            with self._guard.item("slot"):
                if origin is not None and origin.listener.is_valid(notification.id):
                    self._enqueue(self._handler.receive(slot, notification, origin, self._clock()))
                    continue
                if origin is not None and amount is not None:
                    self._handler.track(slot, notification, origin.ref, amount)
                    continue
            self._journal.free(slot)

    def turn(self) -> None:
        """Receive and answer once, or wait a little. Raises OSError if pods cannot be listed."""
        self._refresh_containers()
        self._publisher.flush(self._clock())
        self._try_again()
        active: list[_PodQueue] = []
        for descriptor, event in self._poll():
            origin = self._origins.get(descriptor)
            if origin is None:
                if ready := self._others.get(descriptor):
                    ready()
            elif event & select.EPOLLIN:
                with self._guard.item("listener", origin.container.id):
                    active.append(self._receive(descriptor, origin))
                    continue
                self._failed.add(descriptor)
            else:
                self._remove(descriptor, origin)
        for queue in [queue for queue in self._busy.values() if queue.not_before <= self._clock()]:
            try:
                self._handle_first(queue)
            except Exception as error:  # noqa: BLE001 - a pod's call must not delay other pods
                pod = queue.pending[0].pod if queue.pending else ""
                queue.not_before = self._clock() + self._guard.failed("call", pod, error)
            active.append(queue)
        self._charge(active)

    def _try_again(self) -> None:
        """Arm failed listeners again after their backoff."""
        for descriptor in list(self._failed):
            origin = self._origins.get(descriptor)
            if origin is None or self._guard.due("listener", origin.container.id):
                self._failed.discard(descriptor)
                if origin is not None:
                    self._arm(descriptor)

    def end(self) -> None:
        """Shut down after the last turn. A gate without pods deletes its file. Raises OSError."""
        if not self._origins:
            self._publisher.remove_if_unused()

    def close(self) -> None:
        """Close the listeners and stop the reads."""
        for origin in self._origins.values():
            origin.listener.close()
        self._epoll.close()
        self._handler.close()

    def _poll(self) -> list[tuple[int, int]]:
        now = self._clock()
        due = (queue.not_before for queue in self._busy.values())
        pause = min(due, default=now + _IDLE_SECONDS) - now
        if pause > 1e-3:
            return self._epoll.poll(min(pause, _IDLE_SECONDS))
        if pause > 0:  # epoll_wait(2) counts in milliseconds
            select.select([self._epoll], [], [], pause)
        return self._epoll.poll(0)

    def _refresh_containers(self) -> None:
        """Update limits and publisher if the listeners changed. Decisions need the limits."""
        if self._up_to_date:
            return
        self._pods.set_containers(origin.container for origin in self._origins.values())
        self._handler.configure()
        self._publisher.set_containers(
            (origin.container for origin in self._origins.values()), self._pods.existing_pods
        )
        self._publisher.set_fingerprints(self._pods.fingerprints())
        kept = {self._pods.queue_key(origin.ref.pod) for origin in self._origins.values()}
        self._queues = {
            key: queue for key, queue in self._queues.items() if key in kept or queue.pending
        }
        self._up_to_date = True

    def _queue(self, ref: ContainerRef) -> _PodQueue:
        return self._queues.setdefault(self._pods.queue_key(ref.pod), _PodQueue())

    def _enqueue(self, pending: PendingNotification) -> None:
        """Append a notification to its queue."""
        queue = self._queue(pending.ref)
        queue.pending.append(pending)
        self._pending_by_tid[pending.tid] = pending
        self._busy[id(queue)] = queue

    def _forget(self, pending: PendingNotification) -> None:
        """Forget an answered notification."""
        if self._pending_by_tid.get(pending.tid) is pending:
            del self._pending_by_tid[pending.tid]

    def _charge(self, active: list[_PodQueue]) -> None:
        """Charge the processor time since the last turn to the active queues in equal shares."""
        used, self._used = self._used, time.process_time()
        for queue in active:
            queue.spend((self._used - used) / len(active), self._clock())

    def _receive(self, descriptor: int, origin: ContainerListener) -> _PodQueue:
        queue = self._queue(origin.ref)
        if self._journal.full:
            self._handler.end_returned()
        received = self._journal.receive(origin.listener, origin.number)
        if received is None:
            self._arm(descriptor)
            return queue
        slot, notification = received
        before = self._pending_by_tid.get(notification.tid)
        if before is not None and before.origin is origin:
            self._handler.receive_again(before, slot, notification)
        else:
            self._enqueue(self._handler.receive(slot, notification, origin, self._clock()))
        if len(queue.pending) < MAX_PENDING:
            self._arm(descriptor)
        else:
            queue.disarmed.append(descriptor)
        return queue

    def _arm(self, descriptor: int) -> None:
        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def _arm_again(self, queue: _PodQueue) -> None:
        for descriptor in queue.disarmed:
            if descriptor in self._origins:
                self._arm(descriptor)
        queue.disarmed.clear()

    def _remove(self, descriptor: int, origin: ContainerListener) -> None:
        """Remove a listener without processes."""
        self._epoll.unregister(descriptor)
        origin.listener.close()
        del self._origins[descriptor]
        for queue in self._queues.values():
            for pending in [item for item in queue.pending if item.origin is origin]:
                queue.pending.remove(pending)
                self._forget(pending)
                self._journal.free(pending.slot)
            if not queue.pending:
                self._busy.pop(id(queue), None)
        if all(other.ref.pod != origin.ref.pod for other in self._origins.values()):
            self._handler.forget(origin.ref.pod)
        self._up_to_date = False

    def _handle_first(self, queue: _PodQueue) -> None:
        """Handle the first notification of a queue, or make the queue wait."""
        began = self._clock()
        pending = queue.pending[0]
        wait = self._handler.handle(pending, began)
        if wait:
            queue.not_before = began + wait
        else:
            queue.pending.popleft()
            self._forget(pending)
            if len(queue.pending) < MAX_PENDING:
                self._arm_again(queue)
        if not queue.pending:
            del self._busy[id(queue)]
