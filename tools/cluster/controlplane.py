"""A Kubernetes control plane without nodes: etcd, kube-apiserver and, when asked for,
kube-controller-manager.

Everything listens on 127.0.0.1 and keeps its data below one temporary folder, so any number of them
run at once. A port is reserved for the whole life of a control plane: a bound socket that never
listens holds it, and the server shares it (SO_REUSEPORT), so nobody else can take it, not even
while the server is down.

With a network (:mod:`cluster.network`) for nodes everything runs inside it on the usual ports, with
a controller manager and a scheduler, and relays lead to it from outside.

Without the controller manager nobody makes service accounts or their root CA bundle, so the
ServiceAccount admission plugin is off; ownerReferences are not collected and namespaces stay in
Terminating. A test that means any of these asks for the controller manager.
"""

import json
import secrets
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.build import binary
from cluster.certificates import Authority
from cluster.errors import ClusterError
from cluster.network import GATEWAY, Network
from cluster.patience import Patience
from cluster.process import Child
from cluster.scratch import scratch

READY_SECONDS = 60.0
POLL_SECONDS = 0.1
REQUEST_SECONDS = 5.0
HOST = "127.0.0.1"

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"


def _reserve_port() -> socket.socket:
    """Return a socket bound to a free port; port 0 never picks a port that is shared already."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind((HOST, 0))
    return holder


class ControlPlane:
    """A running control plane for the length of a ``with`` block.

    Attributes, valid inside the block: ``url`` of the API server, ``ca_file`` that its certificate
    verifies with, ``admin_token`` of a member of system:masters, ``kubeconfig`` of the same,
    ``directory`` with data and logs. ``controllers`` are those of the controller manager, as its
    flag takes them. ``prepared`` is called when all of these are known and nothing runs yet.
    ``audit_log``, with ``audit``: a line of JSON for each request. Entering raises ClusterError
    with the end of the log when a part is not ready within 60 seconds.
    """

    directory: Path
    url: str
    ca_file: Path
    admin_token: str
    kubeconfig: Path
    audit_log: Path

    def __init__(
        self,
        *,
        controller_manager: bool = False,
        controllers: str = "*,-node-ipam-controller",
        audit: bool = False,
        network: Network | None = None,
        prepared: Callable[[], None] = lambda: None,
    ) -> None:
        self._network = network
        self._audit = audit
        self._prepared = prepared
        self._controllers = controllers
        self._with_controller_manager = controller_manager or network is not None
        self._resources = ExitStack()
        self._children: dict[str, Child] = {}
        self._ready: dict[str, Callable[[], bool]] = {}

    def __enter__(self) -> Self:
        """Build what is missing, then start every part in order and wait for each."""
        with ExitStack() as resources:
            self._prepare(resources)
            self._prepared()
            for name, child in self._children.items():
                resources.callback(child.kill)  # its data goes with it
                self.start(name)
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every part, last started first, and remove the data."""
        self._resources.close()

    def kill(self, name: str) -> None:
        """End one part as a crash would (SIGKILL); its data and its port stay."""
        self._child(name).kill()

    def start(self, name: str) -> None:
        """Start a part that is down, with the data and the port it had, and wait until it is ready.

        The running parts that depend on it are waited for too. Raises ClusterError when something
        is not ready within 60 seconds, or the part runs already.
        """
        self._child(name).start()
        self._wait(name)
        names = list(self._children)
        for dependent in names[names.index(name) + 1 :]:
            if not self._children[dependent].running:
                break
            self._wait(dependent)

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Return a kubeconfig of any user in any groups, by client certificate; RBAC decides what
        it may do.

        Raises ClusterError when a name is longer than 64 characters.
        """
        certificate, key = self._authority.client(user, groups)
        return self._write_kubeconfig(
            certificate.stem, {"client-certificate": str(certificate), "client-key": str(key)}
        )

    def kubeconfig_with(self, token: str) -> Path:
        """Return a kubeconfig whose only credential is a token that the API server gave."""
        return self._write_kubeconfig(f"token-{secrets.token_hex(8)}", {"token": token})

    def node_credentials(self, name: str) -> tuple[Path, Path]:
        """Return certificate and key files with which a kubelet is the node of this name."""
        return self._authority.client(f"system:node:{name}", ["system:nodes"])

    def _child(self, name: str) -> Child:
        if name not in self._children:
            raise ClusterError(
                f"this control plane has no {name}, only {', '.join(self._children)}"
            )
        return self._children[name]

    def _prepare(self, resources: ExitStack) -> None:
        programs = [
            *(ETCD, API_SERVER),
            *([CONTROLLER_MANAGER] if self._with_controller_manager else []),
            *([SCHEDULER] if self._network else []),
        ]
        executables = {name: binary(name) for name in programs}
        self.directory = resources.enter_context(scratch("control-plane"))
        self._place(resources)
        self._authority = Authority(self.directory)
        self.ca_file = self._authority.certificate
        self._tls = ssl.create_default_context(cafile=str(self.ca_file))
        self.admin_token = secrets.token_urlsafe(24)
        self._tokens = self.directory / "tokens.csv"
        self._tokens.write_text(f'{self.admin_token},admin,admin,"system:masters"\n')
        self.kubeconfig = self._write_kubeconfig("admin", {"token": self.admin_token})
        self._own_kubeconfig = self._write_kubeconfig(
            "control-plane", {"token": self.admin_token}, f"https://{HOST}:{self._port}"
        )
        arguments = {
            ETCD: self._etcd_arguments,
            API_SERVER: self._api_server_arguments,
            CONTROLLER_MANAGER: self._controller_manager_arguments,
            SCHEDULER: self._scheduler_arguments,
        }
        ready = {
            ETCD: lambda: self._answers(f"{self._etcd_health}/health"),
            # /readyz remembers an answer of etcd for a while; a GET of one object always asks etcd
            API_SERVER: lambda: (
                self._answers(f"{self.url}/readyz")
                and self._answers(f"{self.url}/api/v1/namespaces/default")
            ),
            CONTROLLER_MANAGER: lambda: self._answers(
                f"{self.url}/api/v1/namespaces/default/serviceaccounts/default"
            ),
            SCHEDULER: lambda: True,
        }
        prefix = self._network.enter if self._network else []
        self._children = {
            name: Child(
                name, [*prefix, str(path), *arguments[name]()], self.directory / f"{name}.log"
            )
            for name, path in executables.items()
        }
        self._ready = {name: ready[name] for name in executables}

    def _place(self, resources: ExitStack) -> None:
        """Decide where everything listens, and from where it is reached."""
        if self._network is None:
            ports = [resources.enter_context(_reserve_port()).getsockname()[1] for _ in range(3)]
            etcd, peer, self._port = ports
            seen_etcd, seen_api = etcd, self._port
        else:
            etcd, peer, self._port = 2379, 2380, 443
            seen_etcd = self._network.relay(HOST, etcd)
            seen_api = self._network.relay(HOST, self._port)
        self._etcd_url, self._peer_url = f"http://{HOST}:{etcd}", f"http://{HOST}:{peer}"
        self._etcd_health = f"http://{HOST}:{seen_etcd}"
        self.url = f"https://{HOST}:{seen_api}"

    def _etcd_arguments(self) -> list[str]:
        return [
            "--name=test",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={self._peer_url}",
            f"--initial-advertise-peer-urls={self._peer_url}",
            f"--initial-cluster=test={self._peer_url}",
            "--socket-reuse-port",
            "--unsafe-no-fsync",
        ]

    def _api_server_arguments(self) -> list[str]:
        certificate, key = self._authority.server()
        disabled = (
            [] if self._with_controller_manager else ["--disable-admission-plugins=ServiceAccount"]
        )
        return [
            *self._listening_arguments(),
            *(self._audit_arguments() if self._audit else []),
            f"--etcd-servers={self._etcd_url}",
            f"--secure-port={self._port}",
            "--permit-port-sharing=true",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.ca_file}",
            f"--token-auth-file={self._tokens}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            *disabled,
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._authority.service_account_public_key}",
            f"--service-account-signing-key-file={self._authority.service_account_key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--allow-privileged=true",
        ]

    def _audit_arguments(self) -> list[str]:
        self.audit_log = self.directory / "audit.log"
        policy = self.directory / "audit-policy.json"
        rules = [{"level": "Metadata", "omitStages": ["RequestReceived"]}]
        policy.write_text(
            json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules})
        )
        return [
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-mode=blocking",
        ]

    def _listening_arguments(self) -> list[str]:
        if self._network is None:
            return [
                f"--bind-address={HOST}",
                f"--advertise-address={HOST}",
                # An Endpoints object must not hold a loopback address.
                "--endpoint-reconciler-type=none",
            ]
        certificate, key = self._authority.client(
            "kube-apiserver-kubelet-client", ["system:masters"]
        )
        return [
            "--bind-address=0.0.0.0",
            f"--advertise-address={GATEWAY}",
            f"--kubelet-client-certificate={certificate}",
            f"--kubelet-client-key={key}",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _controller_manager_arguments(self) -> list[str]:
        return [
            f"--kubeconfig={self._own_kubeconfig}",
            f"--service-account-private-key-file={self._authority.service_account_key}",
            f"--root-ca-file={self.ca_file}",
            "--leader-elect=false",
            "--secure-port=0",
            f"--controllers={self._controllers}",
            "--node-monitor-grace-period=30s",
        ]

    def _scheduler_arguments(self) -> list[str]:
        return [f"--kubeconfig={self._own_kubeconfig}", "--leader-elect=false", "--secure-port=0"]

    def _write_kubeconfig(self, stem: str, user: dict[str, str], server: str = "") -> Path:
        """Write a kubeconfig; JSON is YAML, and needs no library."""
        cluster = {"server": server or self.url, "certificate-authority": str(self.ca_file)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
            "current-context": "test",
        }
        path = self.directory / f"{stem}.kubeconfig"
        path.write_text(json.dumps(config, indent=2))
        return path

    def _answers(self, url: str) -> bool:
        """Whether a GET with the admin's token gets a status of 2xx."""
        headers = (
            {"Authorization": f"Bearer {self.admin_token}"} if url.startswith(self.url) else {}
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
        )
        try:
            with opener.open(urllib.request.Request(url, headers=headers), timeout=REQUEST_SECONDS):
                return True
        except OSError:  # refused, reset, timed out, or an HTTP status of 4xx or 5xx
            return False

    def _wait(self, name: str) -> None:
        child = self._children[name]
        patience = Patience(READY_SECONDS)
        while child.running and not patience.ended:
            if self._ready[name]():
                return
            time.sleep(POLL_SECONDS)
        reason = f"is not ready after {READY_SECONDS:.0f} s" if child.running else "ended by itself"
        raise ClusterError(f"{name} {reason}; the end of its log:\n{child.tail()}")
