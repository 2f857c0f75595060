"""Which SharedMemoryGroups are on which nodes, indexed so that an event costs what it touches.

A group concerns pods of its own namespace, so a pod of a namespace without groups costs nothing here. Every answer follows from the objects
that are in: `found_on` gives what `groups.groups_on` would give from scratch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pinwarden.plan.conditions import Rejection
from pinwarden.plan.group_allowlist import Permission
from pinwarden.plan.group_compiler import NOWHERE, Admission, Group, Presence, admissions, permission_on
from pinwarden.plan.selectors import selects
from pinwarden.plan.types import Namespace, Node, Pod

Attachment = Mapping[str, tuple[int, ...]]
"""By the name of a group: which of its `members` select a pod; each group once that has one."""

_NONE: Attachment = {}


class Touched(NamedTuple):
    """Nodes, also unknown ones, whose spec could differ, and groups whose status could."""

    nodes: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


UNTOUCHED = Touched()


class GroupIndex:
    """Groups and the pods that are attached to them; each change tells what it touched."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._names: dict[str, str] = {}
        self._in_namespace: dict[str, set[str]] = {}
        self._standings: dict[str, Admission] = {}
        self._attachments: dict[str, Attachment] = {}
        self._members: dict[str, dict[str, set[str]]] = {}
        self._attached_on: dict[str, dict[str, int]] = {}
        self._presences: dict[str, Presence] = {}
        self._telling: dict[str, set[str]] = {}
        self._windows: set[str] = set()

    # -- what changes ----------------------------------------------------------------------------------------------

    def put_group(self, group: Group, pods: Iterable[Pod], namespace: Namespace) -> Touched:
        """Take a group as it is now; `pods` are those of its namespace."""
        name = group.name
        old = self._groups.get(name)
        if old is not None and (old.uid, old.resource.spec) == (group.uid, group.resource.spec):
            self._groups[name] = group
            if _essence(old) == _essence(group):
                return UNTOUCHED
            before = self._nodes_with(old)
            touched = self._judge(namespace)
            return Touched(touched.nodes | before | self._nodes_with(group), touched.groups | {name})
        gone = self.remove_group(name, namespace)
        self._groups[name] = group
        self._names[group.uid] = name
        self._in_namespace.setdefault(group.namespace, set()).add(name)
        for pod in pods:
            self._attach(pod, {**self._attachments.get(pod.uid, _NONE), **self._attachment([group], pod)})
        touched = self._judge(namespace)
        nodes = gone.nodes | touched.nodes | self._nodes_with(group)
        return Touched(nodes, gone.groups | touched.groups | {name})

    def remove_group(self, name: str, namespace: Namespace) -> Touched:
        """Forget a group."""
        if name not in self._groups:
            return UNTOUCHED
        group = self._groups.pop(name)
        nodes = self._nodes_with(group)
        del self._names[group.uid]
        self._standings.pop(name, None)
        for node, uids in self._members.pop(name, {}).items():
            self._count(node, name, -len(uids))
            for uid in uids:
                rest = {other: at for other, at in self._attachments[uid].items() if other != name}
                self._remember(uid, rest)
        names = self._in_namespace[group.namespace]
        names.discard(name)
        if not names:
            del self._in_namespace[group.namespace]
        touched = self._judge(namespace)
        return Touched(nodes | touched.nodes, touched.groups | {name})

    def put_namespace(self, namespace: Namespace) -> Touched:
        """Take what is allowed to a namespace's groups now, and whether it is being deleted."""
        names = frozenset(self._in_namespace.get(namespace.name, ()))
        return Touched(self._judge(namespace).nodes, names)

    def put_pod(self, old: Pod | None, pod: Pod) -> Touched:
        """Take a pod as it is now; it stays on its node and in its namespace."""
        names = self._in_namespace.get(pod.namespace)
        if not names:
            return UNTOUCHED
        before = self._attachments.get(pod.uid, _NONE)
        after = self._attachment((self._groups[name] for name in sorted(names)), pod)
        if before != after:
            self._attach(pod, after)
        elif old is None or _as_member(old) == _as_member(pod):
            return UNTOUCHED
        changed = before != after or (old is not None and old.cgroup_uids != pod.cgroup_uids)
        return Touched(frozenset([pod.node] if changed else []), frozenset([*before, *after]))

    def remove_pod(self, pod: Pod) -> Touched:
        """Forget a pod."""
        before = self._attachments.get(pod.uid, _NONE)
        if not before:
            return UNTOUCHED
        self._attach(pod, _NONE)
        return Touched(frozenset([pod.node]), frozenset(before))

    def put_node(self, node: Node, pods: Iterable[Pod]) -> Touched:
        """Take whether a node runs Windows, where no pod is attached to anything; `pods` are those on it."""
        if node.windows == (node.name in self._windows):
            return UNTOUCHED
        (self._windows.add if node.windows else self._windows.discard)(node.name)
        touched = [self.put_pod(pod, pod) for pod in pods]
        return Touched(
            frozenset().union(*(each.nodes for each in touched)),
            frozenset().union(*(each.groups for each in touched)),
        )

    def put_presence(self, node: str, presence: Presence) -> Touched:
        """Take what a node tells of groups."""
        old = self._presences.get(node, NOWHERE)
        if old == presence:
            return UNTOUCHED
        before = self._found(node).keys()
        for uid in (old.unreleased | old.asked) - (presence.unreleased | presence.asked):
            self._telling[uid].discard(node)
            if not self._telling[uid]:
                del self._telling[uid]
        for uid in presence.unreleased | presence.asked:
            self._telling.setdefault(uid, set()).add(node)
        self._presences[node] = presence
        if presence == NOWHERE:
            del self._presences[node]
        changed = before ^ self._found(node).keys()
        return Touched(frozenset([node] if changed else []), frozenset(changed))

    # -- what is asked ---------------------------------------------------------------------------------------------

    @property
    def groups(self) -> Mapping[str, Group]:
        """All of them by name."""
        return self._groups

    def rejection(self, name: str) -> Rejection | None:
        """Why the group is not acted on, None when it is."""
        standing = self._standings.get(name)
        return standing if isinstance(standing, Rejection) else None

    def presence(self, node: str) -> Presence:
        """What the node told last."""
        return self._presences.get(node, NOWHERE)

    def found_on(self, node: str) -> Sequence[tuple[Group, Permission]]:
        """The groups that the node is to hold, if there is room for all."""
        return [(self._groups[name], permission) for name, permission in sorted(self._found(node).items())]

    def on(self, node: str) -> frozenset[str]:
        """Names of the groups whose status may change when the node's agent reports."""
        return frozenset(self._candidates(node))

    def members(self, name: str) -> Mapping[str, set[str]]:
        """By node: the UIDs of the pods that are attached to the group there."""
        return self._members.get(name, {})

    def nodes(self, name: str) -> frozenset[str]:
        """The nodes that the group is on, also unknown ones; none for one that no node may be asked to hold."""
        group = self._groups.get(name)
        if group is None:
            return frozenset()
        return frozenset(node for node in self._nodes_with(group) if self._permission(name, node))

    # -- how it is kept --------------------------------------------------------------------------------------------

    def _judge(self, namespace: Namespace) -> Touched:
        """Work out anew how the namespace's groups stand."""
        names = self._in_namespace.get(namespace.name)
        if not names:
            return UNTOUCHED
        found = admissions((self._groups[name] for name in names), namespace)
        changed = [name for name in found if self._standings.get(name) != found[name]]
        self._standings.update(found)
        nodes = (self._nodes_with(self._groups[name]) for name in changed)
        return Touched(frozenset[str]().union(*nodes), frozenset(changed))

    def _nodes_with(self, group: Group) -> frozenset[str]:
        """The nodes that the group may be on: they tell of it, or a member pod runs there."""
        return frozenset(self._telling.get(group.uid, ())) | self._members.get(group.name, {}).keys()

    def _candidates(self, node: str) -> set[str]:
        """The groups that may be on the node."""
        told = self.presence(node)
        named = {self._names.get(uid) for uid in told.unreleased | told.asked}
        return {name for name in named if name} | self._attached_on.get(node, {}).keys()

    def _found(self, node: str) -> dict[str, Permission]:
        permissions = {name: self._permission(name, node) for name in self._candidates(node)}
        return {name: permission for name, permission in permissions.items() if permission}

    def _permission(self, name: str, node: str) -> Permission | None:
        attached = name in self._attached_on.get(node, {})
        return permission_on(
            self._groups[name], self._standings[name], self.presence(node), attached=attached
        )

    def _attachment(self, groups: Iterable[Group], pod: Pod) -> Attachment:
        found: dict[str, tuple[int, ...]] = {}
        for group in groups if pod.node not in self._windows else ():
            members = enumerate(group.resource.spec.members)
            selecting = tuple(number for number, each in members if selects(each.pod_selector, pod.labels))
            if selecting:
                found[group.name] = selecting
        return found

    def _attach(self, pod: Pod, after: Attachment) -> None:
        before = self._attachments.get(pod.uid, _NONE)
        for name in before.keys() - after.keys():
            uids = self._members[name][pod.node]
            uids.discard(pod.uid)
            if not uids:
                del self._members[name][pod.node]
            self._count(pod.node, name, -1)
        for name in after.keys() - before.keys():
            self._members.setdefault(name, {}).setdefault(pod.node, set()).add(pod.uid)
            self._count(pod.node, name, 1)
        self._remember(pod.uid, after)

    def _remember(self, uid: str, attachment: Attachment) -> None:
        if attachment:
            self._attachments[uid] = attachment
        else:
            self._attachments.pop(uid, None)

    def _count(self, node: str, name: str, change: int) -> None:
        counts = self._attached_on.setdefault(node, {})
        counts[name] = counts.get(name, 0) + change
        if not counts[name]:
            del counts[name]
        if not counts:
            del self._attached_on[node]


def _as_member(pod: Pod) -> tuple[object, ...]:
    """What of a pod the status of its groups may show."""
    return pod.cgroup_uid, pod.contested, pod.name, pod.started


def _essence(group: Group) -> tuple[object, ...]:
    """What of a group the rules read."""
    return group.uid, group.resource.spec, group.created, group.deleting, group.held
