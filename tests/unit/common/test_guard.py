"""A failing item is counted, logged once for each cause, and due again after a backoff."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.common.guard import REMEMBERED, Guard, shown
from pinwarden.node.pods.policy import reported_name
from pinwarden.node.state.shutdown import ShutdownError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(guard: Guard, name: str, error: BaseException) -> None:
    with guard.item("pod", name):
        raise error


def test_cause_is_logged_once_and_each_failure_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    guard = Guard(["pod", "file"])
    for error in (OSError(5, "no"), OSError(5, "no"), RecursionError("deep")):
        fail(guard, "a\nb", error)
    assert guard.failures == {"pod": 3, "file": 0}
    assert [record.getMessage() for record in caplog.records] == [
        "pod a\\nb failed, all others continue, trying again: OSError: [Errno 5] no",
        "pod a\\nb failed, all others continue, trying again: RecursionError: deep",
    ]
    with guard.item("pod", "a\nb"):
        pass
    assert caplog.records[-1].getMessage() == "pod a\\nb works again"
    assert guard.cause("pod", "a\nb") == ""


def test_failing_item_waits_longer_each_time_and_others_do_not() -> None:
    clock = Clock()
    guard = Guard(["pod"], clock)
    waits = []
    for _ in range(12):
        fail(guard, "a", KeyError("x"))
        assert not guard.due("pod", "a")
        assert guard.due("pod", "b")
        began = clock.now
        while not guard.due("pod", "a"):
            clock.now += 0.01
        waits.append(clock.now - began)
    assert waits[0] <= 0.11
    assert 1.9 < max(waits) < 4.1


def test_many_failing_items_take_bounded_room() -> None:
    guard = Guard(["pod"])
    for number in range(REMEMBERED + 100):
        fail(guard, str(number), ValueError())
    assert guard.failures["pod"] == REMEMBERED + 100
    assert guard.cause("pod", "0") == ""
    assert guard.cause("pod", str(REMEMBERED + 99)) == "ValueError: "


def test_shutdown_signal_is_no_failure() -> None:
    guard = Guard(["pod"])
    with pytest.raises(ShutdownError):
        fail(guard, "a", ShutdownError())
    assert guard.failures["pod"] == 0


texts = st.text(st.characters() | st.characters(categories=["Cs"]))


@given(text=texts, most=st.integers(2, 300))
def test_shown_text_is_one_line_of_printable_characters(text: str, most: int) -> None:
    assert shown(text, most).isprintable()
    assert len(shown(text, most)) <= most


@given(first=texts, second=texts)
def test_different_subjects_have_different_reported_names(first: str, second: str) -> None:
    assert (reported_name(first) == reported_name(second)) == (first == second)
    assert reported_name(first).isprintable()
    assert len(reported_name(first * 300)) <= 1024
