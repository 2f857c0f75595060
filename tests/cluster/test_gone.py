"""A pod that the API server forgets while its processes go on: its limit stays until they end (H3, P6).

Operators delete pods by force when they hang in Terminating: https://github.com/kubernetes/kubernetes/issues/51835. A kubelet that is
stopped stands for whatever keeps the container running, such as a process in uninterruptible sleep.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.cluster import Cluster

from .test_faults import MIB, Held, hold, in_force
from .waiting import eventually

Kubectl = Callable[..., str]
NUMBERS = itertools.count(1)


@pytest.fixture
def held(installed: Cluster, kubectl: Kubectl) -> Iterator[Held]:
    """A pod under a limit of 4 MiB on a node whose kubelet runs again afterwards."""
    made = hold(installed, kubectl, f"gone-{next(NUMBERS)}")
    held = next(made)
    yield held
    held.node.exec(["sh", "-c", "kill -CONT $(pidof kubelet)"])
    next(made, None)
    eventually(lambda: in_force(held.node) is None, "the kubelet has ended the processes")


@pytest.mark.rule("H3", "P6", level="Converge")
@pytest.mark.parametrize("how", ["deleted by force", "Failed"])
def test_a_limit_stays_on_a_pod_that_is_gone_until_its_processes_end(
    held: Held, kubectl: Kubectl, how: str
) -> None:
    def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            kubectl("get", "pinlimit", "held", "-n", held.namespace, "-o", "json")
        )["status"]
        return found

    held.node.exec(["sh", "-c", "kill -STOP $(pidof kubelet)"])
    if how == "Failed":
        patch = json.dumps({"status": {"phase": "Failed"}})
        kubectl(
            "-n", held.namespace, "patch", "pod", "held", "--subresource=status", "--type=merge", "-p", patch
        )
    else:
        kubectl("-n", held.namespace, "delete", "pod", "held", "--force", "--grace-period=0")
    eventually(
        lambda: [each["reason"] for each in status().get("topPods", [])] == ["PodGone"], "it is named as gone"
    )
    held.edit(3)
    held.settles_at(3)
    held.node.kill("pinwarden", match="pinwarden agent")
    held.edit(2)
    held.settles_at(2)
    assert status()["pinnedBytes"] >= MIB
    held.node.exec(["sh", "-c", "kill -CONT $(pidof kubelet)"])
    if how == "Failed":
        kubectl("-n", held.namespace, "delete", "pod", "held", "--force", "--grace-period=0")
    eventually(lambda: in_force(held.node) is None, "its processes have ended")
    eventually(lambda: status()["matchedPods"] == 0, "nothing of it is left in the status")


@pytest.mark.rule("H3", "P14", level="Converge")
def test_deleting_its_limit_releases_a_pod_that_is_gone(held: Held, kubectl: Kubectl) -> None:
    held.node.exec(["sh", "-c", "kill -STOP $(pidof kubelet)"])
    kubectl("-n", held.namespace, "delete", "pod", "held", "--force", "--grace-period=0")
    kubectl("-n", held.namespace, "delete", "pinlimit", "held")
    eventually(lambda: (in_force(held.node) or 0) > 4 * MIB, "its process has what the runtime gave it")
