"""No order of notifications, effects and returns of calls exceeds a limit.

These tests compare the gate's budgets with a model of the kernel. A thread's call adds its bytes in
parts, at any time until the call returns. Memory is unlocked at any time. The gate learns of
neither. Limits are added, removed and changed meanwhile. `update` may get a sum that was never true
at one moment.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pinwarden.node.gate.budgets import VALID_SECONDS, BudgetKey, Budgets, Fit, LimitUsage
from pinwarden.node.gate.container import ContainerRef

MAIN, SIDE, NEAR = ContainerRef("a", "main"), ContainerRef("a", "side"), ContainerRef("b", "main")
THREADS: Mapping[int, ContainerRef] = dict(enumerate((MAIN, MAIN, SIDE, SIDE, NEAR, NEAR), 1))
OF_POD, OF_CONTAINER, OF_NODE = (
    BudgetKey("pod", "a"),
    BudgetKey("each", "a", "main"),
    BudgetKey("node"),
)
MEMBERS = {OF_POD: {MAIN, SIDE}, OF_CONTAINER: {MAIN}, OF_NODE: {MAIN, SIDE, NEAR}}
RANGE = 8

threads = st.sampled_from(sorted(THREADS))
amounts = st.integers(0, 2 * RANGE)
limits = st.integers(RANGE, 4 * RANGE)


@dataclass
class Thread:
    """A thread's locked bytes in its own range and elsewhere, and its call.

    The call locks the range up to `reach`, or adds `left` more bytes.
    """

    ref: ContainerRef
    inside: int = 0
    elsewhere: int = 0
    reach: int = 0
    left: int = 0
    most: int | None = None

    @property
    def locked(self) -> int:
        return self.inside + self.elsewhere

    @property
    def pending(self) -> int:
        """The bytes that the call may still add."""
        return max(0, self.reach - self.inside) + self.left

    def over(self) -> None:
        """End the call. The gate may not know yet."""
        self.reach = self.left = 0


class Node(RuleBasedStateMachine):
    """Three containers of two pods under up to three limits."""

    def __init__(self) -> None:
        super().__init__()
        self.budgets = Budgets()
        self.now = 0.0
        self.asked = 0
        self.threads = {tid: Thread(ref) for tid, ref in THREADS.items()}
        self.limits: dict[BudgetKey, int] = {}
        self.ceilings: dict[BudgetKey, int] = {}

    def of(self, key: BudgetKey) -> Iterable[Thread]:
        return (other for other in self.threads.values() if other.ref in MEMBERS[key])

    def locked(self, key: BudgetKey) -> int:
        return sum(other.locked for other in self.of(key))

    def may_become(self, key: BudgetKey) -> int:
        return sum(other.locked + other.pending for other in self.of(key))

    def covering(self, ref: ContainerRef) -> tuple[BudgetKey, ...]:
        return tuple(key for key in self.limits if ref in MEMBERS[key])

    @initialize(limits=st.dictionaries(st.sampled_from(list(MEMBERS)), limits, min_size=1))
    def begin(self, limits: dict[BudgetKey, int]) -> None:
        self.configure(limits)

    def configure(self, limits: dict[BudgetKey, int]) -> None:
        self.limits, self.asked = limits, 0
        self.ceilings = {key: max(limit, self.may_become(key)) for key, limit in limits.items()}
        self.budgets.configure({ref: self.covering(ref) for ref in (MAIN, SIDE, NEAR)})

    @invariant()
    def nothing_rises_above_a_limit(self) -> None:
        for key, limit in self.limits.items():
            most = self.may_become(key)
            assert most <= self.ceilings[key], key
            self.ceilings[key] = max(limit, most)

    # -- actions of the gate -------------------------------------------------------------------

    @rule(
        tid=threads,
        amount=amounts,
        in_range=st.booleans(),
        known=st.booleans(),
        seconds=st.sampled_from((0.001, 0.001, VALID_SECONDS)),
    )
    def ask(self, tid: int, amount: int, in_range: bool, known: bool, seconds: float) -> None:
        """Handle a notification. Its thread's last call has returned, known to the gate or not."""
        self.threads[tid].over()
        if known:
            self.end(tid)
        self.now += seconds
        self.asked += 1
        thread = self.threads[tid]
        most = adds = min(amount, RANGE) if in_range else amount
        fit, _ = self.budgets.fit(thread.ref, most, self.now)
        if fit is not Fit.FITS:
            self.sample(thread.ref)
            adds = max(0, most - thread.inside) if in_range else most
            fit, where = self.budgets.fit(thread.ref, adds, self.now)
            self.check_decision(fit, where, thread.ref, adds)
        if fit is Fit.FITS:
            self.budgets.track(tid, thread.ref, most)
            thread.reach, thread.left, thread.most = (
                (most, 0, most) if in_range else (0, most, most)
            )

    def check_decision(
        self, fit: Fit, where: BudgetKey | None, ref: ContainerRef, adds: int
    ) -> None:
        """Check a decision after a sample.

        A denied call did not fit. A call that fits with all calls in flight does not wait.
        """
        keys = self.covering(ref)
        if fit is Fit.EXCEEDS:
            assert where is not None
            assert where in keys
            assert self.locked(where) + adds > self.limits[where]
        elif fit is Fit.MAYBE:
            assert where in keys
            assert any(other.most for other in self.threads.values())
        if adds == 0 or all(self.bound(key) + adds <= self.limits[key] for key in keys):
            assert fit is Fit.FITS

    def bound(self, key: BudgetKey) -> int:
        return self.locked(key) + sum(other.most or 0 for other in self.of(key))

    def end(self, tid: int) -> None:
        self.threads[tid].over()
        self.threads[tid].most = None
        self.budgets.end(tid)

    def sample(self, ref: ContainerRef) -> None:
        self.budgets.update(
            {key: LimitUsage(self.limits[key], self.locked(key)) for key in self.covering(ref)},
            self.now,
        )

    @rule(tid=threads)
    def end_known_call(self, tid: int) -> None:
        self.end(tid)

    @rule(ref=st.sampled_from((MAIN, SIDE, NEAR)))
    def sample_at_once(self, ref: ContainerRef) -> None:
        self.sample(ref)

    @rule(
        ref=st.sampled_from((MAIN, SIDE, NEAR)),
        order=st.permutations(sorted(THREADS)),
        meanwhile=st.lists(st.tuples(threads, amounts, st.booleans()), min_size=6, max_size=6),
    )
    def sample_during_changes(
        self, ref: ContainerRef, order: list[int], meanwhile: list[tuple[int, int, bool]]
    ) -> None:
        """Sample one thread after the other. In between, bytes are added or unlocked."""
        seen: dict[int, int] = {}
        for tid, (other, amount, adds) in zip(order, meanwhile, strict=True):
            seen[tid] = self.threads[tid].locked
            (self.take_effect if adds else self.unlock)(other, amount)
        sums = {
            key: sum(amount for tid, amount in seen.items() if THREADS[tid] in MEMBERS[key])
            for key in self.covering(ref)
        }
        self.budgets.update(
            {key: LimitUsage(self.limits[key], use) for key, use in sums.items()}, self.now
        )

    @precondition(lambda self: self.asked > 6)
    @rule(limits=st.dictionaries(st.sampled_from(list(MEMBERS)), st.integers(0, 4 * RANGE)))
    def change_limits(self, limits: dict[BudgetKey, int]) -> None:
        self.configure(limits)

    # -- events unknown to the gate ------------------------------------------------------------

    @rule(tid=threads, amount=amounts)
    def take_effect(self, tid: int, amount: int) -> None:
        thread = self.threads[tid]
        if thread.reach > thread.inside:
            thread.inside = min(thread.reach, thread.inside + amount)
        else:
            part = min(thread.left, amount)
            thread.elsewhere += part
            thread.left -= part

    @rule(tid=threads, amount=amounts)
    def unlock(self, tid: int, amount: int) -> None:
        thread = self.threads[tid]
        part = min(thread.inside, amount)
        thread.inside -= part
        thread.elsewhere -= min(thread.elsewhere, amount - part)

    @precondition(lambda self: any(other.most for other in self.threads.values()))
    @rule(tid=threads)
    def end_unknown_call(self, tid: int) -> None:
        self.threads[tid].over()

    @rule(tid=threads)
    def die_unknown(self, tid: int) -> None:
        self.threads[tid].over()
        self.threads[tid].inside = self.threads[tid].elsewhere = 0


@pytest.mark.rule("P1", "P5", "P8", "P11", "P12", "P13")
def test_any_order_of_events_exceeds_no_limit_and_denies_no_fitting_call() -> None:
    run_state_machine_as_test(Node, settings=settings(max_examples=100, stateful_step_count=60))
