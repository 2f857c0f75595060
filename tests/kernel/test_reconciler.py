"""The reconciler on a real kernel: cgroups named as by the kubelet, and processes that lock memory.

Runs inside the guest (`make test-kernel`), as root with every capability.
"""

import errno
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from pinwarden.api.pinlimit import Level
from pinwarden.node.linux.cgroupfs import member_pids
from pinwarden.node.linux.prlimit import prlimit_memlock

from .nodes import GIVEN, MIB, ONE, SANDBOX, TWO, Node

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.rule("P5", level="Converge")
@pytest.mark.parametrize("limit", [8 * MIB, 8 * MIB + PAGE - 1, PAGE])
def test_single_process_is_denied_exactly_at_the_limit(node: Node, limit: int) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.set_limit(uid, limit)
    assert worker.lock(16 * MIB) == (limit - limit % PAGE, errno.ENOMEM)
    node.until(lambda: node.report(uid).vm_lck == limit - limit % PAGE)
    assert node.report(uid).level is Level.CONVERGE
    assert node.reconciler.report().overshoots == []
    assert worker.lock(16 * MIB) == (limit - limit % PAGE, errno.ENOMEM)


@pytest.mark.rule("P5", level="Converge")
def test_limit_of_zero_forbids(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.set_limit(uid, 0)
    assert worker.lock(PAGE) == (0, errno.EPERM)


@pytest.mark.emulated
@pytest.mark.rule("P1", "P13", level="Converge")
def test_racing_processes_settle_and_their_overshoot_is_reported(node: Node) -> None:
    uid = node.pod()
    workers = [node.hire(uid) for _ in range(4)]
    node.set_limit(uid, 8 * MIB)
    for worker in workers:
        worker.begin(4 * MIB)
    locked = [worker.result()[0] for worker in workers]
    assert sum(locked) == 16 * MIB, "no allocation came in between"
    node.until(lambda: node.report(uid).vm_lck == sum(locked))
    node.until(lambda: all(worker.limits.hard == worker.locked for worker in workers))
    assert node.overshoot().peak == sum(locked) - 8 * MIB
    assert [worker.lock(5 * MIB) for worker in workers] == [(one, errno.ENOMEM) for one in locked]
    workers[0].send("unlock")
    workers[1].send("unlock")
    workers[2].send("unlock")
    node.until(lambda: workers[0].limits.hard == 4 * MIB)
    assert workers[0].lock(32 * MIB) == (4 * MIB, errno.ENOMEM)
    node.settle()
    assert sum(worker.locked for worker in workers) == 8 * MIB
    assert node.overshoot().count == 1


@pytest.mark.rule("P12", level="Converge")
def test_raised_limit_reaches_a_running_process(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.set_limit(uid, 4 * MIB)
    assert worker.lock(16 * MIB) == (4 * MIB, errno.ENOMEM)
    node.set_limit(uid, 6 * MIB)
    assert worker.lock(16 * MIB) == (6 * MIB, errno.ENOMEM)


@pytest.mark.rule("P11", level="Converge")
def test_lowered_limit_evicts_nothing_and_is_reported(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.set_limit(uid, 8 * MIB)
    worker.lock(6 * MIB)
    node.set_limit(uid, 4 * MIB)
    assert worker.lock(16 * MIB) == (6 * MIB, errno.ENOMEM)
    assert worker.locked == 6 * MIB
    assert node.overshoot().peak == 2 * MIB


@pytest.mark.rule("P13", level="Converge")
def test_audit_touches_nothing(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.set_limit(uid, MIB, enforcement="Audit")
    assert worker.lock(2 * MIB) == (2 * MIB, 0)
    node.until(lambda: bool(node.reconciler.report().overshoots))
    assert node.overshoot().peak == MIB
    assert worker.limits == GIVEN


@pytest.mark.rule("P14", level="Converge")
def test_release_restores_the_original_limits(node: Node) -> None:
    uid = node.pod()
    workers = [node.hire(uid) for _ in range(2)]
    node.set_limit(uid, MIB)
    assert all(worker.limits.hard == MIB for worker in workers)
    node.configure([{"limit": MIB}], [{"uid": uid, "limits": ["l"]}], mode="Release")
    assert [worker.limits for worker in workers] == [GIVEN] * 2
    assert node.reconciler.report().applied_limits == []


@pytest.mark.rule("H3", level="Converge")
def test_limits_outlive_a_restart_and_the_next_reconciler_restores(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.set_limit(uid, 2 * MIB)
    node.reconciler.close()
    assert worker.lock(16 * MIB) == (2 * MIB, errno.ENOMEM)
    node.start()
    node.settle()
    assert worker.limits.hard == 2 * MIB, "nothing is released before there is a configuration"
    node.set_limit(uid, 3 * MIB)
    assert worker.lock(16 * MIB) == (3 * MIB, errno.ENOMEM)
    node.reconciler.close()
    node.start()
    node.reconciler.release()
    assert worker.limits == GIVEN


@pytest.mark.rule("H3", level="Converge")
def test_limit_stays_on_a_vanished_pod_until_it_is_deleted(node: Node) -> None:
    """See https://github.com/kubernetes/kubernetes/issues/51835: a forced deletion."""
    uid = node.pod()
    worker = node.hire(uid)
    node.take([{"limit": 2 * MIB}], [{"uid": uid, "limits": ["l"]}])
    assert worker.lock(MIB) == (MIB, 0)
    node.take([], [])
    assert worker.lock(16 * MIB) == (2 * MIB, errno.ENOMEM)
    node.until(lambda: (node.report(uid).reason, node.report(uid).vm_lck) == ("PodGone", 2 * MIB))
    assert node.report(uid).level is Level.CONVERGE
    node.reconciler.close()
    node.start()
    node.take([], [])
    assert worker.lock(16 * MIB) == (2 * MIB, errno.ENOMEM)
    node.until(lambda: node.report(uid).reason == "PodGone")
    node.take([{"limit": 3 * MIB}], [])
    assert worker.lock(16 * MIB) == (3 * MIB, errno.ENOMEM), "its limit was raised"
    node.take([], [{"uid": uid}])
    assert worker.limits == GIVEN, "no limit selects it any more"
    node.take([], [])
    assert worker.limits == GIVEN


@pytest.mark.rule("H3", level="Converge")
def test_vanished_pod_is_forgotten_with_its_processes(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.take([{"limit": MIB}], [{"uid": uid, "limits": ["l"]}])
    node.take([], [])
    worker.end()
    node.until(lambda: node.reconciler.report().pods == [])


@pytest.mark.emulated
@pytest.mark.rule("P1", level="Converge")
def test_racing_processes_under_reserve_never_exceed_the_limit(node: Node) -> None:
    uid = node.pod()
    workers = [node.hire(uid) for _ in range(4)]
    node.set_limit(uid, 8 * MIB, contention="Reserve")
    for worker in workers:
        worker.begin(16 * MIB)
    assert [worker.result() for worker in workers] == [(2 * MIB, errno.ENOMEM)] * 4
    node.settle()
    assert node.reconciler.report().overshoots == []


@pytest.mark.rule("P1", level="Converge")
def test_scope_node_limits_all_pods_together(node: Node) -> None:
    uids = [node.pod(), node.pod()]
    first, second = (node.hire(uid) for uid in uids)
    node.configure(
        [{"limit": 4 * MIB, "scope": "Node"}], [{"uid": uid, "limits": ["l"]} for uid in uids]
    )
    assert first.lock(3 * MIB) == (3 * MIB, 0)
    node.until(lambda: second.limits.hard == MIB)
    assert second.lock(16 * MIB) == (MIB, errno.ENOMEM)


@pytest.mark.rule("P1", level="Converge")
def test_scope_container_limits_each_by_itself(node: Node) -> None:
    uid = node.pod(ONE, TWO, SANDBOX)
    one, two, pause = (node.hire(uid, container=each) for each in (ONE, TWO, SANDBOX))
    containers = [{"name": "a", "id": ONE}, {"name": "b", "id": TWO}]
    node.configure(
        [{"limit": 2 * MIB, "scope": "Container", "containers": ["a"]}],
        [{"uid": uid, "limits": ["l"], "containers": containers}],
    )
    assert one.lock(16 * MIB) == (2 * MIB, errno.ENOMEM)
    assert two.lock(4 * MIB) == (4 * MIB, 0)
    assert pause.limits == GIVEN
    node.until(lambda: [each.pinned for each in node.report(uid).containers] == [2 * MIB])
    assert node.report(uid).level is Level.CONVERGE


@pytest.mark.emulated
@pytest.mark.rule("P1", level="Converge")
def test_fast_forkers_are_limited_and_restored(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid)
    node.set_limit(uid, 2 * MIB)
    for _ in range(10):
        worker.fork(20)
    with ThreadPoolExecutor() as pool:
        last = pool.submit(lambda: [worker.result() for _ in range(10)])
        node.until(last.done)
    node.until(lambda: node.report(uid).processes == 11)
    pids = member_pids(node.directory(uid))
    assert len(pids) == 11, "each line has one that stays"
    assert {prlimit_memlock(pid).hard for pid in pids} == {2 * MIB}
    node.configure([], [{"uid": uid}])
    assert {prlimit_memlock(pid) for pid in pids} == {GIVEN}


@pytest.mark.rule("P1", level="Converge")
def test_pods_whose_uids_begin_alike_are_two(node: Node) -> None:
    stem = str(uuid.uuid4())[:-1]
    uids = [node.pod(uid=f"{stem}{last}") for last in "ab"]
    first, second = (node.hire(uid) for uid in uids)
    node.set_limit(uids[0], MIB)
    assert first.lock(4 * MIB) == (MIB, errno.ENOMEM)
    assert second.lock(4 * MIB) == (4 * MIB, 0)
    assert second.limits == GIVEN
    assert [pod.uid for pod in node.reconciler.report().pods] == [uids[0]]


@pytest.mark.rule("H1", level="Observe")
def test_pod_with_cap_ipc_lock_is_reported_observe(node: Node) -> None:
    uid = node.pod()
    worker = node.hire(uid, user=0)
    node.set_limit(uid, MIB)
    assert worker.lock(2 * MIB) == (2 * MIB, 0)
    node.until(lambda: node.report(uid).reason == "CapIPCLock")
    assert node.report(uid).level is Level.OBSERVE
    assert str(worker.pid) in node.report(uid).message


@pytest.mark.rule("H2", level="Observe")
def test_process_whose_first_thread_ended_is_not_counted_as_zero(node: Node) -> None:
    uid = node.pod()
    worker, other = node.hire(uid, "threaded"), node.hire(uid)
    worker.send("leave")
    node.set_limit(uid, 4 * MIB)
    node.until(lambda: node.report(uid).reason == "UseUnknown")
    assert node.report(uid).level is Level.OBSERVE
    assert node.report(uid).processes == 2
    node.until(lambda: other.limits.soft == 0)
    assert other.lock(MIB) == (0, errno.EPERM), (
        "nothing more is let in beside a use that is not known"
    )
    assert worker.pid in member_pids(node.directory(uid))


def test_new_pod_is_found_and_limited(node: Node) -> None:
    uid = str(uuid.uuid4())
    node.set_limit(uid, MIB)
    assert node.reconciler.report().pods == []
    node.pod(uid=uid)
    worker = node.hire(uid)
    node.until(lambda: worker.limits.hard == MIB)
    assert worker.lock(2 * MIB) == (MIB, errno.ENOMEM)
