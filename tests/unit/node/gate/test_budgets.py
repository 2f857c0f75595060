"""The bound that the gate keeps of each limit's use, against a model of what really happens."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.gate.budgets import GOOD_SECONDS, Accounts, Fit, Key, Look, Place

LIMIT = 20
PLACE = Place("pod", "main")
KEY = Key("limit", "pod")
THREADS = st.integers(1, 4)
AMOUNTS = st.integers(0, LIMIT + 5)


@dataclass
class Kernel:
    """What is really locked: each thread's calls add at most what they were let through for, and may add it at any time until their end."""

    locked: int = 0
    under_way: dict[int, int] = field(default_factory=dict)


def held(*covering: Key) -> Accounts:
    accounts = Accounts()
    accounts.configure({PLACE: covering or (KEY,)})
    return accounts


@pytest.mark.rule("P1", "P5")
@given(st.data())
def test_no_order_of_events_passes_the_limit_and_what_fits_a_quiet_look_is_let_through(
    data: st.DataObject,
) -> None:
    accounts, kernel = held(), Kernel()
    for _ in range(data.draw(st.integers(1, 40))):
        event = data.draw(st.sampled_from(("ask", "add", "end", "unlock", "look")))
        thread, amount = data.draw(THREADS), data.draw(AMOUNTS)
        if event == "ask":
            if (
                thread in kernel.under_way
            ):  # a thread that asks has ended its last call, which added what was left of it or less
                kernel.locked += data.draw(st.integers(0, kernel.under_way.pop(thread)))
                accounts.end(thread)
            fit, _ = accounts.fit(PLACE, amount, 0)
            if fit is not Fit.FITS:
                accounts.renew({KEY: Look(LIMIT, kernel.locked)}, 0)
                fit, _ = accounts.fit(PLACE, amount, 0)
                if not kernel.under_way:
                    assert (fit is Fit.FITS) == (amount == 0 or kernel.locked + amount <= LIMIT)
            if fit is Fit.FITS:
                accounts.let_through(thread, PLACE, amount)
                kernel.under_way[thread] = amount
        elif event == "add" and thread in kernel.under_way:
            part = data.draw(st.integers(0, kernel.under_way[thread]))
            kernel.locked += part
            kernel.under_way[thread] -= part
        elif event == "end" and thread in kernel.under_way:
            kernel.locked += kernel.under_way.pop(thread)
            accounts.end(thread)
        elif event == "unlock":
            kernel.locked = max(0, kernel.locked - amount)
        elif event == "look":
            accounts.renew({KEY: Look(LIMIT, kernel.locked)}, 0)
        assert kernel.locked <= LIMIT


@pytest.mark.rule("P8", "P11")
def test_what_adds_nothing_fits_also_above_the_limit() -> None:
    accounts = held()
    accounts.renew({KEY: Look(LIMIT, LIMIT + 7)}, 0)
    assert accounts.fit(PLACE, 0, 0) == (Fit.FITS, None)
    assert accounts.fit(PLACE, 1, 0) == (Fit.EXCEEDS, KEY)


@pytest.mark.rule("P13")
def test_all_limits_hold_and_the_one_that_says_no_is_named() -> None:
    tight, wide = Key("tight", "pod", "main"), Key("wide")
    accounts = held(wide, tight)
    accounts.renew({wide: Look(100, 0), tight: Look(LIMIT, 0)}, 0)
    assert accounts.fit(PLACE, LIMIT, 0)[0] is Fit.FITS
    assert accounts.fit(PLACE, LIMIT + 1, 0) == (Fit.EXCEEDS, tight)
    accounts.renew({wide: Look(100, 100)}, 0)
    assert accounts.fit(PLACE, 1, 0) == (Fit.EXCEEDS, wide)


def test_a_call_under_way_may_still_add_and_is_waited_for() -> None:
    accounts = held()
    accounts.renew({KEY: Look(LIMIT, 0)}, 0)
    accounts.let_through(1, PLACE, LIMIT)
    accounts.renew({KEY: Look(LIMIT, 0)}, 0)
    assert accounts.fit(PLACE, 1, 0) == (Fit.MAYBE, KEY)
    assert accounts.under_way(PLACE) == [1]
    accounts.end(1, ran=False)
    assert accounts.fit(PLACE, LIMIT, 0)[0] is Fit.FITS


@pytest.mark.rule("P1")
def test_an_account_is_good_for_a_while_and_an_open_one_for_one_decision() -> None:
    accounts = held()
    assert accounts.fit(PLACE, 1, 0)[0] is Fit.MAYBE
    accounts.renew({KEY: Look(LIMIT, 0)}, 5)
    assert accounts.fit(PLACE, 1, 5 + GOOD_SECONDS)[0] is Fit.FITS
    assert accounts.fit(PLACE, 1, 5.1 + GOOD_SECONDS)[0] is Fit.MAYBE
    accounts.renew({KEY: Look(LIMIT, 0, closed=False)}, 9)
    assert accounts.fit(PLACE, 1, 9)[0] is Fit.FITS
    assert accounts.fit(PLACE, 1, 9.001)[0] is Fit.MAYBE


@pytest.mark.rule("P12")
def test_a_new_configuration_is_looked_at_before_it_is_decided_by() -> None:
    accounts = held()
    accounts.renew({KEY: Look(LIMIT, LIMIT)}, 0)
    accounts.let_through(1, PLACE, 3)
    accounts.configure({PLACE: (KEY,)})
    assert accounts.fit(PLACE, 1, 0)[0] is Fit.MAYBE
    accounts.renew({KEY: Look(2 * LIMIT, LIMIT)}, 0)
    assert accounts.fit(PLACE, LIMIT - 3, 0)[0] is Fit.FITS
    assert accounts.fit(PLACE, LIMIT - 2, 0)[0] is Fit.MAYBE


@pytest.mark.rule("P1")
def test_pods_that_share_a_limit_wait_for_each_other() -> None:
    node, other = Key("node"), Place("other", "main")
    accounts = Accounts()
    accounts.configure({PLACE: (node,), other: (node,), Place("third", "main"): ()})
    accounts.renew({node: Look(LIMIT, 0)}, 0)
    accounts.let_through(1, other, LIMIT)
    assert accounts.under_way(PLACE) == [1]
    assert accounts.fit(PLACE, 1, 0)[0] is Fit.MAYBE
    assert not accounts.covers(Place("third", "main"))
    assert accounts.fit(Place("third", "main"), 2**60, 0)[0] is Fit.FITS
