"""`kubectl pinwarden top`: print pods by pinned memory, or shared memory."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.api.pinlimit import Enforcement, Scope
from pinwarden.common.text import short
from pinwarden.plan.decode import read_pod
from pinwarden.plan.types import Pod
from pinwarden.plan.usage import (
    COUNTED_IN,
    FigureFilter,
    PodFigure,
    SharedFigures,
    pod_figures,
    shared_figures,
    uncounted,
)
from pinwarden.plugin import fetch, output
from pinwarden.plugin.client import PluginClient
from pinwarden.plugin.output import UNKNOWN, amount, sampled


def run(options: argparse.Namespace) -> None:
    """Print the figures."""
    client = PluginClient(options.kubeconfig, options.context)
    namespace = None if options.all_namespaces else options.namespace or client.namespace
    selector = {"labelSelector": options.selector} if options.selector else {}
    with fetch.ApiReader(client) as reader:
        pods = [read_pod(raw) for raw in reader.items("pods", namespace, **selector)]
        every = options.shared or (namespace is None and not selector)
        configs = list(fetch.configs(reader, None if every else {pod.node for pod in pods}))
        agents = fetch.agents(reader, options.pinwarden_namespace, reader.items("nodes"))
    figure_filter, now = (
        FigureFilter(fetch.alive(agents), namespace, bool(options.selector)),
        datetime.now(UTC),
    )
    if options.shared:
        _print_shared(options, shared_figures(pods, configs, figure_filter, now), now)
    else:
        _print_pods(options, pods, configs, figure_filter, now)


def _print_pods(
    options: argparse.Namespace,
    pods: Sequence[Pod],
    configs: Sequence[NodePinConfig],
    figure_filter: FigureFilter,
    now: datetime,
) -> None:
    figures = pod_figures(pods, configs, figure_filter, now)
    if options.output in ("json", "yaml"):
        output.emit(output.items([figure.to_wire() for figure in figures]), options.output)
        return
    if not figures:
        _nothing(configs, figure_filter)
        return
    everywhere, wide = figure_filter.namespace is None, options.output == "wide"
    by_source = options.by is not None
    head = [
        *_where(everywhere),
        *(_SOURCE_HEAD if by_source else _HEAD),
        *(_WIDE if wide and not by_source else []),
    ]
    rows = []
    for figure in figures:
        where = [*([figure.namespace or UNKNOWN] if everywhere else []), figure.pod, figure.node]
        if by_source:
            rows += [[*where, *cells] for cells in _by_source(figure, now)]
        else:
            rows.append([*where, *_cells(figure, now), *(_wide_cells(figure) if wide else [])])
    _table(options, head, rows)
    if by_source:
        _lower_bounds(figures, configs)


_HEAD = ("PINNED", "LIMIT", "LEVEL", "DENIALS", "AGE")
_SOURCE_HEAD = ("COUNTER", "SOURCES", "PINNED", "LEVEL", "AGE")
_WIDE = ("VMLCK", "VMPIN", "PEAK", "PROCESSES", "LIMITED BY", "REASON")


def _where(everywhere: bool) -> list[str]:
    return [*(["NAMESPACE"] if everywhere else []), "POD", "NODE"]


def _cells(figure: PodFigure, now: datetime) -> list[object]:
    return [
        amount(figure.total, UNKNOWN),
        _limit(figure),
        figure.level or UNKNOWN,
        figure.denials,
        sampled(figure.sampled_at, now, stale=figure.stale),
    ]


def _wide_cells(figure: PodFigure) -> list[object]:
    counters = (amount(figure.locked), amount(figure.pinned), amount(figure.peak))
    return [*counters, figure.processes, figure.limit_name, figure.reason]


def _by_source(figure: PodFigure, now: datetime) -> Iterable[list[object]]:
    for counter, bytes_of in (("VmLck", figure.locked), ("VmPin", figure.pinned)):
        sources = ",".join(COUNTED_IN[counter])
        age_text = sampled(figure.sampled_at, now, stale=figure.stale)
        yield [counter, sources, amount(bytes_of, UNKNOWN), figure.level or UNKNOWN, age_text]


def _limit(figure: PodFigure) -> str | None:
    """Return the amount, marked unless the limit is enforced and has scope Pod."""
    if figure.limit is None:
        return None
    scope = f"/{figure.scope.lower()}" if figure.scope and figure.scope is not Scope.POD else ""
    audit = " (audit)" if figure.enforcement is Enforcement.AUDIT else ""
    return f"{short(figure.limit)}{scope}{audit}"


def _lower_bounds(figures: Sequence[PodFigure], configs: Sequence[NodePinConfig]) -> None:
    """Print the sources missing in the figures (H2)."""
    names = {figure.node for figure in figures}
    nodes = [config for config in configs if config.metadata.name in names]
    for sources, on in uncounted(nodes).items():
        where = f"node {on[0]}{f' and {len(on) - 1} more' if len(on) > 1 else ''}"
        output.remark(f"Figures are lower bounds: {where} cannot count {', '.join(sources)}.")


def _nothing(configs: Sequence[NodePinConfig], figure_filter: FigureFilter) -> None:
    if not configs and figure_filter.namespace is None and not figure_filter.selected:
        output.remark("No node has a NodePinConfig: does the operator run?")
        return
    option = f"-n {figure_filter.namespace}" if figure_filter.namespace else "-A"
    where = f" in namespace {figure_filter.namespace}" if figure_filter.namespace else ""
    output.remark(
        f"No pod{where} has a limit, and agents report only pods with a limit. "
        f"To begin: kubectl pinwarden recommend {option}"
    )


def _print_shared(options: argparse.Namespace, figures: SharedFigures, now: datetime) -> None:
    if options.output in ("json", "yaml"):
        output.emit(figures.to_wire(), options.output)
        return
    groups = [
        [
            group.group,
            group.node,
            group.phase,
            amount(group.charge, UNKNOWN),
            amount(group.orphaned, UNKNOWN),
            amount(group.dead),
            group.reason,
            _bounded(sampled(group.sampled_at, now, stale=group.stale), group.truncated),
        ]
        for group in figures.groups
    ]
    borrows = [
        [
            borrow.group,
            f"{borrow.namespace or UNKNOWN}/{borrow.pod}",
            borrow.node,
            "yes" if borrow.member else "no",
            amount(borrow.borrowed, UNKNOWN),
            amount(borrow.mapped, UNKNOWN),
            amount(borrow.limit),
            borrow.level or UNKNOWN if borrow.limit is not None else None,
            borrow.denials,
            sampled(borrow.sampled_at, now, stale=borrow.stale),
        ]
        for borrow in figures.borrows
    ]
    fair = [
        [
            f"{pod.namespace or UNKNOWN}/{pod.pod}",
            pod.node,
            short(pod.fair),
            short(pod.anonymous),
            short(pod.shared),
            short(pod.current),
            sampled(pod.sampled_at, now, stale=pod.stale),
        ]
        for pod in figures.fair_view
    ]
    tables: list[tuple[Sequence[str], Sequence[Sequence[object]]]]
    tables = [(_GROUPS, groups), (_BORROWS, borrows), (_FAIR, fair)]
    filled = [(head, rows) for head, rows in tables if rows]
    if not filled:
        output.remark("No node reports a SharedMemoryGroup.")
    for number, (head, rows) in enumerate(filled):
        sys.stdout.write("\n" if number else "")
        _table(options, head, rows)


_GROUPS = ("GROUP", "NODE", "PHASE", "CHARGE", "ORPHANED", "DEAD", "REASON", "AGE")
_BORROWS = (
    "GROUP",
    "POD",
    "NODE",
    "MEMBER",
    "BORROWED",
    "MAPPED",
    "LIMIT",
    "LEVEL",
    "DENIALS",
    "AGE",
)
_FAIR = ("POD", "NODE", "FAIR", "ANONYMOUS", "SHARED", "CURRENT", "AGE")
_MAY_BE_CUT = ("NAMESPACE", "GROUP", "POD", "NODE", "SOURCES")


def _bounded(age_text: str | None, truncated: bool) -> str | None:
    return f"{age_text or '-'} (lower bound)" if truncated else age_text


def _table(
    options: argparse.Namespace, head: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    sys.stdout.write(
        output.table(
            head,
            rows,
            headers=not options.no_headers,
            width=None if options.output == "wide" else output.terminal_width(),
            cut=[name for name in head if name in _MAY_BE_CUT],
            colours=output.level_colours(),
        )
    )
