"""`pinwarden uninstall` as a process, for tests with a real operator."""

import os
import subprocess
import sys

from .conftest import ROOT
from .operators import Cluster

SECONDS = 4


def uninstall(cluster: Cluster, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "pinwarden",
                "uninstall",
                f"--kubeconfig={cluster.server.kubeconfig}",
            ),
            *(f"--timeout={SECONDS}", *options),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "operator")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def mode(cluster: Cluster, node: str) -> str:
    return str(cluster.config(node).get("spec", {}).get("mode", ""))


def gate(cluster: Cluster, namespace: str, node: str) -> str:
    profile = {"type": "Localhost", "localhostProfile": "pinwarden/runtime-default-v2.json"}
    container = {"name": "main", "image": "main", "securityContext": {"seccompProfile": profile}}
    body = {"metadata": {"name": "gated"}, "spec": {"nodeName": node, "containers": [container]}}
    cluster.send("POST", f"/api/v1/namespaces/{namespace}/pods", body)
    return f"{namespace}/gated"
