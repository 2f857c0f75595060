"""The pods of an upgrade check: each of the first five has a PinLimit, three share memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.image import NAME

MIB = 2**20
PAGE = 4096
TEST = "upgraded"
PROFILE = "pinwarden/runtime-default-v2.json"
BORROWERS = ("writer", "reader", "greedy")
GROUP_BYTES = 32 * MIB
BORROWED = {"reader": 4 * MIB, "greedy": 16 * MIB}
"""Mapped bytes; `greedy` wants more than its borrow limit."""


@dataclass(frozen=True, slots=True)
class ProbedPod:
    """A pod of `prober.py` under a limit of its own, and the level that the limit has in it.

    `fills` is whether its processes only lock. Otherwise they lock and unlock at random.
    """

    name: str
    level: str
    limit: int
    processes: int
    wanted: int
    fills: bool = True

    @property
    def most(self) -> float:
        """The bytes that the pod may have locked at any moment."""
        return float("inf") if self.level == "Observe" else self.limit

    def is_full(self, locked: int) -> bool:
        """Return whether no process of the pod can lock one page more.

        Under `contention: Reserve` each process keeps one free page of its allowance at most.
        """
        if self.level == "Observe":
            return locked == self.processes * self.wanted
        reserve = (self.processes + 1) * PAGE if self.level == "Converge" else 0
        return self.limit - reserve <= locked <= self.limit

    @property
    def spec(self) -> dict[str, Any]:
        """Return the spec of the pod's PinLimit."""
        spec: dict[str, Any] = {
            "podSelector": {"matchLabels": {"prober": self.name}},
            "limit": self.limit,
        }
        if self.level == "Deny":
            spec["minimumLevel"] = "Deny"
        elif self.level == "Converge":
            spec["contention"] = "Reserve"
        else:
            spec["enforcement"] = "Audit"
        return spec


PODS = (
    ProbedPod("filled", "Converge", 3 * MIB, 2, 2 * MIB),
    ProbedPod("racing", "Converge", 2 * MIB, 3, 2 * MIB, fills=False),
    ProbedPod("gated", "Deny", MIB, 3, 2 * MIB),
    ProbedPod("gated-racing", "Deny", MIB, 3, 2 * MIB, fills=False),
    ProbedPod("audited", "Observe", MIB, 1, 2 * MIB),
)


def manifest(pod: ProbedPod) -> Mapping[str, Any]:
    """Return the manifest of a probed pod."""
    profile = (
        {"type": "Localhost", "localhostProfile": PROFILE}
        if pod.level == "Deny"
        else {"type": "RuntimeDefault"}
    )
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "labels": {"prober": pod.name}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsUser": 1000, "runAsNonRoot": True, "seccompProfile": profile},
            "containers": [
                {
                    "name": "prober",
                    "image": NAME,
                    "imagePullPolicy": "IfNotPresent",
                    "command": [
                        *("python3", "/program/prober.py", pod.name),
                        *(str(pod.processes), str(pod.wanted // MIB)),
                    ],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "program", "mountPath": "/program"}],
                }
            ],
            "volumes": [{"name": "program", "configMap": {"name": "prober"}}],
        },
    }


def shared_memory(demo: Path) -> Iterator[str]:
    """Yield the manifests of the demo's group, and of three pods that borrow from it."""
    pods = (demo / "borrowers.yaml").read_text().split("---\n")[: len(BORROWERS)]
    for text in [(demo / "shared.yaml").read_text(), *pods]:
        yield text.replace("pinwarden-demo", TEST).replace("demo-shared", TEST)
