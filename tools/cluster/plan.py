"""Builds pieces beside each other, and says how far it is.

A plan is a list of steps. Each runs in a thread of its own once the steps before it are done, so
that downloads run beside compilers. Each step that ends is one line, and the longest ones tell how
far they are:

    building 9 pieces, about 10 min left
      1 of 9   0:14  base system built in 12 s, about 9 min left
               2:00  cluster commands: 1190 of 3563 packages compiled, about 7 min left
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from cluster.cache import progress
from cluster.commands import stopped

GLANCE_SECONDS = 1.0
"""What takes no longer than this was in the cache, and is not worth a line."""
POLL_SECONDS = 0.5
TELL_SECONDS = 60.0
"""Between two lines that say how far a step is."""
TRUST_SECONDS = 30.0
"""The machine's own speed counts as much as the expectation after so long."""


@dataclass(frozen=True)
class Step:
    """One piece to have.

    ``make`` builds what is missing of it. ``seconds`` is the processor time that this took where it
    was measured. The names in ``after`` are those of earlier steps.
    """

    name: str
    make: Callable[[], object]
    seconds: float
    after: Sequence[str] = ()


@dataclass
class _Stage:
    """How far the step of a thread is."""

    done: int = 0
    total: int = 0
    unit: str = ""

    @property
    def share(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 0.0


_current = threading.local()


def report(done: int, total: int, unit: str) -> None:
    """Say how far the step is that this thread runs; nothing outside a plan."""
    stage = getattr(_current, "stage", None)
    if stage is not None:
        stage.done, stage.total, stage.unit = done, total, unit


@dataclass
class _Run:
    """A step that runs."""

    step: Step
    stage: _Stage = field(default_factory=_Stage)
    began: float = 0.0
    ended: float = 0.0
    told: float = 0.0

    @property
    def share(self) -> float:
        """How much of the step is done, from 0 to 1. The last tenth is the end itself: the last
        package is not the last of the work.
        """
        return 1.0 if self.ended else 0.9 * self.stage.share

    def carry_out(self, before: Sequence["Future[None]"]) -> None:
        for future in before:
            future.result()
        _current.stage = self.stage
        self.began = self.told = time.monotonic()
        self.step.make()
        self.ended = time.monotonic()


def carry_out(steps: Sequence[Step]) -> None:
    """Have every piece, building what is missing; returns at once when nothing is.

    Raises what the first step that failed raised. An exception, Ctrl-C too, ends all commands of
    all steps first.
    """
    runs: dict[Future[None], _Run] = {}
    futures: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(len(steps), thread_name_prefix="step") as pool:
        try:
            for step in steps:
                run = _Run(step)
                future = pool.submit(run.carry_out, [futures[name] for name in step.after])
                futures[step.name] = future
                runs[future] = run
            _watch(runs)
        except BaseException:
            with stopped():
                pool.shutdown(cancel_futures=True)
            raise


def _watch(runs: "dict[Future[None], _Run]") -> None:
    """Wait for all steps and say how far they are."""
    began = time.monotonic()
    left = _wait(set(runs), GLANCE_SECONDS, FIRST_EXCEPTION)
    if not left:
        return
    outlook = _Outlook([runs[future] for future in left], began)
    count = len(left)
    progress(f"building {count} {'piece' if count == 1 else 'pieces'}{outlook.left()}")
    while left:
        still = _wait(left, POLL_SECONDS)
        ended = sorted((runs[future] for future in left - still), key=lambda run: run.ended)
        for number, run in enumerate(ended, start=count - len(left) + 1):
            text = f"{run.step.name} built in {run.ended - run.began:.0f} s"
            progress(f"{f'{number} of {count}':>8} {outlook.line(text)}")
        left = still
        for run in (runs[future] for future in left):
            if run.stage.done and time.monotonic() - run.told >= TELL_SECONDS:
                run.told = time.monotonic()
                far = f"{run.stage.done} of {run.stage.total} {run.stage.unit}"
                progress(f"{'':8} {outlook.line(f'{run.step.name}: {far}')}")


def _wait(
    futures: "set[Future[None]]", seconds: float, event: str = FIRST_COMPLETED
) -> "set[Future[None]]":
    """Wait for an event, but no longer than a time; return what still runs. Raises what a step
    raised.
    """
    done, left = wait(futures, seconds, event)
    for future in done:
        future.result()
    return left


class _Outlook:
    """Expects how long the steps will still take: by the expectation, and more and more by the
    machine's own speed.
    """

    def __init__(self, runs: Sequence[_Run], began: float) -> None:
        self._runs = runs
        self._began = began
        self._processors = len(os.sched_getaffinity(0))

    def line(self, text: str) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{minutes:3}:{seconds:02}  {text}{self.left()}"

    def left(self) -> str:
        done = sum(run.step.seconds * run.share for run in self._runs)
        left = sum(run.step.seconds for run in self._runs) - done
        if not left:
            return ""
        elapsed = time.monotonic() - self._began
        speed = (done + TRUST_SECONDS * self._processors) / (elapsed + TRUST_SECONDS)
        return f", about {_rough(left / speed)} left"


def _rough(seconds: float) -> str:
    """Return a time that is no more exact than it is known."""
    return f"{max(round(seconds / 10), 1) * 10} s" if seconds < 90 else f"{round(seconds / 60)} min"
