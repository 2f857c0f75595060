"""How an upgrade check reads processes and statuses, and which statements it finds untrue."""

from typing import Any

import pytest

from release.observations import (
    ProbedProcess,
    ProcessId,
    changed_originals,
    excesses,
    originals,
    processes,
    untrue_amounts,
    untrue_shares,
)
from release.probed_pods import BORROWED, GROUP_BYTES, MIB, PAGE, ProbedPod

FILLED = ProbedPod("filled", "Converge", 3 * MIB, 2, 2 * MIB)
GATED = ProbedPod("gated", "Deny", MIB, 3, 2 * MIB)
AUDITED = ProbedPod("audited", "Observe", MIB, 1, 2 * MIB)
STAT = "7 (python 3) S 1 " + " ".join(str(number) for number in range(5, 53))
BLOCK = f"""=== python3 /program/prober.py filled 2 2
{STAT}
Name:\tpython3
VmLck:\t     64 kB
Limit                     Soft Limit           Hard Limit           Units
Max locked memory         6291456              unlimited            bytes
"""
KEY = ProcessId(7, 22)


def limit(**status: Any) -> dict[str, Any]:
    """A resource of this status."""
    return {"status": status}


def test_processes_are_read_with_pod_start_locked_bytes_and_limits() -> None:
    expected = {KEY: ProbedProcess("filled", 65536, (6291456, -1))}
    assert processes(BLOCK + f"=== python3 /program/prober.py filled 2 2\n{STAT}\n") == expected


def test_originals_are_read_from_the_agents_rows() -> None:
    assert originals({"processes": [[7, 22, 1, 2, 3, 4]]}) == {KEY: (1, 2)}


def test_saved_originals_that_are_absent_or_wrong_are_named() -> None:
    known = {KEY: (1, 2), ProcessId(8, 0): (1, 2), ProcessId(9, 0): (1, 2)}
    saved = {KEY: (1, 2), ProcessId(8, 0): (1, 1)}
    assert [text.partition(":")[0] for text in changed_originals(known, saved)] == [
        "process 8",
        "process 9",
    ]


def test_excess_is_named_only_above_an_enforced_limit() -> None:
    seen = {
        ProcessId(pid, 0): ProbedProcess(pod.name, pod.limit + PAGE, (0, 0))
        for pid, pod in enumerate([FILLED, GATED, AUDITED])
    }
    named = [text.partition(":")[0] for text in excesses(seen, [FILLED, GATED, AUDITED])]
    assert named == ["filled", "gated"]


@pytest.mark.parametrize(
    ("pod", "locked", "full"),
    [
        (GATED, MIB, True),
        (GATED, MIB - PAGE, False),
        (FILLED, 3 * MIB - 3 * PAGE, True),
        (FILLED, 3 * MIB - 4 * PAGE, False),
        (FILLED, 3 * MIB + PAGE, False),
        (AUDITED, 2 * MIB, True),
        (AUDITED, MIB, False),
    ],
)
def test_pod_is_full_at_its_limit_or_with_all_that_it_wants(
    pod: ProbedPod, locked: int, full: bool
) -> None:
    assert pod.is_full(locked) == full


@pytest.mark.parametrize(
    ("status", "untrue"),
    [
        ({}, False),
        ({"pinnedBytes": MIB}, False),
        ({"pinnedBytes": 0}, True),
        ({"pinnedBytes": MIB + PAGE}, True),
        ({"topPods": [{"level": "Deny"}]}, False),
        ({"topPods": [{}]}, False),
    ],
)
def test_amount_of_a_limit_is_untrue_if_stated_and_wrong(
    status: dict[str, Any], untrue: bool
) -> None:
    assert bool(list(untrue_amounts({"gated": limit(**status)}, {GATED: MIB}))) == untrue


def test_level_above_the_possible_one_is_untrue() -> None:
    limits = {"filled": limit(topPods=[{"level": "Deny"}])}
    assert list(untrue_amounts(limits, {FILLED: None}))


def test_amount_of_a_pod_that_unlocks_is_untrue_only_above_the_limit() -> None:
    assert not list(untrue_amounts({"filled": limit(pinnedBytes=PAGE)}, {FILLED: None}))
    assert list(untrue_amounts({"filled": limit(pinnedBytes=4 * MIB)}, {FILLED: None}))


def test_shares_are_untrue_if_stated_and_wrong() -> None:
    borrowers = [{"pod": pod, "borrowedBytes": amount} for pod, amount in BORROWED.items()]
    assert not list(untrue_shares({}))
    assert not list(untrue_shares({"chargeBytes": GROUP_BYTES, "borrowers": borrowers}))
    assert not list(untrue_shares({"borrowers": [{"pod": "reader"}]}))
    wrong = {"chargeBytes": 0, "borrowers": [{"pod": "reader", "borrowedBytes": 0}]}
    assert len(list(untrue_shares(wrong))) == 2
