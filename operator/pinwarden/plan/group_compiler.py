"""Compile SharedMemoryGroups into the groups of one node's NodePinConfig.

A group concerns only pods of its own namespace. A node has the group while a member pod runs there.
The group stays until the node's agent reports its release, so leftovers stay visible (M1, M9).

A draining group stays in the spec of each of its nodes, until the resource is gone. The agent's
report says when the node has released the group. A group rejected later drains in the same way, and
comes to no other node.

The agent counts an object for the first matching group. So the spec lists groups from oldest to
newest.

A node has at most `MAX_NODE_GROUPS` groups, and at most `MAX_NODE_GROUP_BYTES` of them. So the
NodePinConfig always fits into the API server.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pinwarden.api.nodepinconfig import NodeGroup, NodeMember
from pinwarden.api.quantity import MAX_BYTES, Quantity
from pinwarden.api.sharedmemorygroup import DeletionPolicy, Management, SharedMemoryGroup
from pinwarden.plan.conditions import Rejection, selects_nothing
from pinwarden.plan.fairness import select_fairly
from pinwarden.plan.group_allowlist import Permission, admit, creates, parse, permission
from pinwarden.plan.selectors import Labels, selects
from pinwarden.plan.types import Namespace, Pod

FINALIZER = "pinwarden.io/shared-memory"
MAX_NODE_GROUPS = 256
MAX_NODE_GROUP_BYTES = 256 << 10

Admission = Permission | Rejection
"""The permission of an accepted group, or why pinwarden does not act on it."""


@dataclass(frozen=True, slots=True)
class Group:
    """A SharedMemoryGroup with the metadata for the rules.

    `created` is the creationTimestamp, which sorts as text. `deleting`: the group has a
    deletionTimestamp. `has_finalizer`: the group has the operator's finalizer. Without the
    finalizer, a group with deletionPolicy Drain is on no node, because the operator would miss its
    deletion.
    """

    resource: SharedMemoryGroup
    created: str = ""
    deleting: bool = False
    has_finalizer: bool = True

    @property
    def name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.resource.metadata.name}"

    @property
    def namespace(self) -> str:
        """The namespace of the resource."""
        return self.resource.metadata.namespace or ""

    @property
    def uid(self) -> str:
        """The UID of the resource."""
        return self.resource.metadata.uid or ""

    @property
    def age(self) -> tuple[str, str]:
        """Sort key: the oldest group first."""
        return self.created, self.name

    @property
    def drains(self) -> bool:
        """Whether the deletion of the group waits for its borrowers."""
        return self.resource.spec.deletion_policy is DeletionPolicy.DRAIN

    @property
    def draining(self) -> bool:
        """Whether the deletion of the group is waiting for its borrowers now (M10)."""
        return self.deleting and self.drains

    def has_member(self, labels: Labels) -> bool:
        """Return whether a pod of its namespace with these labels is a member (M2)."""
        return any(selects(member.pod_selector, labels) for member in self.resource.spec.members)


@dataclass(frozen=True, slots=True)
class Presence:
    """The UIDs of groups without a reported release, and of `requested` groups of the spec."""

    unreleased: frozenset[str] = frozenset()
    requested: frozenset[str] = frozenset()

    def keeps(self, group: Group, *, draining: bool) -> bool:
        """Return whether the group is on the node even without a member pod."""
        return group.uid in self.unreleased or (draining and group.uid in self.requested)


NOWHERE = Presence()
_ENDING = Permission(ending=True)


def invalid(group: SharedMemoryGroup) -> Rejection | None:
    """Return why the group is invalid whatever the annotation allows, None if valid."""
    spec = group.spec
    if len(spec.backing.to_wire()) != 1:
        return Rejection("Invalid", "spec.backing: set exactly one kind of object")
    if spec.management is Management.CREATE and spec.capacity is None:
        return Rejection("Invalid", "spec.capacity: required with management: Create")
    if spec.backing.sysv_shm:
        try:
            _ = spec.backing.sysv_shm.keys
        except ValueError as error:
            return Rejection("Invalid", f"spec.backing.sysvShm.key: {error}")
    amounts: dict[str, Quantity | None] = {"capacity": spec.capacity}
    for number, member in enumerate(spec.members):
        amounts[f"members[{number}].borrowLimit"] = member.borrow_limit
        if problem := selects_nothing(f"members[{number}].podSelector", member.pod_selector):
            return problem
        if member.pin_limit is not None:
            return Rejection(
                "NotSupported",
                f"spec.members[{number}].pinLimit: needs a gate in the kernel; remove pinLimit",
            )
    for field, amount in amounts.items():
        try:
            if amount is not None and amount.bytes > MAX_BYTES:
                return Rejection("Invalid", f"spec.{field}: {amount} is above the maximum of 4Pi")
        except ValueError as error:
            return Rejection("Invalid", f"spec.{field}: {error}")
    return None


def admissions(groups: Iterable[Group], namespace: Namespace) -> dict[str, Admission]:
    """Return the admission of each group of a namespace by name; created groups share one quota."""
    allowed = parse(namespace.allowed)
    decided: dict[str, Admission] = {}
    creating = []
    for group in sorted(groups, key=lambda group: group.age):
        admission = invalid(group.resource) or permission(group.resource.spec, allowed)
        decided[group.name] = admission
        capacity = creates(group.resource.spec) if isinstance(admission, Permission) else None
        if capacity is not None:
            creating.append((group.name, capacity))
    return decided | admit(creating, allowed)


def node_groups(
    groups: Iterable[tuple[Group, Permission]], pods: Sequence[Pod], listed: Collection[str]
) -> list[NodeGroup]:
    """Return the groups with room in the spec of a node with these pods, oldest first.

    `listed` are the UIDs of the cgroups in the spec; no other cgroup is a member.
    """
    by_name = {group.name: (group, permission) for group, permission in groups}
    ordered = sorted(by_name, key=lambda name: by_name[name][0].age)
    within_count = select_fairly(ordered, MAX_NODE_GROUPS)
    compiled = {
        name: node_group(*by_name[name], pods, listed) for name in ordered if name in within_count
    }
    sizes = {name: _size(group) for name, group in compiled.items()}
    selected = select_fairly(list(compiled), MAX_NODE_GROUP_BYTES, sizes)
    return [group for name, group in compiled.items() if name in selected]


def _size(group: NodeGroup) -> int:
    """Return the bytes of the group as compact JSON, with a comma."""
    return len(json.dumps(group.to_wire(), separators=(",", ":"))) + 1


def node_group(
    group: Group, permission: Permission, pods: Iterable[Pod], listed: Collection[str]
) -> NodeGroup:
    """Return the group in the agent's form; pods of other namespaces are no members."""
    spec = group.resource.spec
    own = [pod for pod in pods if pod.namespace == group.namespace]
    return NodeGroup(
        name=group.name,
        uid=group.uid,
        backing=spec.backing,
        allowed=permission.folder,
        management=spec.management,
        owner=spec.owner,
        prefault=spec.prefault,
        capacity=_bytes(spec.capacity),
        accounting=spec.accounting,
        fair_share=spec.fair_share or spec.accounting,
        enforcement=spec.enforcement,
        members=[
            NodeMember(
                pods=sorted(
                    uid
                    for pod in own
                    if selects(member.pod_selector, pod.labels)
                    for uid in pod.cgroup_uids
                    if uid in listed
                ),
                borrow_limit=_bytes(member.borrow_limit),
                borrow_limit_on=member.borrow_limit_on,
            )
            for member in spec.members
        ],
        draining=group.draining or permission.ending,
    )


def _bytes(amount: Quantity | None) -> int | None:
    """Return an amount in bytes, None also for an invalid amount."""
    try:
        return amount.bytes if amount is not None and 0 <= amount.bytes <= MAX_BYTES else None
    except ValueError:
        return None


def groups_on(
    groups: Iterable[Group],
    pods: Sequence[Pod],
    namespaces: Mapping[str, Namespace],
    presence: Presence,
) -> list[tuple[Group, Permission]]:
    """Return the groups on a node with these pods, from scratch."""
    by_namespace: dict[str, list[Group]] = {}
    for group in groups:
        by_namespace.setdefault(group.namespace, []).append(group)
    placed = []
    for name, own in by_namespace.items():
        decided = admissions(own, namespaces.get(name) or Namespace(name))
        own_pods = [pod for pod in pods if pod.namespace == name]
        for group in own:
            has_members = any(group.has_member(pod.labels) for pod in own_pods)
            permission = permission_on(
                group, decided[group.name], presence, has_members=has_members
            )
            if permission:
                placed.append((group, permission))
    return placed


def _usable(group: Group, admission: Admission) -> Permission | None:
    """Return the permission of a group for nodes; a rejected group may only end where present."""
    if group.drains and not group.has_finalizer:
        return None
    if isinstance(admission, Permission):
        return admission
    return _ENDING if group.drains and len(group.resource.spec.backing.to_wire()) == 1 else None


def permission_on(
    group: Group, admission: Admission, presence: Presence, *, has_members: bool
) -> Permission | None:
    """Return the permission of the group on a node, None if absent there.

    `has_members`: a member pod runs on the node.
    """
    permission = _usable(group, admission)
    if permission is None:
        return None
    kept = presence.keeps(group, draining=group.draining or permission.ending)
    return permission if kept or (has_members and not permission.ending) else None
