"""The command line: ``python -m demo``; with KUBECONFIG set it uses that cluster, else it brings up the project's own.

The two acts play at the same time, each on a node of its own where there are two. The second one is shown when the first one is over.

Nodes of a cluster of your own must have the image of `make image` already (docs/install.md).
"""

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from cluster.cluster import Cluster
from cluster.errors import ClusterError
from cluster.install import COMMAND, ONE_NODE, ROOT, environment
from cluster.machine import Kind
from cluster.pieces import build_cluster
from demo.claims import PINNED, PODS, SHARED, Claim
from demo.shared import NAMESPACE, prepare
from demo.shell import ClaimError, Curtain, EndedError, Shell, say

NODES = (Kind.UML, Kind.UML)
INTERRUPTED = 130
"""The exit status of what SIGINT ended, as shells have it."""


def _install(shell: Shell, command: str) -> None:
    shell.run(command)
    shell.run(f"kubectl create namespace {NAMESPACE}")
    shell.run(f"kubectl -n {NAMESPACE} create configmap pinner --from-file=examples/demo/pinner.py")
    shell.run(f"kubectl -n {NAMESPACE} apply -f examples/demo/pods.yaml")


def _settle(shell: Shell) -> None:
    shell.run("kubectl get nodes -o wide")
    _roll_out(shell, "daemonset/pinwarden-holder")
    say("\nApplying what the last seven claims are about, so that its pods start meanwhile\n")
    prepare(shell)
    say()
    _roll_out(shell, "daemonset/pinwarden-agent")
    _roll_out(shell, "deployment/pinwarden-operator")
    shell.run(
        f"kubectl -n {NAMESPACE} wait --for=condition=Ready pod --selector=demo=pinner --timeout=600s"
    )
    shell.until(
        f"kubectl -n {NAMESPACE} logs --selector=demo=pinner --tail=1",
        _all_wait,
        f"{PODS} pods wait for a limit",
    )


def _roll_out(shell: Shell, workload: str) -> None:
    shell.run(f"kubectl -n pinwarden-system rollout status {workload} --timeout=600s")


def _all_wait(log: str) -> bool:
    """Whether each pod's program is past its start, and none could be under a limit without having seen the runtime's."""
    return len(re.findall(r"waiting until|that is all it wanted", log)) == PODS


@dataclass(frozen=True, slots=True)
class _Shown:
    """A claim, what is wrong with it if anything is, and how long it took."""

    claim: Claim
    problem: str
    seconds: float


def _play(shell: Shell, claims: Sequence[Claim], first: int) -> list[_Shown]:
    """Show the claims of an act, numbered from ``first``."""
    shown = []
    for number, claim in enumerate(claims, first):
        shell.say(f"\n{number}. {claim.title}")
        began, problem = time.monotonic(), ""
        try:
            claim.show(shell)
        except ClaimError as error:
            problem = str(error)
            shell.say(f"  FAILED: {problem}")
        shown.append(_Shown(claim, problem, time.monotonic() - began))
    return shown


def _play_both(shell: Shell, environment: Mapping[str, str]) -> list[_Shown]:
    """Play both acts at the same time; show the first one as it goes, and then what the second one said so far."""
    curtain = Curtain()
    behind = Shell(ROOT, environment, curtain.say)
    shown: list[_Shown] = []

    def play() -> None:
        with suppress(EndedError):
            shown.extend(_play(behind, SHARED, 1 + len(PINNED)))

    second = Thread(target=play)
    second.start()
    try:
        first = _play(shell, PINNED, 1)
        curtain.open()
        second.join()
    finally:
        behind.end()
    return first + shown


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
            build_cluster(NODES)
            say(
                "Bringing up a real cluster: control plane on this machine, two nodes in guests ..."
            )
            cluster = stack.enter_context(Cluster(NODES, wait=False))
        variables = environment(cluster.kubeconfig if cluster else Path(given or ""))
        shell = Shell(ROOT, variables)
        say("\nInstalling pinwarden, and pods that will lock memory, while the nodes boot\n")
        command = COMMAND + (ONE_NODE if cluster else "")
        _install(shell, command)
        if cluster:
            cluster.wait_ready(cluster.nodes)
        _settle(shell)
        shown = _play_both(shell, variables)
        if given:
            _remove(shell)
    say("\nSummary")
    for each in shown:
        verdict = f"{'FAILED' if each.problem else 'shown '} {each.seconds:4.0f} s"
        say(f"  {verdict}  {each.claim.title}{each.problem and f': {each.problem}'}")
    failures = sum(bool(each.problem) for each in shown)
    say(
        f"{len(shown) - failures} of {len(PINNED + SHARED)} claims shown in {time.monotonic() - began:.0f} s"
    )
    return 0 if len(shown) == len(PINNED + SHARED) and not failures else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterError, ClaimError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the cluster has been taken down", file=sys.stderr)
        sys.exit(INTERRUPTED)
