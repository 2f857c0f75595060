"""From SharedMemoryGroups and pods to what one node shall hold of them.

A group concerns pods of its own namespace only. A node has it while a member pod runs there and, so that what pods leave is still seen
(M1, M9), while its agent reports an instance that is not released. One that drains stays on every node that was asked to hold it until the
resource is gone: that it is released there is read from the agent's report, which ends with the group. One that is refused after it was
held drains in the same way on the nodes that it is on, and comes to no other.

The agent lets the first of two groups have an object that both may stand for, so they stand in the spec from the oldest to the newest.

A node has room for `MAX_NODE_GROUPS` and for `MAX_NODE_GROUP_BYTES` of them, so that its NodePinConfig fits in the API server whatever
groups a namespace has.
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
"""Whether pinwarden acts on a group, and in which folder; or why not."""


@dataclass(frozen=True, slots=True)
class Group:
    """A SharedMemoryGroup with what of its metadata the rules read.

    `created` is its creationTimestamp, which sorts as text; `deleting` says that it has a deletionTimestamp. `held`: it cannot go without
    the operator's leave. No node is asked to hold one that drains when it is deleted but is not held: nobody would be told of its end.
    """

    resource: SharedMemoryGroup
    created: str = ""
    deleting: bool = False
    held: bool = True

    @property
    def name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.resource.metadata.name}"

    @property
    def namespace(self) -> str:
        """That of the resource, whose pods alone it concerns."""
        return self.resource.metadata.namespace or ""

    @property
    def uid(self) -> str:
        """That of the resource."""
        return self.resource.metadata.uid or ""

    @property
    def age(self) -> tuple[str, str]:
        """Sorts the oldest first."""
        return self.created, self.name

    @property
    def drains(self) -> bool:
        """Whether its end is waited for."""
        return self.resource.spec.deletion_policy is DeletionPolicy.DRAIN

    @property
    def draining(self) -> bool:
        """Whether its end is waited for now (M10)."""
        return self.deleting and self.drains

    def attaches(self, labels: Labels) -> bool:
        """Whether a pod of its namespace with these labels is a member (M2)."""
        return any(selects(member.pod_selector, labels) for member in self.resource.spec.members)


@dataclass(frozen=True, slots=True)
class Presence:
    """By UID, what keeps groups on a node without a member pod: it reports them `unreleased`, or was `asked` to hold them."""

    unreleased: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()

    def keeps(self, group: Group, *, draining: bool) -> bool:
        """Whether the group is on the node whatever pods run there."""
        return group.uid in self.unreleased or (draining and group.uid in self.asked)


NOWHERE = Presence()
_ENDING = Permission(ending=True)


def invalid(group: SharedMemoryGroup) -> Rejection | None:
    """What no annotation would make good; None where there is nothing."""
    spec = group.spec
    if len(spec.backing.to_wire()) != 1:
        return Rejection("Invalid", "spec.backing: give exactly one kind of object")
    if spec.management is Management.CREATE and spec.capacity is None:
        return Rejection("Invalid", "spec.capacity: management: Create needs one")
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
                f"spec.members[{number}].pinLimit needs a gate in the kernel that sees each pin; leave it out",
            )
    for field, amount in amounts.items():
        try:
            if amount is not None and amount.bytes > MAX_BYTES:
                return Rejection("Invalid", f"spec.{field}: {amount} is above 4Pi")
        except ValueError as error:
            return Rejection("Invalid", f"spec.{field}: {error}")
    return None


def admissions(groups: Iterable[Group], namespace: Namespace) -> dict[str, Admission]:
    """How each of the namespace's groups stands, by name: all of them at once, because those that are created share an allowance."""
    allowed = parse(namespace.allowed)
    found: dict[str, Admission] = {}
    creating = []
    for group in sorted(groups, key=lambda group: group.age):
        standing = found[group.name] = invalid(group.resource) or permission(group.resource.spec, allowed)
        capacity = creates(group.resource.spec) if isinstance(standing, Permission) else None
        if capacity is not None:
            creating.append((group.name, capacity))
    return found | admit(creating, allowed)


def node_groups(
    groups: Iterable[tuple[Group, Permission]], pods: Sequence[Pod], listed: Collection[str]
) -> list[NodeGroup]:
    """What stands in the spec of a node with these pods, of the groups that are on it; oldest first.

    `listed` are the UIDs of the cgroups that found room in the spec: no other one is a member.
    """
    by_name = {group.name: (group, permission) for group, permission in groups}
    ordered = sorted(by_name, key=lambda name: by_name[name][0].age)
    counted = select_fairly(ordered, MAX_NODE_GROUPS)
    found = {name: node_group(*by_name[name], pods, listed) for name in ordered if name in counted}
    fitting = select_fairly(list(found), MAX_NODE_GROUP_BYTES, {name: _size(found[name]) for name in found})
    return [group for name, group in found.items() if name in fitting]


def _size(group: NodeGroup) -> int:
    """Bytes of it as compact JSON, and of the comma behind it."""
    return len(json.dumps(group.to_wire(), separators=(",", ":"))) + 1


def node_group(
    group: Group, permission: Permission, pods: Iterable[Pod], listed: Collection[str]
) -> NodeGroup:
    """A group as the agent of a node with these pods reads it; those of other namespaces are no members."""
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
    """An amount as nodes read it; None also for one for which its group is refused."""
    try:
        return amount.bytes if amount is not None and 0 <= amount.bytes <= MAX_BYTES else None
    except ValueError:
        return None


def groups_on(
    groups: Iterable[Group], pods: Sequence[Pod], namespaces: Mapping[str, Namespace], presence: Presence
) -> list[tuple[Group, Permission]]:
    """The groups that are on a node with these pods, from scratch."""
    by_namespace: dict[str, list[Group]] = {}
    for group in groups:
        by_namespace.setdefault(group.namespace, []).append(group)
    found = []
    for name, own in by_namespace.items():
        standing = admissions(own, namespaces.get(name) or Namespace(name))
        there = [pod for pod in pods if pod.namespace == name]
        for group in own:
            attached = any(group.attaches(pod.labels) for pod in there)
            permission = permission_on(group, standing[group.name], presence, attached=attached)
            if permission:
                found.append((group, permission))
    return found


def usable(group: Group, standing: Admission) -> Permission | None:
    """The permission of a group that nodes may be asked to hold; one that is refused may end where it is."""
    if group.drains and not group.held:
        return None
    if isinstance(standing, Permission):
        return standing
    return _ENDING if group.drains and len(group.resource.spec.backing.to_wire()) == 1 else None


def permission_on(
    group: Group, standing: Admission, presence: Presence, *, attached: bool
) -> Permission | None:
    """The permission of a group that is on a node; `attached`: a member pod runs there."""
    found = usable(group, standing)
    if found is None:
        return None
    kept = presence.keeps(group, draining=group.draining or found.ending)
    return found if kept or (attached and not found.ending) else None
