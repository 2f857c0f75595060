"""The command line: `python -m demo` uses the cluster of KUBECONFIG, else the project's own.

The two acts run at the same time, each on its own node if there are two. The output of the second
act follows the output of the first.

The nodes of your own cluster must already have the image of `make image` (docs/install.md).
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
"""The exit status of shells for a command that SIGINT ended."""


def _install(shell: Shell, command: str) -> None:
    shell.run(command)
    shell.run(f"kubectl create namespace {NAMESPACE}")
    shell.run(f"kubectl -n {NAMESPACE} create configmap pinner --from-file=examples/demo/pinner.py")
    shell.run(f"kubectl -n {NAMESPACE} apply -f examples/demo/pods.yaml")


def _settle(shell: Shell) -> None:
    shell.run("kubectl get nodes -o wide")
    _roll_out(shell, "daemonset/pinwarden-holder")
    # No limit can select these pods yet, so the runtime creates them without the gate.
    shell.run(
        f"kubectl -n {NAMESPACE} wait --for=condition=Ready pod "
        "--selector=demo=pinner --timeout=600s"
    )
    say(
        "\nCreating the shared memory group of the last seven claims, so its pods start meanwhile\n"
    )
    prepare(shell)
    say()
    _roll_out(shell, "daemonset/pinwarden-agent")
    _roll_out(shell, "deployment/pinwarden-operator")
    shell.until(
        f"kubectl -n {NAMESPACE} logs --selector=demo=pinner --tail=1",
        _all_wait,
        f"{PODS} pods wait for a limit",
    )


def _roll_out(shell: Shell, workload: str) -> None:
    shell.run(f"kubectl -n pinwarden-system rollout status {workload} --timeout=600s")


def _all_wait(log: str) -> bool:
    """Return whether the program of each pod has started and read the runtime's limit."""
    return len(re.findall(r"waiting until|that is all it wanted", log)) == PODS


@dataclass(frozen=True, slots=True)
class _Result:
    """A claim, its problem if there is one, and its duration."""

    claim: Claim
    problem: str
    seconds: float


def _play(shell: Shell, claims: Sequence[Claim], first: int) -> list[_Result]:
    """Show the claims of an act, numbered from `first`."""
    shown = []
    for number, claim in enumerate(claims, first):
        shell.say(f"\n{number}. {claim.title}")
        began, problem = time.monotonic(), ""
        try:
            claim.show(shell)
        except ClaimError as error:
            problem = str(error)
            shell.say(f"  FAILED: {problem}")
        shown.append(_Result(claim, problem, time.monotonic() - began))
    return shown


def _play_both(shell: Shell, environment: Mapping[str, str]) -> list[_Result]:
    """Run both acts at the same time; show the first at once, and then the second."""
    curtain = Curtain()
    behind = Shell(ROOT, environment, curtain.say)
    shown: list[_Result] = []

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
    say("\nDeleting the demo's own objects; pinwarden stays installed.")
    shell.run("kubectl delete clusterpinlimit demo-ceiling demo-grants --ignore-not-found")
    shell.run("kubectl delete persistentvolume demo-shared --ignore-not-found --wait=false")
    shell.run(f"kubectl delete namespace {NAMESPACE} --wait=false")


def main() -> int:
    """Run the demo; return 0 if every claim was shown."""
    began = time.monotonic()
    given = os.environ.get("KUBECONFIG")
    with ExitStack() as stack:
        cluster = None
        if not given:
            build_cluster(NODES)
            say("Starting a real cluster: control plane on this machine, two nodes in guests ...")
            cluster = stack.enter_context(Cluster(NODES, wait=False))
        variables = environment(cluster.kubeconfig if cluster else Path(given or ""))
        shell = Shell(ROOT, variables)
        say("\nInstalling pinwarden and pods that lock memory, while the nodes boot\n")
        command = COMMAND + (ONE_NODE if cluster else "")
        _install(shell, command)
        if cluster:
            cluster.wait_ready(cluster.nodes)
        _settle(shell)
        shown = _play_both(shell, variables)
        if given:
            _remove(shell)
    say("\nSummary")
    for result in shown:
        verdict = f"{'FAILED' if result.problem else 'shown '} {result.seconds:4.0f} s"
        say(f"  {verdict}  {result.claim.title}{result.problem and f': {result.problem}'}")
    failures, seconds = sum(bool(result.problem) for result in shown), time.monotonic() - began
    say(f"{len(shown) - failures} of {len(PINNED + SHARED)} claims shown in {seconds:.0f} s")
    return 0 if len(shown) == len(PINNED + SHARED) and not failures else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterError, ClaimError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the cluster has been removed", file=sys.stderr)
        sys.exit(INTERRUPTED)
