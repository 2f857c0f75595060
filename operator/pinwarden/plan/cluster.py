"""Index of the cluster: an event costs as much as the concerned objects, not the whole cluster.

The controller puts each observed object into a `Cluster`. The answer names the nodes whose spec,
and the limits and groups whose status, may differ now. Each answer depends only on the known
objects, not on the order of events: `compiled` equals `compile_node` over all known objects.

A terminal or unscheduled pod, or a pod for Windows, counts as absent. A pod may arrive before its
node or namespace. Until then the pod is matched as if the node had no labels, and as if the
namespace had only its name as label. For limits, a removed namespace keeps its labels until its
last pod is removed.
"""

from collections.abc import Iterable, KeysView, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.api.pinlimit import PinLimit, Scope
from pinwarden.plan.combinations import Combination, PodsByCombination
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.dirty import CLEAN, Dirty
from pinwarden.plan.group_compiler import Group, Presence
from pinwarden.plan.group_index import GroupIndex
from pinwarden.plan.limit_compiler import Limit, LimitSet, LimitSettings, limit_name, rejection
from pinwarden.plan.limit_matcher import LimitMatcher
from pinwarden.plan.limit_overrides import overriding
from pinwarden.plan.limited_namespaces import LimitedNamespaces
from pinwarden.plan.node_spec import Overflow, assemble
from pinwarden.plan.sets import discard
from pinwarden.plan.types import Namespace, Node, Pod


@dataclass(slots=True)
class _Entry:
    pod: Pod
    matching: Combination


class Cluster:
    """Pods, nodes, namespaces, limits and groups; each `put_*` and `remove_*` returns a `Dirty`.

    A `put_*` without a change and a `remove_*` of an unknown object return `CLEAN`. A `Cluster`
    does no I/O, never blocks, and belongs to one thread (the event loop). The key of a pod is the
    UID of the API object, the key of a limit is `limit_name`.
    """

    def __init__(self, settings: LimitSettings | None = None) -> None:
        self._settings = settings or LimitSettings()
        self._matcher = LimitMatcher(self._settings)
        self._limits: dict[str, Limit] = {}
        self._rejections: dict[str, Rejection] = {}
        self._limit_sets: dict[Combination, LimitSet] = {}
        self._pods: dict[str, _Entry] = {}
        self._by_node: dict[str, set[str]] = {}
        self._by_namespace: dict[str, set[str]] = {}
        self._by_combination = PodsByCombination()
        self._claims: dict[tuple[str, str], set[str]] = {}
        self._group_index = GroupIndex()
        self._limited = LimitedNamespaces(self._settings)
        self._removed_namespaces: set[str] = set()

    # -- changes -------------------------------------------------------------------------------

    def put_pod(self, pod: Pod) -> Dirty:
        """Add or replace a pod; the `Cluster` sets `contested`."""
        if pod.terminal or pod.windows or not pod.node:
            return self.remove_pod(pod.uid)
        old = self._pods.get(pod.uid)
        if old is not None and (old.pod.node, old.pod.namespace) != (pod.node, pod.namespace):
            return self.remove_pod(pod.uid) | self.put_pod(pod)
        unclaimed = (
            self._unclaim(old.pod) if old and old.pod.cgroup_uid != pod.cgroup_uid else CLEAN
        )
        claimants = self._claims.get(_claim(pod), set()) - {pod.uid}
        changed = self._put_pod(replace(pod, contested=True) if claimants else pod)
        return unclaimed | changed | self._claim(pod)

    def _put_pod(self, pod: Pod) -> Dirty:
        old = self._pods.get(pod.uid)
        if old is not None and old.pod == pod:
            return CLEAN
        new = _Entry(pod, self._matcher.match(pod))
        self._pods[pod.uid] = new
        if old is None:
            self._by_node.setdefault(pod.node, set()).add(pod.uid)
            self._by_namespace.setdefault(pod.namespace, set()).add(pod.uid)
            self._by_combination.add(pod.uid, new.matching)
            groups = self._group_index.put_pod(None, pod)
            return self._dirty([pod.node], new.matching) | self._known(groups)
        self._by_combination.move(pod.uid, old.matching, new.matching)
        limits = (
            {*old.matching, *new.matching} if _status_fields(old) != _status_fields(new) else ()
        )
        changed = self._spec_fields(old) != self._spec_fields(new)
        groups = self._group_index.put_pod(old.pod, pod)
        return self._dirty([pod.node] if changed else [], limits) | self._known(groups)

    def remove_pod(self, uid: str) -> Dirty:
        """Remove the pod with this API UID."""
        entry = self._pods.pop(uid, None)
        if entry is None:
            return CLEAN
        discard(self._by_node, entry.pod.node, uid)
        discard(self._by_namespace, entry.pod.namespace, uid)
        self._drop_namespace_without_pods(entry.pod.namespace)
        self._by_combination.remove(uid, entry.matching)
        groups = self._known(self._group_index.remove_pod(entry.pod))
        return self._dirty([entry.pod.node], entry.matching) | groups | self._unclaim(entry.pod)

    def put_node(self, node: Node) -> Dirty:
        """Add or replace a node; only its name and labels matter."""
        old = self._matcher.nodes.get(node.name)
        if old == node:
            return CLEAN
        self._matcher.put_node(node)
        dirty = CLEAN
        if old is None:
            dirty = self._dirty([node.name], self.limits_on(node.name), self.groups_on(node.name))
        return dirty | self._apply_labels(node)

    def remove_node(self, name: str) -> Dirty:
        """Remove a node; its pods stay, on an unknown node, until they are deleted."""
        if name not in self._matcher.nodes:
            return CLEAN
        self._matcher.remove_node(name)
        dirty = self._dirty([], self.limits_on(name), self.groups_on(name))
        return dirty | self._apply_labels(Node(name))

    def put_namespace(self, namespace: Namespace) -> Dirty:
        """Add or replace a namespace."""
        removed = namespace.name in self._removed_namespaces
        if not removed and self._matcher.namespaces.get(namespace.name) == namespace:
            return CLEAN
        self._removed_namespaces.discard(namespace.name)
        self._matcher.put_namespace(namespace)
        groups = self._known(self._group_index.put_namespace(namespace))
        return self._rematch(self._by_namespace.get(namespace.name, ())) | groups

    def remove_namespace(self, name: str) -> Dirty:
        """Remove a namespace; limits see its labels until its last pod is removed.

        Processes of these pods still run and must stay limited (H3).
        """
        if name not in self._matcher.namespaces or name in self._removed_namespaces:
            return CLEAN
        self._removed_namespaces.add(name)
        self._drop_namespace_without_pods(name)
        return self._known(self._group_index.put_namespace(Namespace(name)))

    def _drop_namespace_without_pods(self, name: str) -> None:
        if name in self._removed_namespaces and name not in self._by_namespace:
            self._removed_namespaces.discard(name)
            self._matcher.remove_namespace(name)

    def put_limit(self, limit: Limit) -> Dirty:
        """Add or replace a limit; return `CLEAN` if neither spec nor UID changed.

        A rejected limit (`rejection`) matches no pod.
        """
        name = limit_name(limit)
        old = self._limits.get(name)
        self._limits[name] = limit
        if old is not None and (old.spec, old.metadata.uid) == (limit.spec, limit.metadata.uid):
            return CLEAN
        before = self._concerned(name)
        rejected = rejection(limit)
        self._limit_sets.clear()
        if rejected is None:
            self._rejections.pop(name, None)
            self._matcher.put_limit(name, limit)
        else:
            self._rejections[name] = rejected
            self._matcher.remove_limit(name, limit)
        self._rematch(self._candidates(limit))
        scope = self._limited.put_limit(name, None if rejected else limit)
        return self._dirty([], [name]) | before | self._concerned(name) | scope

    def remove_limit(self, name: str) -> Dirty:
        """Remove a limit; the answer has its name, so the caller can forget the limit."""
        limit = self._limits.pop(name, None)
        if limit is None:
            return CLEAN
        before = self._concerned(name)
        self._rejections.pop(name, None)
        self._limit_sets.clear()
        self._matcher.remove_limit(name, limit)
        self._rematch(list(self._by_combination.pods_with_limit(name)))
        return self._dirty([], [name]) | before | self._limited.put_limit(name, None)

    def put_group(self, group: Group) -> Dirty:
        """Add or replace a group; return `CLEAN` if no field of the rules changed."""
        pods = [self._pods[uid].pod for uid in self._by_namespace.get(group.namespace, ())]
        changed = self._group_index.put_group(group, pods, self.namespace(group.namespace))
        return self._known(changed) | self._limited.put_group(group.name, group)

    def remove_group(self, name: str) -> Dirty:
        """Remove a group; the answer has its name, so the caller can forget the group."""
        namespace = self.namespace(name.partition("/")[0])
        removed = self._group_index.remove_group(name, namespace)
        return self._known(removed) | self._limited.put_group(name, None)

    def put_presence(self, node: str, presence: Presence) -> Dirty:
        """Record why groups stay on a node without a member pod."""
        return self._known(self._group_index.put_presence(node, presence))

    # -- queries -------------------------------------------------------------------------------

    @property
    def nodes(self) -> KeysView[str]:
        """Names of the known nodes."""
        return self._matcher.nodes.keys()

    @property
    def limits(self) -> Mapping[str, Limit]:
        """The limits by name, also rejected limits."""
        return self._limits

    def rejection(self, name: str) -> Rejection | None:
        """Return why pinwarden does not act on the limit, None if it does."""
        return self._rejections.get(name)

    def compiled(self, node: str) -> tuple[NodePinConfigSpec, Overflow]:
        """Return the spec of the node's NodePinConfig and its overflow.

        Each call compiles again. 5,000 specs of 30 pods take 300 MB, so keep a digest to compare.

        Raises:
            KeyError: the node is unknown.
        """
        windows = self._matcher.nodes[node].windows
        entries = (self._pods[uid] for uid in self._by_node.get(node, ()))
        limited = ((entry.pod, self._limit_set(entry.matching)) for entry in entries)
        groups = self._group_index.placed_on(node)
        return assemble(limited, groups, self._settings, self._limited.scope, windows=windows)

    def pod(self, uid: str) -> Pod | None:
        """Return the pod with this API UID, None if unknown."""
        entry = self._pods.get(uid)
        return entry.pod if entry else None

    def pods_on(self, node: str) -> Sequence[Pod]:
        """Return the pods of the node in any order."""
        return [self._pods[uid].pod for uid in self._by_node.get(node, ())]

    def claimants(self, node: str, cgroup_uid: str) -> Set[str]:
        """Return the UIDs of the node's pods with this cgroup in the annotation of mirror pods."""
        return self._claims.get((node, cgroup_uid), frozenset())

    def limits_on(self, node: str) -> frozenset[str]:
        """Return the limits of the node's pods: a report of the node may change their status."""
        combinations = {self._pods[uid].matching for uid in self._by_node.get(node, ())}
        return frozenset(name for combination in combinations for name in combination)

    def pods_of(self, name: str) -> Sequence[Pod]:
        """Return the matching pods in any order; empty for a rejected or unknown limit."""
        return [self._pods[uid].pod for uid in self._by_combination.pods_with_limit(name)]

    def overriding(self, name: str) -> frozenset[str]:
        """Return the limits that make this limit redundant, empty if it matters (P13)."""
        limit = self._limits.get(name)
        if limit is None:
            return frozenset()
        combinations = self._by_combination.with_limit(name)
        return overriding(limit, [self._limits_of(combination) for combination in combinations])

    def namespace(self, name: str) -> Namespace:
        """Return the namespace, without labels and annotation if unknown."""
        known = None if name in self._removed_namespaces else self._matcher.namespaces.get(name)
        return known or Namespace(name)

    @property
    def groups(self) -> Mapping[str, Group]:
        """The SharedMemoryGroups by name, also rejected groups."""
        return self._group_index.groups

    def group_rejection(self, name: str) -> Rejection | None:
        """Return why pinwarden does not act on the group, None if it does."""
        return self._group_index.rejection(name)

    def groups_on(self, node: str) -> frozenset[str]:
        """Return the groups whose status a report of the node may change."""
        return self._group_index.concerned_on(node)

    def nodes_of_group(self, name: str) -> frozenset[str]:
        """Return the known nodes whose spec may have the group."""
        return self._group_index.nodes(name) & self._matcher.nodes.keys()

    def members_of(self, name: str) -> Mapping[str, Sequence[Pod]]:
        """Return the member pods of the group by node, also on unknown nodes."""
        members = self._group_index.members(name)
        return {
            node: [self._pods[uid].pod for uid in sorted(uids)] for node, uids in members.items()
        }

    def presence(self, node: str) -> Presence:
        """Return the last recorded presence of the node."""
        return self._group_index.presence(node)

    # -- cgroups of static pods ----------------------------------------------------------------

    def _claim(self, pod: Pod) -> Dirty:
        """Record a pod with the cgroup of a static pod."""
        if pod.cgroup_uid == pod.uid:
            return CLEAN
        claimants = self._claims.setdefault(_claim(pod), set())
        claimants.add(pod.uid)
        return self._set_contested(claimants) if len(claimants) == 2 else CLEAN

    def _unclaim(self, pod: Pod) -> Dirty:
        """Remove a pod with the cgroup of a static pod."""
        claimants = self._claims.get(_claim(pod), set())
        if pod.uid not in claimants:
            return CLEAN
        discard(self._claims, _claim(pod), pod.uid)
        return self._set_contested(claimants) if len(claimants) == 1 else CLEAN

    def _set_contested(self, claimants: set[str]) -> Dirty:
        """Mark whether the pods share the name of their cgroup."""
        pods = [self._pods[uid].pod for uid in sorted(claimants)]
        contested = len(claimants) > 1
        return reduce(
            or_, [self._put_pod(replace(pod, contested=contested)) for pod in pods], CLEAN
        )

    # -- matching ------------------------------------------------------------------------------

    def _candidates(self, limit: Limit) -> list[str]:
        if isinstance(limit, PinLimit):
            return list(self._by_namespace.get(limit.metadata.namespace or "", ()))
        return list(self._pods)

    def _apply_labels(self, node: Node) -> Dirty:
        """Match the pods of a node whose labels changed."""
        groups = self._group_index.put_node(node, self.pods_on(node.name))
        return self._rematch(self._by_node.get(node.name, ())) | self._known(groups)

    def _rematch(self, uids: Iterable[str]) -> Dirty:
        nodes: set[str] = set()
        limits: set[str] = set()
        for uid in uids:
            entry = self._pods[uid]
            old, new = entry.matching, self._matcher.match(entry.pod)
            if new != old:
                entry.matching = new
                self._by_combination.move(uid, old, new)
                nodes.add(entry.pod.node)
                limits.update(old, new)
        return self._dirty(nodes, limits)

    def _limit_set(self, combination: Combination) -> LimitSet:
        limit_set = self._limit_sets.get(combination)
        if limit_set is None:
            limit_set = self._limit_sets[combination] = LimitSet.of(self._limits_of(combination))
        return limit_set

    def _limits_of(self, combination: Combination) -> list[Limit]:
        return [self._limits[name] for name in combination]

    # -- what is dirty -------------------------------------------------------------------------

    def _spec_fields(self, entry: _Entry) -> tuple[object, ...]:
        """Return the fields of a pod in the spec of its node."""
        limits = self._limits_of(entry.matching)
        by_container = any(limit.spec.scope is Scope.CONTAINER for limit in limits)
        pod, containers = entry.pod, entry.pod.containers if by_container else None
        return pod.cgroup_uid, pod.contested, entry.matching, containers

    def _concerned(self, name: str) -> Dirty:
        """Return the nodes of the limit's pods, and all limits of these pods."""
        nodes = {self._pods[uid].pod.node for uid in self._by_combination.pods_with_limit(name)}
        combinations = self._by_combination.with_limit(name)
        return self._dirty(nodes, (limit for combination in combinations for limit in combination))

    def _dirty(
        self, nodes: Iterable[str], limits: Iterable[str], groups: Iterable[str] = ()
    ) -> Dirty:
        return self._known(Dirty(frozenset(nodes), frozenset(limits), frozenset(groups)))

    def _known(self, dirty: Dirty) -> Dirty:
        return dirty.only_nodes_in(self._matcher.nodes)


def _status_fields(entry: _Entry) -> tuple[object, ...]:
    """Return the fields of a pod in the status of a limit; labels matter only for matching."""
    pod = entry.pod
    return (
        entry.matching,
        pod.name,
        pod.cgroup_uid,
        pod.containers,
        pod.contested,
        pod.running,
        pod.gone,
    )


def _claim(pod: Pod) -> tuple[str, str]:
    """Return the key of the pod's cgroup."""
    return pod.node, pod.cgroup_uid
