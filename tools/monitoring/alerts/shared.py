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
            summary=f"{WHICH_GROUP} is not there as asked for on every node.",
            description="For 15 minutes a node with a member pod has not had the object as the group asks for it.",
            meaning="The condition Available says where and why: `NotMade`, `NoRoom`, `Claimed`, `SymbolicLink`, ...",
            impact="With `management: Create`, member pods that mount it wait in ContainerCreating. Adopted objects are not "
            "accounted for.",
            diagnosis=READ_GROUP,
            mitigation="`NoRoom`: raise `shared.memory` and set it aside in the kubelet's `systemReserved`, or lower capacities. "
            "`Claimed`: an "
            "older group has the object. See docs/shared-memory.md.",
        ),
        Alert(
            name="PinwardenGroupNotEnforced",
            severity="warning",
            expr=not_enforced("group"),
            lasting="15m",
            summary=f"The borrow limits of {WHICH_GROUP} are not enforced on every member.",
            description="For 15 minutes a member with a borrowLimit has not been held, or has not been known to be held, to it.",
            meaning="Borrow limits on what is Mapped are held in pods with the gate's profile `runtime-default-v2`; all else is Observe.",
            impact="These pods can map more of the object than their limit.",
            diagnosis=READ_GROUP,
            mitigation="Give the pods the profile (`pinwarden.io/gate=runtime-default` on the Namespace), or say `minimumLevel: "
            "Observe` if counting is enough.",
        ),
        Alert(
            name="PinwardenGroupExceeded",
            severity="warning",
            expr=condition("group", "WithinLimit", "False"),
            lasting="15m",
            summary=f"{WHICH_GROUP} is above a limit, or a stranger borrows from it.",
            description="For 15 minutes charge or a borrow has been above its limit, or a pod that is no member has had the object "
            "mapped.",
            meaning="The reason says which: `OverCapacity`, `OverLimit` or `NotMember`.",
            impact="Where borrows are enforced, further mappings are refused. The capacity of an adopted object is reported only.",
            diagnosis=READ_GROUP,
            mitigation="Raise the limit, make the pod a member, or restart the pod that is named.",
        ),
        Alert(
            name="PinwardenGroupNearCapacity",
            severity="warning",
            expr=f"(max by ({GROUP}) (pinwarden_operator_group_fullest_bytes) / max by ({GROUP}) "
            "(pinwarden_operator_group_capacity_bytes) > 0.9)"
            f' unless on ({GROUP}) pinwarden_operator_group_info{{prefault="true"}}',
            lasting="15m",
            summary=f"{WHICH_GROUP} is {{{{ $value | humanizePercentage }}}} full on a node.",
            description="For 15 minutes its object has held more than 90 % of its capacity on a node.",
            meaning="Not told of groups of which pinwarden takes all pages at once: they are always full.",
            impact="A created object refuses more at its capacity (ENOSPC). An adopted one goes on growing, in the charge of whoever "
            "writes.",
            diagnosis=READ_GROUP,
            mitigation="Raise `capacity` (live for tmpfs), or see which pod writes.",
        ),
        Alert(
            name="PinwardenGroupOrphaned",
            severity="info",
            expr=f"(max by ({GROUP}) (pinwarden_operator_group_orphaned_bytes) > 67108864)"
            f' unless on ({GROUP}) pinwarden_operator_group_info{{prefault="true"}}',
            lasting="30m",
            summary=f"{{{{ $value | humanize1024 }}}}B of {WHICH_GROUP} have been mapped by no pod for long.",
            description="More than 64 MiB of its charge have had no borrower for 30 minutes.",
            meaning="Pages outlive the pods that wrote them (M9). With `accounting: Charge` it is an estimate. What pinwarden took "
            "by itself is left out.",
            impact="The memory is in use and nobody uses it; the kernel charges it to who wrote it first, gone or not.",
            diagnosis=READ_GROUP,
            mitigation="Remove files that nobody needs, or delete the group if pinwarden created it.",
        ),
        Alert(
            name="PinwardenGroupDrainStuck",
            severity="warning",
            expr=condition("group", "Drained", "False"),
            lasting="30m",
            summary=f"{WHICH_GROUP} was deleted and does not end.",
            description="For 30 minutes the end of the group has waited for a borrower or a node.",
            meaning="A group that drains waits until nobody on any node has its object mapped (M10). The condition Drained names "
            "whom it waits for.",
            impact="Nobody borrows anew. The group stays, and with it its namespace if that is being deleted.",
            diagnosis=READ_GROUP,
            mitigation="End the pods that are named. To give up waiting and leave what there is:\n\n```console\n$ kubectl -n "
            "NAMESPACE patch "
            'sharedmemorygroup NAME --type=merge -p \'{"metadata":{"finalizers":null}}\'\n```',
        ),
    ),
)
