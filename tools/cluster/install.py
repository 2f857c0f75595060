"""Installs pinwarden in a cluster, with the commands that the README gives."""

import os
import subprocess
from pathlib import Path

from cluster.build import binary
from cluster.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (
    "helm upgrade --install pinwarden charts/pinwarden"
    " --namespace pinwarden-system --create-namespace"
)
WAIT = " --wait --timeout 600s"
ONE_NODE = " --set operator.replicas=1"
"""On a single node a second replica could only fail together with the first."""


def environment(kubeconfig: Path) -> dict[str, str]:
    """Return the variables with which a shell's ``kubectl`` and ``helm`` reach a cluster."""
    path = f"{binary('kubectl').parent}:{binary('helm').parent}:{os.environ['PATH']}"
    return {"KUBECONFIG": str(kubeconfig), "PATH": path}


WITHOUT_NRI = " --set-string gate.mode=Off"
"""As on nodes whose runtime has no NRI: only pods with the profile are gated."""


def install(kubeconfig: Path, nodes: int, options: str = "") -> None:
    """Install pinwarden in a cluster of so many nodes, and wait until it runs.

    Raises ClusterError with the command that failed.
    """
    command = COMMAND + options + (ONE_NODE if nodes == 1 else "") + WAIT
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=ROOT,
        env=os.environ | environment(kubeconfig),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"{command}: {(done.stderr or done.stdout).strip()[-2000:]}")
