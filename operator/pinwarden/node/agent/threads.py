"""The agent's threads besides the main thread, and the exchange of data between threads.

Only the main thread uses the reconciler. No thread keeps a lock of the main thread during input or
output. Other threads put configurations into an inbox, which wakes the main thread, and read its
latest snapshot. If a thread ends, the agent ends: without its watcher or writer, the agent would
only look alive.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pinwarden.api.nodepinconfig import NodePinConfigStatus
from pinwarden.node.state.config import Configuration, Problem

_log = logging.getLogger(__name__)


class Wakeup:
    """Wakes one thread from `sleep`, from another thread or a signal handler."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)

    def wake(self) -> None:
        """End the current sleep, or the next one."""
        os.eventfd_write(self._event, 1)

    def sleep(self, seconds: float) -> None:
        """Sleep until `wake` or for `seconds`."""
        if self._poll.poll(max(0.0, seconds) * 1000):
            os.eventfd_read(self._event)


class ConfigInbox:
    """Configurations for the main thread, and problems with rejected ones, in order."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._items: deque[Configuration | Problem] = deque()

    def put(self, item: Configuration | Problem) -> None:
        """Add an item and wake the main thread."""
        self._items.append(item)
        self._wakeup.wake()

    def take(self) -> list[Configuration | Problem]:
        """Remove and return all items, oldest first."""
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items


@dataclass(frozen=True)
class Snapshot:
    """The state of the agent at the time `taken`, in seconds of the monotonic clock.

    `limit_names` are the limits of each subject in the configuration, by its reported name.
    `failures` counts the items that failed, by process and kind.
    """

    report: NodePinConfigStatus
    configuration: Configuration | None = None
    problem: Problem | None = None
    limit_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failures: Mapping[tuple[str, str], int] = field(default_factory=dict)
    taken: float = field(default_factory=time.monotonic)


class SnapshotBoard:
    """The latest snapshot, None before the first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._latest: Snapshot | None = None

    @property
    def latest(self) -> Snapshot | None:
        """The latest snapshot."""
        return self._latest

    def publish(self, snapshot: Snapshot) -> None:
        """Replace the snapshot and wake all waiting threads."""
        with self._changed:
            self._latest = snapshot
            self._changed.notify_all()

    def wait_for_newer(self, than: Snapshot | None, seconds: float | None) -> Snapshot | None:
        """Return the latest snapshot when there is a newer one than `than`, or after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not than, seconds)
            return self._latest


class Workers:
    """Starts threads. `failed` names an ended thread, and `wakeup` wakes the main thread then."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self.failed: str | None = None

    def start(self, name: str, run: Callable[[], object]) -> None:
        """Call `run` in a daemon thread. `run` must not return."""

        def guarded() -> None:
            try:
                run()
                _log.error("thread %s ended", name)
            except Exception:  # noqa: BLE001 - the agent must end
                _log.exception("thread %s failed", name)
            self.failed = name
            self._wakeup.wake()

        threading.Thread(target=guarded, name=name, daemon=True).start()
