"""Every listed denial is new once, and its sentence cannot be forged by a process."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pinwarden.api.nodepinconfig import DenialReport
from pinwarden.api.pinlimit import Source
from pinwarden.common.text import printable
from pinwarden.plan.denials import (
    FRESH,
    SeenDenials,
    describe_denial,
    describe_repeats,
    find_new_denials,
)

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
LISTED = 32


def denial(number: int = 1, time: datetime = NOON, **changes: Any) -> DenialReport:
    fields = {
        "number": number,
        "time": time,
        "pod": "p1",
        "container": "main",
        "process": "db",
        "pid": 4242,
        "source": Source.MLOCK,
        "asked": 4194304,
        "used": 62914560,
        "limit": 67108864,
        "name": "team-a/db",
        "uid": "limit-uid",
    }
    return DenialReport.model_validate({**fields, **changes})


steps = st.lists(
    st.tuples(
        st.sampled_from(["refuse", "refuse", "report", "restart", "empty"]),
        st.integers(1, LISTED + 8),
        st.integers(-3600, 3600),
    ),
    max_size=30,
)


@given(steps)
def test_denial_in_any_report_is_new_once_whatever_clocks_and_restarts_do(
    steps: list[tuple[str, int, int]],
) -> None:
    """The clock steps by whole seconds, and each denial takes a moment, so no two are equal."""
    journal: list[DenialReport] = []
    seen = SeenDenials()
    listed: list[DenialReport] = []
    reported: list[DenialReport] = []
    clock, ticks = NOON, 0
    for step, count, jump in steps:
        if step == "refuse":
            clock += timedelta(seconds=jump)
            for _ in range(count):
                ticks += 1
                journal.append(denial(len(journal) + 1, clock + timedelta(microseconds=ticks)))
        elif step == "restart":
            journal = []
        result = find_new_denials(seen, [] if step == "empty" else journal[-LISTED:], NOON)
        seen = result.seen
        reported += result.denials
        listed += journal[-LISTED:] if step != "empty" else []
    assert [denial.time for denial in reported] == list(
        dict.fromkeys(denial.time for denial in listed)
    )


@given(st.integers(0, 100), st.integers(1, 100), st.booleans())
def test_denial_missing_in_all_reports_is_noticed(before: int, more: int, restarted: bool) -> None:
    def window(first: int, last: int, hour: int) -> list[DenialReport]:
        return [denial(number, NOON.replace(hour=hour)) for number in range(first, last + 1)][
            -LISTED:
        ]

    seen = find_new_denials(SeenDenials(), window(1, before, 12), NOON).seen
    listed = window(1, more, 13) if restarted else window(1, before + more, 12)
    # a new journal that has passed the old one looks like one that went on
    assume(not restarted or listed[0].number <= before)
    assert find_new_denials(seen, listed, NOON).missed == (more > LISTED)


def test_first_report_has_only_denials_of_last_minute_as_new() -> None:
    times = [NOON - timedelta(hours=1), NOON - FRESH - timedelta(seconds=1), NOON - FRESH, NOON]
    listed = [denial(number, time) for number, time in enumerate(times, start=7)]
    result = find_new_denials(None, listed, NOON)
    assert [denial.number for denial in result.denials] == [9, 10]
    assert not result.missed
    assert not find_new_denials(result.seen, listed, NOON).denials


def test_late_denial_of_known_node_is_new() -> None:
    late = [denial(1, NOON - timedelta(hours=1))]
    assert find_new_denials(find_new_denials(None, [], NOON).seen, late, NOON).denials == late


def test_older_report_forgets_nothing() -> None:
    first, second = denial(1), denial(2)
    seen = find_new_denials(SeenDenials(), [first, second], NOON).seen
    for older in ([], [first]):
        result = find_new_denials(seen, older, NOON)
        assert not result.denials
        assert not find_new_denials(result.seen, [first, second], NOON).denials


@pytest.mark.rule("H2")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            'mlock of 4Mi by process "db" (pid 4242) in container main denied: '
            "60Mi of 64Mi used, limit PinLimit team-a/db",
        ),
        (
            {"asked": None, "container": "", "source": "IoUring"},
            'io_uring of an unknown amount by process "db" (pid 4242) denied: '
            "60Mi of 64Mi used, limit PinLimit team-a/db",
        ),
        (
            {"used": None, "limit": None, "message": "the pod was not known yet"},
            'mlock of 4Mi by process "db" (pid 4242) in container main denied: '
            "the pod was not known yet",
        ),
        (
            {"used": None, "message": "not\nread"},
            'mlock of 4Mi by process "db" (pid 4242) in container main denied: '
            "not?read; limit PinLimit team-a/db of 64Mi",
        ),
        (
            {"used": None, "limit": None},
            'mlock of 4Mi by process "db" (pid 4242) in container main denied: '
            "the cause is unknown",
        ),
        (
            {
                "asked": 0,
                "used": 0,
                "call": "mlockall(MCL_FUTURE)",
                "message": "minimumLevel is Deny",
            },
            'mlockall(MCL_FUTURE) by process "db" (pid 4242) in container main denied: '
            "minimumLevel is Deny; limit PinLimit team-a/db of 64Mi",
        ),
        (
            {"call": "mmap(MAP_LOCKED)", "used": 64 * 2**20 - 4096},
            'mmap(MAP_LOCKED) of 4Mi by process "db" (pid 4242) in container main denied: '
            ">63.9Mi of 64Mi used, limit PinLimit team-a/db",
        ),
        (
            {"used": None},
            'mlock of 4Mi by process "db" (pid 4242) in container main denied: '
            "unknown of 64Mi used, limit PinLimit team-a/db",
        ),
    ],
)
def test_denial_is_described_with_process_call_and_cause(
    changes: dict[str, Any], sentence: str
) -> None:
    assert describe_denial(denial(**changes), "PinLimit team-a/db") == sentence


@pytest.mark.parametrize("source", Source)
def test_every_source_has_a_word(source: Source) -> None:
    assert describe_denial(denial(source=source), "l")


@given(st.text(max_size=16))
def test_process_name_never_ends_the_sentence(name: str) -> None:
    sentence = describe_denial(denial(process=name), "PinLimit team-a/db")
    assert sentence.isprintable()
    assert sentence.count('"') == 2
    assert len(printable(name)) == len(name)


def test_repeats_are_described_with_time_and_lower_bound() -> None:
    minute = timedelta(minutes=1)
    assert describe_repeats(0, at_least=True, span=minute) == ""
    assert (
        describe_repeats(41, at_least=False, span=timedelta(seconds=2))
        == "; and 41 more in the last minute"
    )
    assert (
        describe_repeats(41, at_least=True, span=minute)
        == "; and at least 41 more in the last minute"
    )
    assert (
        describe_repeats(1, at_least=False, span=3 * minute) == "; and 1 more in the last 3 minutes"
    )
    assert describe_repeats(1, at_least=False, span=-minute) == "; and 1 more in the last minute"
