"""The command line: ``python -m demo``; with KUBECONFIG set it uses that cluster, else it brings up the project's own.

Nodes of a cluster of your own must have the image of `make image` already (docs/install.md).
"""

import os
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from cluster.cluster import Cluster
from cluster.errors import ClusterError
from cluster.install import COMMAND, ONE_NODE, ROOT, environment
from cluster.machine import Kind
from cluster.pieces import build_cluster
from demo.claims import CLAIMS, PODS
from demo.shared import NAMESPACE, prepare
from demo.shell import ClaimError, Shell, say

PARTS = ("daemonset/pinwarden-holder", "daemonset/pinwarden-agent", "deployment/pinwarden-operator")
INTERRUPTED = 130
"""The exit status of what SIGINT ended, as shells have it."""


def _install(shell: Shell, command: str) -> None:
    shell.run(command)
    shell.run(f"kubectl create namespace {NAMESPACE}")
    shell.run(f"kubectl -n {NAMESPACE} create configmap pinner --from-file=examples/demo/pinner.py")
    shell.run(f"kubectl -n {NAMESPACE} apply -f examples/demo/pods.yaml")


def _settle(shell: Shell) -> None:
    shell.run("kubectl get nodes -o wide")
    for part in PARTS:
        shell.run(f"kubectl -n pinwarden-system rollout status {part} --timeout=600s")
    say("\nApplying what the last seven claims are about, so that its pods start meanwhile\n")
    prepare(shell)
    shell.run(f"kubectl -n {NAMESPACE} wait --for=condition=Ready pod --selector=demo=pinner --timeout=600s")
    shell.wait(
        f"kubectl -n {NAMESPACE} logs --selector=demo=pinner --tail=1",
        _all_wait,
        f"{PODS} pods wait for a limit",
    )


def _all_wait(log: str) -> bool:
    """Whether each pod's program is past its start, and none could be under a limit without having seen the runtime's."""
    return len(re.findall(r"waiting until|that is all it wanted", log)) == PODS


def _walk(shell: Shell) -> tuple[dict[str, str], dict[str, float]]:
    """Show every claim; return what is wrong with each that failed, and how many seconds each took."""
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for number, claim in enumerate(CLAIMS, start=1):
        say(f"\n{number}. {claim.title}")
        began = time.monotonic()
        try:
            claim.show(shell)
        except ClaimError as error:
            failures[claim.title] = str(error)
            say(f"  FAILED: {error}")
        seconds[claim.title] = time.monotonic() - began
    return failures, seconds


def _remove(shell: Shell) -> None:
    say("\nTaking the demo's own objects away again; pinwarden stays.")
    shell.run("kubectl delete clusterpinlimit demo-ceiling demo-grants --ignore-not-found")
    shell.run("kubectl delete persistentvolume demo-shared --ignore-not-found --wait=false")
    shell.run(f"kubectl delete namespace {NAMESPACE} --wait=false")


def main() -> int:
    """Run the demo; return 0 when every claim was seen."""
    began = time.monotonic()
    given = os.environ.get("KUBECONFIG")
    with ExitStack() as stack:
        cluster = None
        if not given:
            build_cluster([Kind.UML])
            say("Bringing up a real cluster: control plane on this machine, one node in a guest ...")
            cluster = stack.enter_context(Cluster(wait=False))
        shell = Shell(ROOT, environment(cluster.kubeconfig if cluster else Path(given or "")))
        say("\nInstalling pinwarden, and pods that will lock memory, while the node boots\n")
        command = COMMAND + (ONE_NODE if cluster else "")
        _install(shell, command)
        if cluster:
            cluster.wait_ready(cluster.nodes)
        _settle(shell)
        failures, seconds = _walk(shell)
        if given:
            _remove(shell)
    say("\nSummary")
    for claim in CLAIMS:
        reason = failures.get(claim.title)
        shown = f"{'shown ' if reason is None else 'FAILED'} {seconds[claim.title]:4.0f} s"
        say(f"  {shown}  {claim.title}{f': {reason}' if reason else ''}")
    say(f"{len(CLAIMS) - len(failures)} of {len(CLAIMS)} claims shown in {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterError, ClaimError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the cluster has been taken down", file=sys.stderr)
        sys.exit(INTERRUPTED)
