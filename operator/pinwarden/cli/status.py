"""`pinwarden status`: what the agent of this node holds and sees, from the agent itself."""

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
    "BORROWED OF",
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
    "REFUSED AT",
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
        "status", help="show what the agent of this node holds and sees (as root)"
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
    """The answer of the agent that listens at `path`. Raises OSError when none answers, ValueError when what answers is none."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(seconds)
        client.connect(str(path))
        with client.makefile("rb") as stream:
            content = json.loads(stream.read())
    if not isinstance(content, dict) or "node" not in content:
        raise ValueError("what answers there is no pinwarden agent")
    return content


def to_text(answer: Mapping[str, Any]) -> str:
    """The agent's answer for people. Pinned amounts are samples, and peaks lower bounds (H2)."""
    report = answer.get("report")
    if report is None:
        return f"Node {answer['node']}: the agent has not looked yet\n"
    parts = [_summary(answer, report)]
    rows = list(_rows(answer, report))
    parts.append(render(_HEAD, rows) if rows else "No governed subject exists on this node.\n")
    if containers := [
        (pod["uid"], one["name"], short(one["pinned"]), short(one["peak"]))
        for pod in report.get("pods", [])
        for one in pod.get("containers", [])
    ]:
        parts.append(render(("SUBJECT", "CONTAINER", "VMLCK+VMPIN", "PEAK"), containers))
    if report.get("groups"):
        parts.append(render(_GROUP_HEAD, _groups(answer, report)))
        if borrows := list(_borrows(answer, report)):
            parts.append(render(_BORROW_HEAD, borrows))
    if report.get("unsupportedLimits"):
        unsupported = [
            (one["uid"], one["reason"], one["message"]) for one in report["unsupportedLimits"]
        ]
        parts.append(render(("NOT TAKEN", "REASON", "MESSAGE"), unsupported))
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
        ("Generation", answer.get("generation", "none in force from an API server")),
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
        lines.append(("Truncated", "lists were cut at their longest length"))
    if report.get("denialsDropped"):
        lines.append(("Refused", f"{report['denialsDropped']} calls besides those that are listed"))
    return "".join(f"{name + ':':<12} {value}\n" for name, value in lines if value is not None)


def _rows(answer: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """A row per subject and limit."""
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
    """How many calls of the pod were refused for this limit; None where no gate holds it."""
    if "denials" not in pod:
        return None
    counts: list[int] = [each["count"] for each in pod["denials"] if each["uid"] == uid]
    return sum(counts)


def _groups(answer: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """A row per group of shared memory."""
    asked = _asked_groups(answer)
    return [
        (
            asked.get(each["uid"], {}).get("name", each["uid"]),
            next(iter(asked.get(each["uid"], {}).get("backing", {})), None),
            each["phase"],
            each["objects"],
            readable(each.get("charge")),
            readable(each.get("orphaned")),
            readable(each.get("dead")),
            each.get("reason"),
            each.get("message"),
        )
        for each in report["groups"]
    ]


def _borrows(answer: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """A row per pair of group and pod."""
    asked = _asked_groups(answer)
    for group in report["groups"]:
        told = asked.get(group["uid"], {})
        for each in group["borrowers"]:
            limits = [
                member["borrowLimit"]
                for member in told.get("members", [])
                if each["pod"] in member["pods"] and "borrowLimit" in member
            ]
            yield (
                told.get("name", group["uid"]),
                each["pod"],
                "yes" if each["member"] else "no",
                readable(each.get("borrowed")),
                readable(each.get("mapped")),
                readable(min(limits, default=None)),
                each.get("denials"),
                each.get("level"),
                each.get("reason"),
            )


def _asked_groups(answer: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {group["uid"]: group for group in answer.get("configuration", {}).get("groups", [])}


def _denials(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """What was refused lately, newest first; a process chooses its name, so it is shown with care."""
    from pinwarden.common.text import printable

    return [
        (
            one["time"],
            one["pod"],
            one["container"],
            printable(one["process"]),
            one["pid"],
            printable(one.get("call") or one["source"]),
            readable(one.get("asked")),
            readable(one.get("used")),
            one.get("name") or one.get("message"),
        )
        for one in reversed(report["recentDenials"])
    ]


def _overshoots(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            one["limit"],
            one.get("pod"),
            short(one["peak"]),
            one["seconds"],
            one["count"],
            one["lastTime"],
        )
        for one in report["overshoots"]
    ]
