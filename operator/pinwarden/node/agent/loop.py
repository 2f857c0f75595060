"""The main thread: configures the reconciler, calls its ticks, and publishes its reports.

The main thread never waits for the API server: configurations arrive in the inbox and wake it.

If the reconciler rejects a configuration, the last good configuration stays in force, and the
problem is reported (H3). A failed tick is tried again after a backoff and beats no pulse. Without a
successful tick the agent's pod becomes not ready, and is restarted later (`http_server`).
"""

import logging
import time
from collections.abc import Callable

from pinwarden.api.nodepinconfig import NodePinConfigStatus, UnsupportedReport
from pinwarden.common.guard import Guard
from pinwarden.node.agent.reconciler import Reconciler
from pinwarden.node.agent.threads import ConfigInbox, Snapshot, SnapshotBoard, Wakeup
from pinwarden.node.state.config import Configuration, Problem

BETWEEN_REPORTS_SECONDS = 0.25
INVALID_SPEC = "InvalidSpec"
MOST_UNSUPPORTED = 1024
KINDS = ("configuration", "tick", "report")
"""Kinds of items guarded by the loop."""
_log = logging.getLogger(__name__)


class Loop:
    """Runs until `stop`, or until `failed` names a thread.

    `ticked` gets the duration of each tick in seconds.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        inbox: ConfigInbox,
        wakeup: Wakeup,
        board: SnapshotBoard,
        *,
        ticked: Callable[[float], None],
        failed: Callable[[], str | None],
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard or Guard(KINDS)
        self._reconciler = reconciler
        self._inbox = inbox
        self._wakeup = wakeup
        self._board = board
        self._ticked = ticked
        self._failed = failed
        self._stopping = False
        self._configuration: Configuration | None = None
        self._problem: Problem | None = None

    def stop(self) -> None:
        """End the loop soon; may be called from a signal handler."""
        self._stopping = True
        self._wakeup.wake()

    def run(self) -> bool:
        """Run the loop. Return whether `stop` ended it."""
        while not self._stopping:
            if name := self._failed():
                _log.critical("the agent ends, because thread %s ended", name)
                return False
            news = self._take_news()
            wait = self._tick()
            with self._guard.item("report"):
                self._publish(at_once=news)
            self._wakeup.sleep(wait)
        return True

    def _tick(self) -> float:
        """Return the seconds until the next tick."""
        started = time.monotonic()
        try:
            wait = self._reconciler.tick()
        except Exception as error:  # noqa: BLE001 - limits stay in force, and no pulse is beaten
            return self._guard.failed("tick", "", error)
        self._guard.succeeded("tick")
        self._ticked(time.monotonic() - started)
        return wait

    def _take_news(self) -> bool:
        """Apply the last configuration in the inbox. Return whether the inbox had items."""
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
            self._reconciler.configure(
                newest.spec, newest.unsupported, newest.generation, newest.gone
            )
            self._configuration = newest
            _log.info(
                "configuration in force: generation %s, %d limits, %d unsupported",
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
        report = self._reconciler.report()
        if self._problem is not None:
            report = _with_problem(report, self._problem)
        snapshot = Snapshot(
            report,
            self._configuration,
            self._problem,
            limit_names=self._reconciler.limit_names,
            failures=self._reconciler.failures,
        )
        self._board.publish(snapshot)


def _with_problem(report: NodePinConfigStatus, problem: Problem) -> NodePinConfigStatus:
    """Return the report of the last good configuration, with the problem of the newer one."""
    entry = UnsupportedReport(uid=problem.uid or "", reason=INVALID_SPEC, message=problem.message)
    listed = [entry, *report.unsupported_limits]
    cut = len(listed) > MOST_UNSUPPORTED
    return report.model_copy(
        update={
            "unsupported_limits": listed[:MOST_UNSUPPORTED],
            "truncated": report.truncated or cut,
        }
    )
