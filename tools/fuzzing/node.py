"""The node's processes under inputs that nobody foresaw: agent, gate, accountant and holder, as real processes on a kernel of their own.

Needs every capability and cgroup v2, so it runs in a guest (`python -m cluster guest`). Inputs go in batches. After each batch no process
may have ended. Two canary pods, one of the gate and one of the rlimit gate, must be held to a limit that was just changed. What was bad
must be named: in the agent's status or in a log.
"""

import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster.patience import Patience
from fuzzing import damage, hostile, text
from fuzzing.schemas import Values
from fuzzing.tally import Tally
from gate_node.node import CGROUP, MIB, NOBODY, ROOT, Pod, Process
from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.cli.status import ask
from pinwarden.common.guard import shown
from pinwarden.node.agent.config_files import read_files
from pinwarden.node.linux.prlimit import Limits, prlimit_memlock
from pinwarden.node.state import accountant_status as shared_record
from pinwarden.node.state import gate_status
from pinwarden.node.state.config import ConfigFile, ConfigurationError, config_path

SPARE_SECONDS = 30.0
PAGE = 4096
GIVEN = Limits(8 * MIB, 64 * MIB)
SLICE = "fuzz.slice"
AMOUNTS = (MIB, 2 * MIB)
GROWTH_BYTES, GROWTH_DESCRIPTORS = 32 * MIB, 48
DEEPEST = 1200
KINDS = {
    "configuration": 1,
    "cgroups": 1,
    "names": 6,
    "calls": 1,
    "packets": 4,
    "clients": 3,
    "files": 1,
}
"""The kinds of inputs, and how often each comes in a long run."""
_CALLS = (
    9,
    25,
    31,
    149,
    151,
    325,
    425,
    427,
)  # mmap, mremap, shmctl, mlock, mlockall, mlock2, io_uring_setup and _register
_log = logging.getLogger(__name__)
_PROGRAM = str(Path(hostile.__file__))


class FuzzError(Exception):
    """The run cannot go on."""


class Watched:
    """One process of pinwarden: it must live, and log."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "pinwarden", name, *arguments]
        self.start()

    def start(self) -> None:
        """As a container runtime would."""
        with self.log.open("ab") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
            self.process = subprocess.Popen(self._command, env=environment, stderr=log, stdout=log)
        self.grown_from: tuple[int, int] | None = None

    def restart(self, before: Callable[[], None]) -> None:
        """Ends it as the kubelet does, and starts it after `before`."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        before()
        self.start()

    @property
    def size(self) -> tuple[int, int]:
        """Resident bytes and open descriptors."""
        process = psutil.Process(self.process.pid)
        return process.memory_info().rss, process.num_fds()

    def logged(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")


class Node:
    """The processes, the canaries, a hostile pod, and the inputs of one seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.tally = Tally(seed)
        self._rng = random.Random(seed)
        self.run_dir = Path(f"/run/pinwarden-fuzz-{uuid.uuid4().hex[:8]}")
        self.run_dir.mkdir(mode=0o700)
        self.pods = CGROUP / "kubepods" / "burstable"
        self.slice = CGROUP / SLICE
        for path in (self.pods, self.slice):
            path.mkdir(parents=True, exist_ok=True)
        self._state, self._config = folder / "state", folder / "config"
        self._config.mkdir()
        self._socket = folder / "agent.sock"
        self.canary, self.gated, self.hostile = (Pod(self) for _ in range(3))
        self._amount = AMOUNTS[0]
        self._file: Path | None = None
        self._configure()
        folders = ["--run-dir", str(self.run_dir)]
        states = ["--state-dir", str(self._state), "--local"]
        holder = Watched(folder, "holder", *folders)
        self._until(lambda: (self.run_dir / "holder.sock").exists(), "the holder listens")
        gate = Watched(folder, "gate", *folders, *states)
        accountant = Watched(folder, "accountant", *folders, *states)
        agent = Watched(
            folder,
            "agent",
            *folders,
            *states[:2],
            f"--config={self._config}",
            f"--socket={self._socket}",
            "--metrics-address=127.0.0.1",
            "--metrics-port=0",
            "--per-pod-metrics",
        )
        self.processes = {each.name: each for each in (holder, gate, accountant, agent)}
        self._workers: list[subprocess.Popen[bytes]] = []
        self._locker = self._program(self.gated, NOBODY)
        self._program_of_hostile = self._program(self.hostile, NOBODY)
        self._canary = self._idle(self.canary)
        self._until(lambda: bool(self._status.get("report")), "the agent reports")
        self.check()

    def run(self, inputs: int, batch: int = 200) -> Tally:
        """Send as many inputs of all kinds, and check after each batch."""
        while self.tally.inputs < inputs:
            (kind,) = self._rng.choices(list(KINDS), list(KINDS.values()))
            self.send(kind, min(batch, inputs - self.tally.inputs))
        return self.tally

    def send(self, kind: str, count: int) -> None:
        """A batch of one kind, and the check after it. Raises FuzzError."""
        began = time.monotonic()
        getattr(self, f"_send_{kind}")(count)
        sent = time.monotonic()
        self.check(kind)
        _log.info(
            "%d %s: %.1f s, checked in %.1f s", count, kind, sent - began, time.monotonic() - sent
        )

    # -- what must hold ---------------------------------------------------------------------------------------------

    def check(self, after: str = "the start") -> None:
        """Note what does not hold. Raises FuzzError when a process has ended."""
        for each in self.processes.values():
            if (code := each.process.poll()) is not None:
                self.tally.found(f"{each.name} ended with {code} after {after}")
                raise FuzzError(f"{each.name} ended: {each.logged()[-3000:]}\n{self.tally}")
        self._remove_file()
        self._amount = AMOUNTS[self._amount == AMOUNTS[0]]
        self._configure()
        late = self._idle(self.canary)
        wanted = Limits(self._amount, self._amount)
        for process in (self._canary, late):
            self._holds(partial(_has, process.pid, wanted), f"the canary is not held after {after}")
        self._holds(
            self._canary_reported, f"the canary is not reported as it is held after {after}"
        )
        late.kill()
        late.wait()
        self._workers.remove(late)
        self._holds(self._gate_denies, f"the gate's canary is not held after {after}")
        self._holds(self._files_whole, f"a file of the processes stays damaged after {after}")
        self._holds(self._accounted, f"the group is not accounted after {after}")
        self._measure(after)

    def _measure(self, after: str) -> None:
        for each in self.processes.values():
            bytes_now, descriptors = each.size
            if each.grown_from is None or after == "the start":
                each.grown_from = (bytes_now, descriptors)
            if bytes_now > each.grown_from[0] + GROWTH_BYTES:
                self.tally.found(f"{each.name} has grown by more than {GROWTH_BYTES} bytes")
                each.grown_from = (bytes_now, each.grown_from[1])
            if descriptors > each.grown_from[1] + GROWTH_DESCRIPTORS:
                self.tally.found(
                    f"{each.name} has grown by more than {GROWTH_DESCRIPTORS} descriptors"
                )
                each.grown_from = (each.grown_from[0], descriptors)

    def _canary_reported(self) -> bool:
        report = self._reported(self.canary.uid)
        return (
            report is not None
            and (report["level"], report["reason"]) == ("Converge", "RlimitGate")
            and "problem" not in self._status
            and self._limit_of("canary") == self._amount
            and any(each["uid"] == "canary" for each in self._status["report"]["appliedLimits"])
        )

    def _gate_denies(self) -> bool:
        self._ask(self._locker, "unlock")
        return (
            self._ask(self._locker, f"lock {4 * MIB}") == f"{self._amount} 12"
            and (self._reported(self.gated.uid) or {}).get("level") == "Deny"
        )

    def _files_whole(self) -> bool:
        gate = gate_status.load(self.run_dir / gate_status.NAME)
        whole = (
            gate is not None
            and {self.gated.container, self.hostile.container} <= gate.containers.keys()
        )
        kept = config_path(self._state, local=True)
        return whole and kept.exists() and ConfigFile(kept).load() is not None

    def _accounted(self) -> bool:
        told = shared_record.load(self.run_dir / shared_record.NAME)
        return told is not None and [each.uid for each in told.groups] == ["ring", "shm"]

    # -- inputs -----------------------------------------------------------------------------------------------------

    def _send_configuration(self, count: int) -> None:
        """Files in the agent's folder. Each is in force, or the status says why it is not."""
        for _ in range(count):
            spec = json.dumps(self._spec()).encode()
            data = damage.damaged(self._rng, spec) if self._rng.random() < 0.5 else spec
            name = text.file_name(self._rng)[:200].lstrip(b".") + self._rng.choice(
                [b".yaml", b".json"]
            )
            beside = self._config / ".fuzz"
            beside.write_bytes(data)
            self._remove_file()
            self._file = self._config / os.fsdecode(name)
            beside.replace(self._file)
            self.tally.sent["configuration"] += 1
            try:
                expected = read_files(self._config)
            except ConfigurationError:
                self.tally.refused["configuration"] += 1
                start = shown(self._file.name)[:50]
                self._holds(partial(self._is_problem, start), f"a bad file is not named: {start}")
            else:
                self._holds(partial(self._in_force, expected.spec), "a good file is not in force")

    def _is_problem(self, start: str) -> bool:
        return start in self._status.get("problem", "")

    def _in_force(self, spec: NodePinConfigSpec) -> bool:
        """Whether each limit of the spec is in force, and acknowledged or called unsupported."""
        status = self._status
        if "problem" in status or "configuration" not in status:
            return False
        report = status["report"]
        answered = {
            each["uid"] for each in (*report["appliedLimits"], *report["unsupportedLimits"])
        }
        known = {each["name"] for each in status["configuration"]["limits"]}
        return {limit.name for limit in spec.limits} == known and {
            limit.uid for limit in spec.limits
        } <= answered

    def _remove_file(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._file = None

    def _spec(self) -> dict[str, Any]:
        """A NodePinConfig's spec within the CRD's schema, which does not concern the canaries."""
        rng = self._rng
        patterns = (
            "**",
            "*",
            "?",
            "[a-z]*",
            "a",
            "**/*",
            "x" * 255,
            "é",
            "..",
            "***",
            " ",
            "\\",
            "[",
        )
        hints: Mapping[str, Callable[[random.Random], Any]] = {
            "cgroupPattern": lambda rng: f"{SLICE}/{rng.choice(patterns)}/{rng.choice(patterns)}",
        }
        spec: dict[str, Any] = Values(rng, hints).value(_schema())
        spec.pop("unknownPods", None)
        spec["mode"] = "Active"
        for number, limit in enumerate(spec.get("limits", [])):
            limit["name"] = f"{limit['name'][:370]}-{number}"
            if "cgroupPattern" in limit and not limit["cgroupPattern"].startswith(SLICE):
                limit["cgroupPattern"] = f"{SLICE}/{limit['cgroupPattern']}".replace("..", "x")
        return spec

    def _send_cgroups(self, count: int) -> None:
        """Folders that a pod with a cgroup tree of its own makes, and one below a pattern: each that a path can name is held."""
        places = [self.hostile.directory / self.hostile.container, self.slice, self.pods.parent]
        made: list[bytes] = []
        for _ in range(count):
            place = self._rng.choice(places)
            name = text.cgroup_name(self._rng, self.canary.uid, self.canary.container)
            if (
                place == self.pods.parent
            ):  # the kubelet's own, where pods cannot write, but other programs of the node may
                name = b"other-" + name[:200]
            path = os.path.join(os.fsencode(place), name)
            self.tally.sent["cgroups"] += 1
            try:
                os.mkdir(path)
            except OSError:
                self.tally.refused["cgroups"] += 1
                continue
            made.append(path)
            if self._rng.random() < 0.05:
                _nest(
                    path,
                    self._rng.choice([b"d", b"e" * 200, name]),
                    self._rng.randrange(DEEPEST),
                )
        here = [path for path in made if path.startswith(os.fsencode(self.slice))]
        self._holds(
            lambda: self._in_slice() >= len(here), "a folder below a pattern is not reported"
        )
        self.check("cgroups, while they are there")
        for path in made:
            subprocess.run([b"find", path, b"-depth", b"-type", b"d", b"-delete"], check=False)
        self._holds(lambda: self._in_slice() == 0, "a folder that is gone is reported")

    def _in_slice(self) -> int:
        return sum(each["uid"].startswith(f"{SLICE}/") for each in self._status["report"]["pods"])

    def _send_names(self, count: int) -> None:
        """Names in /proc that a program chooses."""
        for _ in range(count):
            kind = self._rng.choice(["comm", "memfd", "shm", "exe", "leave"])
            self.tally.sent["names"] += 1
            name = text.file_name(self._rng)
            answer = self._ask(
                self._program_of_hostile, kind if kind == "leave" else f"{kind} {name.hex()}"
            )
            if answer.startswith("error"):
                self.tally.refused["names"] += 1

    def _send_calls(self, count: int) -> None:
        """Gated calls with any arguments."""
        rng = self._rng
        values = (0, 1, PAGE, PAGE - 1, 2**31, 2**32 - 1, 2**47, 2**63, 2**64 - 1)
        for _ in range(count):
            arguments = [rng.choice([*values, rng.getrandbits(64)]) for _ in range(6)]
            orders = " ".join(str(each) for each in (rng.choice(_CALLS), *arguments))
            self._ask(self._program_of_hostile, f"call {orders}")
            self.tally.sent["calls"] += 1

    def _send_packets(self, count: int) -> None:
        """Whatever reaches the holder's sockets."""
        rng = self._rng
        state = b'{"state": {"id": "x", "annotations": {"io.kubernetes.pod.uid": "y"}}, "metadata": "pinwarden-v2"}'
        for _ in range(count):
            runtime = rng.random() < 0.7
            data = rng.choice(
                [damage.damaged(rng, state)[:70_000], rng.randbytes(rng.randrange(64)), state]
            )
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_STREAM if runtime else socket.SOCK_SEQPACKET
            ) as client:
                client.settimeout(20)
                with Path("/dev/null").open("rb") as null, _pipe() as pipe, suppress(OSError):
                    client.connect(
                        str(self.run_dir / ("seccomp.sock" if runtime else "holder.sock"))
                    )
                    files = rng.choice(
                        [[], [null.fileno()], [pipe[1]], [pipe[0]] * rng.randrange(6)]
                    )
                    socket.send_fds(client, [data or b"x"], files)
            self.tally.sent["packets"] += 1

    def _send_clients(self, count: int) -> None:
        """Clients of the status socket and of the web server."""
        rng = self._rng
        for _ in range(count):
            web = rng.random() < 0.5
            with (
                socket.socket(socket.AF_INET if web else socket.AF_UNIX) as client,
                suppress(OSError),
            ):
                client.settimeout(0.2)
                client.connect(("127.0.0.1", self._port) if web else str(self._socket))
                data = rng.choice(
                    [b"GET /metrics HTTP/1.1\r\n\r\n", b"GET ", rng.randbytes(200), b"\n" * 9]
                )
                client.sendall(data)
                if rng.random() < 0.5:
                    client.recv(rng.choice([1, 65536]))
            self.tally.sent["clients"] += 1

    def _send_files(self, count: int) -> None:
        """State files that somebody damaged, while processes run and, a few, before they start."""
        rng = self._rng
        gate, shared = self.run_dir / gate_status.NAME, self.run_dir / shared_record.NAME
        local, saved = config_path(self._state, local=True), self._state / "saved.json"
        for number in range(count):
            self.tally.sent["files"] += 1
            path = rng.choice([gate, shared, local])
            if number % 50 == 25:
                name, path = rng.choice(
                    [("agent", saved), ("agent", local), ("gate", gate), ("accountant", shared)]
                )
                self.processes[name].restart(partial(self._damage, path))
                self.check(f"a start of {name} over a damaged file")
            else:
                self._damage(path)
                time.sleep(0.01)

    def _damage(self, path: Path) -> None:
        data = path.read_bytes() if path.exists() else b"{}"
        beside = path.with_name(".damaged")
        beside.write_bytes(damage.damaged(self._rng, data))
        with suppress(FileNotFoundError):
            beside.replace(path)

    # -- helpers ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends everything by its process id."""
        for each in self.processes.values():
            each.process.kill()
            each.process.wait()
        for worker in self._workers:
            worker.kill()
            worker.wait()
        for pod in (self.canary, self.gated, self.hostile):
            pod.end()

    def _configure(self) -> None:
        """The file that holds for the canaries, the hostile pod, and the folders that anybody makes."""
        limits = [
            {"name": name, "limit": self._amount if name != "hostile" else MIB, "scope": "Pod"}
            for name in ("canary", "gated", "hostile")
        ]
        pods = {"canary": self.canary, "gated": self.gated, "hostile": self.hostile}
        group = {
            "management": "Adopt",
            "accounting": "Borrow",
            "fairShare": "Borrow",
            "members": [{"pods": [self.hostile.uid]}],
        }
        spec = {
            "limits": [*limits, {"name": "slice", "limit": MIB, "cgroupPattern": f"{SLICE}/**"}],
            "pods": [{"uid": pod.uid, "limits": [name]} for name, pod in pods.items()],
            "groups": [
                {"name": "f/ring", "uid": "ring", "backing": {"memfd": {"name": "*"}}, **group},
                {
                    "name": "f/shm",
                    "uid": "shm",
                    "backing": {"posixShm": {"name": "*", "ipcNamespace": "Host"}},
                    **group,
                },
            ],
        }
        beside = self._config / ".canary"
        beside.write_text(yaml.safe_dump(spec))
        beside.replace(self._config / "canary.yaml")

    def _program(self, pod: Pod, user: int) -> Process:
        process = pod.run([_PROGRAM], user=user)
        prlimit_memlock(process.pid, GIVEN)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise FuzzError("a pod's program does not start")
        return process

    @staticmethod
    def _ask(process: Process, order: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        print(order, file=process.stdin, flush=True)
        if not (answer := process.stdout.readline()):
            raise FuzzError(f"a pod's program ended at {order[:100]}")
        return answer.strip()

    def _idle(self, pod: Pod) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["setpriv", "--reuid=65534", "--clear-groups", "--no-new-privs", "sleep", "inf"]
        )
        prlimit_memlock(process.pid, GIVEN)
        (pod.directory / pod.container / "cgroup.procs").write_text(str(process.pid))
        self._workers.append(process)
        return process

    @property
    def _status(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return ask(self._socket)
        return {}

    def _reported(self, uid: str) -> dict[str, Any] | None:
        pods = self._status.get("report", {}).get("pods", [])
        return next((each for each in pods if each["uid"] == uid), None)

    def _limit_of(self, name: str) -> int | None:
        limits = self._status.get("configuration", {}).get("limits", [])
        return next((each["limit"] for each in limits if each["name"] == name), None)

    @property
    def _port(self) -> int:
        return int(
            self.processes["agent"]
            .logged()
            .rpartition("metrics are at http://")[2]
            .split("/")[0]
            .rpartition(":")[2]
        )

    def _holds(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Note `otherwise` when the condition does not come true."""
        patience = Patience(SPARE_SECONDS)
        while not condition():
            if patience.ended or any(
                each.process.poll() is not None for each in self.processes.values()
            ):
                self.tally.found(otherwise)
                _log.error(
                    "status: %.1500s", {key: self._status.get(key) for key in ("problem", "report")}
                )
                return
            time.sleep(0.02)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        patience = Patience(SPARE_SECONDS)
        while not condition():
            if patience.ended:
                raise FuzzError(f"it did not come true that {what}")
            time.sleep(0.02)


def _has(pid: int, limits: Limits) -> bool:
    return prlimit_memlock(pid) == limits


def _nest(path: bytes, name: bytes, levels: int) -> None:
    """Folders inside each other, deeper than a path can name."""
    above = os.open(path, os.O_DIRECTORY)
    try:
        for _ in range(levels):
            os.mkdir(name, dir_fd=above)
            below = os.open(name, os.O_DIRECTORY, dir_fd=above)
            os.close(above)
            above = below
    except OSError:  # as deep as the kernel lets it
        return
    finally:
        os.close(above)


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def _schema() -> Mapping[str, Any]:
    """That of a NodePinConfig's spec, as installed in clusters."""
    crd = yaml.safe_load((ROOT / "crds" / "nodepinconfigs.yaml").read_text())
    schema: Mapping[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"][
        "properties"
    ]["spec"]
    return schema
