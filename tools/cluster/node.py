"""A node: a guest with kubelet, containerd and runc, on disks of its own.

The disks are copies that outlive the guest, and the guest's flushes reach them, so a power cut is
what it is in life: what was synced is there afterwards, what was not may be lost. Commands reach
the guest over the node network, through a shell that serves one command per connection.
"""

import base64
import json
import shlex
import socket
import subprocess
import tarfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from cluster.cache import progress
from cluster.controlplane import ControlPlane
from cluster.errors import ClusterError
from cluster.machine import Devices, Kind
from cluster.machines import MACHINES
from cluster.network import GATEWAY, Network, node_address, pod_subnet
from cluster.process import Child

SHELL_PORT = 7000
PANIC = b"Kernel panic"


class Node:
    """One node of a cluster; :class:`cluster.cluster.Cluster` makes and starts it. ``name`` is what
    Kubernetes calls it.
    """

    def __init__(
        self,
        number: int,
        kind: Kind,
        disks: Sequence[Path],
        network: Network,
        control_plane: ControlPlane,
        directory: Path,
    ) -> None:
        self.name = f"node{number}"
        self.kind = kind
        self.address = node_address(number)
        self._number = number
        self._network = network
        self._control_plane = control_plane
        self._directory = directory
        self._console = directory / f"{self.name}.console"
        self._guest = Child(self.name, self._make(disks), self._console)

    @property
    def running(self) -> bool:
        """Whether the guest runs and its kernel did not panic."""
        if not self._guest.running:
            return False
        return not self._console.exists() or PANIC not in self._console.read_bytes()

    @property
    def pid(self) -> int:
        """The process id of the guest's first process on this machine; raises ClusterError when the
        guest does not run.
        """
        return self._guest.pid

    def boot(self) -> None:
        """Start the guest and return at once. Raises ClusterError when it runs already."""
        self._console.write_bytes(b"")
        self._guest.start()

    def power_cut(self) -> None:
        """End the guest as a power cut would (SIGKILL); its disks stay."""
        self._guest.kill()

    def exec(
        self, argv: Sequence[str], *, timeout: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the guest; standard error comes with the output. ``timeout`` is
        in seconds.

        Raises ClusterError when the guest does not answer, or the command does not end in time.
        """
        script = shlex.join(argv).encode()
        try:
            with self._network.connect(self.address, SHELL_PORT, timeout) as connection:
                connection.settimeout(timeout)
                connection.sendall(b"%d\n%s" % (len(script), script))
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError as error:
            raise ClusterError(f"{self.name} did not run {argv[0]}: {error}") from error
        output, mark, status = answer.decode(errors="replace").rpartition("\nstatus ")
        if not mark:
            raise ClusterError(f"{self.name} went away while it ran {argv[0]}")
        return subprocess.CompletedProcess(list(argv), int(status), output, "")

    def kill(self, program: str, *, match: str = "", signal: str = "KILL") -> None:
        """Send a signal to processes of a program, by default SIGKILL as in a crash; ``match`` is
        a text in their command line.

        containerd and kubelet are started again by the guest about a second later. Raises
        ClusterError when there is none.
        """
        script = (
            "found=1; for p in /proc/[0-9]*; do"
            f' [ "$(cat $p/comm 2>/dev/null)" = {shlex.quote(program)} ] || continue;'
            f" tr '\\0' ' ' <$p/cmdline | grep -qF -e {shlex.quote(match)} || continue;"
            f" kill -{signal} ${{p#/proc/}} && found=0; done; exit $found"
        )
        if self.exec(["sh", "-c", script]).returncode:
            raise ClusterError(f"{self.name} runs no {program} {match}".rstrip())

    def console(self) -> str:
        """Return the end of what the guest wrote to its console."""
        return self._console.read_text(errors="replace")[-2000:] if self._console.exists() else ""

    def _make(self, templates: Sequence[Path]) -> list[str]:
        """Make the node's disks and return the command line that boots it."""
        disks = []
        for number, template in enumerate(templates):
            disk = self._directory / f"{self.name}.disk{number}"
            self._copy(template, disk)
            disks.append(disk)
        devices = Devices(
            name=self.name,
            disks=disks,
            identity=self._identity(),
            tap=self._network.taps[self._number - 1],
            mac=f"52:54:00:00:00:{self._number:02x}",
            directory=self._directory,
        )
        return [*self._network.enter, *MACHINES[self.kind].node(devices)]

    def _copy(self, template: Path, disk: Path) -> None:
        command = ["cp", "--sparse=always", "--reflink=auto", str(template), str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"the disks of {self.name} cannot be made: {done.stderr.strip()}")

    def _identity(self) -> Path:
        """Make the disk, a tar, that tells one node from another."""
        settings = {
            "NAME": self.name,
            "KIND": self.kind,
            "ADDRESS": self.address,
            "GATEWAY": GATEWAY,
            "SHELL_PORT": str(SHELL_PORT),
        }
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": pod_subnet(self._number)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        plugin = {"type": "ptp", "mtu": 1500, "ipMasq": False, "ipam": ipam}
        network = {"cniVersion": "1.0.0", "name": "pinwarden", "plugins": [plugin]}
        files = {
            "etc/node.env": "".join(
                f"{name}={value}\n" for name, value in settings.items()
            ).encode(),
            "etc/cni/net.d/10-ptp.conflist": json.dumps(network).encode(),
            "etc/kubernetes/ca.crt": self._control_plane.ca_file.read_bytes(),
            "etc/kubernetes/kubeconfig": self._kubeconfig(),
        }
        path = self._directory / f"{self.name}.identity"
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o600
                archive.addfile(entry, BytesIO(content))
        return path

    def _kubeconfig(self) -> bytes:
        certificate, key = (
            base64.b64encode(path.read_bytes()).decode()
            for path in self._control_plane.node_credentials(self.name)
        )
        authority = base64.b64encode(self._control_plane.ca_file.read_bytes()).decode()
        cluster = {"server": f"https://{GATEWAY}:443", "certificate-authority-data": authority}
        user = {"client-certificate-data": certificate, "client-key-data": key}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "node", "user": user}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "node"}}],
                "current-context": "test",
            }
        ).encode()

    def answers(self) -> bool:
        """Whether the guest's shell takes connections."""
        try:
            with self._network.connect(self.address, SHELL_PORT, 1.0) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        return True

    def revive(self) -> bool:
        """Boot the guest again when it died by itself, say so, and return whether it had to be."""
        if self.running:
            return False
        progress(
            f"{self.name} died and is started again; the end of its console:\n{self.console()}"
        )
        self._guest.kill()
        time.sleep(0.1)
        self.boot()
        return True
