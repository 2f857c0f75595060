"""Gate and agent: an exact pod on a real kernel gets its whole limit, at Deny (P1, P14, H1)."""

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.patience import Patience
from gate_node.node import CGROUP, MIB, NOBODY, Node, Pod, Process
from pinwarden.api.nodepinconfig import NodePinConfigSpec, PodReport
from pinwarden.api.pinlimit import Level
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.reconciler import Reconciler
from pinwarden.node.linux.prlimit import Limits, prlimit_memlock, probe

from ..gate.processes import PAGE, ask, start

GIVEN = Limits(2 * MIB, 2 * MIB)


class Agent:
    """A reconciler that reads the gate's file, with the same configuration."""

    def __init__(self, node: Node, state: Path) -> None:
        self.node = node
        self._generation = 0
        self._engine = Reconciler(
            cgroup_root=CGROUP,
            proc_root=Path("/proc"),
            store=RlimitRecordStore(state / "saved.json", "boot"),
            ability=probe(),
            gate=node.run_dir / "gate.json",
        )

    def set_limit(self, pod: Pod, limit: int, **more: Any) -> None:
        self._generation += 1
        spec = {
            "limits": [{"name": "l", "uid": "uid-l", "scope": "Pod", "limit": limit, **more}],
            "pods": [{"uid": pod.uid, "limits": ["l"]}],
        }
        self.node.configure(**spec)
        self._engine.configure(NodePinConfigSpec.model_validate(spec), [], self._generation)

    def until(self, holds: Callable[[], bool]) -> None:
        patience = Patience(60)
        while not holds():
            assert not patience.ended, self._engine.report()
            time.sleep(min(self._engine.tick(), 0.05))

    def report(self, pod: Pod) -> PodReport | None:
        return next((each for each in self._engine.report().pods if each.uid == pod.uid), None)

    def level(self, pod: Pod) -> Level | None:
        report = self.report(pod)
        return report.level if report else None

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    node = Node(tmp_path)
    agent = Agent(node, tmp_path)
    yield agent
    agent.close()
    node.close()


def gated(agent: Agent, *, user: int = NOBODY) -> tuple[Pod, Process]:
    """A pod whose process has what a runtime gives, and is the gate's."""
    pod = agent.node.pod()
    agent.node.configure(pods=[{"uid": pod.uid}])
    locker = start(pod, "locker.py", 8 * MIB, user=user)
    prlimit_memlock(locker.pid, GIVEN)
    agent.node.until(lambda: pod.container in agent.node.status.containers)
    return pod, locker


@pytest.mark.emulated
@pytest.mark.rule("P1", "H1", level="Deny")
def test_each_process_of_a_gated_pod_may_have_the_whole_limit_and_the_pod_no_more(
    agent: Agent,
) -> None:
    pod, locker = gated(agent)
    agent.set_limit(pod, MIB)
    agent.until(lambda: agent.level(pod) is Level.DENY)
    assert ask(locker, f"lock {MIB // 2}") == f"{MIB // 2} 0"
    other = start(pod, "locker.py", 8 * MIB)
    prlimit_memlock(other.pid, GIVEN)
    agent.until(
        lambda: prlimit_memlock(other.pid) == Limits(MIB, MIB) == prlimit_memlock(locker.pid)
    )
    assert ask(other, f"until {8 * MIB}") == f"{MIB // 2} {errno.ENOMEM}"
    assert pod.locked == MIB

    def counted() -> bool:
        report = agent.report(pod)
        return report is not None and bool(report.denials) and report.vm_lck == MIB

    agent.until(counted)


@pytest.mark.rule("P1", level="Deny")
def test_process_with_every_capability_is_limited(agent: Agent) -> None:
    pod, locker = gated(agent, user=0)
    agent.set_limit(pod, MIB)
    agent.until(lambda: agent.level(pod) is Level.DENY)
    assert ask(locker, f"until {8 * MIB}") == f"{MIB} {errno.ENOMEM}"


@pytest.mark.rule("P14", level="Deny")
def test_gated_pod_keeps_the_rlimit_of_the_runtime_without_a_grant(
    agent: Agent,
) -> None:
    pod, locker = gated(agent)
    agent.set_limit(pod, 4 * MIB)
    agent.until(lambda: agent.level(pod) is Level.DENY)
    assert ask(locker, f"until {8 * MIB}") == f"{2 * MIB} {errno.ENOMEM}"
    agent.set_limit(pod, 4 * MIB, grant=3 * MIB)
    agent.until(lambda: prlimit_memlock(locker.pid) == Limits(3 * MIB, 3 * MIB))
    assert ask(locker, f"until {8 * MIB}") == f"{3 * MIB} {errno.ENOMEM}"


@pytest.mark.rule("P5", "P14", level="Deny")
def test_call_that_only_the_rlimit_denies_waits_for_the_agent(agent: Agent) -> None:
    pod, locker = gated(agent)
    agent.set_limit(pod, 4 * MIB, grant=4 * MIB)
    assert locker.stdin is not None
    print(f"lock {3 * MIB}", file=locker.stdin, flush=True)
    time.sleep(1)
    assert pod.locked == 0
    agent.until(lambda: pod.locked == 3 * MIB)


@pytest.mark.rule("H1", level="Converge")
def test_inexact_pod_gets_allowances_again(agent: Agent) -> None:
    pod, locker = gated(agent)
    agent.set_limit(pod, MIB)
    agent.until(lambda: agent.level(pod) is Level.DENY)
    assert ask(locker, f"lock {MIB // 4}") == f"{MIB // 4} 0"
    other = start(pod, "locker.py", 8 * MIB)
    assert ask(other, "call mlockall 2") == "0 0"
    agent.until(lambda: agent.level(pod) is Level.CONVERGE)
    report = agent.report(pod)
    assert report is not None
    assert "MCL_FUTURE" in report.message
    left = MIB - MIB // 4
    agent.until(lambda: prlimit_memlock(other.pid).hard <= left)
    assert ask(other, f"call mmap 0 {MIB} 3 34 -1 0") == f"-1 {errno.EAGAIN}"
    assert pod.locked <= MIB
    assert ask(locker, f"lock {PAGE}") == f"{MIB // 4 + PAGE} 0"


@pytest.mark.rule("H1", level="Observe")
def test_ungated_process_makes_the_pod_converge(agent: Agent) -> None:
    pod, _ = gated(agent)
    agent.set_limit(pod, MIB)
    agent.until(lambda: agent.level(pod) is Level.DENY)
    second = pod.directory / ("7e" * 32)
    second.mkdir()
    beside = start(agent.node.pod(), "locker.py", MIB)
    (second / "cgroup.procs").write_text(str(beside.pid))
    agent.until(lambda: agent.level(pod) is Level.CONVERGE)
    report = agent.report(pod)
    assert report is not None
    assert "profile" in report.message
    beside.kill()
    beside.wait()
    agent.until(lambda: agent.level(pod) is Level.DENY)
    second.rmdir()
