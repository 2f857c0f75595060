"""Measure the agent on a full machine of idle pods: memory, processor time, and a scan beside
psutil.

Real processes run in real cgroups (`machine`): 250 pods of 10 processes. 25 pods are governed,
first by UID as under Kubernetes, then by a cgroup pattern as without it. The agent is a process of
its own. Its processor time is measured while nothing changes, as a share of one core, without its
start.

A scan is one full tick of the real reconciler in this process. It finds the pods, lists the
processes of the governed pods, reads their locked and pinned memory, and compares. psutil knows
neither amount. It reads one value of /proc/PID/status of the same processes, from the same
`cgroup.procs`, with `Process` objects kept between scans. Neither scan changes a process. They take
turns.

    PYTHONPATH=operator:tools python bench/agent_scan.py [--pods 250] [--processes 10]
        [--governed 25] [--seconds 60]
"""

import argparse
import itertools
import json
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from machine import Machine, Pod, machine, pods, stop_on_signals, until
from processes import MIB, process_cpu, process_memory

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.cli.status import ask
from pinwarden.node.agent.original_limits import RlimitRecordStore
from pinwarden.node.agent.reconciler import Reconciler
from pinwarden.node.linux.prlimit import GateAbility, prlimit_memlock
from pinwarden.node.pods.subject import QUIET_SECONDS

LIMIT = 1 << 20
GOVERNED_PREFIX = "00000000-"
PATTERN = f"kubepods/burstable/pod{GOVERNED_PREFIX}*"
SETTLE_SECONDS = 5.0

Json = dict[str, Any]


def uids(count: int, governed: int) -> list[str]:
    """Made up ones; those of governed pods begin alike, so that one pattern names them."""
    made = [str(uuid.uuid4()) for _ in range(count)]
    return [GOVERNED_PREFIX + uid[9:] for uid in made[:governed]] + made[governed:]


def by_uid(governed: Sequence[Pod]) -> Json:
    """A configuration as the operator compiles it."""
    limit = {"name": "l", "uid": "l", "scope": "Pod", "limit": LIMIT}
    return {"limits": [limit], "pods": [{"uid": pod.uid, "limits": ["l"]} for pod in governed]}


def by_pattern() -> Json:
    """A configuration as a host without Kubernetes has it."""
    return {
        "limits": [
            {"name": "l", "uid": "l", "scope": "Pod", "limit": LIMIT, "cgroupPattern": PATTERN}
        ]
    }


def run_agent(
    node: Machine, name: str, configuration: Json, governed: Sequence[Pod], seconds: float
) -> None:
    """Measure the agent's process and print a line."""
    file = node.folder / f"{name.replace(' ', '-')}.json"
    file.write_text(json.dumps(configuration))
    started = time.monotonic()
    with node.agent(f"--config={file}", "--metrics-port=-1") as agent:
        until("every governed process is limited", lambda: limited(node, governed))
        ready, first = time.monotonic() - started, process_cpu(agent.pid)
        time.sleep(SETTLE_SECONDS)
        used, began = process_cpu(agent.pid), time.monotonic()
        time.sleep(seconds)
        share = (process_cpu(agent.pid) - used) / (time.monotonic() - began)
        memory = process_memory(agent.pid) / MIB, process_memory(agent.pid, "VmHWM") / MIB
    print(
        f"  {name:<22} {share:>8.2%} of a core over {seconds:.0f} s   "
        f"VmRSS {memory[0]:.1f} MiB, at most {memory[1]:.1f} MiB   "
        f"limited {ready:.2f} s after the start, {first:.2f} s of processor time",
        flush=True,
    )


def limited(node: Machine, governed: Sequence[Pod]) -> bool:
    """Return whether the agent reports and limits exactly the processes of the governed pods."""
    try:
        reported = ask(node.socket).get("report", {}).get("pods", [])
    except OSError:
        return False
    pids = [pid for pod in governed for pid in pod.pids()]
    return (
        len(reported) == len(governed)
        and sum(pod["processes"] for pod in reported) == len(pids)
        and all(prlimit_memlock(pid).hard == LIMIT for pid in pids)
    )


def scanner(node: Machine, governed: Sequence[Pod]) -> Callable[[], int]:
    """Return a function for one scan by the reconciler, with the number of processes."""
    now = itertools.count(0.0, 2 * QUIET_SECONDS)
    moment = [0.0]
    reconciler = Reconciler(
        cgroup_root=node.cgroup_root,
        proc_root=Path("/proc"),
        store=RlimitRecordStore(node.folder / "scan.json", "boot"),
        ability=GateAbility(False, "observes only"),
        clock=lambda: moment[0],
    )
    reconciler.configure(NodePinConfigSpec.model_validate(by_uid(governed)), [], 1)

    def scan() -> int:
        moment[0] = next(now)
        reconciler.tick()
        return sum(pod.processes for pod in reconciler.report().pods)

    return scan


def psutil_scanner(governed: Sequence[Pod]) -> Callable[[], int]:
    """What psutil can do of it."""
    import psutil

    known: dict[int, psutil.Process] = {}

    def scan() -> int:
        seen = 0
        for pod in governed:
            for pid in pod.pids():
                process = known.get(pid) or known.setdefault(pid, psutil.Process(pid))
                seen += process.num_threads() > 0
        return seen

    return scan


def compare(
    name: str, ours: Callable[[], int], theirs: Callable[[], int], expected: int, rounds: int
) -> None:
    """Take turns and print medians and their ratio. Raises ValueError if the processes differ."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for scan, taken in zip((ours, theirs), times, strict=True):
            started = time.process_time()
            seen = scan()
            if number:  # the first one opens what is kept
                taken.append(time.process_time() - started)
            if seen != expected:
                raise ValueError(f"{seen} processes were seen instead of {expected}")
    mine, other = median(times[0]), median(times[1])
    print(
        f"  {name:<22} {mine * 1e3:>9.2f} ms {other * 1e3:>9.2f} ms {other / mine:>7.1f} times",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--processes", type=int, default=10, help="of each pod")
    parser.add_argument("--governed", type=int, default=25, help="how many of the pods")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of each measurement of the agent"
    )
    parser.add_argument("--rounds", type=int, default=50, help="of each comparison of scans")
    options = parser.parse_args(arguments)
    if not 0 < options.governed <= options.pods:
        parser.error("--governed must be between 1 and --pods")
    try:
        import psutil
    except ModuleNotFoundError:
        print(
            "psutil, to compare with, is not installed: pip install -r requirements-dev.lock",
            file=sys.stderr,
        )
        return 1
    stop_on_signals()
    with (
        machine() as node,
        pods(node.cgroup_root, uids(options.pods, options.governed), options.processes) as made,
    ):
        governed = made[: options.governed]
        print(
            f"{options.pods} pods of {options.processes} idle processes, {options.governed} "
            f"governed; gate: {node.gate}"
        )
        print("the agent's process, while nothing changes:")
        run_agent(node, "pods by uid", by_uid(governed), governed, options.seconds)
        run_agent(node, "directories by pattern", by_pattern(), governed, options.seconds)
        print(
            f"one scan, processor time  {'pinwarden':>10} {'psutil':>11}   (psutil "
            f"{psutil.__version__}, medians of {options.rounds})"
        )
        for name, subjects in (("the governed pods", governed), ("all pods", made)):
            ours, theirs = scanner(node, subjects), psutil_scanner(subjects)
            compare(name, ours, theirs, len(subjects) * options.processes, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
