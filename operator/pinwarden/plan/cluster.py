"""The cluster as the controller knows it, indexed so that an event costs what it touches and not what there is.

The controller feeds every object that it sees into a `Cluster` and gets back what could differ now: names of nodes whose compiled spec, and
names of limits whose status, must be looked at again. Every answer follows from the objects that are in, not from the order in which they
came: `spec_for` gives what `compile_node` would give from scratch.

Pods are grouped by the combination of limits that holds for them. A cluster of 150,000 pods has few combinations, so that a pod costs one
place in one group however many limits hold for it, and what depends on the combination alone is worked out once for it.

A pod that is terminal, for Windows or not bound to a node is seen as gone. A pod may come before its node or namespace: until these are
known it is matched as if they had no labels (a namespace: none but its name), and matched again when they come. For limits, a
namespace that is removed keeps its labels until its last pod is removed.
"""

from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import NamedTuple, TypeVar

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.api.pinlimit import PinLimit, Scope
from pinwarden.plan.conditions import Rejection
from pinwarden.plan.group_compiler import Group, Presence
from pinwarden.plan.group_index import UNTOUCHED, GroupIndex, Touched
from pinwarden.plan.limit_compiler import Limit, LimitSet, Overflow, Settings, assemble, limit_name, rejection
from pinwarden.plan.limit_matcher import Combination, LimitMatcher
from pinwarden.plan.limit_overrides import overriding
from pinwarden.plan.types import Namespace, Node, Pod

_K = TypeVar("_K")
_T = TypeVar("_T")


class Dirty(NamedTuple):
    """What to look at again: known nodes whose spec could differ; limits (`limit_name`) and groups (`Group.name`) whose status could."""

    nodes: frozenset[str] = frozenset()
    limits: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    def __or__(self, other: "Dirty") -> "Dirty":
        """Both together."""
        return Dirty(self.nodes | other.nodes, self.limits | other.limits, self.groups | other.groups)


CLEAN = Dirty()


@dataclass(slots=True)
class _Entry:
    pod: Pod
    matching: Combination


class Cluster:
    """Pods, nodes, namespaces, limits and groups; each `put_*` and `remove_*` tells what it made dirty.

    Putting an object that changes nothing, and removing one that is not there, dirties nothing. Nothing here does I/O or blocks; it is
    for one thread (the event loop). Pods are known by the API object's UID, limits by `limit_name`.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._matcher = LimitMatcher(self._settings)
        self._limits: dict[str, Limit] = {}
        self._refused: dict[str, Rejection] = {}
        self._holds: dict[Combination, LimitSet] = {}
        self._pods: dict[str, _Entry] = {}
        self._by_node: dict[str, set[str]] = {}
        self._by_namespace: dict[str, set[str]] = {}
        self._claims: dict[tuple[str, str], set[str]] = {}
        self._groups: dict[Combination, set[str]] = {}
        self._combinations: dict[str, set[Combination]] = {}
        self._attached = GroupIndex()
        self._removed_namespaces: set[str] = set()

    # -- what the controller feeds ---------------------------------------------------------------------------------

    def put_pod(self, pod: Pod) -> Dirty:
        """Take a pod as it is now: new, changed, or unchanged. Whether it is contested is for the world to say."""
        if pod.terminal or pod.windows or not pod.node:
            return self.remove_pod(pod.uid)
        old = self._pods.get(pod.uid)
        if old is not None and (old.pod.node, old.pod.namespace) != (pod.node, pod.namespace):
            return self.remove_pod(pod.uid) | self.put_pod(pod)
        released = self._unclaim(old.pod) if old and old.pod.cgroup_uid != pod.cgroup_uid else CLEAN
        claimants = self._claims.get(_claim(pod), set()) - {pod.uid}
        changed = self._put_pod(replace(pod, contested=True) if claimants else pod)
        return released | changed | self._claim(pod)

    def _put_pod(self, pod: Pod) -> Dirty:
        old = self._pods.get(pod.uid)
        if old is not None and old.pod == pod:
            return CLEAN
        new = _Entry(pod, self._matcher.match(pod))
        self._pods[pod.uid] = new
        if old is None:
            self._by_node.setdefault(pod.node, set()).add(pod.uid)
            self._by_namespace.setdefault(pod.namespace, set()).add(pod.uid)
            self._join(new)
            return self._dirty([pod.node], new.matching) | self._touched(self._attached.put_pod(None, pod))
        self._regroup(new, old.matching)
        limits = {*old.matching, *new.matching} if self._differs(old, new) else ()
        changed = self._contribution(old) != self._contribution(new)
        touched = self._touched(self._attached.put_pod(old.pod, pod))
        return self._dirty([pod.node] if changed else [], limits) | touched

    def remove_pod(self, uid: str) -> Dirty:
        """Forget the pod with this API UID."""
        entry = self._pods.pop(uid, None)
        if entry is None:
            return CLEAN
        _discard(self._by_node, entry.pod.node, uid)
        _discard(self._by_namespace, entry.pod.namespace, uid)
        self._drop_namespace_without_pods(entry.pod.namespace)
        self._leave(entry)
        touched = self._touched(self._attached.remove_pod(entry.pod))
        return self._dirty([entry.pod.node], entry.matching) | touched | self._unclaim(entry.pod)

    def put_node(self, node: Node) -> Dirty:
        """Take a node as it is now; only its name and labels matter."""
        old = self._matcher.nodes.get(node.name)
        if old == node:
            return CLEAN
        self._matcher.put_node(node)
        dirty = CLEAN
        if old is None:
            dirty = self._dirty([node.name], self.limits_on(node.name), self.groups_on(node.name))
        return dirty | self._took(node)

    def remove_node(self, name: str) -> Dirty:
        """Forget a node; what the garbage collector has not taken yet of its pods stays, bound to an unknown node."""
        if name not in self._matcher.nodes:
            return CLEAN
        self._matcher.remove_node(name)
        dirty = self._dirty([], self.limits_on(name), self.groups_on(name))
        return dirty | self._took(Node(name))

    def put_namespace(self, namespace: Namespace) -> Dirty:
        """Take a namespace as it is now."""
        removed = namespace.name in self._removed_namespaces
        if not removed and self._matcher.namespaces.get(namespace.name) == namespace:
            return CLEAN
        self._removed_namespaces.discard(namespace.name)
        self._matcher.put_namespace(namespace)
        touched = self._touched(self._attached.put_namespace(namespace))
        return self._rematch(self._by_namespace.get(namespace.name, ())) | touched

    def remove_namespace(self, name: str) -> Dirty:
        """Forget a namespace; limits see its labels as long as it has pods: processes of these go on, and are still held (H3)."""
        if name not in self._matcher.namespaces or name in self._removed_namespaces:
            return CLEAN
        self._removed_namespaces.add(name)
        self._drop_namespace_without_pods(name)
        return self._touched(self._attached.put_namespace(Namespace(name)))

    def _drop_namespace_without_pods(self, name: str) -> None:
        if name in self._removed_namespaces and name not in self._by_namespace:
            self._removed_namespaces.discard(name)
            self._matcher.remove_namespace(name)

    def put_limit(self, limit: Limit) -> Dirty:
        """Take a limit as it is now; an event that changes neither its spec nor its UID dirties nothing.

        A limit that is refused (`rejection`) holds for no pod, whatever it held for before.
        """
        name = limit_name(limit)
        old = self._limits.get(name)
        self._limits[name] = limit
        if old is not None and (old.spec, old.metadata.uid) == (limit.spec, limit.metadata.uid):
            return CLEAN
        before = self._concerned(name)
        refused = rejection(limit)
        self._holds.clear()
        if refused is None:
            self._refused.pop(name, None)
            self._matcher.put_limit(name, limit)
        else:
            self._refused[name] = refused
            self._matcher.remove_limit(name, limit)
        self._rematch(self._candidates(limit))
        return self._dirty([], [name]) | before | self._concerned(name)

    def remove_limit(self, name: str) -> Dirty:
        """Forget a limit; its own name is in the answer, so that what the caller keeps of it can go too."""
        limit = self._limits.pop(name, None)
        if limit is None:
            return CLEAN
        before = self._concerned(name)
        self._refused.pop(name, None)
        self._holds.clear()
        self._matcher.remove_limit(name, limit)
        self._rematch([uid for pods in self._groups_with(name) for uid in pods])
        return self._dirty([], [name]) | before

    def put_group(self, group: Group) -> Dirty:
        """Take a group as it is now; an event that changes nothing that the rules read dirties nothing."""
        pods = [self._pods[uid].pod for uid in self._by_namespace.get(group.namespace, ())]
        return self._touched(self._attached.put_group(group, pods, self.namespace(group.namespace)))

    def remove_group(self, name: str) -> Dirty:
        """Forget a group; its own name is in the answer, so that what the caller keeps of it can go too."""
        namespace = self.namespace(name.partition("/")[0])
        return self._touched(self._attached.remove_group(name, namespace))

    def put_presence(self, node: str, presence: Presence) -> Dirty:
        """Take what a node tells of groups, whatever pods run there."""
        return self._touched(self._attached.put_presence(node, presence))

    # -- what the controller asks ----------------------------------------------------------------------------------

    @property
    def nodes(self) -> KeysView[str]:
        """Names of the known nodes."""
        return self._matcher.nodes.keys()

    @property
    def limits(self) -> KeysView[str]:
        """Names of the limits, refused ones too."""
        return self._limits.keys()

    def limit(self, name: str) -> Limit:
        """The limit of this name, as last put.

        Raises:
            KeyError: there is none.
        """
        return self._limits[name]

    def rejection(self, name: str) -> Rejection | None:
        """Why the limit is not acted on, None when it is; worked out once when the limit came."""
        return self._refused.get(name)

    def spec_for(self, node: str) -> NodePinConfigSpec:
        """What the node shall hold now; equal to what `compile_node` gives for everything that is in.

        Made anew at each call: 5,000 of them at 30 pods take 300 MB, so a caller that must compare keeps a digest.

        Raises:
            KeyError: the node is not known.
        """
        return self.compiled(node)[0]

    def compiled(self, node: str) -> tuple[NodePinConfigSpec, Overflow]:
        """The same, and what found no room in it."""
        _ = self._matcher.nodes[node]
        entries = (self._pods[uid] for uid in self._by_node.get(node, ()))
        held = ((entry.pod, self._hold(entry.matching)) for entry in entries)
        return assemble(held, self._attached.found_on(node), self._settings)

    def pod(self, uid: str) -> Pod | None:
        """The pod with this API UID, None when it is not in."""
        entry = self._pods.get(uid)
        return entry.pod if entry else None

    def pods_on(self, node: str) -> Sequence[Pod]:
        """The pods bound to the node, in no particular order."""
        return [self._pods[uid].pod for uid in self._by_node.get(node, ())]

    def claimants(self, node: str, cgroup_uid: str) -> Set[str]:
        """The UIDs of the node's pods that name this cgroup, as mirror pods do; a pod with a cgroup of its own UID names none."""
        return self._claims.get((node, cgroup_uid), frozenset())

    def limits_on(self, node: str) -> frozenset[str]:
        """The limits that hold for a pod of this node: whose status may change when the node's agent reports."""
        combinations = {self._pods[uid].matching for uid in self._by_node.get(node, ())}
        return frozenset(name for combination in combinations for name in combination)

    def pods_of(self, name: str) -> Sequence[Pod]:
        """The pods that the limit holds for, in no particular order; none for one that is refused or not known."""
        return [self._pods[uid].pod for group in self._groups_with(name) for uid in group]

    def overriding(self, name: str) -> frozenset[str]:
        """The limits that together imply this one for every pod that it holds for, empty where it adds something (P13)."""
        limit = self._limits.get(name)
        if limit is None:
            return frozenset()
        return overriding(
            limit, [self._limits_of(combination) for combination in self._combinations.get(name, ())]
        )

    def namespace(self, name: str) -> Namespace:
        """The namespace, without labels and allowances while it is not known."""
        known = None if name in self._removed_namespaces else self._matcher.namespaces.get(name)
        return known or Namespace(name)

    @property
    def groups(self) -> Mapping[str, Group]:
        """The SharedMemoryGroups by name, refused ones too."""
        return self._attached.groups

    def group_rejection(self, name: str) -> Rejection | None:
        """Why the group is not acted on, None when it is."""
        return self._attached.rejection(name)

    def groups_on(self, node: str) -> frozenset[str]:
        """The groups whose status may change when the node's agent reports."""
        return self._attached.on(node)

    def nodes_of_group(self, name: str) -> frozenset[str]:
        """The known nodes that the group is on: with a member pod, or with something that the node tells of it."""
        return self._attached.nodes(name) & self._matcher.nodes.keys()

    def members_of(self, name: str) -> Mapping[str, Sequence[Pod]]:
        """By node: the pods that are attached to the group, also on nodes that are not known."""
        members = self._attached.members(name)
        return {node: [self._pods[uid].pod for uid in sorted(uids)] for node, uids in members.items()}

    def presence(self, node: str) -> Presence:
        """What the node told last of groups."""
        return self._attached.presence(node)

    # -- who names which cgroup -------------------------------------------------------------------------------------

    def _claim(self, pod: Pod) -> Dirty:
        """A pod that is in names the cgroup of a static pod."""
        if pod.cgroup_uid == pod.uid:
            return CLEAN
        claimants = self._claims.setdefault(_claim(pod), set())
        claimants.add(pod.uid)
        return self._contest(claimants) if len(claimants) == 2 else CLEAN

    def _unclaim(self, pod: Pod) -> Dirty:
        """A pod names the cgroup of a static pod no more."""
        claimants = self._claims.get(_claim(pod), set())
        if pod.uid not in claimants:
            return CLEAN
        _discard(self._claims, _claim(pod), pod.uid)
        return self._contest(claimants) if len(claimants) == 1 else CLEAN

    def _contest(self, claimants: set[str]) -> Dirty:
        """Tell each of the pods whether it is the only one that names its cgroup."""
        contested = len(claimants) > 1
        changes = [
            self._put_pod(replace(self._pods[uid].pod, contested=contested)) for uid in sorted(claimants)
        ]
        return reduce(or_, changes, CLEAN)

    # -- matching and grouping -------------------------------------------------------------------------------------

    def _candidates(self, limit: Limit) -> list[str]:
        if isinstance(limit, PinLimit):
            return list(self._by_namespace.get(limit.metadata.namespace or "", ()))
        return list(self._pods)

    def _took(self, node: Node) -> Dirty:
        """What a node's labels make of its pods."""
        touched = self._attached.put_node(node, self.pods_on(node.name))
        return self._rematch(self._by_node.get(node.name, ())) | self._touched(touched)

    def _rematch(self, uids: Iterable[str]) -> Dirty:
        nodes: set[str] = set()
        limits: set[str] = set()
        for uid in uids:
            entry = self._pods[uid]
            old, new = entry.matching, self._matcher.match(entry.pod)
            if new != old:
                entry.matching = new
                self._regroup(entry, old)
                nodes.add(entry.pod.node)
                limits.update(old, new)
        return self._dirty(nodes, limits)

    def _regroup(self, entry: _Entry, old: Combination) -> None:
        if entry.matching != old:
            self._leave(_Entry(entry.pod, old))
            self._join(entry)

    def _join(self, entry: _Entry) -> None:
        group = self._groups.get(entry.matching)
        if group is None:
            group = self._groups[entry.matching] = set()
            for name in entry.matching:
                self._combinations.setdefault(name, set()).add(entry.matching)
        group.add(entry.pod.uid)

    def _leave(self, entry: _Entry) -> None:
        group = self._groups[entry.matching]
        group.discard(entry.pod.uid)
        if not group:
            del self._groups[entry.matching]
            for name in entry.matching:
                _discard(self._combinations, name, entry.matching)

    def _groups_with(self, name: str) -> Iterator[set[str]]:
        return (self._groups[combination] for combination in self._combinations.get(name, ()))

    def _hold(self, combination: Combination) -> LimitSet:
        hold = self._holds.get(combination)
        if hold is None:
            hold = self._holds[combination] = LimitSet.of(self._limits_of(combination))
        return hold

    def _limits_of(self, combination: Combination) -> list[Limit]:
        return [self._limits[name] for name in combination]

    # -- what differs ----------------------------------------------------------------------------------------------

    def _contribution(self, entry: _Entry) -> tuple[object, ...]:
        """What of a pod stands in its node's spec."""
        by_container = any(self._limits[name].spec.scope is Scope.CONTAINER for name in entry.matching)
        pod = entry.pod
        return pod.cgroup_uid, pod.contested, entry.matching, pod.containers if by_container else None

    @staticmethod
    def _differs(old: _Entry, new: _Entry) -> bool:
        """Whether a limit's status could tell the two apart; labels matter only through what matches."""

        def shown(entry: _Entry) -> tuple[object, ...]:
            pod = entry.pod
            state = pod.contested, pod.running, pod.gone
            return entry.matching, pod.name, pod.cgroup_uid, pod.containers, state

        return shown(old) != shown(new)

    def _concerned(self, name: str) -> Dirty:
        """The nodes with a pod that the limit holds for, and the limits that share one with it."""
        nodes = {self._pods[uid].pod.node for group in self._groups_with(name) for uid in group}
        return self._dirty(nodes, (other for names in self._combinations.get(name, ()) for other in names))

    def _dirty(self, nodes: Iterable[str], limits: Iterable[str], groups: Iterable[str] = ()) -> Dirty:
        known = frozenset(node for node in nodes if node in self._matcher.nodes)
        return Dirty(known, frozenset(limits), frozenset(groups))

    def _touched(self, touched: Touched) -> Dirty:
        if touched is UNTOUCHED:
            return CLEAN
        return self._dirty(touched.nodes, (), touched.groups)


def _claim(pod: Pod) -> tuple[str, str]:
    """The cgroup that the pod names, on its node."""
    return pod.node, pod.cgroup_uid


def _discard(sets: dict[_K, set[_T]], key: _K, value: _T) -> None:
    """Take `value` out of the set at `key`, and the set away with its last value."""
    members = sets[key]
    members.discard(value)
    if not members:
        del sets[key]
