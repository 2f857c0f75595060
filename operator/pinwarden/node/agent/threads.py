"""The agent's threads besides the main one, and how they and it reach each other.

The main thread alone owns the engine, and never waits for a lock that is held during input or output. Others leave it news in an inbox,
which wakes it, and read the snapshot that it last put on the board. A thread that ends with an exception ends the agent: an agent without
its watcher or reporter looks alive and is not.
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
    """Wakes one thread out of `sleep`, from another thread or a signal handler."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)

    def wake(self) -> None:
        """Ends the sleep of now, or the next one."""
        os.eventfd_write(self._event, 1)

    def sleep(self, seconds: float) -> None:
        """Sleeps until `wake` or for `seconds`."""
        if self._poll.poll(max(0.0, seconds) * 1000):
            os.eventfd_read(self._event)


class ConfigInbox:
    """Configurations for the main thread, and problems with those that could not be taken, in order."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._items: deque[Configuration | Problem] = deque()

    def put(self, item: Configuration | Problem) -> None:
        """Leaves an item and wakes the main thread."""
        self._items.append(item)
        self._wakeup.wake()

    def take(self) -> list[Configuration | Problem]:
        """Every item that was not taken yet, oldest first."""
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items


@dataclass(frozen=True)
class Snapshot:
    """What the engine reported at a moment: `taken` is of the monotonic clock, in seconds.

    `names` has, for each subject whose name the report cannot bear, the real one by the reported one. `failures` counts the items that
    failed, by the process that worked on them and by kind.
    """

    report: NodePinConfigStatus
    configuration: Configuration | None = None
    problem: Problem | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[tuple[str, str], int] = field(default_factory=dict)
    taken: float = field(default_factory=time.monotonic)


class SnapshotBoard:
    """The latest snapshot, None before the first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._latest: Snapshot | None = None

    @property
    def latest(self) -> Snapshot | None:
        """The snapshot that was published last."""
        return self._latest

    def publish(self, snapshot: Snapshot) -> None:
        """Replaces the snapshot and wakes those who wait."""
        with self._changed:
            self._latest = snapshot
            self._changed.notify_all()

    def wait_for_newer(self, than: Snapshot | None, seconds: float | None) -> Snapshot | None:
        """The latest snapshot, once it is another one than `than` or after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not than, seconds)
            return self._latest


class Workers:
    """Starts threads, and says which one failed. `wakeup` is of the thread that looks at `failed`."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self.failed: str | None = None

    def start(self, name: str, run: Callable[[], object]) -> None:
        """Runs `run`, which must not return, in a thread that does not keep the process alive."""

        def guarded() -> None:
            try:
                run()
                _log.error("thread %s ended", name)
            except Exception:  # noqa: BLE001 - whatever it is, the agent must end
                _log.exception("thread %s failed", name)
            self.failed = name
            self._wakeup.wake()

        threading.Thread(target=guarded, name=name, daemon=True).start()
