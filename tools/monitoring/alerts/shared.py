"""Alerts about SharedMemoryGroups."""

from typing import Final

from monitoring.alerts.common import GROUP, READ_GROUP, WHICH_GROUP, condition, not_enforced
from monitoring.rules import Alert, Group

SHARED: Final = Group(
    "shared-memory",
    "Shared memory",
    (
        Alert(
            name="PinwardenGroupNotAvailable",
            severity="warning",
            expr=condition("group", "Available", "False"),
            lasting="15m",
            summary=f"The object of {WHICH_GROUP} is missing or different on a node.",
            description="For 15 minutes a node with a member pod has not had the object that the "
            "group describes.",
            meaning="The condition Available names node and reason: `NotMade`, `NoRoom`, "
            "`Claimed`, `SymbolicLink`, ...",
            impact="With `management: Create`, member pods that mount the object wait in "
            "ContainerCreating. Adopted objects are not accounted.",
            diagnosis=READ_GROUP,
            mitigation="`NoRoom`: raise `shared.memory` and reserve it in the kubelet's "
            "`systemReserved`, or lower capacities. `Claimed`: an older group has the object. See "
            "docs/shared-memory.md.",
        ),
        Alert(
            name="PinwardenGroupNotEnforced",
            severity="warning",
            expr=not_enforced("group"),
            lasting="15m",
            summary=f"The borrow limits of {WHICH_GROUP} are not enforced on every member.",
            description="For 15 minutes the borrowLimit of a member has not been enforced, or its "
            "level has been unknown.",
            meaning="Borrow limits of Mapped memory are enforced in pods with the gate's profile "
            "`runtime-default-v2`. All other pods are at Observe.",
            impact="These pods can map more of the object than their limit.",
            diagnosis=READ_GROUP,
            mitigation="Give the pods the profile (`pinwarden.io/gate=runtime-default` on the "
            "Namespace), or set `minimumLevel: Observe` if counting is enough.",
        ),
        Alert(
            name="PinwardenGroupExceeded",
            severity="warning",
            expr=condition("group", "WithinLimit", "False"),
            lasting="15m",
            summary=f"{WHICH_GROUP} is above a limit, or a pod that is no member borrows from it.",
            description="For 15 minutes charge or a borrow has been above its limit, or a pod that "
            "is no member has had the object mapped.",
            meaning="The reason says which: `OverCapacity`, `OverLimit` or `NotMember`.",
            impact="Where borrow limits are enforced, further mappings are denied. The capacity of "
            "an adopted object is reported only.",
            diagnosis=READ_GROUP,
            mitigation="Raise the limit, make the pod a member, or restart the named pod.",
        ),
        Alert(
            name="PinwardenGroupNearCapacity",
            severity="warning",
            expr=f"(max by ({GROUP}) (pinwarden_operator_group_fullest_bytes) / max by ({GROUP}) "
            "(pinwarden_operator_group_capacity_bytes) > 0.9)"
            f' unless on ({GROUP}) pinwarden_operator_group_info{{prefault="true"}}',
            lasting="15m",
            summary=f"{WHICH_GROUP} is {{{{ $value | humanizePercentage }}}} full on a node.",
            description="For 15 minutes its object has used more than 90 % of its capacity on a "
            "node.",
            meaning="The alert leaves out groups whose pages pinwarden allocates at once: they are "
            "always full.",
            impact="A created object rejects writes beyond its capacity (`ENOSPC`). An adopted "
            "object keeps growing, charged to the writer.",
            diagnosis=READ_GROUP,
            mitigation="Raise `capacity` (tmpfs gets it at once), or find out which pod writes.",
        ),
        Alert(
            name="PinwardenGroupOrphaned",
            severity="info",
            expr=f"(max by ({GROUP}) (pinwarden_operator_group_orphaned_bytes) > 67108864)"
            f' unless on ({GROUP}) pinwarden_operator_group_info{{prefault="true"}}',
            lasting="30m",
            summary=f"{{{{ $value | humanize1024 }}}}B of {WHICH_GROUP} have been mapped by no pod "
            "for "
            "long.",
            description="More than 64 MiB of its charge have had no borrower for 30 minutes.",
            meaning="Pages outlive the pods that wrote them (M9). With `accounting: Charge` the "
            "figure is an estimate. Pages that pinwarden itself allocated are left out.",
            impact="The memory is occupied and unused. The kernel charges it to the first writer, "
            "even after the writer's end.",
            diagnosis=READ_GROUP,
            mitigation="Remove unneeded files, or delete the group if pinwarden created the "
            "object.",
        ),
        Alert(
            name="PinwardenGroupDrainStuck",
            severity="warning",
            expr=condition("group", "Drained", "False"),
            lasting="30m",
            summary=f"{WHICH_GROUP} was deleted and still drains.",
            description="For 30 minutes the deletion of the group has waited for a borrower or a "
            "node.",
            meaning="A deleted group waits until no pod on any node has its object mapped (M10). "
            "The condition Drained names the pods and nodes.",
            impact="New borrows are denied. The group stays, and so does its namespace if the "
            "namespace is being deleted.",
            diagnosis=READ_GROUP,
            mitigation="End the named pods. To stop waiting and leave the objects:\n\n```console\n"
            "$ kubectl -n NAMESPACE patch sharedmemorygroup NAME --type=merge "
            '-p \'{"metadata":{"finalizers":null}}\'\n```',
        ),
    ),
)
