"""SharedMemoryGroup: shared memory objects as a resource, and the borrow of each pod.

A group stands for one kind of object (`backing`) on all nodes (M1); `members` selects its pods
(M2). The *charge* is the memory of the object, the *borrow* is the part mapped by a pod (M3).
Amounts in a status are in bytes, sampled, and absent if unknown (H2).

An administrator allows the objects of a namespace (annotation `pinwarden.io/allow-shared-memory` of
the Namespace). A group with another object is Accepted=False.
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
    """Shared memory objects as a resource, and the borrow of each pod."""

    plural = "sharedmemorygroups"
    short_names: ClassVar[list[str]] = ["smg"]
    namespaced = True
    printer_columns: ClassVar[list[dict[str, Any]]] = [
        printer_column("Backing", "string", ".status.backing", "Kind of the object"),
        printer_column("Capacity", "string", ".spec.capacity", "Maximum bytes of the object"),
        printer_column("Charge", "string", ".status.charge", "Memory of the objects"),
        printer_column("Borrowed", "string", ".status.borrowed", "Memory mapped by pods"),
        printer_column("Orphaned", "string", ".status.orphaned", "Memory mapped by no pod"),
        printer_column("Borrowers", "integer", ".status.borrowerCount", "Pods that borrow"),
        printer_column("Phase", "string", ".status.phase", "Worst phase of the nodes"),
        printer_column("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
    ]
    rules: ClassVar[list[JsonDict]] = [NAME_RULE]

    kind: Literal["SharedMemoryGroup"] = "SharedMemoryGroup"
    spec: SharedMemoryGroupSpec
    status: SharedMemoryGroupStatus | None = None
