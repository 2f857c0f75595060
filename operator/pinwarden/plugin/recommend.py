"""`kubectl pinwarden recommend`: limits for workloads, as a table or as manifests for `kubectl apply -f -`."""

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
from pinwarden.plan.types import Namespace, Node, Pod
from pinwarden.plan.workloads import (
    ObservedPod,
    Recommendation,
    advise,
    advise_limit,
    workload_of,
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
"""The kind of a workload as in `workload_of`, by the names that a user may type."""


class _Target(NamedTuple):
    """The subject of the request: a limit, pod or workload of a namespace, or all of the namespace (None: of all)."""

    namespace: str | None
    limit: str = ""
    pod: str = ""
    workload: str = ""


def run(options: argparse.Namespace) -> None:
    """Print the recommendations."""
    client = PluginClient(options.kubeconfig, options.context)
    namespace = None if options.all_namespaces else options.namespace or client.namespace
    target = _target(options.argument, namespace)
    made = (
        _of_limit(client, target)
        if target.limit
        else _of_workloads(client, target, options.selector)
    )
    if options.output in ("json", "yaml"):
        _emit(made, options.output)
        return
    if not made:
        output.remark(f"No pods found{f' in namespace {namespace}' if namespace else ''}.")
        return
    _print(options, made, everywhere=target.namespace is None)


def _target(argument: str | None, namespace: str | None) -> _Target:
    first, slash, second = (argument or "").partition("/")
    if not slash:
        if argument and namespace is None:
            raise PluginError("a pod by name is of one namespace: give -n instead of -A")
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
            found = reader.items("pods", target.namespace, labelSelector=selector)
            chosen = [raw["metadata"]["uid"] for raw in found]
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
            f"Your user may not list {', '.join(owners.lacking)}: selectors are made of the labels of pods alone."
        )
    return [advise(each) for each in workloads(observed, pods.values())]


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
        made = [
            str((limit.metadata.model_extra or {}).get("creationTimestamp", ""))
            for limit in governing
        ]
        text = max(raw["metadata"]["creationTimestamp"], min(filter(None, made), default=""))
        since = datetime.fromisoformat(text)
    workload = workload_of(raw["metadata"])
    return ObservedPod(
        pod, workload, peak, since, governing, selectors.get((pod.namespace, workload))
    )


def _emit(made: Sequence[Recommendation], form: str) -> None:
    """Print manifests, in YAML with their basis as a comment; print warnings and missing limits to standard error."""
    manifests = [each.manifest for each in made if each.manifest]
    if form == "json":
        output.emit({"apiVersion": "v1", "kind": "List", "items": manifests}, form)
    else:
        for each in made:
            warning = f"# warning: {each.warning}\n" if each.warning else ""
            manifest = output.to_yaml(each.manifest) if each.manifest else ""
            sys.stdout.write(f"---\n# {each.workload}: {each.basis}\n{warning}{manifest}")
    for each in made:
        if not each.manifest:
            output.remark(f"{each.namespace} {each.workload}: {each.basis}")
        if each.warning:
            output.remark(f"{each.namespace} {each.workload}: warning: {each.warning}")


def _print(
    options: argparse.Namespace, made: Sequence[Recommendation], *, everywhere: bool
) -> None:
    now, wide = datetime.now(UTC), options.output == "wide"
    rows = [
        [
            *([each.namespace] if everywhere else []),
            each.workload,
            each.pods,
            each.observed,
            amount(each.peak, UNKNOWN),
            output.age(each.since, now),
            each.current,
            each.limit or ("audit first" if each.manifest else None),
            *([each.basis] if wide else []),
        ]
        for each in made
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
        for each in made:
            output.remark(f"{each.workload}: {each.basis}.")
    for each in made:
        if each.warning:
            output.remark(f"{each.workload}: warning: {each.warning}.")
    if any(each.manifest for each in made):
        output.remark("To apply these, add: -o yaml | kubectl apply -f -")
