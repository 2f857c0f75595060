"""Observations of an upgrade: processes as the kernel shows them, state files, and statuses."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from release.probed_pods import BORROWED, GROUP_BYTES, ProbedPod

LEVELS = ("Observe", "Converge", "Deny")


class ProcessId(NamedTuple):
    """A process: its start, in clock ticks since boot, tells two processes with one pid apart."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class ProbedProcess:
    """A process of a probed pod: locked bytes, and RLIMIT_MEMLOCK."""

    pod: str
    locked: int
    rlimit: tuple[int, int]


PROCESSES = (
    "for p in $(pidof python3); do"
    " grep -q /[p]rober.py /proc/$p/cmdline 2>/dev/null || continue;"
    " echo \"=== $(tr '\\0' ' ' </proc/$p/cmdline)\";"
    " cat /proc/$p/stat /proc/$p/status /proc/$p/limits; done 2>/dev/null"
)
"""A shell command on a node; `processes` reads its output."""


def processes(text: str) -> dict[ProcessId, ProbedProcess]:
    """Return the processes of the probed pods by pid and start."""
    found = {}
    for block in text.split("=== ")[1:]:
        command, _, rest = block.partition("\n")
        stat = re.search(r"^(\d+) \(.*\) (.*)$", rest, re.MULTILINE)
        locked = re.search(r"^VmLck:\s*(\d+) kB$", rest, re.MULTILINE)
        rlimit = re.search(r"^Max locked memory\s+(\S+)\s+(\S+)", rest, re.MULTILINE)
        if stat and locked and rlimit:  # all three, unless the process has just ended
            key = ProcessId(int(stat[1]), int(stat[2].split()[19]))
            pod = command.split("prober.py")[1].split()[0]
            soft, hard = (-1 if value == "unlimited" else int(value) for value in rlimit.groups())
            found[key] = ProbedProcess(pod, int(locked[1]) * 1024, (soft, hard))
    return found


def originals(saved: Mapping[str, Any]) -> dict[ProcessId, tuple[int, int]]:
    """Return the original RLIMIT_MEMLOCK of each process in the agent's `saved.json`."""
    return {
        ProcessId(pid, start): (soft, hard)
        for pid, start, soft, hard, *_applied in saved["processes"]
    }


def condition(resource: Mapping[str, Any], kind: str) -> str:
    """Return the status of a condition and its reason, such as `True Enforced`."""
    for entry in resource.get("status", {}).get("conditions", []):
        if entry["type"] == kind:
            return f"{entry['status']} {entry['reason']}"
    return "absent"


def untrue_amounts(
    limits: Mapping[str, Mapping[str, Any]], locked: Mapping[ProbedPod, int | None]
) -> Iterator[str]:
    """Yield each statement of a limit's status that is not so.

    `locked` has the bytes of each pod, None for a pod that unlocks meanwhile. An absent amount is
    no statement, and an amount of 0 is one (H2).
    """
    for pod, amount in locked.items():
        status = limits.get(pod.name, {}).get("status", {})
        pinned = status.get("pinnedBytes")
        if None not in (pinned, amount) and pinned != amount:
            yield f"{pod.name}: pinnedBytes is {pinned}, and {amount} bytes are locked"
        if pinned is not None and pinned > pod.most:
            yield f"{pod.name}: pinnedBytes is {pinned}, above the limit"
        for usage in status.get("topPods", []):
            level = usage.get("level")
            if level is not None and LEVELS.index(level) > LEVELS.index(pod.level):
                yield f"{pod.name}: level {level}, and {pod.level} is the highest possible"


def untrue_shares(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield each statement of the group's status that is not so."""
    charge = status.get("chargeBytes")
    if charge is not None and charge != GROUP_BYTES:
        yield f"chargeBytes is {charge}, and the object has {GROUP_BYTES} bytes"
    for borrower in status.get("borrowers", []):
        borrowed, wanted = borrower.get("borrowedBytes"), BORROWED.get(borrower["pod"])
        if borrowed is not None and borrowed != wanted:
            yield f"{borrower['pod']}: borrowedBytes is {borrowed}, and {wanted} are mapped"


def excesses(seen: Mapping[ProcessId, ProbedProcess], pods: Iterable[ProbedPod]) -> Iterator[str]:
    """Yield each pod whose processes have more locked than its limit.

    Left out are pods that unlock meanwhile, because the processes are read one after the other.
    """
    for pod in pods:
        locked = sum(process.locked for process in seen.values() if process.pod == pod.name)
        if pod.fills and locked > pod.most:
            yield f"{pod.name}: {locked} bytes are locked under a limit of {pod.limit}"


def changed_originals(
    known: Mapping[ProcessId, tuple[int, int]], saved: Mapping[ProcessId, tuple[int, int]]
) -> Iterator[str]:
    """Yield each process whose saved original RLIMIT_MEMLOCK is absent or wrong."""
    for key, rlimit in known.items():
        if saved.get(key) != rlimit:
            yield f"process {key.pid}: {saved.get(key)} is saved, and {rlimit} is its original"
