"""The engine over a tree of directories that look like cgroups, with real processes in it and limits kept in a table.

The table stands for prlimit(2), because the machine that runs these tests may not raise limits; the kernel's part is in tests/kernel.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinwarden.agent.deal import Limits
from pinwarden.agent.engine import Engine
from pinwarden.agent.gates.rlimit import GateAbility
from pinwarden.agent.saved import SavedStore
from pinwarden.api.nodepinconfig import NodePinConfigSpec, PodReport, UnsupportedLimit
from pinwarden.api.pinlimit import Level

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20
GIVEN = Limits(8 * MIB, 64 * MIB)
UID = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123456"
NEAR = "3f2a9c1e-0b7d-4e55-9a10-c0ffee123457"
ONE, TWO, SANDBOX = "1a" * 32, "2b" * 32, "3c" * 32
ABLE = GateAbility(True)

WORKER = """
import ctypes, mmap, os, sys
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
            import signal
            signal.pause()
        print(child, flush=True)
        continue
    print("done", flush=True)
"""


class Worker:
    """A process without capabilities, which locks up to 1 MiB when told to."""

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
    """A tree of cgroups, a table of limits, a clock that tests move, and one engine at a time over them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.state = folder / "state"
        self.kubepods = self.root / "kubepods" / "burstable"
        self.kubepods.mkdir(parents=True)
        self.state.mkdir()
        (self.root / "cgroup.controllers").touch()
        self.now = 1000.0
        self.limits: dict[int, Limits] = {}
        self.writes: list[tuple[int, Limits]] = []
        self.refused: set[int] = set()
        self.workers: list[Worker] = []
        self.engine = self.start()

    def start(self, ability: GateAbility = ABLE) -> Engine:
        self.engine = Engine(
            cgroup_root=self.root,
            proc_root=Path("/proc"),
            store=SavedStore(self.state / "saved.json", "boot"),
            ability=ability,
            clock=lambda: self.now,
            prlimit=self.prlimit,
        )
        return self.engine

    def prlimit(self, pid: int, limits: Limits | None) -> Limits:
        before = self.limits.get(pid, GIVEN)
        if limits is not None:
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

    def configure(
        self, limits: list[dict[str, Any]], pods: list[dict[str, Any]], generation: int = 1, **more: Any
    ) -> None:
        limits = [
            {"name": "l", "uid": f"uid-{one.get('name', 'l')}", "scope": "Pod", **one} for one in limits
        ]
        spec = NodePinConfigSpec.model_validate({"limits": limits, "pods": pods, **more})
        self.engine.configure(spec, [], generation)

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        wait = self.engine.tick()
        assert 0.01 <= wait <= 1.0

    def pod(self, uid: str = UID) -> PodReport:
        return next(pod for pod in self.engine.report().pods if pod.uid == uid)

    def applied(self) -> list[str]:
        return [one.uid for one in self.engine.report().applied_limits]

    def hard(self, worker: Worker) -> int:
        return self.limits.get(worker.pid, GIVEN).hard

    def close(self) -> None:
        self.engine.close()
        for worker in self.workers:
            worker.end()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


POD = {"uid": UID, "limits": ["l"]}


def test_a_governed_process_is_held_to_what_is_left(node: Node) -> None:
    worker = node.hire()
    worker.lock(3 * PAGE)
    node.put([worker.pid])
    node.configure([{"limit": 8 * PAGE}], [POD], generation=7)
    assert node.engine.report().observed_generation is None
    node.tick()
    assert node.limits[worker.pid] == Limits(8 * PAGE, 8 * PAGE)
    report = node.engine.report()
    assert report.observed_generation == 7
    assert node.applied() == ["uid-l"]
    assert node.pod().level is Level.CONVERGE
    assert (node.pod().vm_lck, node.pod().peak, node.pod().processes) == (3 * PAGE, 3 * PAGE, 1)
    assert report.sampled_at is not None


def test_before_a_configuration_nothing_is_touched(node: Node) -> None:
    node.put([node.hire().pid])
    node.tick()
    assert node.writes == []
    assert node.engine.report().sampled_at is None


def test_what_a_process_takes_is_dealt_to_the_others(node: Node) -> None:
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


def test_a_free_pod_and_one_with_a_near_uid_are_left_alone(node: Node) -> None:
    governed, near = node.hire(), node.hire()
    node.put([governed.pid])
    node.put([near.pid], NEAR)
    node.configure([{"limit": PAGE}], [POD, {"uid": NEAR}])
    node.tick()
    assert {pid for pid, _ in node.writes} == {governed.pid}
    assert [pod.uid for pod in node.engine.report().pods] == [UID]
