"""Build the spec of one node's NodePinConfig from its pods, limits and groups.

The spec lists every pod of the node, pods without limits too. So the agent can distinguish a pod
without limits from an unknown pod. A pod is listed with its own UID, a static pod also with the
hash of its configuration. If several pods name one hash, the limits of all of them apply to this
cgroup (P13). Their grants do not apply, because only one of the pods may own the cgroup (P14).

The object must fit into the API server. So a pod has at most `MAX_POD_LIMITS` limits, and a node at
most `MAX_NODE_LIMITS` limits and `MAX_NODE_PODS` pods, each with a budget of bytes. An author of
many limits or pods takes no room from others. ClusterPinLimits come before PinLimits, and pods with
limits before pods without. The rest of the room is shared fairly between namespaces. The status
names pods without one of their limits.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pinwarden.api.nodepinconfig import NodeLimit, NodePinConfigSpec, NodePod, PodContainer
from pinwarden.plan.fairness import select_fairly
from pinwarden.plan.group_allowlist import Permission
from pinwarden.plan.group_compiler import NOWHERE, Group, Presence, groups_on, node_groups
from pinwarden.plan.limit_compiler import (
    Limit,
    LimitSet,
    LimitSettings,
    limit_name,
    matches,
    rejection,
)
from pinwarden.plan.limited_namespaces import LimitedNamespaces, NamespaceScope
from pinwarden.plan.types import Namespace, Node, Pod

MAX_NODE_LIMITS = 1024
MAX_NODE_LIMIT_BYTES = 384 << 10
MAX_NODE_PODS = 4096
MAX_NODE_POD_BYTES = 512 << 10
_LIMIT_BYTES = 320  # a limit as JSON, without its texts and lists
_ENTRY_BYTES = 48  # a pod or a container as JSON, without its texts and lists


class Overflow(NamedTuple):
    """The entries left out of a full spec: limits (`limits_cut`), and the UIDs of cgroups."""

    limits_cut: bool = False
    unlisted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Cgroup:
    """A candidate for the spec: the limits of a cgroup, and the ids of its containers by name."""

    namespace: str
    limit_set: LimitSet
    containers: Mapping[str, str | None]

    @property
    def size(self) -> int:
        """The approximate bytes as JSON, rounded up."""
        size = 2 * _ENTRY_BYTES + self.limit_set.size
        if self.limit_set.by_container:
            ids = self.containers.items()
            size += sum(_ENTRY_BYTES + len(name) + len(identity or "") for name, identity in ids)
        return size


def compile_node(
    node: Node,
    pods: Iterable[Pod],
    namespaces: Mapping[str, Namespace],
    limits: Sequence[Limit],
    settings: LimitSettings,
    groups: Iterable[Group] = (),
    presence: Presence = NOWHERE,
) -> NodePinConfigSpec:
    """Return the spec of the node's NodePinConfig, which does not depend on the order of the input.

    A pod of an unknown namespace is matched as if the namespace had only its name as label.
    Terminal pods and pods for Windows are left out. `presence` says which groups stay without a
    member pod.
    """
    usable = [limit for limit in limits if rejection(limit) is None]

    def limit_set(pod: Pod) -> LimitSet:
        namespace = namespaces.get(pod.namespace) or Namespace(pod.namespace)
        return LimitSet.of(
            [limit for limit in usable if matches(limit, pod, namespace, node, settings)]
        )

    live = mark_contested(pod for pod in pods if not (pod.terminal or pod.windows))
    groups = list(groups)
    placed = groups_on(groups, [] if node.windows else live, namespaces, presence)
    limited = ((pod, limit_set(pod)) for pod in live)
    selectable = LimitedNamespaces(settings)
    for limit in usable:
        selectable.put_limit(limit_name(limit), limit)
    for group in groups:
        selectable.put_group(group.name, group)
    scope = selectable.scope
    return assemble(limited, placed, settings, scope, windows=node.windows)[0]


def mark_contested(pods: Iterable[Pod]) -> list[Pod]:
    """Return the pods of one node, with `contested` set if another pod names the same cgroup."""
    pods = list(pods)
    counts = Counter(pod.cgroup_uid for pod in pods if pod.cgroup_uid != pod.uid)
    return [replace(pod, contested=True) if counts[pod.cgroup_uid] > 1 else pod for pod in pods]


def assemble(
    limited: Iterable[tuple[Pod, LimitSet]],
    groups: Sequence[tuple[Group, Permission]],
    settings: LimitSettings,
    scope: NamespaceScope,
    *,
    windows: bool = False,
) -> tuple[NodePinConfigSpec, Overflow]:
    """Return the spec of a node with these pods, limits and groups; and its overflow."""
    limited = list(limited)
    members = [] if windows else [pod for pod, _ in limited]
    cgroups = _by_cgroup(limited)
    limit_sets = {id(cgroup.limit_set): cgroup.limit_set for cgroup in cgroups.values()}
    wanted = {
        name: limit for limit_set in limit_sets.values() for name, limit in limit_set.limits.items()
    }
    within_count = select_fairly(sorted(wanted), MAX_NODE_LIMITS)
    sizes = {name: _limit_size(wanted[name]) for name in sorted(within_count)}
    limits = {
        name: wanted[name] for name in select_fairly(list(sizes), MAX_NODE_LIMIT_BYTES, sizes)
    }
    listed = frozenset(_select_cgroups(cgroups))
    pods = []
    for uid, cgroup in cgroups.items():
        if uid not in listed:
            continue
        names = sorted(cgroup.containers) if cgroup.limit_set.by_container else []
        pods.append(
            NodePod(
                uid=uid,
                limits=[name for name in cgroup.limit_set.limits if name in limits],
                containers=[PodContainer(name=name, id=cgroup.containers[name]) for name in names],
            )
        )
    spec = NodePinConfigSpec(
        unknown_pods=settings.unknown_pods,
        limits=sorted(limits.values(), key=lambda limit: limit.name),
        pods=sorted(pods, key=lambda pod: pod.uid),
        groups=node_groups(groups, members, listed) if groups else [],
        limited_namespaces=None if scope.limited is None else list(scope.limited),
        exempt_namespaces=list(scope.exempt),
    )
    return spec, Overflow(len(limits) < len(wanted), frozenset(cgroups.keys() - listed))


def _by_cgroup(limited: Iterable[tuple[Pod, LimitSet]]) -> dict[str, _Cgroup]:
    """Return each possible cgroup of the pods by UID."""
    claims: dict[str, list[tuple[Pod, LimitSet]]] = {}
    cgroups: dict[str, _Cgroup] = {}
    for pod, limit_set in limited:
        for uid in pod.cgroup_uids:
            cgroups[uid] = _Cgroup(pod.namespace, limit_set, pod.containers)
        if pod.contested:
            claims.setdefault(pod.cgroup_uid, []).append((pod, limit_set))
    for uid, claimants in claims.items():
        limit_set = LimitSet.union(limit_set for _, limit_set in claimants)
        containers = _agreed([pod.containers for pod, _ in claimants])
        cgroups[uid] = _Cgroup(claimants[0][0].namespace, limit_set, containers)
    return cgroups


def _select_cgroups(cgroups: Mapping[str, _Cgroup]) -> Iterable[str]:
    """Return the UIDs with room: cgroups with limits first, then fairly between namespaces."""
    sizes = {uid: cgroup.size for uid, cgroup in cgroups.items()}
    count_left, bytes_left = MAX_NODE_PODS, MAX_NODE_POD_BYTES
    if len(sizes) <= count_left and sum(sizes.values()) <= bytes_left:
        return cgroups.keys()
    selected: list[str] = []
    for has_limits in (True, False):
        uids = sorted(
            uid for uid, cgroup in cgroups.items() if bool(cgroup.limit_set.limits) == has_limits
        )
        named = {f"{cgroups[uid].namespace}/{uid}": sizes[uid] for uid in uids}
        within_count = select_fairly(list(named), count_left)
        names = select_fairly([name for name in named if name in within_count], bytes_left, named)
        count_left -= len(names)
        bytes_left -= sum(named[name] for name in names)
        selected += (name.rpartition("/")[2] for name in names)
    return selected


def _limit_size(limit: NodeLimit) -> int:
    """Return the approximate bytes of a limit as JSON, rounded up."""
    containers = sum(len(name) + 3 for name in limit.containers)
    return _LIMIT_BYTES + len(limit.name) + len(limit.uid) + containers


def _agreed(parts: Sequence[Mapping[str, str | None]]) -> Mapping[str, str | None]:
    """Return all containers by name, with an id only if all parts agree on it."""
    names = {name for part in parts for name in part}
    ids = {name: {part[name] for part in parts if name in part} for name in names}
    return {name: next(iter(known)) if len(known) == 1 else None for name, known in ids.items()}
