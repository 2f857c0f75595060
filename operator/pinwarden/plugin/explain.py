"""`kubectl pinwarden explain POD`: print the explanation of `plan.explain`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.common.text import short
from pinwarden.plan.decode import (
    AGENT_SELECTOR,
    agent_is_ready,
    is_lost,
    read_namespace,
    read_node,
    read_pod,
)
from pinwarden.plan.explain import DeniedCall, Evidence, Explanation, Finding, NodeAgent, explain
from pinwarden.plan.owners import workload_of
from pinwarden.plan.types import Namespace
from pinwarden.plugin import fetch, output
from pinwarden.plugin.client import Json, PluginClient
from pinwarden.plugin.errors import PluginError
from pinwarden.plugin.output import UNKNOWN, age, amount, paint

_LIMITS = (
    "LIMIT",
    "KIND",
    "AMOUNT",
    "SCOPE",
    "MODE",
    "MINIMUM",
    "USED",
    "PEAK",
    "DENIALS",
    "STANDING",
)
_SHOWN = 5


def run(options: argparse.Namespace) -> None:
    """Print the explanation."""
    client = PluginClient(options.kubeconfig, options.context)
    namespace = options.namespace or client.namespace
    explanation = explain(
        _evidence(client, namespace, options.argument, options.pinwarden_namespace)
    )
    if options.output in ("json", "yaml"):
        output.emit(explanation.to_wire(), options.output)
    else:
        sys.stdout.write("\n".join(_sections(options, explanation, datetime.now(UTC))))


def _evidence(client: PluginClient, namespace: str, name: str, system: str) -> Evidence:
    """Return everything that the user may read about the pod."""
    name = name.removeprefix("pod/")
    with fetch.ApiReader(client) as reader:
        raw = reader.get("pods", name, namespace)
        space = reader.get("namespaces", namespace)
        bound = raw["spec"].get("nodeName") if raw else None
        node = reader.get("nodes", bound) if bound else None
        config = reader.get(NodePinConfig.plural, bound) if bound else None
        read = fetch.limits(reader, namespace, cluster=True)
        groups = fetch.groups(reader, namespace)
        agent = (
            _agent(reader, system, bound, lost=node is not None and is_lost(node))
            if bound
            else None
        )
        events = list(_events(reader, namespace, name))
    if raw is None:
        raise PluginError(f'pods "{name}" not found in namespace {namespace}')
    return Evidence(
        pod=read_pod(raw),
        now=datetime.now(UTC),
        namespace=read_namespace(space) if space else Namespace(namespace),
        node=read_node(node) if node else None,
        config=fetch.config(config) if config else None,
        agent=agent,
        limits=read.limits,
        unreadable=read.unreadable,
        groups=groups,
        events=events,
        workload=workload_of(raw["metadata"]),
        system=system,
    )


def _agent(reader: fetch.ApiReader, system: str, node: str, *, lost: bool) -> NodeAgent | None:
    """Return the agent's pod on the node, a live one first; no agent is alive on a lost node."""
    where = {"labelSelector": AGENT_SELECTOR, "fieldSelector": f"spec.nodeName={node}"}
    agents = [
        NodeAgent(raw["metadata"]["name"], agent_is_ready(raw) and not lost)
        for raw in reader.items("pods", system, **where)
    ]
    return max(agents, key=lambda agent: agent.ready, default=None)


def _events(reader: fetch.ApiReader, namespace: str, name: str) -> Iterator[DeniedCall]:
    """Yield the denials in Events of the operator."""
    where = f"involvedObject.kind=Pod,involvedObject.name={name},reason=PinRefused"
    for raw in reader.items("events", namespace, fieldSelector=where):
        if time := _time(raw):
            yield DeniedCall(time=time, text=raw.get("message") or "")


def _time(event: Json) -> datetime | None:
    text = event.get("eventTime") or event.get("lastTimestamp")
    return datetime.fromisoformat(text) if text else None


def _sections(
    options: argparse.Namespace, explanation: Explanation, now: datetime
) -> Iterator[str]:
    yield _head(explanation, now)
    yield "".join(
        _finding(number, finding) for number, finding in enumerate(explanation.findings, 1)
    )
    if explanation.limits:
        yield _limits(options, explanation)
    if options.output == "wide" and explanation.sources:
        rows = [
            [row.source, "yes" if row.counted else "no", row.level, row.reason, row.message]
            for row in explanation.sources
        ]
        yield _table(options, ("SOURCE", "COUNTED", "LEVEL", "REASON", "MESSAGE"), rows)
    if explanation.groups:
        groups = [
            [
                group.name,
                "yes" if group.member else "no",
                amount(group.borrowed, UNKNOWN),
                amount(group.mapped, UNKNOWN),
                amount(group.limit),
                group.level,
                group.denials,
            ]
            for group in explanation.groups
        ]
        yield _table(
            options, ("GROUP", "MEMBER", "BORROWED", "MAPPED", "LIMIT", "LEVEL", "DENIALS"), groups
        )
    if explanation.refused:
        shown = explanation.refused if options.output == "wide" else explanation.refused[:_SHOWN]
        lines = "".join(
            output.paragraph(f"{age(call.time, now)} ago: {call.text}", "  ") for call in shown
        )
        more = len(explanation.refused) - len(shown)
        yield f"Denied recently:\n{lines}{f'  and {more} more (-o wide)' + chr(10) if more else ''}"


def _head(explanation: Explanation, now: datetime) -> str:
    lines = [
        ("Pod", f"{explanation.namespace}/{explanation.pod}"),
        ("Node", explanation.node or "none yet"),
    ]
    if use := explanation.use:
        sampled = age(use.sampled_at, now)
        lines += [
            (
                "Pinned",
                f"{short(use.total)} (locked {short(use.locked)}, "
                f"pinned by drivers {short(use.pinned)})",
            ),
            ("Peak", f"{short(use.peak)}, sampled: a lower bound"),
            ("Level", f"{use.level or UNKNOWN}{f' ({use.reason})' if use.reason else ''}"),
            ("Sampled", f"{sampled} ago{' (stale)' if use.stale else ''}" if sampled else UNKNOWN),
        ]
    else:
        lines.append(("Pinned", f"{UNKNOWN}: no agent has reported the pod"))
    uncounted = [row.source for row in explanation.sources if not row.counted]
    if uncounted:
        lines.append(("Not counted", ", ".join(uncounted)))
    return "".join(f"{name + ':':<13}{value}\n" for name, value in lines)


def _finding(number: int, finding: Finding) -> str:
    cause = paint(str(finding.cause), "red" if finding.problem else "green")
    # a command stays in one line, ready to copy
    return (
        f"{number}. {cause}\n{output.paragraph(finding.message, '   ')}"
        f"{output.paragraph('Next: ' + finding.next.text, '   ')}"
        f"     {paint(finding.next.command, 'bold')}\n"
    )


def _limits(options: argparse.Namespace, explanation: Explanation) -> str:
    rows = [
        [
            limit.name,
            limit.kind,
            amount(limit.limit),
            limit.scope,
            limit.enforcement,
            limit.minimum_level,
            amount(limit.used, UNKNOWN if limit.limit is not None else None),
            amount(limit.peak, UNKNOWN if limit.limit is not None else None),
            limit.denials,
            limit.standing,
            *([limit.because] if options.output == "wide" else []),
        ]
        for limit in explanation.limits
    ]
    head = [*_LIMITS, *(["BECAUSE"] if options.output == "wide" else [])]
    return _table(options, head, rows)


def _table(
    options: argparse.Namespace, head: Sequence[str], rows: Sequence[Sequence[object]]
) -> str:
    return output.table(
        head,
        rows,
        headers=not options.no_headers,
        width=None if options.output == "wide" else output.terminal_width(),
        cut=[head[0]],
        colours=output.level_colours(),
    )
