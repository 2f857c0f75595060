"""A whole cluster: a real control plane on this machine and real nodes in guests, in a network of
its own.
"""

import json
import ssl
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.cache import progress
from cluster.controlplane import REQUEST_SECONDS, ControlPlane
from cluster.errors import ClusterError
from cluster.machine import Kind
from cluster.network import Network
from cluster.node import Node
from cluster.nodedisk import image_disk, system_disk
from cluster.patience import Patience
from cluster.scratch import scratch

READY_SECONDS = 300.0
POLL_SECONDS = 0.3
REVIVALS = 2


class Cluster:
    """A running cluster for the length of a ``with`` block.

    Attributes, valid inside the block: ``kubeconfig`` of a member of system:masters, usable from
    anywhere on this machine; ``control_plane``, whose parts can be killed and started; ``nodes``.
    Entering raises ClusterError, with the reason, when a piece is missing or a node is not Ready
    within 300 spare seconds (:mod:`cluster.patience`).
    """

    kubeconfig: Path
    control_plane: ControlPlane
    nodes: Sequence[Node]

    def __init__(
        self, nodes: Sequence[Kind] = (Kind.UML,), *, wait: bool = True, images: Sequence[Path] = ()
    ) -> None:
        """Take the kind of each node; ``images`` are OCI archives that the nodes have besides the
        project's own.
        """
        self._kinds = nodes
        self._images = images
        self._wait = wait
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        """Build what is missing, start everything, and wait until every node is Ready; with
        ``wait=False`` for the control plane alone.
        """
        systems = {kind: system_disk(kind) for kind in self._kinds}
        images = image_disk(self._images)
        with ExitStack() as resources:
            directory = resources.enter_context(scratch("cluster"))
            network = resources.enter_context(Network(len(self._kinds), directory))

            def boot_nodes() -> None:
                """While the control plane starts: a kubelet asks again until it answers."""
                self.nodes = [
                    Node(
                        number,
                        kind,
                        (systems[kind], images),
                        network,
                        self.control_plane,
                        directory,
                    )
                    for number, kind in enumerate(self._kinds, start=1)
                ]
                for node in self.nodes:
                    resources.callback(node.power_cut)
                    node.boot()

            self.control_plane = ControlPlane(network=network, prepared=boot_nodes)
            resources.enter_context(self.control_plane)
            self.kubeconfig = self.control_plane.kubeconfig
            if self._wait:
                self.wait_ready(self.nodes)
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything by process id and remove all data."""
        self._resources.close()

    def start(self, node: Node) -> None:
        """Boot a node whose power was cut, from its own disks, and wait until it is Ready again."""
        node.boot()
        self.wait_ready([node])

    def wait_ready(self, nodes: Sequence[Node]) -> None:
        """Wait until nodes that were just booted are Ready; a guest that dies meanwhile is booted
        again, at most twice each.

        A node that was Ready before counts again once its kubelet told of the new boot. Raises
        ClusterError after 300 spare seconds.
        """
        patience = Patience(READY_SECONDS)
        revived = dict.fromkeys((node.name for node in nodes), 0)
        waiting = list(nodes)
        while waiting:
            for node in waiting:
                revived[node.name] += node.revive()
                if revived[node.name] > REVIVALS or patience.ended:
                    raise ClusterError(
                        f"{node.name} is not Ready; the end of its "
                        f"console:\n{node.console()}\n{self._kubelet_log(node)}"
                    )
            time.sleep(POLL_SECONDS)
            waiting = [node for node in waiting if not self._ready(node)]
        progress(
            f"{', '.join(node.name for node in nodes)} Ready, waited for {patience.elapsed:.0f} s"
        )

    def _ready(self, node: Node) -> bool:
        """Whether the API server calls a node Ready, untainted, and in its present boot."""
        if not node.answers():
            return False
        try:
            boot = node.exec(["cat", "/proc/sys/kernel/random/boot_id"], timeout=10).stdout.strip()
            found = self._get(f"/api/v1/nodes/{node.name}")
        except (ClusterError, OSError):
            return False
        conditions = {one["type"]: one["status"] for one in found["status"].get("conditions", [])}
        return (
            conditions.get("Ready") == "True"
            and not found["spec"].get("taints")
            and found["status"]["nodeInfo"]["bootID"] == boot
        )

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(
            f"{self.control_plane.url}{path}",
            headers={"Authorization": f"Bearer {self.control_plane.admin_token}"},
        )
        context = ssl.create_default_context(cafile=str(self.control_plane.ca_file))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=REQUEST_SECONDS) as answer:
            return json.load(answer)

    @staticmethod
    def _kubelet_log(node: Node) -> str:
        try:
            return node.exec(["tail", "-n", "20", "/var/log/kubelet.log"], timeout=10).stdout
        except ClusterError as error:
            return str(error)
