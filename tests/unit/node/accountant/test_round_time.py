"""The seconds of a round are shared among groups, and each group gets its turn."""

from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.accountant.round_time import RoundTime


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def spend(time: RoundTime, clock: Clock, uid: str, wanted: float, most: float = 100) -> float:
    """Return the seconds for the group, and take `wanted` of them."""
    time.enter(uid)
    with time.spend(most) as seconds:
        clock.now += min(wanted, seconds)
    return seconds


def test_slow_group_leaves_the_others_their_seconds_and_their_turn() -> None:
    clock = Clock()
    time = RoundTime(30, clock)
    shares = {uid: list[float]() for uid in "abc"}
    for _ in range(3):
        time.begin(list(shares))
        for uid, seconds in shares.items():
            seconds.append(spend(time, clock, uid, wanted=100))
    assert all(sorted(seconds) == [5, 5, 20] for seconds in shares.values())


def test_seconds_left_by_a_group_go_to_the_next_groups() -> None:
    clock = Clock()
    time = RoundTime(30, clock)
    time.begin(["a", "b"])
    assert spend(time, clock, "a", wanted=1) == 7.5
    assert spend(time, clock, "b", wanted=100) == 29
    assert spend(time, clock, "b", wanted=100) == 0, "a group gets its share once"


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20), st.floats(0.1, 10))
def test_groups_together_take_at_most_the_seconds_of_a_round(
    wanted: list[float], most: float
) -> None:
    clock = Clock()
    time = RoundTime(30, clock)
    time.begin([str(number) for number in range(len(wanted))])
    for number, seconds in enumerate(wanted):
        assert spend(time, clock, str(number), seconds, most) <= most
    assert clock.now <= 30 + 1e-6
