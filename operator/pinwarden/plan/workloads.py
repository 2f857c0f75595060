"""Limits for workloads, from what their pods were seen to pin.

A workload is what made a pod: the Deployment, StatefulSet, DaemonSet or Job behind its owner references, or the pod itself. Its selector is
made of the labels that all of its pods have, without those that controllers make up for each pod or each revision.

Agents report governed pods only. So where nothing was observed, the answer is an Audit limit, which refuses nothing and begins to observe.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pinwarden.api.meta import Model
from pinwarden.api.pinlimit import Enforcement, PinLimit, Scope
from pinwarden.api.quantity import Quantity
from pinwarden.plan.amounts import short
from pinwarden.plan.recommend import HEADROOM, recommend
from pinwarden.plan.world import Pod

OBSERVING: Final = "8Mi"
"""The limit of an Audit limit that only observes: what runtimes mostly allow a process."""

_MADE_UP: Final = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-uid",
        "job-name",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
    }
)
_LONGEST_NAME: Final = 63


@dataclass(frozen=True, slots=True)
class Observed:
    """A pod, what made it, and the most that it was seen to pin (None where no agent reports it), since `since` at the earliest."""

    pod: Pod
    workload: str
    peak: int | None = None
    since: datetime | None = None
    limits: Sequence[PinLimit] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """Pods that one controller made."""

    namespace: str
    name: str
    pods: Sequence[Observed]
    others: Sequence[Pod] = field(default=())

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels that all its pods have in common, without what is made up for each."""
        sets = [set(each.pod.labels.items()) for each in self.pods]
        return {key: value for key, value in sorted(set.intersection(*sets)) if key not in _MADE_UP}


class Recommendation(Model):
    """A limit for a workload, and what it is based on. Without `manifest` there is none to apply."""

    namespace: str
    workload: str
    pods: int
    observed: int
    peak: int | None = None
    since: datetime | None = None
    limit: str | None = None
    headroom: float = HEADROOM
    current: str | None = None
    basis: str
    manifest: dict[str, Any] | None = None


def workload_of(metadata: Mapping[str, Any]) -> str:
    """What kubectl calls what made the pod with this metadata, such as `deployment/db`; empty where nothing did.

    The ReplicaSets of a Deployment bear its name and the pod-template-hash of their pods.
    """
    owners = metadata.get("ownerReferences") or ()
    owner = next((each for each in owners if each.get("controller")), None)
    if owner is None or owner["kind"] == "Node":
        return ""
    kind, name = owner["kind"].lower(), owner["name"]
    revision = (metadata.get("labels") or {}).get("pod-template-hash")
    if kind == "replicaset" and revision and name.endswith(f"-{revision}"):
        return f"deployment/{name.removesuffix(f'-{revision}')}"
    return f"{kind}/{name}"


def workloads(observed: Iterable[Observed], everybody: Iterable[Pod]) -> list[Workload]:
    """The workloads of these pods by name; `everybody` are all pods of their namespaces, for limits that would select others too."""
    found: dict[tuple[str, str], list[Observed]] = {}
    for each in observed:
        name = each.workload or f"pod/{each.pod.name}"
        found.setdefault((each.pod.namespace, name), []).append(each)
    everybody = list(everybody)
    return [
        Workload(namespace, name, pods, tuple(_others(pods, everybody)))
        for (namespace, name), pods in sorted(found.items())
    ]


def advise(workload: Workload) -> Recommendation:
    """The limit for a workload."""
    peaks = [each.peak for each in workload.pods if each.peak is not None]
    peak = max(peaks, default=None)
    governing = {limit.metadata.name: limit for each in workload.pods for limit in each.limits}
    amount = recommend(peak)
    made = Recommendation(
        namespace=workload.namespace,
        workload=workload.name,
        pods=len(workload.pods),
        observed=len(peaks),
        peak=peak,
        since=min((each.since for each in workload.pods if each.since), default=None),
        limit=amount,
        current=_current(governing.values()),
        basis="",
    )
    labels = workload.labels
    if not labels:
        return _with(
            made, "its pods have no labels that a limit could select them by: add one to their template"
        )
    if amount is not None:
        also = f"{_held_back(peak or 0, governing.values())}{_also(workload)}"
        basis = f"peak {short(peak or 0)} of {len(peaks)} of {len(workload.pods)} pods, {HEADROOM:.0%} headroom{also}"
        return _with(
            made, basis, _manifest(workload, labels, amount, Enforcement.ENFORCE, governing.values())
        )
    if peak is not None:
        return _with(made, "nothing was seen pinned so far: that teaches nothing")
    if governing:
        return _with(made, f"{', '.join(sorted(governing))} matches, and no agent has reported the pods yet")
    basis = f"nothing was observed yet: agents report governed pods only, so this Audit limit comes first{_also(workload)}"
    return _with(made, basis, _manifest(workload, labels, Quantity(OBSERVING), Enforcement.AUDIT, ()))


def advise_limit(limit: PinLimit) -> Recommendation:
    """The amount for a limit, as its own status recommends it."""
    status = limit.status
    amount = status.recommendation if status else None
    made = Recommendation(
        namespace=limit.metadata.namespace or "",
        workload=f"pinlimit/{limit.metadata.name}",
        pods=(status.matched_pods or 0) if status else 0,
        observed=len(status.top_pods) if status else 0,
        limit=amount,
        current=_current([limit]),
        basis="",
    )
    if amount is None:
        return _with(made, "its status has no recommendation: nothing was seen pinned so far")
    manifest = _of_limit(limit, amount, Enforcement.ENFORCE)
    basis = f"its status recommends it: {HEADROOM:.0%} above the most that a pod was seen to pin, which is not listed there"
    return _with(made, basis, manifest)


def _with(made: Recommendation, basis: str, manifest: dict[str, Any] | None = None) -> Recommendation:
    return made.model_copy(update={"basis": basis, "manifest": manifest})


def _current(limits: Iterable[PinLimit]) -> str | None:
    told = [
        f"{limit.metadata.name} {limit.spec.limit}{' (Audit)' if limit.spec.enforcement is Enforcement.AUDIT else ''}"
        for limit in sorted(limits, key=lambda limit: limit.metadata.name)
    ]
    return ", ".join(told) or None


def _others(pods: Sequence[Observed], everybody: Iterable[Pod]) -> Iterator[Pod]:
    own = {each.pod.uid for each in pods}
    labels = Workload("", "", pods).labels
    for pod in everybody:
        same = pod.namespace == pods[0].pod.namespace and labels.items() <= dict(pod.labels).items()
        if labels and same and pod.uid not in own and not pod.terminal:
            yield pod


def _held_back(peak: int, governing: Iterable[PinLimit]) -> str:
    """That the pods may want more than was seen, because a limit held them (H2)."""
    for limit in sorted(governing, key=lambda limit: limit.metadata.name):
        amount = limit.spec.limit.bytes
        if limit.spec.enforcement is Enforcement.ENFORCE and 0 < amount <= peak + amount // 16:
            does = "held it there" if peak <= amount else "is below that"
            return f"; {limit.metadata.name} ({limit.spec.limit}) {does}, so it may want more"
    return ""


def _also(workload: Workload) -> str:
    count = len(workload.others)
    if not count:
        return ""
    return f"; its selector takes in {count} other pod{'' if count == 1 else 's'}, such as {workload.others[0].name}"


def _manifest(
    workload: Workload,
    labels: Mapping[str, str],
    amount: Quantity,
    enforcement: Enforcement,
    governing: Iterable[PinLimit],
) -> dict[str, Any]:
    """A PinLimit for exactly these labels: the one there is with a new amount, or a new one."""
    for limit in sorted(governing, key=lambda limit: limit.metadata.name):
        if (
            limit.spec.pod_selector.to_wire()
            == {
                "matchLabels": dict(labels),
                "matchExpressions": [],
            }
            and limit.spec.scope is Scope.POD
        ):
            return _of_limit(limit, amount, enforcement)
    name = workload.name.partition("/")[2][:_LONGEST_NAME].rstrip("-.")
    spec = {
        "podSelector": {"matchLabels": dict(labels)},
        "limit": str(amount),
        "enforcement": str(enforcement),
    }
    return _object(workload.namespace, name, spec)


def _of_limit(limit: PinLimit, amount: Quantity, enforcement: Enforcement) -> dict[str, Any]:
    spec = limit.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    changed = {"limit": str(amount), "enforcement": str(enforcement)}
    return _object(limit.metadata.namespace or "", limit.metadata.name, spec | changed)


def _object(namespace: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "pinwarden.io/v1alpha1",
        "kind": "PinLimit",
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }
