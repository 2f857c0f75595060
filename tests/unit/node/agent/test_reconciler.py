"""The reconciler over directories that look like cgroups, with real processes.

A table stands for `prlimit(2)`, because this machine may not be allowed to raise limits. The tests
with the kernel are in tests/kernel.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pinwarden.api.nodepinconfig import NodePinConfigSpec, PodReport, UnsupportedLimit
from pinwarden.api.pinlimit import Level
from pinwarden.api.reasons import ENDED, NO_PROCESSES, RESTART_GATES, STARTING
from pinwarden.node.agent import status
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.reconciler import Reconciler
from pinwarden.node.gate.container import ContainerRef, GatedContainer
from pinwarden.node.gate.publisher import GatePublisher
from pinwarden.node.linux.prlimit import GateAbility, Limits
from pinwarden.node.linux.procfs import StatusReader
from pinwarden.node.pods import process
from pinwarden.node.pods.discovery import PodFinder
from pinwarden.node.pods.policy import reported_name
from pinwarden.node.pods.privileges import HeldBackReason, held_back
from pinwarden.node.pods.subject import ENDED_SECONDS
from pinwarden.node.state import nri_status
from pinwarden.node.state.nri_status import NriStatus

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20
GIVEN = Limits(8 * MIB, 64 * MIB)
UID = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123456"
NEAR = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123457"
ONE, TWO, SANDBOX = "1a" * 32, "2b" * 32, "3c" * 32
ABLE = GateAbility(True)

WORKER = """
import ctypes, mmap, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
os.setuid(65534)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: no capability is within reach
pages = mmap.mmap(-1, 1 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
children = []
print("ready", flush=True)
for line in sys.stdin:
    command, amount = line.split()
    libc.munlock(ctypes.c_void_p(start), ctypes.c_size_t(1 << 20))
    if command == "lock" and int(amount):
        assert libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(int(amount))) == 0
    if command == "fork":
        child = os.fork()
        if child == 0:
            os.read(0, 0)
            signal.pause()
        print(child, flush=True)
        continue
    print("done", flush=True)
"""

KEEPER = """
import ctypes, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
threading.Thread(target=threading.Event().wait, daemon=True).start()
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
print("ready", flush=True)
sys.stdin.read()
"""


class Worker:
    """A process without capabilities, which locks up to 1 MiB on request."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self._children: list[int] = []
        assert self._read() == "ready"

    def lock(self, amount: int) -> None:
        self._tell(f"lock {amount}")
        assert self._read() == "done"

    def fork(self) -> int:
        self._tell("fork 0")
        self._children.append(int(self._read()))
        return self._children[-1]

    def end(self) -> None:
        for child in self._children:
            os.kill(child, 9)
        self._process.kill()
        self._process.communicate()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Node:
    """A tree of cgroups, a table of limits, a clock set by tests, and one reconciler at a time."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.state = folder / "state"
        self.gate = folder / "gate.json"
        self.nri = folder / "nri.json"
        self.kubepods = self.root / "kubepods" / "burstable"
        self.kubepods.mkdir(parents=True)
        self.state.mkdir()
        (self.root / "cgroup.controllers").touch()
        self.now = 1000.0
        self.limits: dict[int, Limits] = {}
        self.writes: list[tuple[int, Limits]] = []
        self.refused: set[int] = set()
        self.unreadable: set[int] = set()
        self.before_write: Callable[[int], None] = lambda _: None
        self.workers: list[Worker] = []
        self.reconciler = self.start()

    def start(self, ability: GateAbility = ABLE) -> Reconciler:
        self.reconciler = Reconciler(
            cgroup_root=self.root,
            proc_root=Path("/proc"),
            store=RlimitRecordStore(self.state / "saved.json", "boot"),
            ability=ability,
            gate=self.gate,
            nri=self.nri,
            clock=lambda: self.now,
            prlimit=self.prlimit,
        )
        return self.reconciler

    def prlimit(self, pid: int, limits: Limits | None) -> Limits:
        if pid in self.unreadable:
            raise PermissionError(1, "Operation not permitted")
        before = self.limits.get(pid, GIVEN)
        if limits is not None:
            self.before_write(pid)
            if pid in self.refused:
                raise PermissionError(1, "Operation not permitted")
            self.limits[pid] = limits
            self.writes.append((pid, limits))
        return before

    def hire(self) -> Worker:
        self.workers.append(Worker())
        return self.workers[-1]

    def put(self, pids: list[int], uid: str = UID, container: str = ONE) -> Path:
        directory = self.kubepods / f"pod{uid}" / container
        directory.mkdir(parents=True, exist_ok=True)
        directory.parent.joinpath("cgroup.procs").touch()
        directory.joinpath("cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return directory

    def publish(self, *gated: str, loosened: str = "") -> None:
        """Write the state file of a seccomp gate with the listeners of these containers."""
        record = GatePublisher(self.gate)
        record.set_containers(
            GatedContainer(each, ContainerRef(UID, each), SANDBOX, b"") for each in gated
        )
        if loosened:
            record.mark_inexact(UID, loosened)
        record.flush(0.0)

    def configure(
        self,
        limits: list[dict[str, Any]],
        pods: list[dict[str, Any]],
        generation: int = 1,
        **more: Any,
    ) -> None:
        limits = [
            {"name": "l", "uid": f"uid-{one.get('name', 'l')}", "scope": "Pod", **one}
            for one in limits
        ]
        spec = NodePinConfigSpec.model_validate({"limits": limits, "pods": pods, **more})
        self.reconciler.configure(spec, [], generation)

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        wait = self.reconciler.tick()
        assert 0.01 <= wait <= 1.0

    def pod(self, uid: str = UID) -> PodReport:
        return next(pod for pod in self.reconciler.report().pods if pod.uid == uid)

    def applied(self) -> list[str]:
        return [one.uid for one in self.reconciler.report().applied_limits]

    def hard(self, worker: Worker) -> int:
        return self.limits.get(worker.pid, GIVEN).hard

    def close(self) -> None:
        self.reconciler.close()
        for worker in self.workers:
            worker.end()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


POD = {"uid": UID, "limits": ["l"]}


def test_a_governed_process_is_limited_to_the_free_room(node: Node) -> None:
    worker = node.hire()
    worker.lock(3 * PAGE)
    node.put([worker.pid])
    node.configure([{"limit": 8 * PAGE}], [POD], generation=7)
    assert node.reconciler.report().observed_generation is None
    node.tick()
    assert node.limits[worker.pid] == Limits(8 * PAGE, 8 * PAGE)
    status = node.reconciler.report()
    assert status.observed_generation == 7
    assert node.applied() == ["uid-l"]
    assert node.pod().level is Level.CONVERGE
    assert (node.pod().vm_lck, node.pod().peak, node.pod().processes) == (3 * PAGE, 3 * PAGE, 1)
    assert status.sampled_at is not None


def test_nothing_changes_before_the_first_configuration(node: Node) -> None:
    node.put([node.hire().pid])
    node.tick()
    assert node.writes == []
    assert node.reconciler.report().sampled_at is None


def test_use_of_one_process_lowers_the_limits_of_the_others(node: Node) -> None:
    first, second = node.hire(), node.hire()
    node.put([first.pid, second.pid])
    node.configure([{"limit": 8 * PAGE}], [POD])
    node.tick()
    first.lock(5 * PAGE)
    node.tick()
    assert (node.hard(first), node.hard(second)) == (8 * PAGE, 3 * PAGE)
    writes = len(node.writes)
    node.tick()
    assert len(node.writes) == writes, "nothing is written twice"


@pytest.mark.rule("P1")
def test_use_between_sample_and_write_is_not_allocated_twice(node: Node) -> None:
    first, second = node.hire(), node.hire()
    node.put([first.pid, second.pid])
    node.configure([{"limit": 8 * PAGE, "contention": "Reserve"}], [POD])
    node.tick()
    assert (node.hard(first), node.hard(second)) == (4 * PAGE, 4 * PAGE)

    def take(pid: int) -> None:
        node.before_write = lambda _: None
        assert pid == second.pid, "who is lowered comes first"
        second.lock(4 * PAGE)

    first.lock(2 * PAGE)
    node.before_write = take
    node.tick()
    assert (node.hard(first), node.hard(second)) == (3 * PAGE, 5 * PAGE)


@pytest.mark.rule("H2")
def test_a_sleeping_pod_is_sampled_less_often(node: Node) -> None:
    worker = node.hire()
    pod = node.put([worker.pid]).parent
    node.configure([{"limit": 8 * PAGE}], [POD])
    for time in range(5):  # until it is no longer hot
        ran(pod, time)
        node.tick()
    worker.lock(PAGE)
    node.tick(0.5)
    assert node.pod().vm_lck == 0, "a clock that stands says that the worker did not run"
    ran(pod, 5)
    node.tick(0.5)
    assert node.pod().vm_lck == PAGE


def test_a_sleeping_pod_is_still_sampled(node: Node) -> None:
    worker = node.hire()
    ran(node.put([worker.pid]).parent, 0)
    node.configure([{"limit": 8 * PAGE}], [POD])
    for _ in range(5):
        node.tick()
    worker.lock(PAGE)
    for _ in range(3):
        node.tick(0.5)
    assert node.pod().vm_lck == PAGE


def ran(pod: Path, microseconds: int) -> None:
    """Write the processor time of a pod, as the kernel shows it."""
    pod.joinpath("cpu.stat").write_text(f"usage_usec {microseconds}\nuser_usec 0\nsystem_usec 0\n")


def test_a_free_pod_and_a_pod_with_a_similar_uid_stay_unchanged(node: Node) -> None:
    governed, near = node.hire(), node.hire()
    node.put([governed.pid])
    node.put([near.pid], NEAR)
    node.configure([{"limit": PAGE}], [POD, {"uid": NEAR}])
    node.tick()
    assert {pid for pid, _ in node.writes} == {governed.pid}
    assert [pod.uid for pod in node.reconciler.report().pods] == [UID]


def test_a_new_pod_and_a_new_process_are_found(node: Node) -> None:
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    first, second = node.hire(), node.hire()
    node.put([first.pid])
    node.tick(0.5)
    assert node.hard(first) == PAGE
    node.put([first.pid, second.pid])
    node.put([], container=TWO)
    node.tick(0.5)
    assert node.hard(second) == PAGE
    assert node.pod().processes == 2


def test_a_pod_without_a_cgroup_is_no_longer_reported(node: Node) -> None:
    directory = node.put([node.hire().pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    for path in (directory, directory.parent):
        (path / "cgroup.procs").unlink()
        path.rmdir()
    node.tick()
    assert node.reconciler.report().pods == []
    assert node.applied() == ["uid-l"]


@pytest.mark.rule("P14")
def test_a_deleted_limit_restores_the_original_limits(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.configure([], [{"uid": UID}], generation=2)
    node.tick()
    assert node.limits[worker.pid] == GIVEN
    status = node.reconciler.report()
    assert (status.pods, status.applied_limits, status.observed_generation) == ([], [], 2)


def test_a_process_leaving_its_pod_is_restored(node: Node) -> None:
    stays, leaves = node.hire(), node.hire()
    node.put([stays.pid, leaves.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.put([stays.pid])
    node.tick()
    assert (node.limits[leaves.pid], node.hard(stays)) == (GIVEN, PAGE)


def test_a_process_moving_to_another_pod_stays_limited(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid], NEAR)
    node.put([])
    node.configure(
        [{"name": "l", "limit": PAGE}, {"name": "m", "limit": 2 * PAGE}],
        [{"uid": NEAR, "limits": ["m"]}, POD],
    )
    node.tick()
    node.put([worker.pid])
    node.put([], NEAR)
    node.tick()
    assert [limits.hard for _, limits in node.writes] == [2 * PAGE, PAGE]
    node.configure([], [], generation=2)
    node.tick()
    assert node.limits[worker.pid] == GIVEN


@pytest.mark.rule("H3")
def test_a_later_agent_restores_the_limits_from_before_the_first(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.reconciler.close()
    node.start()
    node.tick()
    assert node.hard(worker) == PAGE, "a restart releases nothing"
    node.configure([{"limit": 2 * PAGE}], [POD])
    node.tick()
    assert node.hard(worker) == 2 * PAGE
    node.reconciler.release()
    assert node.limits[worker.pid] == GIVEN
    assert RlimitRecordStore(node.state / "saved.json", "boot").load() == {}


@pytest.mark.rule("H3")
def test_a_limit_deleted_while_no_agent_ran_is_restored(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.reconciler.close()
    node.start()
    node.configure([], [{"uid": UID}])
    node.tick()
    assert node.limits[worker.pid] == GIVEN


@pytest.mark.rule("H3")
def test_a_process_denied_by_prlimit_after_a_restart_releases_no_limit_of_its_pod(
    node: Node,
) -> None:
    rejected, other = node.hire(), node.hire()
    node.put([rejected.pid, other.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.reconciler.close()
    node.start()
    node.configure([{"limit": PAGE}], [POD])
    node.unreadable.add(rejected.pid)
    node.writes.clear()
    for _ in range(4):
        node.tick()
    assert node.writes == [], "the limit of the other process stays"
    assert node.pod().reason == "NotDealt"
    node.unreadable.clear()
    node.tick()
    assert (node.hard(rejected), node.hard(other)) == (PAGE, PAGE)
    assert node.pod().reason == "RlimitGate"
    node.reconciler.release()
    assert (node.limits[rejected.pid], node.limits[other.pid]) == (GIVEN, GIVEN)


@pytest.mark.rule("H3")
def test_a_process_denied_by_prlimit_after_a_restart_is_restored_later_in_an_audited_pod(
    node: Node,
) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.reconciler.close()
    node.start()
    node.configure([{"limit": PAGE, "enforcement": "Audit"}], [POD])
    node.unreadable.add(worker.pid)
    for _ in range(4):
        node.tick()
    assert node.hard(worker) == PAGE
    node.unreadable.clear()
    for _ in range(2):
        node.tick()
    assert node.limits[worker.pid] == GIVEN


class Once(set[int]):
    """Contains each of its members once."""

    def __contains__(self, member: object) -> bool:
        contained = super().__contains__(member)
        self.difference_update([member])
        return contained


@pytest.mark.rule("H3")
def test_a_process_denied_by_prlimit_once_after_a_restart_keeps_its_original_limits(
    node: Node,
) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.reconciler.close()
    node.start()
    node.configure([{"limit": PAGE}], [POD])
    node.unreadable = Once([worker.pid])
    for _ in range(2):
        node.tick()
    assert node.hard(worker) == PAGE
    node.reconciler.release()
    assert node.limits[worker.pid] == GIVEN


@pytest.mark.rule("H3")
def test_release_needs_no_configuration(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.reconciler.close()
    node.start().release()
    assert node.limits[worker.pid] == GIVEN


@pytest.mark.rule("H1")
def test_mode_release_is_acknowledged_after_all_restores(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.refused.add(worker.pid)
    node.configure([{"limit": PAGE}], [POD], generation=2, mode="Release")
    node.tick()
    assert node.reconciler.report().observed_generation == 1
    node.refused.clear()
    node.tick()
    status = node.reconciler.report()
    assert (status.observed_generation, status.applied_limits) == (2, [])
    assert node.limits[worker.pid] == GIVEN


@pytest.mark.rule("H3")
def test_a_process_stays_unchanged_until_its_record_is_on_disk(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    (node.state / "saved.json.new").mkdir()
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    assert node.writes == []
    assert node.applied() == []
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, "NotDealt")
    (node.state / "saved.json.new").rmdir()
    node.tick()
    assert node.hard(worker) == PAGE
    assert node.applied() == ["uid-l"]
    assert node.pod().level is Level.CONVERGE


@pytest.mark.rule("H3")
def test_a_failed_write_in_mode_release_is_tried_again_in_mode_active(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    (node.state / "saved.json.new").mkdir()
    node.configure([{"limit": PAGE}], [POD], generation=2, mode="Release")
    node.tick()
    node.configure([{"limit": PAGE}], [POD], generation=3)
    node.tick()
    assert node.applied() == []
    (node.state / "saved.json.new").rmdir()
    node.now += 60.0
    node.tick()
    assert node.hard(worker) == PAGE
    assert node.applied() == ["uid-l"]


@pytest.mark.rule("H1")
def test_a_limit_denied_by_the_kernel_is_not_acknowledged(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.refused.add(worker.pid)
    node.configure([{"limit": PAGE}, {"name": "free", "limit": PAGE}], [POD])
    node.tick()
    assert node.applied() == ["uid-free"]
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, "NotDealt")
    assert str(worker.pid) in node.pod().message
    node.refused.clear()
    node.tick()
    assert node.applied() == ["uid-l", "uid-free"]


@pytest.mark.rule("H1")
def test_a_process_stays_unchanged_and_reported_without_a_free_descriptor(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = node.hire(), node.hire()
    whole = os.pidfd_open

    def none_left(pid: int) -> int:
        if pid == worker.pid:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return whole(pid)

    for state, generation in (("new", 1), ("dealt to", 2)):
        monkeypatch.setattr(os, "pidfd_open", none_left)
        node.put([worker.pid, other.pid])
        node.configure([{"limit": generation * PAGE}], [POD], generation=generation)
        node.tick()
        assert node.applied() == [], state
        assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, "NotDealt")
        assert f"process {worker.pid}: prlimit: Too many open files" in node.pod().message
        assert node.hard(other) == generation * PAGE
        monkeypatch.setattr(os, "pidfd_open", whole)
        node.tick()
        assert (node.applied(), node.hard(worker)) == (["uid-l"], generation * PAGE)
    monkeypatch.setattr(os, "pidfd_open", none_left)
    node.configure([], [], generation=3)
    node.tick()
    monkeypatch.setattr(os, "pidfd_open", whole)
    node.tick()
    assert node.limits[worker.pid] == GIVEN


@pytest.mark.rule("H3")
def test_a_record_of_an_earlier_agent_stays_without_a_free_descriptor(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.reconciler.close()
    node.start()
    node.configure([], [], mode="Release")

    def none_left(proc_root: Path, pid: int) -> StatusReader:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("pinwarden.node.pods.process.StatusReader", none_left)
    node.tick()
    assert node.reconciler.report().observed_generation is None
    monkeypatch.setattr("pinwarden.node.pods.process.StatusReader", StatusReader)
    node.tick()
    assert (node.reconciler.report().observed_generation, node.limits[worker.pid]) == (1, GIVEN)


def test_a_child_has_the_original_limits_of_its_parent(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    child = worker.fork()
    node.limits[child] = node.limits[worker.pid]  # as fork does
    node.put([worker.pid, child])
    node.tick()
    node.configure([], [], generation=2)
    node.tick()
    assert node.limits[child] == GIVEN


@pytest.mark.rule("P14")
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("ending", ["freed", "audited", "released", "by hand"])
def test_an_unsampled_child_gets_the_original_limits_of_its_parent(
    node: Node, ending: str, restarted: bool
) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    child = worker.fork()
    node.limits[child] = node.limits[worker.pid]
    node.put([worker.pid, child])
    if restarted:
        node.reconciler.close()
        node.start()
    if ending == "by hand":
        node.reconciler.release()
    else:
        node.configure(
            [{"limit": PAGE, "enforcement": "Audit"}] if ending == "audited" else [],
            [{"uid": UID}] if ending == "freed" else [POD],
            generation=2,
            mode="Release" if ending == "released" else "Active",
        )
        node.tick()
        assert node.reconciler.report().observed_generation == 2
    assert (node.limits[worker.pid], node.limits[child]) == (GIVEN, GIVEN)


@pytest.mark.rule("P14")
@pytest.mark.parametrize("mode", ["Active", "Release"])
def test_a_child_forked_during_the_release_gets_the_original_limits_of_its_parent(
    node: Node, mode: str
) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    dealt = node.limits[worker.pid]
    node.configure([], [{"uid": UID}], generation=2, mode=mode)
    node.tick()
    child = worker.fork()
    node.limits[child] = dealt
    node.put([worker.pid, child])
    node.tick()
    assert node.limits[child] == GIVEN


@pytest.mark.rule("P14")
def test_a_limit_set_by_a_program_after_its_restore_is_kept(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    dealt = node.limits[worker.pid]
    node.configure([], [{"uid": UID}], generation=2)
    node.tick()
    node.limits[worker.pid] = dealt
    for _ in range(5):
        node.tick()
    assert node.limits[worker.pid] == dealt


def test_an_orphan_with_applied_limits_has_the_original_limits_of_its_parent(node: Node) -> None:
    parent, orphan = node.hire(), node.hire()
    node.put([parent.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.limits[orphan.pid] = node.limits[parent.pid]
    parent.end()
    node.workers.remove(parent)
    node.put([orphan.pid])
    node.tick()
    node.configure([], [], generation=2)
    node.tick()
    assert node.limits[orphan.pid] == GIVEN


def test_a_process_started_later_by_the_runtime_keeps_its_own_limits(node: Node) -> None:
    first, later = node.hire(), node.hire()
    own = Limits(PAGE, 2 * PAGE)
    node.put([first.pid])
    node.configure([{"limit": 4 * PAGE}], [POD])
    node.tick()
    node.limits[later.pid] = own
    node.put([first.pid, later.pid])
    node.tick()
    assert node.limits[later.pid] == own
    node.configure([], [], generation=2)
    node.tick()
    assert node.limits[later.pid] == own


def test_a_limit_lowered_by_a_program_stays_lowered(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": 8 * PAGE}], [POD])
    node.tick()
    node.limits[worker.pid] = Limits(PAGE, 2 * PAGE)
    node.tick()
    assert node.limits[worker.pid] == Limits(PAGE, 2 * PAGE)
    node.configure([], [], generation=2)
    node.tick()
    assert node.limits[worker.pid] == Limits(PAGE, 2 * PAGE)


@pytest.mark.rule("P13")
def test_audit_evaluates_and_changes_no_process(node: Node) -> None:
    worker = node.hire()
    worker.lock(5 * PAGE)
    node.put([worker.pid])
    node.configure([{"limit": 2 * PAGE, "enforcement": "Audit"}], [POD])
    node.tick()
    node.tick(0.5)
    assert node.writes == []
    assert not (node.state / "saved.json").exists()
    assert node.applied() == ["uid-l"]
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, "Audit")
    (overshoot,) = node.reconciler.report().overshoots
    assert (overshoot.limit, overshoot.pod, overshoot.peak, overshoot.count) == (
        "uid-l",
        UID,
        3 * PAGE,
        1,
    )
    assert overshoot.seconds == 0.5


@pytest.mark.rule("P13")
def test_a_limit_turned_to_audit_restores(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    node.configure([{"limit": PAGE, "enforcement": "Audit"}], [POD], generation=2)
    node.tick()
    assert node.limits[worker.pid] == GIVEN


@pytest.mark.rule("H1")
def test_a_node_without_the_rlimit_gate_only_observes(node: Node) -> None:
    worker = node.hire()
    worker.lock(PAGE)
    node.put([worker.pid])
    node.reconciler.close()
    node.start(GateAbility(False, "no capability"))
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    assert node.writes == []
    pod = node.pod()
    assert (pod.level, pod.reason, pod.message) == (
        Level.OBSERVE,
        "GateUnavailable",
        "no capability",
    )
    assert pod.vm_lck == PAGE


@pytest.mark.rule("P1")
def test_scope_node_sums_over_its_pods(node: Node) -> None:
    first, second = node.hire(), node.hire()
    node.put([first.pid])
    node.put([second.pid], NEAR)
    node.configure([{"limit": 8 * PAGE, "scope": "Node"}], [POD, {"uid": NEAR, "limits": ["l"]}])
    node.tick()
    first.lock(6 * PAGE)
    node.tick()
    assert (node.hard(first), node.hard(second)) == (8 * PAGE, 2 * PAGE)
    second.lock(3 * PAGE)
    node.tick()
    (overshoot,) = node.reconciler.report().overshoots
    assert (overshoot.pod, overshoot.peak) == (None, PAGE)


@pytest.mark.rule("P1")
def test_scope_container_limits_each_container_and_not_the_sandbox(node: Node) -> None:
    one, two, pause = node.hire(), node.hire(), node.hire()
    node.put([one.pid], container=ONE)
    node.put([two.pid], container=TWO)
    node.put([pause.pid], container=SANDBOX)
    pod = {**POD, "containers": [{"name": "a", "id": ONE}, {"name": "b", "id": TWO}]}
    node.configure([{"limit": 4 * PAGE, "scope": "Container", "containers": ["a"]}], [pod])
    one.lock(PAGE)
    node.tick()
    assert node.hard(one) == 4 * PAGE
    assert {pid for pid, _ in node.writes} == {one.pid}
    assert node.pod().level is Level.CONVERGE
    assert [(each.name, each.pinned, each.peak) for each in node.pod().containers] == [
        ("a", PAGE, PAGE)
    ]


@pytest.mark.rule("H1")
def test_a_container_without_a_name_gets_the_limit(node: Node) -> None:
    one, two, pause = node.hire(), node.hire(), node.hire()
    node.put([one.pid], container=ONE)
    node.put([two.pid], container=TWO)
    node.put([pause.pid], container=SANDBOX)
    pod = {**POD, "containers": [{"name": "a"}, {"name": "b"}]}
    limit = {"limit": 4 * PAGE, "scope": "Container"}
    node.configure([limit], [pod])
    one.lock(5 * PAGE)
    node.tick()
    assert (node.hard(one), node.hard(two)) == (5 * PAGE, 4 * PAGE)
    assert node.pod().level is Level.CONVERGE
    assert node.pod().containers == []
    named = {**POD, "containers": [{"name": "a", "id": ONE}, {"name": "b", "id": TWO}]}
    node.configure([limit], [named], generation=2)
    node.tick()
    assert (node.hard(one), node.hard(two)) == (5 * PAGE, 4 * PAGE)
    assert node.pod().level is Level.CONVERGE


@pytest.mark.rule("P1", "H1")
@pytest.mark.parametrize("ended", [0, 1, 3])
@pytest.mark.parametrize("sandbox", [True, False], ids=["sandbox", "drop_infra_ctr"])
def test_ended_init_containers_do_not_lower_a_container_without_a_reported_id(
    node: Node, ended: int, sandbox: bool
) -> None:
    """CRI-O has no sandbox process by default: https://github.com/cri-o/cri-o/issues/5860."""
    worker, proxy = node.hire(), node.hire()
    node.put([worker.pid], container=ONE)
    node.put([proxy.pid], container=TWO)
    if sandbox:
        node.put([node.hire().pid], container=SANDBOX)
    names = [{"name": f"init-{number}", "id": f"{number:064x}"} for number in range(ended)]
    pod = {
        **POD,
        "containers": [*names, {"name": "main", "id": "ff" * 32}, {"name": "proxy", "id": TWO}],
    }
    node.configure([{"limit": 4 * PAGE, "scope": "Container"}], [pod])
    node.tick()
    assert (node.hard(worker), node.hard(proxy)) == (4 * PAGE, 4 * PAGE)
    assert node.pod().level is Level.CONVERGE


@pytest.mark.rule("H1")
def test_processes_outside_all_containers_share_a_limit_and_are_reported(node: Node) -> None:
    first, second = node.hire(), node.hire()
    for name, worker in (("kata_1a", first), ("other", second)):
        node.put([worker.pid], container=name)
    pod = {**POD, "containers": [{"name": "main", "id": ONE}]}
    node.configure([{"limit": 4 * PAGE, "scope": "Container"}], [pod])
    first.lock(PAGE)
    node.tick()
    assert (node.hard(first), node.hard(second)) == (4 * PAGE, 3 * PAGE)
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, "ContainerUnknown")


@pytest.mark.rule("H1")
def test_a_pod_without_processes_is_at_observe_with_a_hint(node: Node) -> None:
    directory = node.put([])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    pod = node.pod()
    assert (pod.level, pod.reason, pod.processes) == (Level.OBSERVE, NO_PROCESSES, 0)
    assert str(directory.parent) in pod.message
    assert "cgroup drivers" in pod.message
    worker = node.hire()
    node.put([worker.pid])
    node.tick()
    assert node.pod().level is Level.CONVERGE
    node.put([])
    node.tick()
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, ENDED), (
        "no alarm at each restart"
    )
    for _ in range(int(ENDED_SECONDS)):
        node.tick(2.0)
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, NO_PROCESSES)


@pytest.mark.rule("P1", "H1")
def test_a_container_beside_its_pod_is_limited_and_counted(node: Node) -> None:
    """A runtime class without SystemdCgroup: https://github.com/k3s-io/k3s/pull/8470."""
    name = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"
    worker, other = node.hire(), node.hire()
    (node.root / "kubepods.slice" / "kubepods-burstable.slice" / name).mkdir(parents=True)
    for identity, hired in ((ONE, worker), (TWO, other)):
        directory = (
            node.root / "system.slice" / "containerd.service" / f"{name}:cri-containerd:{identity}"
        )
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text(f"{hired.pid}\n")
    pod = {**POD, "containers": [{"name": "a", "id": ONE}, {"name": "b", "id": TWO}]}
    node.configure(
        [{"limit": 4 * PAGE}, {"name": "m", "limit": 3 * PAGE, "scope": "Container"}],
        [{**pod, "limits": ["l", "m"]}],
    )
    worker.lock(2 * PAGE)
    node.tick()
    assert (node.hard(worker), node.hard(other)) == (3 * PAGE, 2 * PAGE)
    assert (node.pod().level, node.pod().processes) == (Level.CONVERGE, 2)
    assert {each.name: each.pinned for each in node.pod().containers} == {"a": 2 * PAGE, "b": 0}


@pytest.mark.rule("H3", "P6")
def test_an_unlisted_pod_with_processes_is_reported_as_gone(node: Node) -> None:
    """A pod deleted by force still runs: https://github.com/kubernetes/kubernetes/issues/51835."""
    worker = node.hire()
    worker.lock(2 * PAGE)
    node.put([worker.pid])
    spec = NodePinConfigSpec.model_validate(
        {
            "limits": [{"name": "l", "uid": "uid-l", "scope": "Pod", "limit": 4 * PAGE}],
            "pods": [POD],
        }
    )
    node.reconciler.configure(spec, [], 1, frozenset({UID}))
    node.tick()
    assert node.hard(worker) == 4 * PAGE
    pod = node.pod()
    assert (pod.level, pod.reason, pod.vm_lck) == (Level.CONVERGE, "PodGone", 2 * PAGE)
    assert pod.message.startswith("no longer listed by the operator: the last limits stay")
    assert "RlimitGate" in pod.message
    node.put([])
    node.tick()
    assert node.reconciler.report().pods == []


def test_an_unlisted_pod_gets_the_limit_for_unknown_pods(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([], [], unknownPods=PAGE)
    node.tick()
    assert node.hard(worker) == PAGE
    assert node.applied() == []
    node.configure([], [{"uid": UID}], generation=2, unknownPods=PAGE)
    node.tick()
    assert node.limits[worker.pid] == GIVEN


def test_a_pattern_makes_directories_subjects(node: Node) -> None:
    worker, other = node.hire(), node.hire()
    for name, pid in (("one.service", worker.pid), ("two.scope", other.pid)):
        directory = node.root / "machine.slice" / name / "below"
        directory.mkdir(parents=True)
        (directory.parent / "cgroup.procs").touch()
        (directory / "cgroup.procs").write_text(f"{pid}\n")
    node.configure([{"limit": PAGE, "cgroupPattern": "/machine.slice/*.service"}], [])
    node.tick()
    assert (node.hard(worker), node.hard(other)) == (PAGE, GIVEN.hard)
    assert [pod.uid for pod in node.reconciler.report().pods] == ["machine.slice/one.service"]


def test_nested_subjects_limit_their_common_processes(node: Node) -> None:
    worker = node.hire()
    outer = node.root / "a"
    (outer / "b").mkdir(parents=True)
    (outer / "cgroup.procs").touch()
    (outer / "b" / "cgroup.procs").write_text(f"{worker.pid}\n")
    node.configure(
        [
            {"name": "l", "limit": 4 * PAGE, "cgroupPattern": "a"},
            {"name": "m", "limit": 2 * PAGE, "cgroupPattern": "a/b"},
        ],
        [],
    )
    node.tick()
    node.tick()
    assert [limits.hard for _, limits in node.writes] == [2 * PAGE]


@pytest.mark.rule("H1")
@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({"sources": ["Mlock"]}, "SourceNotSeparable"),
        ({"counting": "OncePerPod"}, "NotSupported"),
        ({"cgroupPattern": "../x"}, "InvalidPattern"),
        ({"cgroupPattern": "a**"}, "InvalidPattern"),
    ],
)
def test_an_unsupported_limit_is_reported_and_never_acknowledged(
    node: Node, field: dict[str, Any], reason: str
) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE, **field}], [POD])
    node.tick()
    assert node.writes == []
    assert [(one.uid, one.reason) for one in node.reconciler.report().unsupported_limits] == [
        ("uid-l", reason)
    ]
    assert node.applied() == []
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, reason)


def test_an_unknown_limit_name_leaves_the_pod_reported(node: Node) -> None:
    node.put([node.hire().pid])
    spec = NodePinConfigSpec.model_validate({"pods": [{"uid": UID, "limits": ["newer"]}]})
    node.reconciler.configure(spec, [UnsupportedLimit("newer", "uid-newer", "burst: unknown")], 1)
    node.tick()
    status = node.reconciler.report()
    assert [(one.uid, one.message) for one in status.unsupported_limits] == [
        ("uid-newer", "burst: unknown")
    ]
    assert node.pod().level is Level.OBSERVE
    assert node.writes == []


@pytest.mark.rule("H1")
@pytest.mark.parametrize("starting", [True, False])
def test_a_process_with_a_reachable_capability_is_reported(
    node: Node, monkeypatch: pytest.MonkeyPatch, starting: bool
) -> None:
    monkeypatch.setattr(status, "STARTING_SECONDS", float("inf" if starting else 0))
    pid = os.getpid()
    with StatusReader(Path("/proc"), pid) as reader:
        reason = held_back(reader.read(), Path("/proc/self/uid_map").read_text())
    node.put([pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    if reason is None:
        assert node.pod().level is Level.CONVERGE
    else:
        told = STARTING if starting else reason.value
        assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, told)
        assert str(pid) in node.pod().message


@pytest.mark.rule("H1")
def test_a_capability_dropped_only_by_the_first_thread_is_reported(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StatusReader(Path("/proc"), os.getpid()) as reader:
        reason = held_back(reader.read(), Path("/proc/self/uid_map").read_text())
    if reason is None:
        pytest.skip("needs a capability, to keep it in a thread")
    monkeypatch.setattr(status, "STARTING_SECONDS", 0.0)
    program = [sys.executable, "-c", KEEPER]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n"
        node.put([keeper.pid])
        node.configure([{"limit": PAGE}], [POD])
        node.tick()
        assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, reason.value)


@pytest.mark.rule("H1")
def test_a_pod_with_unread_threads_is_not_reported_as_enforced(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.Process, "held_back", HeldBackReason.THREADS_UNREAD)
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, "ThreadsUnread")
    assert str(worker.pid) in node.pod().message


@pytest.mark.rule("H1")
def test_a_process_started_by_the_pod_does_not_count_as_starting(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of two, what does not pass by itself is told, whichever has the lower number."""
    monkeypatch.setattr(process, "held_back", lambda *_: HeldBackReason.CAP_IPC_LOCK)
    worker = node.hire()
    child = worker.fork()
    node.put([worker.pid, child])
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    assert (node.pod().reason, str(child) in node.pod().message) == ("CapIPCLock", True)
    node.put([worker.pid])
    node.tick()
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, STARTING)


def test_busy_pods_are_sampled_often_and_idle_pods_seldom(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": 8 * PAGE}], [POD])
    node.now += 1
    assert node.reconciler.tick() == pytest.approx(0.01)
    for _ in range(8):
        node.tick(0.5)
    assert node.reconciler.tick() == pytest.approx(0.5)
    worker.lock(PAGE)
    node.now += 0.5
    assert node.reconciler.tick() == pytest.approx(0.01)


@pytest.mark.rule("P5", "H1")
def test_a_pod_becoming_exact_gets_the_whole_limit_until_inexact(
    node: Node,
) -> None:
    first, second, pause = node.hire(), node.hire(), node.hire()
    first.lock(3 * PAGE)
    node.put([first.pid, second.pid])
    node.put([pause.pid], container=SANDBOX)
    node.configure([{"limit": 8 * PAGE}], [POD])
    node.tick()
    assert (node.hard(first), node.hard(second)) == (8 * PAGE, 5 * PAGE)
    assert (node.pod().level, node.pod().denials) == (Level.CONVERGE, None)
    node.publish(ONE)
    node.tick()
    assert [node.hard(each) for each in (first, second, pause)] == [8 * PAGE] * 3
    assert (node.pod().level, node.pod().reason, node.pod().denials) == (
        Level.DENY,
        "SeccompGate",
        [],
    )
    node.publish(ONE, loosened="SHM_LOCK")
    node.tick()
    assert (node.hard(first), node.hard(second)) == (8 * PAGE, 5 * PAGE)
    assert (node.pod().level, node.pod().message) == (Level.CONVERGE, "not exactly: SHM_LOCK")


@pytest.mark.rule("H1")
def test_a_container_without_the_gates_profile_makes_the_pod_inexact(node: Node) -> None:
    gated, other = node.hire(), node.hire()
    gated.lock(3 * PAGE)
    node.put([gated.pid])
    node.publish(ONE)
    node.configure([{"limit": 8 * PAGE, "contention": "Reserve"}], [POD])
    node.tick()
    assert node.hard(gated) == 8 * PAGE
    assert node.pod().level is Level.DENY
    node.put([other.pid], container=TWO)
    node.tick()
    assert (node.hard(gated), node.hard(other)) == (5 * PAGE, 2 * PAGE)
    assert node.pod().level is Level.CONVERGE
    assert "lacks the gate's profile" in node.pod().message


@pytest.mark.rule("H1")
def test_a_pod_with_a_capability_from_before_the_gate_needs_a_restart(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "held_back", lambda *_: HeldBackReason.CAP_IPC_LOCK)
    monkeypatch.setattr(status, "STARTING_SECONDS", 0.0)
    worker = node.hire()
    node.put([worker.pid])
    node.publish(TWO)
    reason = f"it was created before; {RESTART_GATES}"
    nri_status.save(
        node.gate.with_name(nri_status.NAME), NriStatus("containerd", "", {ONE: reason})
    )
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, "CapIPCLock")
    assert node.pod().message.endswith(f"; {reason}")


@pytest.mark.rule("P14")
def test_an_exact_pod_gets_at_most_its_original_limits_and_is_restored(node: Node) -> None:
    worker = node.hire()
    node.limits[worker.pid] = Limits(PAGE, 4 * PAGE)
    node.put([worker.pid])
    node.publish(ONE)
    node.configure([{"limit": 8 * PAGE}], [POD])
    node.tick()
    assert node.limits[worker.pid] == Limits(PAGE, 4 * PAGE)
    node.configure([{"limit": 8 * PAGE, "grant": 6 * PAGE}], [POD], generation=2)
    node.tick()
    assert node.limits[worker.pid] == Limits(6 * PAGE, 6 * PAGE)
    node.configure([], [{"uid": UID}], generation=3)
    node.tick()
    assert node.limits[worker.pid] == Limits(PAGE, 4 * PAGE)


@pytest.mark.rule("P1")
def test_an_idle_pod_is_allocated_as_soon_as_the_gate_reports_inexact(node: Node) -> None:
    first, second = node.hire(), node.hire()
    first.lock(3 * PAGE)
    ran(node.put([first.pid, second.pid]).parent, 0)
    node.publish(ONE)
    node.configure([{"limit": 8 * PAGE}], [POD])
    for _ in range(6):
        node.tick()
    node.publish(ONE, loosened="SHM_LOCK")
    node.tick(0.01)
    assert node.hard(second) == 5 * PAGE


@pytest.mark.rule("H1")
def test_a_capability_that_ignores_rlimits_does_not_lower_the_level_of_an_exact_pod(
    node: Node,
) -> None:
    node.put([os.getpid()])
    node.publish(ONE)
    node.configure([{"limit": PAGE}], [POD])
    node.tick()
    assert node.pod().level is Level.DENY


@pytest.mark.rule("H1", "H3")
def test_a_removed_gate_file_keeps_the_coverage(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.publish(ONE)
    node.configure([{"limit": 8 * PAGE}], [POD])
    node.tick()
    node.gate.unlink()
    node.tick()
    assert (node.hard(worker), node.pod().level) == (8 * PAGE, Level.DENY)


@pytest.mark.rule("H1")
def test_an_exact_pod_is_at_deny_without_the_rlimit_gate(node: Node) -> None:
    gated, other = node.hire(), node.hire()
    node.put([gated.pid])
    node.put([other.pid], NEAR, TWO)
    node.publish(ONE)
    node.reconciler.close()
    node.start(GateAbility(False, "no capability"))
    node.configure([{"limit": PAGE}], [POD, {"uid": NEAR, "limits": ["l"]}])
    node.tick()
    assert node.writes == []
    assert (node.pod().level, node.pod(NEAR).level) == (Level.DENY, Level.OBSERVE)


@pytest.mark.rule("H1")
@pytest.mark.parametrize("where", ["deal", "look"])
def test_a_failing_pod_affects_only_itself(node: Node, where: str) -> None:
    bad, good = node.hire(), node.hire()
    directory = node.put([bad.pid])
    node.put([good.pid], uid=NEAR)

    def fail(pid: int) -> None:
        if pid == bad.pid:
            raise RecursionError("what a program made")

    if where == "deal":
        node.before_write = fail
    else:
        directory.joinpath("cgroup.procs").write_text("no number")
    pods = [{"uid": UID, "limits": ["l"]}, {"uid": NEAR, "limits": ["m"]}]
    node.configure([{"limit": 8 * PAGE}, {"name": "m", "limit": 4 * PAGE}], pods, generation=7)
    node.tick()
    assert node.limits[good.pid] == Limits(4 * PAGE, 4 * PAGE)
    assert node.pod(NEAR).level is Level.CONVERGE
    assert (node.pod().level, node.pod().reason) == (Level.OBSERVE, "NotReadable")
    assert ("what a program made" if where == "deal" else "invalid literal") in node.pod().message
    assert node.applied() == ["uid-m"]
    assert sum(node.reconciler.failures.values()) == 1

    node.before_write = lambda _: None
    node.put([bad.pid])
    for _ in range(5):
        node.tick()
    assert node.limits[bad.pid] == Limits(8 * PAGE, 8 * PAGE)
    assert (node.pod().level, node.applied()) == (Level.CONVERGE, ["uid-l", "uid-m"])


@pytest.mark.rule("H1")
def test_an_unreadable_pod_does_not_block_the_release_of_others(node: Node) -> None:
    bad, good = node.hire(), node.hire()
    directory = node.put([bad.pid])
    node.put([good.pid], uid=NEAR)
    limits = [{"limit": 8 * PAGE}]
    node.configure(limits, [POD, {"uid": NEAR, "limits": ["l"]}])
    node.tick()
    directory.joinpath("cgroup.procs").write_text("no number")
    node.configure(limits, [POD, {"uid": NEAR}], generation=2)
    for _ in range(5):
        node.tick()
    assert node.limits[good.pid] == GIVEN
    assert node.limits[bad.pid] == Limits(8 * PAGE, 8 * PAGE)


@pytest.mark.rule("H1")
def test_directories_of_any_name_and_depth_have_distinct_names(node: Node) -> None:
    worker = node.hire()
    stem = os.fsencode(node.root / "user.slice")
    os.mkdir(stem)
    for name in (b"a\n\xff", b"a\n\xfe", b"x" * 255):
        os.mkdir(os.path.join(stem, name))
        Path(os.fsdecode(os.path.join(stem, name, b"cgroup.procs"))).write_text("")
    Path(os.fsdecode(os.path.join(stem, b"a\n\xff", b"cgroup.procs"))).write_text(f"{worker.pid}\n")
    node.configure([{"limit": 8 * PAGE, "cgroupPattern": "user.slice/*"}], [])
    node.tick()
    assert node.limits[worker.pid] == Limits(8 * PAGE, 8 * PAGE)
    names = [pod.uid for pod in node.reconciler.report().pods]
    assert len(set(names)) == 3
    assert all(name.isprintable() for name in names)
    real = [os.fsencode(uid) for uid in node.reconciler._subjects if reported_name(uid) != uid]
    assert sorted(real) == [b"user.slice/a\n\xfe", b"user.slice/a\n\xff"]


def test_a_configuration_is_not_acknowledged_without_a_list_of_pods(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.configure([{"limit": PAGE}], [POD], generation=1)
    node.tick()

    def refuse(*_: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(PodFinder, "find", refuse)
        node.configure([{"limit": 2 * PAGE}], [POD], generation=2)
        for _ in range(3):
            node.tick(0.1)
            assert node.reconciler.report().observed_generation == 1
    node.tick()
    assert node.reconciler.report().observed_generation == 2


def test_a_process_ended_after_a_failed_write_is_forgotten(node: Node) -> None:
    worker = node.hire()
    node.put([worker.pid])
    node.configure([{"limit": 8 * PAGE}], [POD])
    node.tick()
    node.refused.add(worker.pid)
    node.configure([{"limit": 4 * PAGE}], [POD], generation=2)
    node.tick()
    assert "prlimit" in node.pod().message
    worker.end()
    node.put([])
    for _ in range(5):
        node.tick()
    assert RlimitRecordStore(node.state / "saved.json", "boot").load() == {}
