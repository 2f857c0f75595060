"""The gate limits whole pods exactly, for an outside reader and for the callers (P1, P5)."""

import errno
import json
import os
import threading
from contextlib import ExitStack

import pytest

from gate_node.node import MIB, NOBODY, Node, Pod

from .processes import PAGE, ask, calls_of, start

LIMIT = MIB
MCL_FUTURE = 2


class Watch:
    """Reads the locked bytes of a pod repeatedly, and keeps the most of two equal readings."""

    def __init__(self, pod: Pod) -> None:
        self.most = 0
        self.readings = 0
        self._pod = pod
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with ExitStack() as opened:
            pids, last = self._pod.pids, [-1]
            statuses = [open_status(pid, opened) for pid in pids]
            while not self._ended.wait(0.001):
                now = [locked_in(status) for status in statuses]
                if now == last:
                    self.most = max(self.most, sum(now))
                    self.readings += 1
                elif (found := self._pod.pids) != pids:
                    opened.close()
                    pids, statuses = found, [open_status(pid, opened) for pid in found]
                last = now


def open_status(pid: int, until: ExitStack) -> int:
    """Keep a descriptor of /proc/PID/status: reading again is five times cheaper than opening."""
    descriptor = os.open(f"/proc/{pid}/status", os.O_RDONLY)
    until.callback(os.close, descriptor)
    return descriptor


def locked_in(status: int) -> int:
    """VmLck in bytes; 0 when the process has ended."""
    try:
        text = os.pread(status, PAGE, 0)
    except ProcessLookupError:
        return 0
    _, found, rest = text.partition(b"VmLck:")
    return int(rest.split(maxsplit=1)[0]) * 1024 if found else 0


@pytest.mark.rule("P1", "P5", level="Deny")
@pytest.mark.parametrize("user", [NOBODY, 0], ids=["unprivileged", "root-with-every-capability"])
@pytest.mark.parametrize(("processes", "rounds"), [(1, 250), (4, 180), (16, 60), (64, 15)])
def test_racing_processes_get_the_limit_to_the_page_and_never_more(
    node: Node, processes: int, rounds: int, user: int
) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    racers = start(pod, "racer.py", processes, 512, user=user)
    with Watch(pod) as watch:
        for seed in range(rounds):
            result = json.loads(ask(racers, str(seed)))
            locked = sum(own for own, _ in result["rounds"])
            assert locked == LIMIT
            assert pod.locked == LIMIT
            calls = [call for _, own in result["rounds"] for call in own]
            assert {error for *_, error in calls} <= {0, errno.ENOMEM, errno.EAGAIN}
            assert_no_false_refusal(sum(result["freed"]), calls)
    assert watch.most == LIMIT
    assert watch.readings > rounds


def assert_no_false_refusal(at_first: int, calls: list[tuple[int, float, float, int, int]]) -> None:
    """Assert that no denied call would have fit.

    It did not fit beside the bytes locked at first and those allowed before its return.
    """
    taken = sorted((began, amount) for _, began, _, amount, error in calls if not error)
    for _, _, ended, amount, error in calls:
        if error:
            most = at_first + sum(each for began, each in taken if began < ended)
            assert most + amount > LIMIT


@pytest.mark.rule("P1", "P5", level="Deny")
def test_new_pod_whose_first_call_exceeds_its_limit_is_denied(node: Node) -> None:
    pods = [node.pod() for _ in range(100)]
    node.set_limits({pod.uid: LIMIT for pod in pods})
    for pod in pods:
        locker = start(pod, "locker.py", 2 * LIMIT)
        assert ask(locker, f"lock {LIMIT + PAGE}") == f"0 {errno.ENOMEM}"
        assert pod.locked == 0
        assert ask(locker, f"lock {LIMIT}") == f"{LIMIT} 0"
        pod.end()


@pytest.mark.rule("H3", level="Deny")
def test_gate_killed_a_hundred_times_under_load_lets_no_pod_exceed_its_limit(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    loopers = start(pod, "looper.py", 4)
    with Watch(pod) as watch:
        for _ in range(100):
            before = calls_of(loopers)
            node.until(lambda before=before: calls_of(loopers) > before + 20)  # type: ignore[misc]
            node.kill_gate()
    calls, *strange = ask(loopers, "").split()
    assert not strange
    assert int(calls) > 100 * 20
    assert 0 < watch.most <= LIMIT


@pytest.mark.rule("H1", level="Deny")
def test_gate_publishes_the_limits_that_it_enforces_in_a_pod(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    start(pod, "locker.py", LIMIT)
    node.until(lambda: pod.uid in node.status.fingerprints)
    first = node.status.fingerprints[pod.uid]
    node.set_limits({pod.uid: 2 * LIMIT})
    node.until(lambda: node.status.fingerprints[pod.uid] != first)
    node.set_limits({pod.uid: LIMIT})
    node.until(lambda: node.status.fingerprints[pod.uid] == first)
    node.configure(limits=[], pods=[{"uid": pod.uid}])
    node.until(lambda: pod.uid not in node.status.fingerprints)


@pytest.mark.rule("H1", level="Deny")
def test_inexact_pod_stays_inexact_after_a_restart_of_its_container(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    first = start(pod, "locker.py", LIMIT)
    assert ask(first, f"call mlockall {MCL_FUTURE}") == "0 0"
    reasons = node.status.inexact[pod.uid]
    first.kill()
    first.wait()
    node.until(lambda: pod.container not in node.status.containers)
    start(pod, "locker.py", LIMIT)
    node.until(lambda: pod.container in node.status.containers)
    assert node.status.inexact == {pod.uid: reasons}
