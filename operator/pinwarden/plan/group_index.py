"""Index of the SharedMemoryGroups on each node; an event costs as much as the concerned objects.

A group concerns only pods of its own namespace, so a pod of a namespace without groups costs
nothing. Each answer depends only on the known objects: `placed_on` equals
`group_compiler.groups_on` from scratch.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import reduce
from operator import or_

from pinwarden.plan.conditions import Rejection
from pinwarden.plan.dirty import CLEAN, Dirty
from pinwarden.plan.group_allowlist import Permission
from pinwarden.plan.group_compiler import (
    NOWHERE,
    Admission,
    Group,
    Presence,
    admissions,
    permission_on,
)
from pinwarden.plan.selectors import selects
from pinwarden.plan.sets import discard
from pinwarden.plan.types import Namespace, Node, Pod

Memberships = Mapping[str, tuple[int, ...]]
"""The groups of a member pod, each with the positions of the `members` entries for the pod."""

_NO_MEMBERSHIPS: Memberships = {}


class GroupIndex:
    """Groups and their member pods; a change returns a `Dirty`, which may name unknown nodes."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._names: dict[str, str] = {}
        self._by_namespace: dict[str, set[str]] = {}
        self._admissions: dict[str, Admission] = {}
        self._memberships: dict[str, Memberships] = {}
        self._members: dict[str, dict[str, set[str]]] = {}
        self._member_counts: dict[str, dict[str, int]] = {}
        self._presences: dict[str, Presence] = {}
        self._nodes_with_presence: dict[str, set[str]] = {}
        self._windows: set[str] = set()

    # -- changes -----------------------------------------------------------------------------------

    def put_group(self, group: Group, pods: Iterable[Pod], namespace: Namespace) -> Dirty:
        """Add or replace a group; `pods` are all pods of its namespace."""
        name = group.name
        old = self._groups.get(name)
        if old is not None and (old.uid, old.resource.spec) == (group.uid, group.resource.spec):
            self._groups[name] = group
            if _relevant_fields(old) == _relevant_fields(group):
                return CLEAN
            before = self._nodes_with(old)
            admitted = self._admit_again(namespace)
            nodes = before | self._nodes_with(group)
            return admitted | Dirty(nodes=nodes, groups=frozenset([name]))
        removed = self.remove_group(name, namespace)
        self._groups[name] = group
        self._names[group.uid] = name
        self._by_namespace.setdefault(group.namespace, set()).add(name)
        for pod in pods:
            others = self._memberships.get(pod.uid, _NO_MEMBERSHIPS)
            self._set_memberships(pod, {**others, **self._match([group], pod)})
        admitted = self._admit_again(namespace)
        return removed | admitted | Dirty(nodes=self._nodes_with(group), groups=frozenset([name]))

    def remove_group(self, name: str, namespace: Namespace) -> Dirty:
        """Remove a group."""
        if name not in self._groups:
            return CLEAN
        group = self._groups.pop(name)
        nodes = self._nodes_with(group)
        del self._names[group.uid]
        self._admissions.pop(name, None)
        for node, uids in self._members.pop(name, {}).items():
            self._count_members(node, name, -len(uids))
            for uid in uids:
                remaining = {
                    other: at for other, at in self._memberships[uid].items() if other != name
                }
                self._store_memberships(uid, remaining)
        discard(self._by_namespace, group.namespace, name)
        return self._admit_again(namespace) | Dirty(nodes=nodes, groups=frozenset([name]))

    def put_namespace(self, namespace: Namespace) -> Dirty:
        """Apply the annotation of a namespace to its groups, and its deletion."""
        names = frozenset(self._by_namespace.get(namespace.name, ()))
        return self._admit_again(namespace) | Dirty(groups=names)

    def put_pod(self, old: Pod | None, pod: Pod) -> Dirty:
        """Add or replace a pod, whose node and namespace are those of `old`."""
        names = self._by_namespace.get(pod.namespace)
        if not names:
            return CLEAN
        before = self._memberships.get(pod.uid, _NO_MEMBERSHIPS)
        after = self._match((self._groups[name] for name in sorted(names)), pod)
        if before != after:
            self._set_memberships(pod, after)
        elif old is None or _member_fields(old) == _member_fields(pod):
            return CLEAN
        changed = before != after or (old is not None and old.cgroup_uids != pod.cgroup_uids)
        return Dirty(
            nodes=frozenset([pod.node] if changed else []), groups=frozenset([*before, *after])
        )

    def remove_pod(self, pod: Pod) -> Dirty:
        """Remove a pod."""
        before = self._memberships.get(pod.uid, _NO_MEMBERSHIPS)
        if not before:
            return CLEAN
        self._set_memberships(pod, _NO_MEMBERSHIPS)
        return Dirty(nodes=frozenset([pod.node]), groups=frozenset(before))

    def put_node(self, node: Node, pods: Iterable[Pod]) -> Dirty:
        """Record whether a node runs Windows, where no pod is a member; `pods` run on the node."""
        if node.windows == (node.name in self._windows):
            return CLEAN
        before = self._placed(node.name).keys()
        (self._windows.add if node.windows else self._windows.discard)(node.name)
        dirty = reduce(or_, [self.put_pod(pod, pod) for pod in pods], CLEAN)
        return dirty | self._moved(node.name, before)

    def put_presence(self, node: str, presence: Presence) -> Dirty:
        """Record why groups stay on a node without a member pod."""
        old = self._presences.get(node, NOWHERE)
        if old == presence:
            return CLEAN
        before = self._placed(node).keys()
        for uid in (old.unreleased | old.requested) - (presence.unreleased | presence.requested):
            discard(self._nodes_with_presence, uid, node)
        for uid in presence.unreleased | presence.requested:
            self._nodes_with_presence.setdefault(uid, set()).add(node)
        self._presences[node] = presence
        if presence == NOWHERE:
            del self._presences[node]
        return self._moved(node, before)

    # -- queries -----------------------------------------------------------------------------------

    @property
    def groups(self) -> Mapping[str, Group]:
        """All groups by name."""
        return self._groups

    def rejection(self, name: str) -> Rejection | None:
        """Return why pinwarden does not act on the group, None if it does."""
        admission = self._admissions.get(name)
        return admission if isinstance(admission, Rejection) else None

    def presence(self, node: str) -> Presence:
        """Return the last recorded presence of the node."""
        return self._presences.get(node, NOWHERE)

    def placed_on(self, node: str) -> Sequence[tuple[Group, Permission]]:
        """Return the groups for the spec of the node, before its capacity is applied."""
        return [
            (self._groups[name], permission)
            for name, permission in sorted(self._placed(node).items())
        ]

    def concerned_on(self, node: str) -> frozenset[str]:
        """Return the groups whose status a report of the node may change."""
        return frozenset(self._candidates(node))

    def members(self, name: str) -> Mapping[str, set[str]]:
        """Return the UIDs of the group's member pods by node."""
        return self._members.get(name, {})

    def nodes(self, name: str) -> frozenset[str]:
        """Return the nodes, also unknown ones, whose spec may have the group."""
        group = self._groups.get(name)
        if group is None:
            return frozenset()
        return frozenset(node for node in self._nodes_with(group) if self._permission(name, node))

    # -- state -------------------------------------------------------------------------------------

    def _admit_again(self, namespace: Namespace) -> Dirty:
        """Decide again which groups of the namespace are rejected."""
        names = self._by_namespace.get(namespace.name)
        if not names:
            return CLEAN
        decided = admissions((self._groups[name] for name in names), namespace)
        changed = [name for name in decided if self._admissions.get(name) != decided[name]]
        self._admissions.update(decided)
        nodes = (self._nodes_with(self._groups[name]) for name in changed)
        return Dirty(nodes=frozenset[str]().union(*nodes), groups=frozenset(changed))

    def _nodes_with(self, group: Group) -> frozenset[str]:
        """Return the nodes with a member pod or a presence of the group."""
        present = frozenset(self._nodes_with_presence.get(group.uid, ()))
        return present | self._members.get(group.name, {}).keys()

    def _candidates(self, node: str) -> set[str]:
        """Return the groups with a member pod or a presence on the node."""
        presence = self.presence(node)
        present = {self._names.get(uid) for uid in presence.unreleased | presence.requested}
        return {name for name in present if name} | self._member_counts.get(node, {}).keys()

    def _placed(self, node: str) -> dict[str, Permission]:
        permissions = {name: self._permission(name, node) for name in self._candidates(node)}
        return {name: permission for name, permission in permissions.items() if permission}

    def _moved(self, node: str, before: Set[str]) -> Dirty:
        """Return the groups placed on the node now and not before, or the other way round."""
        changed = before ^ self._placed(node).keys()
        return Dirty(nodes=frozenset([node] if changed else []), groups=frozenset(changed))

    def _permission(self, name: str, node: str) -> Permission | None:
        has_members = name in self._member_counts.get(node, {})
        return permission_on(
            self._groups[name], self._admissions[name], self.presence(node), has_members=has_members
        )

    def _match(self, groups: Iterable[Group], pod: Pod) -> Memberships:
        memberships: dict[str, tuple[int, ...]] = {}
        for group in groups if pod.node not in self._windows else ():
            members = enumerate(group.resource.spec.members)
            positions = tuple(
                at for at, member in members if selects(member.pod_selector, pod.labels)
            )
            if positions:
                memberships[group.name] = positions
        return memberships

    def _set_memberships(self, pod: Pod, after: Memberships) -> None:
        before = self._memberships.get(pod.uid, _NO_MEMBERSHIPS)
        for name in before.keys() - after.keys():
            discard(self._members[name], pod.node, pod.uid)
            self._count_members(pod.node, name, -1)
        for name in after.keys() - before.keys():
            self._members.setdefault(name, {}).setdefault(pod.node, set()).add(pod.uid)
            self._count_members(pod.node, name, 1)
        self._store_memberships(pod.uid, after)

    def _store_memberships(self, uid: str, memberships: Memberships) -> None:
        if memberships:
            self._memberships[uid] = memberships
        else:
            self._memberships.pop(uid, None)

    def _count_members(self, node: str, name: str, change: int) -> None:
        counts = self._member_counts.setdefault(node, {})
        counts[name] = counts.get(name, 0) + change
        if not counts[name]:
            del counts[name]
        if not counts:
            del self._member_counts[node]


def _member_fields(pod: Pod) -> tuple[object, ...]:
    """Return the fields of a member pod in the status of a group."""
    return pod.cgroup_uid, pod.contested, pod.name, pod.started


def _relevant_fields(group: Group) -> tuple[object, ...]:
    """Return the fields of a group for the rules."""
    return group.uid, group.resource.spec, group.created, group.deleting, group.has_finalizer
