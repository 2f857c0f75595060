"""The main thread: gives the engine its configuration and its ticks, and publishes what it reports.

It never waits for the API server or a disk of its own accord: news comes through the inbox and wakes it, reports go to the board.

A configuration that the engine cannot take leaves the last good one in force, and is reported as a problem (H3). A tick that fails is tried
again after a backoff and beats no pulse: the agent's pod is not ready while none succeeds, and is restarted in the end (`web`).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pinwarden.api.nodepinconfig import (
    NodePinConfigSpec,
    NodePinConfigStatus,
    UnsupportedLimit,
    UnsupportedReport,
)
from pinwarden.common.guard import Guard
from pinwarden.node.agent.threads import ConfigInbox, Snapshot, SnapshotBoard, Wakeup
from pinwarden.node.state.config import Configuration, Problem

BETWEEN_REPORTS_SECONDS = 0.25
INVALID_SPEC = "InvalidSpec"
MOST_UNSUPPORTED = 1024
KINDS = ("configuration", "tick", "report")
"""Kinds of items that the loop guards."""
_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What the loop drives; `engine.Engine` is the one there is."""

    def configure(
        self,
        spec: NodePinConfigSpec,
        unsupported: Sequence[UnsupportedLimit],
        generation: int | None,
        gone: frozenset[str] = ...,
    ) -> None:
        """Take a configuration; it is dealt at the next tick. `gone` are pods in it that have no object any more."""
        ...

    def tick(self) -> float:
        """Look and deal once; seconds until the next tick is wanted."""
        ...

    def report(self) -> NodePinConfigStatus:
        """What was found at the last tick."""
        ...

    @property
    def names(self) -> Mapping[str, str]:
        """Subjects whose name the report cannot bear: the real name by the reported one."""
        ...

    @property
    def failures(self) -> Mapping[tuple[str, str], int]:
        """How often the work on items failed, by process and kind."""
        ...


class Loop:
    """Runs until `stop` or until `failed` names a thread; `ticked` is told how long each tick took, in seconds."""

    def __init__(
        self,
        engine: Engine,
        inbox: ConfigInbox,
        wakeup: Wakeup,
        board: SnapshotBoard,
        *,
        ticked: Callable[[float], None],
        failed: Callable[[], str | None],
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard or Guard(KINDS)
        self._engine = engine
        self._inbox = inbox
        self._wakeup = wakeup
        self._board = board
        self._ticked = ticked
        self._failed = failed
        self._stopping = False
        self._configuration: Configuration | None = None
        self._problem: Problem | None = None

    def stop(self) -> None:
        """Ends the loop soon; may be called from a signal handler."""
        self._stopping = True
        self._wakeup.wake()

    def run(self) -> bool:
        """Whether the loop ended because it was told to."""
        while not self._stopping:
            if name := self._failed():
                _log.critical("ending, because thread %s ended", name)
                return False
            news = self._take_news()
            wait = self._tick()
            with self._guard.item("report"):
                self._publish(at_once=news)
            self._wakeup.sleep(wait)
        return True

    def _tick(self) -> float:
        """Seconds until the next one."""
        started = time.monotonic()
        try:
            wait = self._engine.tick()
        except Exception as error:  # noqa: BLE001 - whatever it is, limits in force stay, and no pulse is beaten
            return self._guard.failed("tick", "", error)
        self._guard.succeeded("tick")
        self._ticked(time.monotonic() - started)
        return wait

    def _take_news(self) -> bool:
        """Whether there was any. Of several configurations only the last is given to the engine."""
        items = self._inbox.take()
        newest: Configuration | None = None
        for item in items:
            if isinstance(item, Configuration):
                newest, self._problem = item, None
            else:
                self._problem = item
        if newest is not None and newest != self._configuration:
            self._configure(newest)
        return bool(items)

    def _configure(self, newest: Configuration) -> None:
        with self._guard.item("configuration"):
            self._engine.configure(newest.spec, newest.unsupported, newest.generation, newest.gone)
            self._configuration = newest
            _log.info(
                "configuration in force: generation %s, %d limits, %d not understood",
                newest.generation,
                len(newest.spec.limits),
                len(newest.unsupported),
            )
            return
        self._problem = Problem(self._guard.cause("configuration"), newest.uid)

    def _publish(self, *, at_once: bool) -> None:
        latest = self._board.latest
        if not at_once and latest and time.monotonic() - latest.taken < BETWEEN_REPORTS_SECONDS:
            return
        report = self._engine.report()
        if self._problem is not None:
            report = _with_problem(report, self._problem)
        snapshot = Snapshot(
            report,
            self._configuration,
            self._problem,
            names=self._engine.names,
            failures=self._engine.failures,
        )
        self._board.publish(snapshot)


def _with_problem(report: NodePinConfigStatus, problem: Problem) -> NodePinConfigStatus:
    """The report of the last good configuration, naming the newer one that could not be read."""
    entry = UnsupportedReport(uid=problem.uid or "", reason=INVALID_SPEC, message=problem.message)
    listed = [entry, *report.unsupported_limits]
    cut = len(listed) > MOST_UNSUPPORTED
    return report.model_copy(
        update={"unsupported_limits": listed[:MOST_UNSUPPORTED], "truncated": report.truncated or cut}
    )
