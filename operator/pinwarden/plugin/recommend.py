"""`kubectl pinwarden recommend`: limits for workloads, as a table or as manifests."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pinwarden.api.meta import LabelSelector
from pinwarden.api.nodepinconfig import NodePinConfig
from pinwarden.api.pinlimit import PinLimit
from pinwarden.plan.decode import read_pod
from pinwarden.plan.limit_compiler import LimitSettings, matches, rejection
from pinwarden.plan.owners import workload_of
from pinwarden.plan.types import Namespace, Node, Pod
from pinwarden.plan.workloads import (
    ObservedPod,
    Recommendation,
    advise,
    advise_limit,
    workloads,
)
from pinwarden.plugin import fetch, output
from pinwarden.plugin.client import Json, PluginClient
from pinwarden.plugin.errors import PluginError
from pinwarden.plugin.output import UNKNOWN, amount

_HEAD = ("WORKLOAD", "PODS", "OBSERVED", "PEAK", "SINCE", "CURRENT", "RECOMMENDED")
_KINDS = {
    name: kind
    for kind, *names in (
        ("deployment", "deployments", "deploy"),
        ("rollout", "rollouts", "ro"),
        ("statefulset", "statefulsets", "sts"),
        ("daemonset", "daemonsets", "ds"),
        ("replicaset", "replicasets", "rs"),
        ("cronjob", "cronjobs", "cj"),
        ("job", "jobs"),
        ("virtualmachineinstance", "virtualmachineinstances", "vmi"),
        ("sparkapplication", "sparkapplications", "sparkapp"),
        ("spark",),
    )
    for name in (kind, *names)
}
"""The kind of a workload as in `workload_of`, by the names for users."""


class _Target(NamedTuple):
    """The subject of the request: a limit, a pod, a workload, or all workloads of the namespace.

    `namespace` is None for all namespaces.
    """

    namespace: str | None
    limit: str = ""
    pod: str = ""
    workload: str = ""


def run(options: argparse.Namespace) -> None:
    """Print the recommendations."""
    client = PluginClient(options.kubeconfig, options.context)
    namespace = None if options.all_namespaces else options.namespace or client.namespace
    target = _target(options.argument, namespace)
    recommendations = (
        _of_limit(client, target)
        if target.limit
        else _of_workloads(client, target, options.selector)
    )
    if options.output in ("json", "yaml"):
        _emit(recommendations, options.output)
        return
    if not recommendations:
        output.remark(f"No pods found{f' in namespace {namespace}' if namespace else ''}.")
        return
    _print(options, recommendations, everywhere=target.namespace is None)


def _target(argument: str | None, namespace: str | None) -> _Target:
    first, slash, second = (argument or "").partition("/")
    if not slash:
        if argument and namespace is None:
            raise PluginError("a pod name needs one namespace: use -n instead of -A")
        return _Target(namespace, pod=first)
    if first in ("pod", "pods", "po"):
        return _Target(namespace, pod=second)
    if first in ("pinlimit", "pinlimits", "pinl"):
        return _Target(namespace, limit=second)
    if kind := _KINDS.get(first.partition(".")[0].lower()):
        return _Target(namespace, workload=f"{kind}/{second}")
    return _Target(first, limit=second)


def _of_limit(client: PluginClient, target: _Target) -> list[Recommendation]:
    with fetch.ApiReader(client) as reader:
        read = fetch.limits(reader, target.namespace, cluster=False)
    for limit in read.limits:
        if isinstance(limit, PinLimit) and limit.metadata.name == target.limit:
            return [advise_limit(limit)]
    raise PluginError(f'there is no PinLimit "{target.limit}" in namespace {target.namespace}')


def _of_workloads(
    client: PluginClient, target: _Target, selector: str | None
) -> list[Recommendation]:
    with fetch.ApiReader(client) as reader:
        all_pods = {raw["metadata"]["uid"]: raw for raw in reader.items("pods", target.namespace)}
        chosen: Iterable[str] = all_pods
        if selector:
            selected = reader.items("pods", target.namespace, labelSelector=selector)
            chosen = [raw["metadata"]["uid"] for raw in selected]
        limits = fetch.limits(reader, target.namespace, cluster=False).limits
        pods = {uid: read_pod(raw) for uid, raw in all_pods.items()}
        peaks = _peaks(fetch.configs(reader, {pod.node for pod in pods.values()}))
        named = {workload_of(raw["metadata"]) for raw in all_pods.values()}
        owners = fetch.owner_selectors(reader, target.namespace, named)
    if target.workload:
        chosen = [
            uid for uid in chosen if workload_of(all_pods[uid]["metadata"]) == target.workload
        ]
        if not chosen:
            raise PluginError(
                f"there is no pod of {target.workload} in namespace {target.namespace}"
            )
    if target.pod:
        chosen = list(_same_workload(target, all_pods, pods))
    observed = [
        _observed(pods[uid], all_pods[uid], limits, peaks, owners.by_workload)
        for uid in chosen
        if uid in pods and not pods[uid].terminal
    ]
    if owners.lacking:
        output.remark(
            f"Your user may not list {', '.join(owners.lacking)}: "
            "selectors come from the labels of pods only."
        )
    return [advise(workload) for workload in workloads(observed, pods.values())]


def _same_workload(
    target: _Target, raws: Mapping[str, Json], pods: Mapping[str, Pod]
) -> Iterator[str]:
    """Yield the UIDs of all pods of the named pod's workload."""
    uid = next((uid for uid, pod in pods.items() if pod.name == target.pod), None)
    if uid is None:
        raise PluginError(f'there is no pod "{target.pod}" in namespace {target.namespace}')
    workload = workload_of(raws[uid]["metadata"])
    for other, raw in raws.items():
        if other == uid or (workload and workload_of(raw["metadata"]) == workload):
            yield other


def _peaks(configs: Iterable[NodePinConfig]) -> Mapping[tuple[str, str], int]:
    """Return the peaks of pods by node and UID of the cgroup."""
    return {
        (config.metadata.name, report.uid): report.peak
        for config in configs
        if config.status
        for report in config.status.pods
    }


def _observed(
    pod: Pod,
    raw: Json,
    limits: Sequence[object],
    peaks: Mapping[tuple[str, str], int],
    selectors: Mapping[tuple[str, str], LabelSelector],
) -> ObservedPod:
    space, node, settings = Namespace(pod.namespace), Node(pod.node), LimitSettings()
    governing = [
        limit
        for limit in limits
        if isinstance(limit, PinLimit)
        and rejection(limit) is None
        and matches(limit, pod, space, node, settings)
    ]
    peak = peaks.get((pod.node, pod.cgroup_uid))
    since = None
    if peak is not None:
        created = [
            str((limit.metadata.model_extra or {}).get("creationTimestamp", ""))
            for limit in governing
        ]
        text = max(raw["metadata"]["creationTimestamp"], min(filter(None, created), default=""))
        since = datetime.fromisoformat(text)
    workload = workload_of(raw["metadata"])
    return ObservedPod(
        pod, workload, peak, since, governing, selectors.get((pod.namespace, workload))
    )


def _emit(recommendations: Sequence[Recommendation], form: str) -> None:
    """Print the manifests; print warnings and missing limits to standard error."""
    manifests = [advice.manifest for advice in recommendations if advice.manifest]
    if form == "json":
        output.emit({"apiVersion": "v1", "kind": "List", "items": manifests}, form)
    else:
        for advice in recommendations:
            warning = f"# warning: {advice.warning}\n" if advice.warning else ""
            manifest = output.to_yaml(advice.manifest) if advice.manifest else ""
            sys.stdout.write(f"---\n# {advice.workload}: {advice.basis}\n{warning}{manifest}")
    for advice in recommendations:
        if not advice.manifest:
            output.remark(f"{advice.namespace} {advice.workload}: {advice.basis}")
        if advice.warning:
            output.remark(f"{advice.namespace} {advice.workload}: warning: {advice.warning}")


def _print(
    options: argparse.Namespace, recommendations: Sequence[Recommendation], *, everywhere: bool
) -> None:
    now, wide = datetime.now(UTC), options.output == "wide"
    rows = [
        [
            *([advice.namespace] if everywhere else []),
            advice.workload,
            advice.pods,
            advice.observed,
            amount(advice.peak, UNKNOWN),
            output.age(advice.since, now),
            advice.current,
            advice.limit or ("audit first" if advice.manifest else None),
            *([advice.basis] if wide else []),
        ]
        for advice in recommendations
    ]
    head = [*(["NAMESPACE"] if everywhere else []), *_HEAD, *(["BASIS"] if wide else [])]
    sys.stdout.write(
        output.table(
            head,
            rows,
            headers=not options.no_headers,
            width=None if wide else output.terminal_width(),
            cut=["WORKLOAD", "CURRENT"],
        )
    )
    if not wide:
        for advice in recommendations:
            output.remark(f"{advice.workload}: {advice.basis}.")
    for advice in recommendations:
        if advice.warning:
            output.remark(f"{advice.workload}: warning: {advice.warning}.")
    if any(advice.manifest for advice in recommendations):
        output.remark("To apply these, add: -o yaml | kubectl apply -f -")
