"""SharedMemoryGroup: shared memory objects as a resource, and how much of them each pod borrows.

A group stands for one kind of object (`backing`) wherever a node has it (M1); `members` selects its
pods (M2). The *charge* is the memory of the object, the *borrow* of a pod is what the pod has
mapped of it (M3). Amounts in a status are in bytes, sampled, and absent if unknown (H2).

An administrator bounds what a namespace may name (annotation `pinwarden.io/allow-shared-memory` of
the Namespace). A group outside of that is Accepted=False.
"""

from typing import Any, ClassVar, Literal

from pydantic.config import JsonDict

from pinwarden.api.pinlimit import NAME_RULE, Resource, printer_column
from pinwarden.api.sharedmemorygroup.backing import Backing, IpcNamespace, Path, key_range
from pinwarden.api.sharedmemorygroup.spec import (
    Accounting,
    DeletionPolicy,
    LimitOn,
    Management,
    Member,
    Owner,
    SharedMemoryGroupSpec,
)
from pinwarden.api.sharedmemorygroup.status import (
    Borrower,
    GroupNode,
    Phase,
    SharedMemoryGroupStatus,
)

__all__ = [
    "Accounting",
    "Backing",
    "Borrower",
    "DeletionPolicy",
    "GroupNode",
    "IpcNamespace",
    "LimitOn",
    "Management",
    "Member",
    "Owner",
    "Path",
    "Phase",
    "SharedMemoryGroup",
    "SharedMemoryGroupSpec",
    "SharedMemoryGroupStatus",
    "key_range",
]


class SharedMemoryGroup(Resource):
    """Shared memory objects as a resource, and how much of them each pod borrows."""

    plural = "sharedmemorygroups"
    short_names: ClassVar[list[str]] = ["smg"]
    namespaced = True
    printer_columns: ClassVar[list[dict[str, Any]]] = [
        printer_column("Backing", "string", ".status.backing", "Kind of the object"),
        printer_column("Capacity", "string", ".spec.capacity", "Bytes that the object may hold"),
        printer_column("Charge", "string", ".status.charge", "Memory of the objects"),
        printer_column("Borrowed", "string", ".status.borrowed", "Memory that pods have mapped"),
        printer_column("Orphaned", "string", ".status.orphaned", "Memory that no pod has mapped"),
        printer_column("Borrowers", "integer", ".status.borrowerCount", "Pods that borrow"),
        printer_column("Phase", "string", ".status.phase", "The worst of the nodes' phases"),
        printer_column("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
    ]
    rules: ClassVar[list[JsonDict]] = [NAME_RULE]

    kind: Literal["SharedMemoryGroup"] = "SharedMemoryGroup"
    spec: SharedMemoryGroupSpec
    status: SharedMemoryGroupStatus | None = None
