"""Which process is charged, and how much, on a real kernel: the counters mean what the rules say.

Runs inside the guest (`make test-kernel`), as root with every capability.
"""

import errno
from pathlib import Path

import pytest

from .nodes import MIB, Node

pytestmark = pytest.mark.emulated


@pytest.mark.rule("P2", level="Converge")
def test_locked_memory_and_buffers_of_io_uring_count_together(node: Node) -> None:
    uid = node.pod()
    locker, ring = node.hire(uid), node.hire(uid)
    node.set_limit(uid, 4 * MIB)
    assert locker.lock(3 * MIB) == (3 * MIB, 0)
    node.until(lambda: ring.limits.soft == MIB)
    assert ring.send("register", 2 * MIB) == (0, errno.ENOMEM)
    assert ring.send("register", MIB) == (MIB, 0)
    node.until(lambda: (node.report(uid).vm_lck, node.report(uid).vm_pin) == (3 * MIB, MIB))
    assert locker.lock(4 * MIB) == (3 * MIB, errno.ENOMEM)


@pytest.mark.rule("P7", level="Converge")
def test_every_pin_of_a_page_counts(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.set_limit(uid, 8 * MIB)
    assert worker.send("register", MIB) == (MIB, 0)
    assert worker.send("register", MIB) == (MIB, 0)
    node.until(lambda: node.report(uid).vm_pin == 2 * MIB)


@pytest.mark.rule("P8", level="Converge")
def test_locking_again_adds_nothing_and_is_allowed(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.set_limit(uid, 2 * MIB)
    assert worker.lock(4 * MIB) == (2 * MIB, errno.ENOMEM)
    assert worker.send("again", 2 * MIB) == (2 * MIB, 0)
    worker.fork(1)
    worker.result()
    node.settle()
    assert node.report(uid).vm_lck == 2 * MIB, "a child inherits no lock"
    assert worker.send("unlock") == (0, 0)
    node.until(lambda: node.report(uid).vm_lck == 0)


@pytest.mark.rule("P3", "P4", level="Converge")
def test_shared_page_counts_for_the_locking_process_whoever_touched_it_first(node: Node) -> None:
    file = Path("/dev/shm/pinwarden-test")
    file.write_bytes(b"")
    try:
        with file.open("r+b") as shared:
            shared.truncate(64 * MIB)
        file.chmod(0o666)
        first, second, third = node.pod(), node.pod(), node.pod()
        owner, locker, other = (node.hire(uid, file=str(file)) for uid in (first, second, third))
        pods = [{"uid": uid, "limits": ["l"]} for uid in (first, second, third)]
        node.configure([{"limit": 8 * MIB}], pods)
        owner.send("write", MIB)
        assert locker.lock(MIB) == (MIB, 0)
        assert other.lock(MIB) == (MIB, 0)
        node.until(lambda: [node.report(uid).vm_lck for uid in (second, third)] == [MIB, MIB])
        assert node.report(first).vm_lck == 0
    finally:
        file.unlink()


@pytest.mark.rule("P10", level="Converge")
def test_process_that_moves_takes_its_locked_memory_with_it(node: Node) -> None:
    first, second = node.pod(), node.pod()
    worker, waiting = node.hire(first), node.hire(second)
    pods = [{"uid": uid, "limits": ["l"]} for uid in (first, second)]
    node.configure([{"limit": 4 * MIB}], pods)
    assert worker.lock(3 * MIB) == (3 * MIB, 0)
    node.until(lambda: node.report(first).vm_lck == 3 * MIB)
    worker.move(node.directory(second))
    node.until(lambda: (node.report(first).vm_lck, node.report(second).vm_lck) == (0, 3 * MIB))
    node.until(lambda: waiting.limits.soft == MIB)
    assert waiting.lock(4 * MIB) == (MIB, errno.ENOMEM)
