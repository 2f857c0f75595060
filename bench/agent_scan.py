"""What the agent costs on a full machine of idle pods: memory, processor time, and its scan against the same job done with psutil.

Real processes in real cgroups (`machine`): 250 pods of 10, of which 25 are governed, by uid as under Kubernetes and then by a
pattern of cgroup paths as without it. The agent is a process of its own; its processor time is what the kernel accounts to it while nothing
changes, its start and first deal apart, as a share of one core.

A scan is one tick of the real engine, in this process, in which everything is due: find the pods, read which processes are in the governed
ones, read what each has locked and pinned, compare. psutil knows neither amount; its job is the least that would have to go before: of the
same processes, by the same `cgroup.procs`, one value of /proc/PID/status, with `Process` objects that are kept from scan to scan. Neither
touches a process. They take turns.

    PYTHONPATH=operator:tools python bench/agent_scan.py [--pods 250] [--processes 10] [--governed 25] [--seconds 60]
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
        until("every governed process is dealt to", lambda: dealt(node, governed))
        ready, first = time.monotonic() - started, process_cpu(agent.pid)
        time.sleep(SETTLE_SECONDS)
        used, began = process_cpu(agent.pid), time.monotonic()
        time.sleep(seconds)
        share = (process_cpu(agent.pid) - used) / (time.monotonic() - began)
        memory = process_memory(agent.pid) / MIB, process_memory(agent.pid, "VmHWM") / MIB
    print(
        f"  {name:<22} {share:>8.2%} of a core over {seconds:.0f} s   VmRSS {memory[0]:.1f} MiB, at most {memory[1]:.1f} MiB   "
        f"dealt {ready:.2f} s after the start, {first:.2f} s of processor time",
        flush=True,
    )


def dealt(node: Machine, governed: Sequence[Pod]) -> bool:
    """Whether the agent reports exactly the governed pods with all their processes, and each of these has its limit."""
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
    """One scan by the engine; the processes that it saw."""
    now = itertools.count(0.0, 2 * QUIET_SECONDS)
    moment = [0.0]
    engine = Reconciler(
        cgroup_root=node.cgroup_root,
        proc_root=Path("/proc"),
        store=RlimitRecordStore(node.folder / "scan.json", "boot"),
        ability=GateAbility(False, "observes only"),
        clock=lambda: moment[0],
    )
    engine.configure(NodePinConfigSpec.model_validate(by_uid(governed)), [], 1)

    def scan() -> int:
        moment[0] = next(now)
        engine.tick()
        return sum(pod.processes for pod in engine.report().pods)

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
    """Take turns, and print medians and their ratio. Raises ValueError when one saw other processes."""
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
            f"{options.pods} pods of {options.processes} idle processes, {options.governed} governed; gate: {node.gate}"
        )
        print("the agent's process, while nothing changes:")
        run_agent(node, "pods by uid", by_uid(governed), governed, options.seconds)
        run_agent(node, "directories by pattern", by_pattern(), governed, options.seconds)
        print(
            f"one scan, processor time  {'pinwarden':>10} {'psutil':>11}   (psutil {psutil.__version__}, medians of {options.rounds})"
        )
        for name, subjects in (("the governed pods", governed), ("all pods", made)):
            ours, theirs = scanner(node, subjects), psutil_scanner(subjects)
            compare(name, ours, theirs, len(subjects) * options.processes, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
