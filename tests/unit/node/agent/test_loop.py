"""The main loop with a fake reconciler: configurations arrive at once and in order."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, cast

import pytest

from pinwarden.api.nodepinconfig import NodePinConfigSpec, NodePinConfigStatus, UnsupportedLimit
from pinwarden.node.agent.loop import BETWEEN_REPORTS_SECONDS, Loop
from pinwarden.node.agent.reconciler import Reconciler
from pinwarden.node.agent.threads import ConfigInbox, Snapshot, SnapshotBoard, Wakeup, Workers
from pinwarden.node.state.config import Configuration, Problem


class FakeReconciler:
    limit_names: ClassVar[dict[str, tuple[str, ...]]] = {}
    failures: ClassVar[dict[tuple[str, str], int]] = {}

    def __init__(self, wait: float = 60.0) -> None:
        self.wait = wait
        self.calls: list[object] = []
        self.ticked = threading.Event()

    def configure(
        self,
        spec: NodePinConfigSpec,
        unsupported: Sequence[UnsupportedLimit],
        generation: int | None,
        gone: frozenset[str] = frozenset(),
    ) -> None:
        self.calls.append(generation)

    def tick(self) -> float:
        if self.calls[-1:] != ["tick"]:
            self.calls.append("tick")
        self.ticked.set()
        return self.wait

    def report(self) -> NodePinConfigStatus:
        generations = [call for call in self.calls if isinstance(call, int)]
        return NodePinConfigStatus(observed_generation=generations[-1] if generations else None)


class Running:
    """A loop in a thread, ended by `end`."""

    def __init__(self, reconciler: FakeReconciler, *early: Configuration | Problem) -> None:
        self.reconciler = reconciler
        self.ticks: list[float] = []
        wakeup = Wakeup()
        self.inbox, self.board, self.workers = ConfigInbox(wakeup), SnapshotBoard(), Workers(wakeup)
        for item in early:
            self.inbox.put(item)
        self.loop = Loop(
            cast(Reconciler, reconciler),
            self.inbox,
            wakeup,
            self.board,
            ticked=self.ticks.append,
            failed=lambda: self.workers.failed,
        )
        self.result: list[bool] = []
        self.thread = threading.Thread(
            target=lambda: self.result.append(self.loop.run()), daemon=True
        )
        self.thread.start()

    def published(self, holds: Callable[[Snapshot], bool]) -> Snapshot:
        deadline = time.monotonic() + 20
        latest = self.board.latest
        while latest is None or not holds(latest):
            assert time.monotonic() < deadline, f"last: {latest}"
            latest = self.board.wait_for_newer(latest, 0.1)
        return latest

    def ended(self) -> bool:
        self.thread.join(20)
        return self.result[0]


def configuration(generation: int) -> Configuration:
    return Configuration.parse({}, "uid-1", generation)


def test_a_configuration_ends_a_long_sleep_and_is_reported_at_once() -> None:
    running = Running(FakeReconciler(wait=3600))
    assert running.reconciler.ticked.wait(20)
    running.inbox.put(configuration(7))
    assert running.published(lambda s: s.configuration is not None).report.observed_generation == 7
    running.loop.stop()
    assert running.ended()
    assert running.reconciler.calls == ["tick", 7, "tick"]
    assert len(running.ticks) == 2


def test_several_configurations_before_the_first_tick_apply_only_the_last() -> None:
    running = Running(FakeReconciler(), configuration(1), configuration(2))
    running.published(lambda s: s.configuration is not None)
    assert running.reconciler.calls == [2, "tick"]
    running.loop.stop()


@pytest.mark.rule("H3")
def test_a_problem_leaves_the_last_good_configuration_and_is_reported() -> None:
    running = Running(
        FakeReconciler(), configuration(1), Problem("generation 2: spec.mode: no", "uid-1")
    )
    snapshot = running.published(lambda s: s.problem is not None)
    assert snapshot.configuration is not None
    assert snapshot.configuration.generation == snapshot.report.observed_generation == 1
    (entry,) = snapshot.report.unsupported_limits
    assert (entry.uid, entry.reason, entry.message) == (
        "uid-1",
        "InvalidSpec",
        "generation 2: spec.mode: no",
    )
    running.inbox.put(configuration(3))
    assert not running.published(lambda s: s.problem is None).report.unsupported_limits
    running.loop.stop()


def test_an_equal_configuration_is_not_applied_again() -> None:
    running = Running(FakeReconciler(), configuration(1))
    running.published(lambda s: s.configuration is not None)
    running.inbox.put(Problem("x"))
    running.published(lambda s: s.problem is not None)
    running.inbox.put(configuration(1))
    running.published(lambda s: s.problem is None)
    running.loop.stop()
    assert running.ended()
    assert running.reconciler.calls.count(1) == 1


def test_a_busy_reconciler_is_not_asked_for_a_report_at_each_tick() -> None:
    running = Running(FakeReconciler(wait=0.001))
    first = running.published(lambda s: True)
    second = running.published(lambda s: s is not first)
    assert second.taken - first.taken >= BETWEEN_REPORTS_SECONDS
    running.loop.stop()


def fails() -> None:
    raise ValueError("broken")


@pytest.mark.parametrize("run", [fails, lambda: None])
def test_an_ended_thread_ends_the_agent(
    run: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    running = Running(FakeReconciler(wait=3600))
    running.workers.start("watcher", run)
    assert running.ended() is False
    assert "thread watcher" in caplog.text
    assert "the agent ends, because thread watcher ended" in caplog.text


@pytest.mark.rule("H3")
def test_a_failed_tick_beats_no_pulse_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(FakeReconciler):
        def tick(self) -> float:
            super().tick()
            if len(self.failed) < 3:
                self.failed.append(None)
                raise RecursionError("a tree that somebody made")
            return self.wait

        def __init__(self) -> None:
            super().__init__(wait=3600)
            self.failed: list[None] = []

    reconciler = Broken()
    running = Running(reconciler)
    deadline = time.monotonic() + 20
    while not running.ticks:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(reconciler.failed) == 3
    assert len(running.ticks) == 1
    assert caplog.text.count("tick failed, all others continue") == 1
    running.loop.stop()
    assert running.ended()


@pytest.mark.rule("H3")
def test_a_configuration_rejected_by_the_reconciler_is_a_problem() -> None:
    class Picky(FakeReconciler):
        def configure(
            self,
            spec: NodePinConfigSpec,
            unsupported: Sequence[UnsupportedLimit],
            generation: int | None,
            gone: frozenset[str] = frozenset(),
        ) -> None:
            if generation == 2:
                raise KeyError("nobody foresaw this")
            super().configure(spec, unsupported, generation, gone)

    running = Running(Picky(wait=3600), configuration(1), configuration(2))
    running.inbox.put(configuration(1))
    running.published(lambda s: s.configuration is not None)
    running.inbox.put(configuration(2))
    snapshot = running.published(lambda s: s.problem is not None)
    assert snapshot.configuration is not None
    assert snapshot.configuration.generation == 1
    assert "nobody foresaw this" in snapshot.report.unsupported_limits[0].message
    running.loop.stop()
    assert running.ended()
