"""The upper bound of a limit's use, against a model of the kernel."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.gate.budgets import VALID_SECONDS, BudgetKey, Budgets, Fit, LimitUsage
from pinwarden.node.gate.container import ContainerRef

LIMIT = 20
PLACE = ContainerRef("pod", "main")
KEY = BudgetKey("limit", "pod")
THREADS = st.integers(1, 4)
AMOUNTS = st.integers(0, LIMIT + 5)


@dataclass
class Kernel:
    """The locked bytes. A call adds at most its allowed amount, at any time until it returns."""

    locked: int = 0
    in_flight: dict[int, int] = field(default_factory=dict)


def configured(*covering: BudgetKey) -> Budgets:
    budgets = Budgets()
    budgets.configure({PLACE: covering or (KEY,)})
    return budgets


@pytest.mark.rule("P1", "P5")
@given(st.data())
def test_any_order_of_events_exceeds_no_limit_and_fitting_calls_are_allowed(
    data: st.DataObject,
) -> None:
    budgets, kernel = configured(), Kernel()
    for _ in range(data.draw(st.integers(1, 40))):
        event = data.draw(st.sampled_from(("ask", "add", "end", "unlock", "sample")))
        thread, amount = data.draw(THREADS), data.draw(AMOUNTS)
        if event == "ask":
            if thread in kernel.in_flight:  # its last call has returned, and added up to its rest
                kernel.locked += data.draw(st.integers(0, kernel.in_flight.pop(thread)))
                budgets.end(thread)
            fit, _ = budgets.fit(PLACE, amount, 0)
            if fit is not Fit.FITS:
                budgets.update({KEY: LimitUsage(LIMIT, kernel.locked)}, 0)
                fit, _ = budgets.fit(PLACE, amount, 0)
                if not kernel.in_flight:
                    assert (fit is Fit.FITS) == (amount == 0 or kernel.locked + amount <= LIMIT)
            if fit is Fit.FITS:
                budgets.track(thread, PLACE, amount)
                kernel.in_flight[thread] = amount
        elif event == "add" and thread in kernel.in_flight:
            part = data.draw(st.integers(0, kernel.in_flight[thread]))
            kernel.locked += part
            kernel.in_flight[thread] -= part
        elif event == "end" and thread in kernel.in_flight:
            kernel.locked += kernel.in_flight.pop(thread)
            budgets.end(thread)
        elif event == "unlock":
            kernel.locked = max(0, kernel.locked - amount)
        elif event == "sample":
            budgets.update({KEY: LimitUsage(LIMIT, kernel.locked)}, 0)
        assert kernel.locked <= LIMIT


@pytest.mark.rule("P8", "P11")
def test_call_without_new_bytes_fits_above_the_limit() -> None:
    budgets = configured()
    budgets.update({KEY: LimitUsage(LIMIT, LIMIT + 7)}, 0)
    assert budgets.fit(PLACE, 0, 0) == (Fit.FITS, None)
    assert budgets.fit(PLACE, 1, 0) == (Fit.EXCEEDS, KEY)


@pytest.mark.rule("P13")
def test_exceeded_limit_among_several_is_named() -> None:
    tight, wide = BudgetKey("tight", "pod", "main"), BudgetKey("wide")
    budgets = configured(wide, tight)
    budgets.update({wide: LimitUsage(100, 0), tight: LimitUsage(LIMIT, 0)}, 0)
    assert budgets.fit(PLACE, LIMIT, 0)[0] is Fit.FITS
    assert budgets.fit(PLACE, LIMIT + 1, 0) == (Fit.EXCEEDS, tight)
    budgets.update({wide: LimitUsage(100, 100)}, 0)
    assert budgets.fit(PLACE, 1, 0) == (Fit.EXCEEDS, wide)


def test_call_in_flight_makes_a_call_wait() -> None:
    budgets = configured()
    budgets.update({KEY: LimitUsage(LIMIT, 0)}, 0)
    budgets.track(1, PLACE, LIMIT)
    budgets.update({KEY: LimitUsage(LIMIT, 0)}, 0)
    assert budgets.fit(PLACE, 1, 0) == (Fit.MAYBE, KEY)
    assert budgets.in_flight(PLACE) == [1]
    budgets.end(1, ran=False)
    assert budgets.fit(PLACE, LIMIT, 0)[0] is Fit.FITS


@pytest.mark.rule("P1")
def test_budget_is_valid_for_a_while_and_with_ungated_processes_for_one_decision() -> None:
    budgets = configured()
    assert budgets.fit(PLACE, 1, 0)[0] is Fit.MAYBE
    budgets.update({KEY: LimitUsage(LIMIT, 0)}, 5)
    assert budgets.fit(PLACE, 1, 5 + VALID_SECONDS)[0] is Fit.FITS
    assert budgets.fit(PLACE, 1, 5.1 + VALID_SECONDS)[0] is Fit.MAYBE
    budgets.update({KEY: LimitUsage(LIMIT, 0, all_gated=False)}, 9)
    assert budgets.fit(PLACE, 1, 9)[0] is Fit.FITS
    assert budgets.fit(PLACE, 1, 9.001)[0] is Fit.MAYBE


@pytest.mark.rule("P12")
def test_budget_after_a_new_configuration_needs_a_sample() -> None:
    budgets = configured()
    budgets.update({KEY: LimitUsage(LIMIT, LIMIT)}, 0)
    budgets.track(1, PLACE, 3)
    budgets.configure({PLACE: (KEY,)})
    assert budgets.fit(PLACE, 1, 0)[0] is Fit.MAYBE
    budgets.update({KEY: LimitUsage(2 * LIMIT, LIMIT)}, 0)
    assert budgets.fit(PLACE, LIMIT - 3, 0)[0] is Fit.FITS
    assert budgets.fit(PLACE, LIMIT - 2, 0)[0] is Fit.MAYBE


@pytest.mark.rule("P1")
def test_pods_with_a_common_limit_share_calls_in_flight() -> None:
    node, other = BudgetKey("node"), ContainerRef("other", "main")
    budgets = Budgets()
    budgets.configure({PLACE: (node,), other: (node,), ContainerRef("third", "main"): ()})
    budgets.update({node: LimitUsage(LIMIT, 0)}, 0)
    budgets.track(1, other, LIMIT)
    assert budgets.in_flight(PLACE) == [1]
    assert budgets.fit(PLACE, 1, 0)[0] is Fit.MAYBE
    assert not budgets.is_limited(ContainerRef("third", "main"))
    assert budgets.fit(ContainerRef("third", "main"), 2**60, 0)[0] is Fit.FITS
