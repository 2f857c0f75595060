"""Measure the NRI plugin alone, with a stand-in runtime that speaks NRI's protocol over a socket.

Prints how long `pinwarden nri` takes to answer a runtime that

- creates containers one after the other, as containerd does: it asks for a container only after the
  answer for the one before, however many containers the kubelet creates at once;
- sends all of its calls at once, which containerd does not;
- already runs containers when the plugin connects. containerd waits 2 s for the answers to all
  parts of Synchronize.

Each container has the policy of RuntimeDefault, either the same or with a rule of its own. Prints
the plugin's memory too.

    PYTHONPATH=operator:tools .venv/bin/python bench/nri_plugin.py [--containers 500]
"""

import argparse
import fcntl
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

from processes import process_cpu, process_memory

from gate_node.filters import policy as as_policy
from pinwarden.node.nri.messages import adjust
from pinwarden.node.nri.protocol import MOST_BYTES, PLUGIN, REQUEST, Decoder, Message
from pinwarden.node.nri.protocol import encode as frames
from pinwarden.node.nri.wire import Fields, encode
from pinwarden.node.seccomp.policy import ARCHITECTURES, Rule
from pinwarden.node.seccomp.profiles import runtime_default
from pinwarden.node.state import nri_status
from pinwarden.node.state.gate_lock import JOURNAL

MIB = 2**20
RUNTIME_SECONDS = 2.0
SYNCHRONIZED = (250, 500, 1000)
PADDING = "x" * 2800
"""The mounts, variables and annotations of a container, in the size of an ordinary pod's."""
OWN = as_policy(runtime_default(), ARCHITECTURES["x86_64"])


class StandIn:
    """The runtime's end of the connection to a plugin's process."""

    def __init__(self, connection: socket.socket, pid: int, folder: Path) -> None:
        self.pid = pid
        self._status = folder / nri_status.NAME
        self._connection = connection
        self._decoder = Decoder()
        self._calls = 1
        self.receive()
        self.call("Configure", encode({2: "containerd", 3: "v2.4.2", 6: "v0.12.3"}))

    def receive(self) -> Fields:
        """Return the next message."""
        data = b""
        while True:
            for message in self._decoder.feed(data):
                return Fields(message.payload)
            data = self._connection.recv(1 << 20)

    def send(self, method: str, payload: bytes) -> None:
        """Send a call."""
        self._calls += 2
        request = encode({1: "nri.pkg.api.v1alpha1.Plugin", 2: method, 3: payload})
        self._connection.sendall(frames(Message(PLUGIN, self._calls, REQUEST, request)))

    def call(self, method: str, payload: bytes) -> Fields:
        """Send a call, and return the payload of its answer."""
        self.send(method, payload)
        return Fields(self.receive().octets(2))

    def wait_reported(self, containers: int) -> None:
        """Wait until the plugin has reported so many ungated containers."""
        while len(nri_status.load(self._status).ungated) < containers:
            time.sleep(0.02)


@contextmanager
def plugin() -> Iterator[StandIn]:
    """Run a plugin, configured by a stand-in runtime."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runtime, holder = folder / "nri.sock", folder / "holder.sock"
        with (
            (folder / JOURNAL).open("wb") as gate,
            closing(_listen(runtime, socket.SOCK_STREAM)) as listener,
            closing(_listen(holder, socket.SOCK_SEQPACKET)),
        ):
            fcntl.flock(gate, fcntl.LOCK_EX)
            arguments = ["--socket", str(runtime), "--run-dir", name, "--state-dir", name]
            process = subprocess.Popen(
                [sys.executable, "-m", "pinwarden", "nri", *arguments], stderr=subprocess.DEVNULL
            )
            try:
                connection, _ = listener.accept()
                with closing(connection):
                    yield StandIn(connection, process.pid, folder)
            finally:
                process.terminate()
                process.wait()


def _listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    listener.listen(1024)
    return listener


def pod(number: int) -> bytes:
    """Return an encoded PodSandbox."""
    return encode({1: f"{number:064}", 2: f"pod-{number}", 3: f"uid-{number}", 4: "team"})


def container(number: int, *, differ: bool) -> bytes:
    """Return an encoded Container; if the policies `differ`, its own has one more rule."""
    own = Rule((f"call{number}",), "SCMP_ACT_ALLOW")
    changed = replace(OWN, rules=(*OWN.rules, own)) if differ else OWN
    policy = Fields(adjust(changed, None, {}))
    for field in (1, 6):
        policy = policy.message(field) or policy
    linux = encode({7: encode({1: 0}), 8: policy.parts(6)})
    identity, extra = f"{number:064}", encode({1: "annotation", 2: PADDING})
    return encode({1: identity, 2: identity, 3: "main", 4: 3, 6: [extra], 11: linux})


def creation(number: int, *, differ: bool) -> bytes:
    """Return a CreateContainerRequest."""
    return encode({1: pod(number), 2: container(number, differ=differ)})


def synchronizations(count: int, *, differ: bool) -> list[bytes]:
    """Return the SynchronizeRequests for some running containers."""
    pods = [pod(number) for number in range(count)]
    containers = [container(number, differ=differ) for number in range(count)]
    parts = sum(map(len, pods + containers)) // (MOST_BYTES * 9 // 10) + 1
    return [
        encode({1: pods[part::parts], 2: containers[part::parts], 3: int(part < parts - 1)})
        for part in range(parts)
    ]


def measure_creations(count: int, *, differ: bool) -> None:
    """Create containers one after the other, each with its validation."""
    with plugin() as runtime:
        before = process_memory(runtime.pid, "RssAnon")
        spent, cpu = [], process_cpu(runtime.pid)
        for number in range(count):
            request = creation(number, differ=differ)
            began = time.monotonic()
            (adjusted,) = runtime.call("CreateContainer", request).parts(1)
            runtime.call("ValidateContainerAdjustment", request + encode({3: adjusted}))
            spent.append((time.monotonic() - began) * 1000)
        cpu = process_cpu(runtime.pid) - cpu
        after = process_memory(runtime.pid, "RssAnon")
    cut = quantiles(spent, n=100)
    print(
        f"{count} creations, one after the other, policies {name(differ)}: p50 {cut[49]:.2f} ms,"
        f" p99 {cut[98]:.2f} ms, sum {sum(spent) / 1000:.2f} s, processor time {cpu:.2f} s,"
        f" anonymous memory {before / MIB:.1f} -> {after / MIB:.1f} MiB",
        flush=True,
    )


def measure_queue(count: int, *, differ: bool) -> None:
    """Create containers all at once."""
    with plugin() as runtime:
        requests = [creation(number, differ=differ) for number in range(count)]

        def send() -> None:
            for request in requests:
                runtime.send("CreateContainer", request)

        sender = threading.Thread(target=send)
        began = time.monotonic()
        sender.start()
        for _ in requests:
            runtime.receive()
        spent = time.monotonic() - began
        sender.join()
    print(
        f"{count} creations at once, policies {name(differ)}: the last after {spent:.2f} s",
        flush=True,
    )


def measure_synchronize(count: int, *, differ: bool) -> None:
    """Connect while containers run."""
    with plugin() as runtime:
        requests = synchronizations(count, differ=differ)
        before, cpu = process_memory(runtime.pid), process_cpu(runtime.pid)
        began = time.monotonic()
        for request in requests:
            runtime.call("Synchronize", request)
        spent = time.monotonic() - began
        runtime.wait_reported(count)
        reported, cpu = time.monotonic() - began, process_cpu(runtime.pid) - cpu
        most = process_memory(runtime.pid, "VmHWM")
    print(
        f"Synchronize of {count} ({sum(map(len, requests)) / MIB:.1f} MiB, {len(requests)} parts),"
        f" policies {name(differ)}: {spent * 1000:.0f} ms, {RUNTIME_SECONDS / spent:.0f} times less"
        f" than the runtime waits; all reported after {reported:.2f} s, processor time {cpu:.2f} s;"
        f" resident {before / MIB:.1f} MiB before, {most / MIB:.1f} MiB at most",
        flush=True,
    )


def name(differ: bool) -> str:
    """Return how the containers' policies relate."""
    return "different" if differ else "the same"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--containers", type=int, default=500, metavar="N", help="default: 500")
    count = parser.parse_args().containers
    for differ in (False, True):
        measure_creations(count, differ=differ)
        measure_queue(count, differ=differ)
        for running in SYNCHRONIZED:
            measure_synchronize(running, differ=differ)


if __name__ == "__main__":
    main()
