"""A network namespace for a whole cluster: a bridge, one tap per node, and a way in from outside.

The namespace has no name: it lives as long as the child process that holds it, so a killed run
leaves nothing behind. Everything in it can have the addresses that a real cluster has, and any
number of clusters can stand side by side. The API server is also 10.0.0.1, the ``kubernetes``
Service, so that in-cluster clients reach it without kube-proxy.

A socket belongs to the namespace of the thread that made it. So one thread here enters the
namespace (setns(2)) and makes sockets for all others, and a relay outside is a listener whose
connections go on through such a socket.
"""

import ctypes
import os
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.errors import ClusterError
from cluster.process import Child

GATEWAY = "10.99.0.1"
SERVICE = "10.0.0.1"
LOOPBACK = "127.0.0.1"
CLONE_NEWNET = 0x40000000  # linux/sched.h
CONNECT_SECONDS = 5.0
CHUNK = 65536

_libc = ctypes.CDLL(None, use_errno=True)


def node_address(number: int) -> str:
    """Return the address of a node, counted from 1."""
    return f"10.99.0.{10 + number}"


def pod_subnet(number: int) -> str:
    """Return the subnet of a node's pods."""
    return f"10.244.{number}.0/24"


def _enter(namespace: Path) -> None:
    """Move the calling thread into a network namespace."""
    with namespace.open() as handle:
        if _libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


class Network:
    """The network of a cluster with some nodes, for the length of a ``with`` block. Needs root and
    ``ip`` (iproute2).

    ``enter`` goes before a command line and runs it inside; ``taps`` are the names of the nodes'
    network devices.
    """

    def __init__(self, nodes: int, directory: Path) -> None:
        self.taps = [f"tap{number}" for number in range(1, nodes + 1)]
        self._holder = Child(
            "network namespace",
            ["unshare", "--net", "sleep", "infinity"],
            directory / "network.log",
        )
        self._listeners: list[socket.socket] = []
        self._maker: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Make the namespace and what is in it."""
        self._holder.start()
        try:
            self._wait_for_namespace()
            self._set_up()
            self._maker = ThreadPoolExecutor(1, initializer=_enter, initargs=(self._namespace,))
        except BaseException:
            self._holder.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the relays down and give the namespace up."""
        for listener in self._listeners:
            listener.close()
        if self._maker is not None:
            self._maker.shutdown()
        self._holder.stop()

    @property
    def enter(self) -> list[str]:
        """What to put before a command line that shall run inside."""
        return ["nsenter", f"--net={self._namespace}", "--"]

    def connect(self, address: str, port: int, timeout: float = CONNECT_SECONDS) -> socket.socket:
        """Return a connection to an address inside. Raises OSError."""
        assert self._maker is not None
        made = self._maker.submit(socket.socket).result()
        made.settimeout(timeout)
        try:
            made.connect((address, port))
        except OSError:
            made.close()
            raise
        made.settimeout(None)
        return made

    def relay(self, address: str, port: int) -> int:
        """Return a port on this machine's loopback that leads to an address inside."""
        listener = socket.create_server((LOOPBACK, 0), backlog=128)
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener, address, port), daemon=True).start()
        return int(listener.getsockname()[1])

    @property
    def _namespace(self) -> Path:
        return Path(f"/proc/{self._holder.pid}/ns/net")

    def _wait_for_namespace(self) -> None:
        """unshare(1) is there before it has unshared."""
        own = os.stat("/proc/self/ns/net").st_ino
        while self._holder.running:
            with suppress(FileNotFoundError):
                if os.stat(self._namespace).st_ino != own:
                    return
        raise ClusterError(
            f"a network namespace cannot be made, which needs root: {self._holder.tail().strip()}"
        )

    def _set_up(self) -> None:
        lines = [
            "link set lo up",
            f"address add {SERVICE}/32 dev lo",
            "link add br0 type bridge",
            f"address add {GATEWAY}/24 dev br0",
            "link set br0 up",
        ]
        for number, tap in enumerate(self.taps, start=1):
            lines += [
                f"tuntap add {tap} mode tap",
                f"link set {tap} master br0 up",
                f"route add {pod_subnet(number)} via {node_address(number)}",
            ]
        script = (
            "".join(f"ip {line}\n" for line in lines) + "echo 1 >/proc/sys/net/ipv4/ip_forward\n"
        )
        done = subprocess.run(
            [*self.enter, "sh", "-ec", script], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterError(
                "the nodes' network cannot be made (it needs root, iproute2 and /dev/net/tun): "
                f"{done.stderr.strip()}"
            )

    def _accept(self, listener: socket.socket, address: str, port: int) -> None:
        while True:
            try:
                outside, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._join, args=(outside, address, port), daemon=True).start()

    def _join(self, outside: socket.socket, address: str, port: int) -> None:
        try:
            inside = self.connect(address, port)
        except (
            OSError,
            RuntimeError,
        ):  # nobody listens there now, or the network is being taken down
            outside.close()
            return
        back = threading.Thread(target=_pump, args=(inside, outside), daemon=True)
        back.start()
        _pump(outside, inside)
        back.join()
        inside.close()
        outside.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, then its end."""
    with suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
