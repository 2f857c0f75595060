"""`kubectl pinwarden probe`: print the reported level of each node for each source."""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

from pinwarden.api.meta import Model
from pinwarden.api.nodepinconfig import NodePinConfig, SourceLevel
from pinwarden.plan.usage import is_stale
from pinwarden.plugin import fetch, output
from pinwarden.plugin.client import PluginClient
from pinwarden.plugin.errors import PluginError

_HEAD = ("NODE", "SOURCE", "COUNTED", "LEVEL")
_WIDE = ("REASON", "MESSAGE", "KERNEL", "CGROUPS", "AGENT", "AGE")


class _NodeProbe(Model):
    """The report of a node; `missing` is the reason for empty `sources`."""

    node: str
    missing: str = ""
    agent_version: str | None = None
    kernel_version: str | None = None
    cgroup_version: str | None = None
    sampled_at: datetime | None = None
    sources: list[SourceLevel]


def run(options: argparse.Namespace) -> None:
    """Print the levels, and the nodes without a report."""
    client = PluginClient(options.kubeconfig, options.context)
    with fetch.ApiReader(client) as reader:
        if options.argument:
            node = reader.get("nodes", options.argument)
            nodes = [node] if node else []
            raw = reader.get(NodePinConfig.plural, options.argument)
            configs = [fetch.config(raw)] if raw else []
        else:
            nodes = list(reader.items("nodes"))
            configs = list(fetch.configs(reader))
        agents = fetch.agents(reader, options.pinwarden_namespace, nodes)
    now = datetime.now(UTC)
    if options.argument and not nodes:
        raise PluginError(f'there is no node "{options.argument}"')
    probed = _probe([raw["metadata"]["name"] for raw in nodes], configs)
    if options.output in ("json", "yaml"):
        output.emit(output.items([node.to_wire() for node in probed]), options.output)
    else:
        _print(options, probed, fetch.alive(agents), now)
    if options.strict:
        _require_reports(probed, agents, now)


def _probe(names: Sequence[str], configs: Sequence[NodePinConfig]) -> list[_NodeProbe]:
    known = {config.metadata.name: config for config in configs}
    probed = []
    for name in sorted(names):
        config = known.get(name)
        status = config.status if config else None
        if config is None:
            missing = "no NodePinConfig: does the operator run?"
        elif status is None or not status.sources:
            missing = "no report: does a pod of the DaemonSet pinwarden-agent run on this node?"
        else:
            missing = ""
        probed.append(
            _NodeProbe(
                node=name,
                missing=missing,
                agent_version=status.agent_version if status else None,
                kernel_version=status.kernel_version if status else None,
                cgroup_version=status.cgroup_version if status else None,
                sampled_at=status.sampled_at if status else None,
                sources=list(status.sources) if status else [],
            )
        )
    return probed


def _require_reports(
    probed: Sequence[_NodeProbe], agents: Mapping[str, bool], now: datetime
) -> None:
    """Raise PluginError unless there are agents, and each is alive and has reported recently."""
    concerned = [node for node in probed if node.node in agents]
    wrong = [
        node.node
        for node in concerned
        if node.missing or not agents[node.node] or is_stale(node.sampled_at, now)
    ]
    if wrong:
        raise PluginError(f"not every agent reports: see {', '.join(wrong)}")
    if not concerned:
        raise PluginError("no agent runs on these nodes")


def _print(
    options: argparse.Namespace, probed: Sequence[_NodeProbe], alive: Collection[str], now: datetime
) -> None:
    wide = options.output == "wide"
    rows: list[list[object]] = []
    for node in probed:
        for source in node.sources:
            row: list[object] = [
                node.node,
                source.source,
                "yes" if source.counted else "no",
                source.level,
            ]
            if wide:
                facts = (node.kernel_version, node.cgroup_version, node.agent_version)
                row += [source.reason, source.message, *facts, output.age(node.sampled_at, now)]
            rows.append(row)
        if not node.sources:
            rows.append(
                [node.node, *[output.UNKNOWN] * (len(_HEAD) - 1 + (len(_WIDE) if wide else 0))]
            )
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
            age_text = output.age(node.sampled_at, now) or "an unknown time"
            output.remark(
                f"Node {node.node}: its agent is silent; its last report is {age_text} old."
            )
        elif is_stale(node.sampled_at, now):
            age_text = output.age(node.sampled_at, now) or "an unknown time"
            output.remark(
                f"Node {node.node}: its last report is {age_text} old; "
                "agents write every five minutes."
            )
