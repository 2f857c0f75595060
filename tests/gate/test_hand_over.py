"""Holder and gate as their containers execute them: they end, crash, and are replaced (H1, H3)."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from gate_node.node import MIB, Node

from .processes import PAGE, ask, calls_of, listeners, start, takes_sigterm

LIMIT = MIB


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, executed=True)
    yield node
    node.close()


@pytest.mark.rule("H3", level="Deny")
def test_new_holder_gets_the_listeners_of_a_killed_one_from_the_gate(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    locker = start(pod, "locker.py", 2 * LIMIT)
    assert ask(locker, f"lock {PAGE}") == f"{PAGE} 0"
    for _ in range(3):
        node.holder.kill()
        node.holder.wait()
        node.holder = node.start("holder")
        node.until(lambda: listeners(node.holder.pid) == 1)
        node.kill_gate()
        assert ask(locker, f"until {2 * LIMIT}") == f"{LIMIT} {errno.ENOMEM}"


@pytest.mark.rule("H3", level="Deny")
def test_successor_takes_over_before_the_old_holder_and_gate_go(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    loopers = start(pod, "looper.py", 4)
    for _ in range(3):
        old_holder, old_gate = node.holder, node.gate
        node.holder = node.start("holder")
        node.gate = node.start("gate", "--state-dir", str(node.state_dir))
        for each in (node.holder, node.gate):
            node.until(lambda each=each: takes_sigterm(each.pid))  # type: ignore[misc]
        assert old_gate.poll() is None
        for old in (old_gate, old_holder):
            old.terminate()
            assert old.wait(5) == 0
        before = calls_of(loopers)
        node.until(lambda before=before: calls_of(loopers) > before + 20)  # type: ignore[misc]
        fresh = start(node.pod(), "locker.py", LIMIT)
        assert ask(fresh, f"lock {PAGE}") == f"{PAGE} 0"
    assert len(ask(loopers, "").split()) == 1


@pytest.mark.rule("H3", level="Deny")
def test_gate_stays_after_sigterm_until_a_holder_has_its_listeners(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    locker = start(pod, "locker.py", 2 * LIMIT)
    assert ask(locker, f"lock {PAGE}") == f"{PAGE} 0"
    node.holder.kill()
    node.holder.wait()
    node.gate.terminate()
    assert ask(locker, f"lock {PAGE}") == f"{2 * PAGE} 0"
    node.holder = node.start("holder")
    assert node.gate.wait(30) == 0
    node.gate = node.start("gate", "--state-dir", str(node.state_dir))
    assert ask(locker, f"until {2 * LIMIT}") == f"{LIMIT} {errno.ENOMEM}"


@pytest.mark.rule("H1", level="Deny")
def test_gate_after_sigterm_keeps_its_file_only_if_it_has_containers(node: Node) -> None:
    record = node.run_dir / "gate.json"
    node.until(record.exists)
    node.gate.terminate()
    assert node.gate.wait(30) == 0
    assert not record.exists()
    node.gate = node.start("gate", "--state-dir", str(node.state_dir))
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    assert ask(start(pod, "locker.py", LIMIT), f"lock {PAGE}") == f"{PAGE} 0"
    node.gate.terminate()
    assert node.gate.wait(30) == 0
    assert pod.container in node.status.containers
    node.gate = node.start("gate", "--state-dir", str(node.state_dir))


@pytest.mark.rule("H1", level="Deny")
def test_death_of_holder_and_gate_together_is_reported(node: Node) -> None:
    pod = node.pod()
    node.set_limits({pod.uid: LIMIT})
    locker = start(pod, "locker.py", LIMIT)
    assert ask(locker, f"lock {PAGE}") == f"{PAGE} 0"
    node.until(lambda: pod.container in node.status.containers)
    for each in (node.holder, node.gate):
        each.kill()
        each.wait()
    assert ask(locker, f"lock {PAGE}") == f"{PAGE} {errno.ENOSYS}"
    node.holder, node.gate = (
        node.start("holder"),
        node.start("gate", "--state-dir", str(node.state_dir)),
    )
    node.until(lambda: pod.container in node.status.lost)
