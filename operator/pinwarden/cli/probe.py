"""`pinwarden probe`: try which level this node can enforce for each source, with the reasons."""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from pinwarden.cli import host_paths
from pinwarden.common.table import render


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "probe", help="show the level that this node can enforce for each source, and why"
    )
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="default: table"
    )
    host_paths.add_options(parser, "--cgroup-root", "--run-dir")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    result = _probe(options.cgroup_root, options.run_dir)
    sys.stdout.write(
        json.dumps(result, indent=2) + "\n" if options.output == "json" else to_text(result)
    )
    return 0


def _probe(cgroup_root: Path, run_dir: Path) -> dict[str, Any]:
    """Return the answer as JSON, without unknown values."""
    from pinwarden.node.agent.source_levels import source_levels
    from pinwarden.node.gate.daemon import ability as seccomp_ability
    from pinwarden.node.linux.cgroupfs import detect_layout
    from pinwarden.node.linux.prlimit import probe

    ability, seccomp, nri = probe(), seccomp_ability(run_dir), _nri_failure(run_dir)
    result: dict[str, Any] = {
        "kernelVersion": platform.release(),
        "gates": {
            "rlimit": {"available": ability.available, "reason": ability.reason},
            "seccomp": {"available": not seccomp, "reason": seccomp},
            "nri": {"available": not nri, "reason": nri},
        },
        "sources": [level.to_wire() for level in source_levels(ability, gated=not seccomp)],
    }
    try:
        result["cgroupVersion"] = detect_layout(cgroup_root).value
    except ValueError as error:
        result["cgroupProblem"] = str(error)
    return result


def _nri_failure(run_dir: Path) -> str:
    """Return why the NRI plugin does not gate new containers now, or "" if it does."""
    from pinwarden.node.state import nri_status

    path = run_dir / nri_status.NAME
    try:
        status = nri_status.load(path)
        silent = time.time() - path.stat().st_mtime > nri_status.SILENT_SECONDS
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        return f"no NRI plugin runs on this node: {path}: {cause}"
    if silent:
        return f"the NRI plugin does not run: {path} is old"
    if status.failure:
        return status.failure
    return "" if status.runtime else "the container runtime has not configured the NRI plugin yet"


def to_text(result: dict[str, Any]) -> str:
    """Return the answer as text."""
    facts = [
        ("Kernel", result["kernelVersion"]),
        ("Cgroups", result.get("cgroupVersion") or result["cgroupProblem"]),
        *((f"{name} gate", _available(gate)) for name, gate in result["gates"].items()),
    ]
    head = ("SOURCE", "COUNTED", "LEVEL", "REASON", "MESSAGE")
    rows = [
        (
            source["source"],
            "yes" if source["counted"] else "no",
            source["level"],
            source["reason"],
            source.get("message"),
        )
        for source in result["sources"]
    ]
    return (
        "".join(f"{name + ':':<14}{value}\n" for name, value in facts) + "\n" + render(head, rows)
    )


def _available(gate: dict[str, Any]) -> str:
    return "available" if gate["available"] else f"not available: {gate['reason']}"
