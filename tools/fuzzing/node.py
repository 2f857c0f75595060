"""Fuzz the processes of a node with inputs in batches; each batch ends with a check.

After a batch no process may have ended, both canary pods must have a limit that was just changed,
and the agent's status or a log must name each bad input.
"""

import json
import logging
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fuzzing import damage, text
from fuzzing.checked_node import SLICE, CheckedNode
from fuzzing.schemas import Values
from fuzzing.tally import Tally
from gate_node.node import ROOT
from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.common.guard import shown
from pinwarden.node.agent.config_files import read_files
from pinwarden.node.state import accountant_status, gate_status
from pinwarden.node.state.config import ConfigurationError
from pinwarden.node.state.config_path import config_path

PAGE = 4096
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
"""The kinds of inputs, and their weights in a long run."""
# mmap, mremap, shmctl, mlock, mlockall, mlock2, io_uring_setup and io_uring_register
_CALLS = (9, 25, 31, 149, 151, 325, 425, 427)
_PATTERNS = ("**", "*", "?", "[a-z]*", "a", "**/*", "x" * 255, "é", "..", "***", " ", "\\", "[")
_log = logging.getLogger(__name__)


class Node(CheckedNode):
    """A checked node and the inputs of one seed."""

    def run(self, inputs: int, batch: int = 200) -> Tally:
        """Send inputs of all kinds in batches with a check after each."""
        while self.tally.inputs < inputs:
            (kind,) = self._rng.choices(list(KINDS), list(KINDS.values()))
            self.send(kind, min(batch, inputs - self.tally.inputs))
        return self.tally

    def send(self, kind: str, count: int) -> None:
        """Send a batch of one kind and check.

        Raises:
            FuzzError: a process has ended.
        """
        began = time.monotonic()
        getattr(self, f"_send_{kind}")(count)
        sent = time.monotonic()
        self.check(kind)
        _log.info(
            "%d %s: %.1f s, checked in %.1f s", count, kind, sent - began, time.monotonic() - sent
        )

    def _send_configuration(self, count: int) -> None:
        """Write files to the agent's folder: each is in force, or the status names its problem."""
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
                self.tally.rejected["configuration"] += 1
                start = shown(self._file.name)[:50]
                self._expect(partial(self._is_problem, start), f"a bad file is not named: {start}")
            else:
                self._expect(partial(self._in_force, expected.spec), "a good file is not in force")

    def _is_problem(self, start: str) -> bool:
        return start in self._status.get("problem", "")

    def _in_force(self, spec: NodePinConfigSpec) -> bool:
        """Return whether each limit of the spec is in force, and acknowledged or unsupported."""
        status = self._status
        if "problem" in status or "configuration" not in status:
            return False
        report = status["report"]
        answered = {
            limit["uid"] for limit in (*report["appliedLimits"], *report["unsupportedLimits"])
        }
        known = {limit["name"] for limit in status["configuration"]["limits"]}
        return {limit.name for limit in spec.limits} == known and {
            limit.uid for limit in spec.limits
        } <= answered

    def _spec(self) -> dict[str, Any]:
        """Return a spec within the CRD's schema that leaves the canaries alone."""
        rng = self._rng
        hints: Mapping[str, Callable[[random.Random], Any]] = {
            "cgroupPattern": lambda rng: f"{SLICE}/{rng.choice(_PATTERNS)}/{rng.choice(_PATTERNS)}",
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
        """Make cgroups in a pod with its own cgroup tree, and below a pattern."""
        places = [self.hostile.directory / self.hostile.container, self.slice, self.pods.parent]
        made: list[bytes] = []
        for _ in range(count):
            place = self._rng.choice(places)
            name = text.cgroup_name(self._rng, self.canary.uid, self.canary.container)
            # pods cannot write to the kubelet's folder, but other programs of the node may
            if place == self.pods.parent:
                name = b"other-" + name[:200]
            path = os.path.join(os.fsencode(place), name)
            self.tally.sent["cgroups"] += 1
            try:
                os.mkdir(path)
            except OSError:
                self.tally.rejected["cgroups"] += 1
                continue
            made.append(path)
            if self._rng.random() < 0.05:
                _nest(
                    path,
                    self._rng.choice([b"d", b"e" * 200, name]),
                    self._rng.randrange(DEEPEST),
                )
        below = sum(path.startswith(os.fsencode(self.slice)) for path in made)
        self._expect(lambda: self._in_slice() >= below, "a folder below a pattern is not reported")
        self.check("cgroups, while they exist")
        for path in made:
            subprocess.run([b"find", path, b"-depth", b"-type", b"d", b"-delete"], check=False)
        self._expect(lambda: self._in_slice() == 0, "a removed folder is reported")

    def _in_slice(self) -> int:
        return sum(pod["uid"].startswith(f"{SLICE}/") for pod in self._status["report"]["pods"])

    def _send_names(self, count: int) -> None:
        """Have a program choose names that appear in /proc."""
        for _ in range(count):
            kind = self._rng.choice(["comm", "memfd", "shm", "exe", "leave"])
            self.tally.sent["names"] += 1
            name = text.file_name(self._rng)
            answer = self._ask(
                self._program_of_hostile, kind if kind == "leave" else f"{kind} {name.hex()}"
            )
            if answer.startswith("error"):
                self.tally.rejected["names"] += 1

    def _send_calls(self, count: int) -> None:
        """Have a program make gated calls with random arguments."""
        rng = self._rng
        values = (0, 1, PAGE, PAGE - 1, 2**31, 2**32 - 1, 2**47, 2**63, 2**64 - 1)
        for _ in range(count):
            arguments = [rng.choice([*values, rng.getrandbits(64)]) for _ in range(6)]
            orders = " ".join(map(str, (rng.choice(_CALLS), *arguments)))
            self._ask(self._program_of_hostile, f"call {orders}")
            self.tally.sent["calls"] += 1

    def _send_packets(self, count: int) -> None:
        """Send packets and descriptors to the holder's sockets."""
        rng = self._rng
        state = (
            b'{"state": {"id": "x", "annotations": {"io.kubernetes.pod.uid": "y"}}, '
            b'"metadata": "pinwarden-v2"}'
        )
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
        """Connect to the status socket and the web server."""
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
        """Damage state files while processes run, and some before a process starts."""
        rng = self._rng
        gate = self.run_dir / gate_status.NAME
        accountant = self.run_dir / accountant_status.NAME
        local, saved = config_path(self._state, local=True), self._state / "saved.json"
        for number in range(count):
            self.tally.sent["files"] += 1
            path = rng.choice([gate, accountant, local])
            if number % 50 == 25:
                name, path = rng.choice(
                    [("agent", saved), ("agent", local), ("gate", gate), ("accountant", accountant)]
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

    @property
    def _port(self) -> int:
        address = self.processes["agent"].logged().rpartition("metrics are at http://")[2]
        return int(address.split("/")[0].rpartition(":")[2])


def _nest(path: bytes, name: bytes, levels: int) -> None:
    """Make nested folders, deeper than the longest path."""
    above = os.open(path, os.O_DIRECTORY)
    try:
        for _ in range(levels):
            os.mkdir(name, dir_fd=above)
            below = os.open(name, os.O_DIRECTORY, dir_fd=above)
            os.close(above)
            above = below
    except OSError:  # the kernel's deepest level
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
    """Return the schema of a NodePinConfig's spec, as installed in clusters."""
    crd = yaml.safe_load((ROOT / "crds" / "nodepinconfigs.yaml").read_text())
    schema: Mapping[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"][
        "properties"
    ]["spec"]
    return schema
