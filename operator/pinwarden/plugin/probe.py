"""`kubectl pinwarden probe`: what each node can enforce, for each source, as its agent found out by trying."""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

from pinwarden.api.meta import Model
from pinwarden.api.nodepinconfig import NodePinConfig, SourceLevel
from pinwarden.plan.usage import is_stale
from pinwarden.plugin import fetch, output
from pinwarden.plugin.client import Client
from pinwarden.plugin.errors import PluginError

_HEAD = ("NODE", "SOURCE", "COUNTED", "LEVEL")
_WIDE = ("REASON", "MESSAGE", "KERNEL", "CGROUPS", "AGENT", "AGE")


class _Probed(Model):
    """What a node reports; without `sources` nothing, and `missing` says why."""

    node: str
    missing: str = ""
    agent_version: str | None = None
    kernel_version: str | None = None
    cgroup_version: str | None = None
    sampled_at: datetime | None = None
    sources: list[SourceLevel]


def run(options: argparse.Namespace) -> None:
    """Print the levels, and name the nodes that report none."""
    client = Client(options.kubeconfig, options.context)
    with fetch.Rights(client) as rights:
        if options.argument:
            node = rights.get("nodes", options.argument)
            nodes = [node] if node else []
            raw = rights.get(NodePinConfig.plural, options.argument)
            configs = [fetch.config(raw)] if raw else []
        else:
            nodes = list(rights.items("nodes"))
            configs = list(fetch.configs(rights))
        agents = fetch.agents(rights, options.pinwarden_namespace, nodes)
    now = datetime.now(UTC)
    if options.argument and not nodes:
        raise PluginError(f'there is no node "{options.argument}"')
    probed = _probe([each["metadata"]["name"] for each in nodes], configs)
    if options.output in ("json", "yaml"):
        output.emit(output.items([each.to_wire() for each in probed]), options.output)
    else:
        _print(options, probed, fetch.alive(agents), now)
    if options.strict:
        _judge(probed, agents, now)


def _probe(names: Sequence[str], configs: Sequence[NodePinConfig]) -> list[_Probed]:
    known = {config.metadata.name: config for config in configs}
    found = []
    for name in sorted(names):
        config = known.get(name)
        status = config.status if config else None
        if config is None:
            missing = "it has no NodePinConfig: does the operator run?"
        elif status is None or not status.sources:
            missing = "no agent has reported: does a pod of the DaemonSet pinwarden-agent run there?"
        else:
            missing = ""
        found.append(
            _Probed(
                node=name,
                missing=missing,
                agent_version=status.agent_version if status else None,
                kernel_version=status.kernel_version if status else None,
                cgroup_version=status.cgroup_version if status else None,
                sampled_at=status.sampled_at if status else None,
                sources=list(status.sources) if status else [],
            )
        )
    return found


def _judge(probed: Sequence[_Probed], agents: Mapping[str, bool], now: datetime) -> None:
    """Raises PluginError unless there are agents, and each is alive and has reported lately."""
    concerned = [node for node in probed if node.node in agents]
    wrong = [
        node.node
        for node in concerned
        if node.missing or not agents[node.node] or is_stale(node.sampled_at, now)
    ]
    if wrong:
        raise PluginError(f"not every agent reports: see {', '.join(wrong)}")
    if not concerned:
        raise PluginError("no agent runs there")


def _print(
    options: argparse.Namespace, probed: Sequence[_Probed], alive: Collection[str], now: datetime
) -> None:
    wide = options.output == "wide"
    rows: list[list[object]] = []
    for node in probed:
        for source in node.sources:
            row: list[object] = [node.node, source.source, "yes" if source.counted else "no", source.level]
            if wide:
                facts = (node.kernel_version, node.cgroup_version, node.agent_version)
                row += [source.reason, source.message, *facts, output.age(node.sampled_at, now)]
            rows.append(row)
        if not node.sources:
            rows.append([node.node, *[output.UNKNOWN] * (len(_HEAD) - 1 + (len(_WIDE) if wide else 0))])
    sys.stdout.write(
        output.table(
            [*_HEAD, *(_WIDE if wide else ())],
            rows,
            headers=not options.no_headers,
            width=None if wide else output.terminal_width(),
            cut=["NODE"],
            colours=output.level_colours(),
        )
    )
    for node in probed:
        if node.missing:
            output.remark(f"Node {node.node}: {node.missing}")
        elif node.node not in alive:
            told = output.age(node.sampled_at, now) or "an unknown time"
            output.remark(f"Node {node.node}: its agent is silent; this is what it reported {told} ago.")
        elif is_stale(node.sampled_at, now):
            told = output.age(node.sampled_at, now) or "an unknown time"
            output.remark(
                f"Node {node.node}: this report is {told} old, and its agent writes every five minutes."
            )
