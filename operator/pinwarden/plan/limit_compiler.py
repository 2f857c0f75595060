"""From limits and pods to what one node shall hold.

Every limit that selects a pod of the node is a constraint on it, and all hold at once (P13); nothing is dropped because another limit
looks stronger. A grant reaches as far as the least of its own limit and the largest `maxGrant` of the ceilings that select the same pod:
a namespace's grant without such a ceiling gives nothing (P14). An administrator's own grant needs no other's leave.

What a grant may give depends on the pod, so a limit whose pods differ in it stands in the spec once per amount, told apart by a suffix.
Every pod of the node is listed, the free ones without limits, so that the agent can tell a free pod from one that it does not know yet.
A pod is listed by its own UID, and a static pod by its hash too. Where several pods name one hash, the limits of all of them hold for that
cgroup (P13), and no grant of theirs does, as only one of them may be the owner (P14).

An object must fit in the API server, so a pod has at most `MAX_POD_LIMITS` limits, and a node `MAX_NODE_LIMITS` and `MAX_NODE_PODS` pods,
or as many as the bytes for them hold. Who makes more than that crowds out nobody else: ceilings come before other limits, governed pods
before free ones, and of the rest each namespace has its turn. Status names the pods that a limit does not reach.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from pinwarden import SYSTEM_NAMESPACE
from pinwarden.api.nodepinconfig import NodeLimit, NodePinConfigSpec, NodePod, PodContainer
from pinwarden.api.pinlimit import ClusterPinLimit, Counting, OnOvershoot, PinLimit, Scope, Source
from pinwarden.api.quantity import MAX_BYTES
from pinwarden.plan.conditions import Rejection, selects_nothing
from pinwarden.plan.fairness import select_fairly
from pinwarden.plan.group_allowlist import Permission
from pinwarden.plan.group_compiler import NOWHERE, Group, Presence, groups_on, node_groups
from pinwarden.plan.selectors import names_value, selects
from pinwarden.plan.types import NAME_LABEL, Namespace, Node, Pod

Limit = PinLimit | ClusterPinLimit

MAX_POD_LIMITS = 32
MAX_NODE_LIMITS = 1024
MAX_NODE_LIMIT_BYTES = 384 << 10
MAX_NODE_PODS = 4096
MAX_NODE_POD_BYTES = 512 << 10
_LIMIT_BYTES = 320  # of one as JSON, without its texts and lists
_ENTRY_BYTES = 48  # the same of a pod or a container


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator's owner chose.

    `exempt` are the namespaces that a ClusterPinLimit reaches only when it names them; `unknown_pods` is the limit in bytes for pods
    that a node does not know yet, None to leave them alone.
    """

    exempt: frozenset[str] = frozenset({"kube-system", SYSTEM_NAMESPACE})
    unknown_pods: int | None = None


def rejection(limit: Limit) -> Rejection | None:
    """What this release cannot do for `limit`, None when it can do all of it."""
    if limit.spec.counting is Counting.ONCE_PER_POD:
        return Rejection("NotSupported", "spec.counting: OncePerPod needs a ledger per page; use EveryPin")
    if limit.spec.on_overshoot is OnOvershoot.KILL:
        return Rejection("NotSupported", "spec.onOvershoot: Kill needs a gate in the kernel; use Report")
    if limit.spec.grant and limit.spec.sources and set(limit.spec.sources) != set(Source):
        return Rejection(
            "NotSupported",
            "spec.sources: RLIMIT_MEMLOCK cannot tell sources apart, so a grant for some would raise all; leave sources out",
        )
    if problem := _selects_nothing(limit):
        return problem
    amounts = {"limit": limit.spec.limit}
    if isinstance(limit, ClusterPinLimit) and limit.spec.max_grant is not None:
        amounts["maxGrant"] = limit.spec.max_grant
    for field, amount in amounts.items():
        try:
            if amount.bytes > MAX_BYTES:
                return Rejection("Invalid", f"spec.{field}: {amount} is above 4Pi")
        except ValueError as error:
            return Rejection("Invalid", f"spec.{field}: {error}")
    return None


def _selects_nothing(limit: Limit) -> Rejection | None:
    selectors = {"podSelector": limit.spec.pod_selector}
    if isinstance(limit, ClusterPinLimit):
        selectors |= {
            "namespaceSelector": limit.spec.namespace_selector,
            "nodeSelector": limit.spec.node_selector,
        }
    return next((found for field, one in selectors.items() if (found := selects_nothing(field, one))), None)


def limit_name(limit: Limit) -> str:
    """`namespace/name` of a PinLimit, `name` of a ClusterPinLimit: the two never clash."""
    if isinstance(limit, PinLimit):
        return f"{limit.metadata.namespace}/{limit.metadata.name}"
    return limit.metadata.name


def matches(limit: Limit, pod: Pod, namespace: Namespace, node: Node, settings: Settings) -> bool:
    """Whether `limit` holds for `pod`, which lives in `namespace` and runs on `node`."""
    return (
        not (pod.windows or node.windows)
        and selects(limit.spec.pod_selector, pod.labels)
        and reaches_namespace(limit, namespace, settings)
        and reaches_node(limit, node)
    )


def reaches_namespace(limit: Limit, namespace: Namespace, settings: Settings) -> bool:
    """Whether `limit` can hold for pods of `namespace`: an exempt one only where a ClusterPinLimit names it."""
    if isinstance(limit, PinLimit):
        return limit.metadata.namespace == namespace.name
    selector = limit.spec.namespace_selector
    if namespace.name in settings.exempt and not names_value(selector, NAME_LABEL, namespace.name):
        return False
    return selects(selector, {**namespace.labels, NAME_LABEL: namespace.name})


def reaches_node(limit: Limit, node: Node) -> bool:
    """Whether `limit` can hold for pods of `node`."""
    return isinstance(limit, PinLimit) or selects(limit.spec.node_selector, node.labels)


def compile_node(
    node: Node,
    pods: Iterable[Pod],
    namespaces: Mapping[str, Namespace],
    limits: Sequence[Limit],
    settings: Settings,
    groups: Iterable[Group] = (),
    presence: Presence = NOWHERE,
) -> NodePinConfigSpec:
    """The spec of `node`'s NodePinConfig, from its pods; the same for the same input in any order. `presence` is what it tells of groups.

    A pod whose namespace is not known is matched as if the namespace had no labels but its name. A terminal pod, and one for Windows, is
    left out.
    """
    usable = [limit for limit in limits if rejection(limit) is None]

    def hold(pod: Pod) -> LimitSet:
        namespace = namespaces.get(pod.namespace) or Namespace(pod.namespace)
        return LimitSet.of([limit for limit in usable if matches(limit, pod, namespace, node, settings)])

    live = mark_contested(pod for pod in pods if not (pod.terminal or pod.windows))
    there = groups_on(groups, [] if node.windows else live, namespaces, presence)
    return assemble(((pod, hold(pod)) for pod in live), there, settings)[0]


def mark_contested(pods: Iterable[Pod]) -> list[Pod]:
    """The pods of one node, each with whether another one names the same cgroup."""
    pods = list(pods)
    counts = Counter(pod.cgroup_uid for pod in pods if pod.cgroup_uid != pod.uid)
    return [replace(pod, contested=True) if counts[pod.cgroup_uid] > 1 else pod for pod in pods]


@dataclass(frozen=True)
class LimitSet:
    """What holds for a pod: the constraints of all limits that match it, by name, and whether one of them is per container."""

    limits: Mapping[str, NodeLimit]
    by_container: bool

    @cached_property
    def size(self) -> int:
        """About how many bytes the names of the limits take as JSON in the entry of a pod."""
        return sum(len(name) + 3 for name in self.limits)

    @classmethod
    def of(cls, matching: Sequence[Limit]) -> "LimitSet":
        """What the `matching` limits make together: what a grant gives depends on all of them (P14)."""
        first = sorted(matching, key=lambda limit: (isinstance(limit, PinLimit), limit_name(limit)))
        limits = [node_limit(limit, effective_grant(limit, matching)) for limit in first[:MAX_POD_LIMITS]]
        return cls(
            {limit.name: limit for limit in sorted(limits, key=lambda limit: limit.name)},
            any(limit.scope is Scope.CONTAINER for limit in limits),
        )

    @classmethod
    def together(cls, holds: Iterable["LimitSet"]) -> "LimitSet":
        """What holds for a cgroup that several pods claim: the limits of all of them, none of which raises anything."""
        holds = list(holds)
        limits = {limit.name: limit for hold in holds for limit in map(_without_grant, hold.limits.values())}
        first = sorted(limits, key=lambda name: ("/" in name, name))[:MAX_POD_LIMITS]
        return cls({name: limits[name] for name in sorted(first)}, any(hold.by_container for hold in holds))


def _without_grant(limit: NodeLimit) -> NodeLimit:
    """The same constraint with a grant of 0, under the name that such a one has."""
    if limit.grant in (None, 0):
        return limit
    return NodeLimit(**dict(limit) | {"name": f"{limit.name.partition('@')[0]}@0", "grant": 0})


class Overflow(NamedTuple):
    """What of a node's pods and limits is not in its spec: whether there are limits (`full`), and the UIDs of the `unlisted` cgroups."""

    full: bool = False
    unlisted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Listed:
    """A cgroup that the spec may have: what holds for it, and the ids of its containers by their names."""

    namespace: str
    hold: LimitSet
    containers: Mapping[str, str | None]

    @property
    def size(self) -> int:
        """About how many bytes it takes as JSON, rather more."""
        size = 2 * _ENTRY_BYTES + self.hold.size
        if self.hold.by_container:
            ids = self.containers.items()
            size += sum(_ENTRY_BYTES + len(name) + len(identity or "") for name, identity in ids)
        return size


def _by_cgroup(held: Iterable[tuple[Pod, LimitSet]]) -> dict[str, _Listed]:
    """By UID, each cgroup that one of the pods may have."""
    claims: dict[str, list[tuple[Pod, LimitSet]]] = {}
    found: dict[str, _Listed] = {}
    for pod, hold in held:
        for uid in pod.cgroup_uids:
            found[uid] = _Listed(pod.namespace, hold, pod.containers)
        if pod.contested:
            claims.setdefault(pod.cgroup_uid, []).append((pod, hold))
    for uid, claimants in claims.items():
        hold = LimitSet.together(hold for _, hold in claimants)
        containers = _agreed([pod.containers for pod, _ in claimants])
        found[uid] = _Listed(claimants[0][0].namespace, hold, containers)
    return found


def _fitting(cgroups: Mapping[str, _Listed]) -> Iterable[str]:
    """The UIDs that there is room for: governed ones first, and each namespace in its turn."""
    sizes = {uid: each.size for uid, each in cgroups.items()}
    left, left_bytes = MAX_NODE_PODS, MAX_NODE_POD_BYTES
    if len(sizes) <= left and sum(sizes.values()) <= left_bytes:
        return cgroups.keys()
    fitting: list[str] = []
    for governed in (True, False):
        uids = sorted(uid for uid, each in cgroups.items() if bool(each.hold.limits) == governed)
        named = {f"{cgroups[uid].namespace}/{uid}": sizes[uid] for uid in uids}
        counted = select_fairly(list(named), left)
        names = select_fairly([name for name in named if name in counted], left_bytes, named)
        left -= len(names)
        left_bytes -= sum(named[name] for name in names)
        fitting += (name.rpartition("/")[2] for name in names)
    return fitting


def _limit_size(limit: NodeLimit) -> int:
    """About how many bytes it takes as JSON, rather more."""
    return _LIMIT_BYTES + len(limit.name) + len(limit.uid) + sum(len(name) + 3 for name in limit.containers)


def _agreed(parts: Sequence[Mapping[str, str | None]]) -> Mapping[str, str | None]:
    """All containers by name; an id only where the parts do not contradict each other."""
    names = {name for part in parts for name in part}
    ids = {name: {part[name] for part in parts if name in part} for name in names}
    return {name: next(iter(found)) if len(found) == 1 else None for name, found in ids.items()}


def assemble(
    held: Iterable[tuple[Pod, LimitSet]], groups: Sequence[tuple[Group, Permission]], settings: Settings
) -> tuple[NodePinConfigSpec, Overflow]:
    """The spec of a node with these pods, each with what holds for it, and with these groups; and what found no room in it."""
    held = list(held)
    cgroups = _by_cgroup(held)
    holds = {id(each.hold): each.hold for each in cgroups.values()}
    found = {name: limit for hold in holds.values() for name, limit in hold.limits.items()}
    counted = select_fairly(sorted(found), MAX_NODE_LIMITS)
    sizes = {name: _limit_size(found[name]) for name in sorted(counted)}
    limits = {name: found[name] for name in select_fairly(list(sizes), MAX_NODE_LIMIT_BYTES, sizes)}
    listed = frozenset(_fitting(cgroups))
    pods = []
    for uid, each in cgroups.items():
        if uid not in listed:
            continue
        names = sorted(each.containers) if each.hold.by_container else []
        pods.append(
            NodePod(
                uid=uid,
                limits=[name for name in each.hold.limits if name in limits],
                containers=[PodContainer(name=name, id=each.containers[name]) for name in names],
            )
        )
    spec = NodePinConfigSpec(
        unknown_pods=settings.unknown_pods,
        limits=sorted(limits.values(), key=lambda limit: limit.name),
        pods=sorted(pods, key=lambda pod: pod.uid),
        groups=node_groups(groups, [pod for pod, _ in held], listed) if groups else [],
    )
    return spec, Overflow(len(limits) < len(found), frozenset(cgroups.keys() - listed))


def effective_grant(limit: Limit, matching: Sequence[Limit]) -> int | None:
    """How far `limit` may raise a pod under the `matching` limits, in bytes; None when it is no grant (P14)."""
    if not limit.spec.grant:
        return None
    if isinstance(limit, ClusterPinLimit):
        return limit.spec.limit.bytes
    allowed = [
        other.spec.max_grant.bytes
        for other in matching
        if isinstance(other, ClusterPinLimit) and other.spec.max_grant is not None
    ]
    return min(limit.spec.limit.bytes, max(allowed, default=0))


def node_limit(limit: Limit, grant: int | None) -> NodeLimit:
    """`limit` as the agent reads it, with what it grants."""
    spec = limit.spec
    name = limit_name(limit)
    return NodeLimit(
        name=name if grant is None or grant == spec.limit.bytes else f"{name}@{grant}",
        uid=limit.metadata.uid or "",
        scope=spec.scope,
        limit=spec.limit.bytes,
        containers=sorted(spec.containers),
        counting=spec.counting,
        sources=sorted(spec.sources),
        enforcement=spec.enforcement,
        minimum_level=spec.minimum_level,
        contention=spec.contention,
        grant=grant,
    )
