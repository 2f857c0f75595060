"""Installs pinwarden in a cluster, with the commands that the README gives."""

import os
import subprocess
from pathlib import Path

from cluster.build import binary
from cluster.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "kubectl apply --server-side -f crds/",
    "kubectl wait --for=condition=Established --timeout=30s -f crds/",
    "kubectl apply --server-side -f deploy/",
    "kubectl apply --server-side -f deploy/admission/",
)
ONE_NODE_COMMAND = "kubectl -n pinwarden-system scale deployment pinwarden-operator --replicas=1"
"""On a single node a second replica could only fail together with the first."""
WAIT_COMMANDS = (
    "kubectl -n pinwarden-system rollout status ds/pinwarden-holder --timeout=300s",
    "kubectl -n pinwarden-system rollout status ds/pinwarden-agent --timeout=300s",
    "kubectl -n pinwarden-system rollout status deploy/pinwarden-operator --timeout=300s",
)


def environment(kubeconfig: Path) -> dict[str, str]:
    """Return the variables with which a shell's ``kubectl`` reaches a cluster."""
    return {"KUBECONFIG": str(kubeconfig), "PATH": f"{binary('kubectl').parent}:{os.environ['PATH']}"}


def install(kubeconfig: Path, nodes: int) -> None:
    """Install pinwarden in a cluster of so many nodes and wait until it runs. Raises ClusterError with the command that failed."""
    for command in (*COMMANDS, *([ONE_NODE_COMMAND] if nodes == 1 else []), *WAIT_COMMANDS):
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
