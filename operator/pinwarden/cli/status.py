"""`pinwarden status`: limits and samples of this node, from the agent itself."""

import argparse
import json
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pinwarden.cli.agent import SOCKET
from pinwarden.common.table import render
from pinwarden.common.text import readable, short

_HEAD = (
    "SUBJECT",
    "LIMIT",
    "SCOPE",
    "AMOUNT",
    "MODE",
    "VMLCK",
    "VMPIN",
    "PEAK",
    "PROCESSES",
    "DENIED",
    "LEVEL",
    "REASON",
)
_GROUP_HEAD = (
    "GROUP",
    "BACKING",
    "PHASE",
    "OBJECTS",
    "CHARGE",
    "ORPHANED",
    "DEAD",
    "REASON",
    "MESSAGE",
)
_BORROW_HEAD = (
    "BORROWED FROM",
    "SUBJECT",
    "MEMBER",
    "BORROWED",
    "MAPPED",
    "LIMIT",
    "DENIED",
    "LEVEL",
    "REASON",
)
_DENIAL_HEAD = (
    "DENIED AT",
    "SUBJECT",
    "CONTAINER",
    "PROCESS",
    "PID",
    "CALL",
    "ASKED",
    "USED",
    "LIMIT",
)


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "status", help="show the limits and samples of the agent of this node (as root)"
    )
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="default: table"
    )
    parser.add_argument(
        "--socket", type=Path, default=SOCKET, metavar="PATH", help=f"default: {SOCKET}"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        answer = ask(options.socket)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.stderr.write(f"pinwarden status: no agent answers at {options.socket}: {reason}\n")
        return 1
    if options.output == "json":
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        sys.stdout.write(to_text(answer))
    return 0


def ask(path: Path, seconds: float = 5.0) -> dict[str, Any]:
    """Return the answer of the agent that listens at `path`.

    Raises:
        OSError: no process answers.
        ValueError: the answer is not from an agent.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(seconds)
        client.connect(str(path))
        with client.makefile("rb") as stream:
            content = json.loads(stream.read())
    if not isinstance(content, dict) or "node" not in content:
        raise ValueError("the answer is not from a pinwarden agent")
    return content


def to_text(answer: Mapping[str, Any]) -> str:
    """Return the agent's answer as text. Pinned amounts are samples, peaks lower bounds (H2)."""
    report = answer.get("report")
    if report is None:
        return f"Node {answer['node']}: the agent has not sampled yet\n"
    parts = [_summary(answer, report)]
    rows = list(_rows(answer, report))
    parts.append(render(_HEAD, rows) if rows else "No governed subject exists on this node.\n")
    if containers := [
        (pod["uid"], container["name"], short(container["pinned"]), short(container["peak"]))
        for pod in report.get("pods", [])
        for container in pod.get("containers", [])
    ]:
        parts.append(render(("SUBJECT", "CONTAINER", "VMLCK+VMPIN", "PEAK"), containers))
    if report.get("groups"):
        parts.append(render(_GROUP_HEAD, _groups(answer, report)))
        if borrows := list(_borrows(answer, report)):
            parts.append(render(_BORROW_HEAD, borrows))
    if report.get("unsupportedLimits"):
        unsupported = [
            (limit["uid"], limit["reason"], limit["message"])
            for limit in report["unsupportedLimits"]
        ]
        parts.append(render(("UNSUPPORTED LIMIT", "REASON", "MESSAGE"), unsupported))
    if report.get("overshoots"):
        parts.append(
            render(
                ("OVERSHOOT OF", "SUBJECT", "PEAK", "SECONDS", "COUNT", "LAST"), _overshoots(report)
            )
        )
    if report.get("recentDenials"):
        parts.append(render(_DENIAL_HEAD, _denials(report)))
    return "\n".join(parts)


def _summary(answer: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    lines = [
        ("Node", answer["node"]),
        ("Generation", answer.get("generation", "no configuration from an API server is in force")),
        ("Mode", answer.get("configuration", {}).get("mode", "no configuration yet")),
        ("Problem", answer.get("problem")),
        ("Agent", report.get("agentVersion")),
        ("Kernel", report.get("kernelVersion")),
        ("Cgroups", report.get("cgroupVersion")),
        (
            "Sampled",
            f"{answer['sampledSecondsAgo']:.1f} s ago; peaks and overshoots are lower bounds",
        ),
    ]
    if report.get("truncated"):
        lines.append(("Truncated", "lists reached their greatest length"))
    if report.get("denialsDropped"):
        lines.append(("Denied", f"{report['denialsDropped']} calls that are not listed"))
    return "".join(f"{name + ':':<12} {value}\n" for name, value in lines if value is not None)


def _rows(answer: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Yield a row per subject and limit."""
    configuration = answer.get("configuration", {})
    limits = {limit["name"]: limit for limit in configuration.get("limits", [])}
    limits["unknownPods"] = {
        "uid": "unknownPods",
        "scope": "Pod",
        "limit": configuration.get("unknownPods"),
        "enforcement": "Enforce",
    }
    for pod in report.get("pods", []):
        for name in answer.get("limitsOf", {}).get(pod["uid"]) or [None]:
            limit = limits.get(name, {})
            yield (
                pod["uid"],
                name,
                limit.get("scope"),
                readable(limit.get("limit")),
                limit.get("enforcement"),
                short(pod["vmLck"]),
                short(pod["vmPin"]),
                short(pod["peak"]),
                pod["processes"],
                _denied(pod, limit.get("uid")),
                pod["level"],
                pod.get("reason"),
            )


def _denied(pod: Mapping[str, Any], uid: str | None) -> int | None:
    """Return how many calls of the pod this limit denied, None without a gate."""
    if "denials" not in pod:
        return None
    counts: list[int] = [entry["count"] for entry in pod["denials"] if entry["uid"] == uid]
    return sum(counts)


def _groups(answer: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Return a row per group of shared memory."""
    configured = _configured_groups(answer)
    return [
        (
            configured.get(group["uid"], {}).get("name", group["uid"]),
            next(iter(configured.get(group["uid"], {}).get("backing", {})), None),
            group["phase"],
            group["objects"],
            readable(group.get("charge")),
            readable(group.get("orphaned")),
            readable(group.get("dead")),
            group.get("reason"),
            group.get("message"),
        )
        for group in report["groups"]
    ]


def _borrows(answer: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Yield a row per pair of group and pod."""
    configured = _configured_groups(answer)
    for group in report["groups"]:
        spec = configured.get(group["uid"], {})
        for borrower in group["borrowers"]:
            limits = [
                member["borrowLimit"]
                for member in spec.get("members", [])
                if borrower["pod"] in member["pods"] and "borrowLimit" in member
            ]
            yield (
                spec.get("name", group["uid"]),
                borrower["pod"],
                "yes" if borrower["member"] else "no",
                readable(borrower.get("borrowed")),
                readable(borrower.get("mapped")),
                readable(min(limits, default=None)),
                borrower.get("denials"),
                borrower.get("level"),
                borrower.get("reason"),
            )


def _configured_groups(answer: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {group["uid"]: group for group in answer.get("configuration", {}).get("groups", [])}


def _denials(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Return recent denials, newest first, with printable process names."""
    from pinwarden.common.text import printable

    return [
        (
            denial["time"],
            denial["pod"],
            denial["container"],
            printable(denial["process"]),
            denial["pid"],
            printable(denial.get("call") or denial["source"]),
            readable(denial.get("asked")),
            readable(denial.get("used")),
            denial.get("name") or denial.get("message"),
        )
        for denial in reversed(report["recentDenials"])
    ]


def _overshoots(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            overshoot["limit"],
            overshoot.get("pod"),
            short(overshoot["peak"]),
            overshoot["seconds"],
            overshoot["count"],
            overshoot["lastTime"],
        )
        for overshoot in report["overshoots"]
    ]
