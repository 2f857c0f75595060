"""SharedMemoryGroup: an object of shared memory with an owner of its own, and what each pod borrows of it.

A group stands for one kind of object (`backing`) wherever it is found on a node (M1); pods are attached to it by `members` (M2). Its charge
is what the object holds, its borrow what a pod has mapped of it (M3). Amounts in a status are in bytes, sampled, and absent where they
cannot be known (H2).

What a namespace may name is bounded by its administrator (annotation `pinwarden.io/allow-shared-memory` of the Namespace); a group outside
of that is Accepted=False.
"""

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic.config import JsonDict

from pinwarden.api.cel import cel
from pinwarden.api.meta import Condition, LabelSelector, Model
from pinwarden.api.pinlimit import (
    NAME_RULE,
    Enforcement,
    Level,
    NodeCount,
    ReadableAmount,
    Resource,
    printer_column,
)
from pinwarden.api.quantity import Quantity

Path = Annotated[
    str,
    StringConstraints(
        max_length=1024,
        pattern=r"^(/(\.{0,2}[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]*|\.{3}[^/\x00-\x1f\x7f]*))+$",
    ),
]
"""Absolute, without `.`, `..`, empty parts, a slash at the end, or control characters."""
ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=249, pattern=r"^[^/\x00-\x1f\x7f]+$")]


MAX_KEY: Final = 2**32 - 1
EVERY_KEY: Final = "*"
_KEY: Final = r"(?:0[xX]0*[1-9a-fA-F][0-9a-fA-F]{0,7}|0*[1-9][0-9]{0,9})"
_KEYS: Final = re.compile(rf"({_KEY})(?:-({_KEY}))?")
SysvKey = Annotated[
    int | str,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "x-kubernetes-validations": [
                cel(
                    f"type(self) == int ? self >= 1 && self <= {MAX_KEY} : self == '*' || self.matches(r'^{_KEY}(-{_KEY})?$')",
                    f"must be a key from 1 to {MAX_KEY:#x}, decimal or hexadecimal, two with '-' between them, or '*'",
                )
            ],
        }
    ),
]


def key_range(text: str) -> tuple[int, int]:
    """Return the lowest and the highest key of a key or a range, decimal or hexadecimal. Raises ValueError."""
    found = _KEYS.fullmatch(text)
    if found is None:
        raise ValueError("it must be a key or two with '-' between them, decimal or hexadecimal")
    low = _number(found[1])
    high = _number(found[2]) if found[2] else low
    if not 1 <= low <= high <= MAX_KEY:
        raise ValueError(f"keys go from 1 to {MAX_KEY:#x}, the lower one first")
    return low, high


def _number(text: str) -> int:
    return int(text, 16 if text[:2].lower() == "0x" else 10)


class IpcNamespace(StrEnum):
    """Where an object of inter-process communication is looked for: in each member pod's own namespace, or in the node's."""

    POD = "Pod"
    HOST = "Host"


class MountBacking(Model):
    """A whole mounted file system."""

    path: Path | None = Field(
        None,
        description="Where it is mounted on the node, to adopt it; absent with management: Create, where pinwarden chooses the place.",
    )


class PosixShmBacking(Model):
    """POSIX shared memory, as shm_open(3) names it."""

    name: ObjectName = Field(
        description="The name without its leading slash; * and ? stand for any characters, also several objects."
    )
    ipc_namespace: IpcNamespace = Field(
        IpcNamespace.POD, description="Pod: the /dev/shm of each member pod. Host: that of the node."
    )


class SysvShmBacking(Model):
    """System V shared memory segments, as shmget(2) knows them."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self.ipcNamespace == 'Pod' || string(self.key) != '*'",
                    "key '*' is for ipcNamespace: Pod; of the node's segments give a key or a range",
                    ".key",
                )
            ]
        }
    )

    key: SysvKey = Field(
        description="Their key: a number, or as text what ipcs prints (0x0052e2c1), a range (0x5000-0x5fff), or '*' for all segments of "
        "the pod, also those with IPC_PRIVATE, which have no key."
    )
    ipc_namespace: IpcNamespace = Field(
        IpcNamespace.POD, description="Pod: the segments of each member pod. Host: those of the node."
    )

    @property
    def keys(self) -> tuple[int, int]:
        """The lowest and the highest key. Raises ValueError where the text is none."""
        return (0, MAX_KEY) if self.key == EVERY_KEY else key_range(str(self.key))


class FileBacking(Model):
    """Files of any file system, as far as they are in memory (page cache)."""

    path: Path = Field(
        description="The file on the node; * and ? in its last part stand for any characters, also several files."
    )


class MemfdBacking(Model):
    """Anonymous files of memfd_create(2) that processes of member pods have open or mapped."""

    name: ObjectName = Field(
        description="The name that the program gave it; * and ? stand for any characters, also several."
    )


class DmabufBacking(Model):
    """DMA buffers that processes of member pods have open or mapped."""

    exporter: ObjectName = Field(
        description="The name of the driver that exports them (exp_name), such as udmabuf."
    )


class Backing(Model):
    """What the group stands for: exactly one kind of object."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "[has(self.tmpfs), has(self.posixShm), has(self.sysvShm), has(self.hugetlbfs), has(self.file), has(self.memfd), "
                    "has(self.dmabuf)].filter(one, one).size() == 1",
                    "give exactly one of tmpfs, posixShm, sysvShm, hugetlbfs, file, memfd, dmabuf",
                ),
            ]
        }
    )

    tmpfs: MountBacking | None = Field(None, description="A tmpfs.")
    posix_shm: PosixShmBacking | None = None
    sysv_shm: SysvShmBacking | None = None
    hugetlbfs: MountBacking | None = Field(
        None, description="A hugetlbfs, with the node's default page size."
    )
    file: FileBacking | None = None
    memfd: MemfdBacking | None = None
    dmabuf: DmabufBacking | None = None

    @property
    def kind(self) -> str:
        """The name of the kind, as it stands in a manifest."""
        return next(iter(self.to_wire()), "")


class Management(StrEnum):
    """Whether the object is found, or made by pinwarden."""

    ADOPT = "Adopt"
    CREATE = "Create"


class Accounting(StrEnum):
    """What is counted (M4)."""

    CHARGE = "Charge"
    BORROW = "Borrow"


class LimitOn(StrEnum):
    """What a borrow limit compares: the extent mapped, or the pages of it that are resident."""

    MAPPED = "Mapped"
    RESIDENT = "Resident"


class DeletionPolicy(StrEnum):
    """What deleting the group waits for (M10): its last borrower, or nothing."""

    DRAIN = "Drain"
    ORPHAN = "Orphan"


class Phase(StrEnum):
    """How far an instance is, from the worst to the best."""

    PENDING = "Pending"
    DRAINING = "Draining"
    ACTIVE = "Active"
    RELEASED = "Released"


class Owner(Model):
    """Who owns what pinwarden creates, and who may use it."""

    user: int = Field(0, ge=0, le=2**31 - 1, description="User id.")
    group: int = Field(0, ge=0, le=2**31 - 1, description="Group id.")
    mode: int = Field(
        0o770,
        ge=0,
        le=0o777,
        description="Permissions, as a number (0770 in octal is 504); execution bits go to the folder alone.",
    )


class Member(Model):
    """Pods that may borrow, and how much each of them may."""

    pod_selector: LabelSelector = Field(
        description="The pods of the group's namespace that are attached, by their labels; empty selects every pod."
    )
    borrow_limit: Quantity | None = Field(
        None, description="Bytes that each of these pods may borrow; absent sets no limit."
    )
    borrow_limit_on: LimitOn = Field(
        LimitOn.MAPPED,
        description="What is compared with it: Mapped, the extent that the pod has mapped, or Resident, the pages of it in memory.",
    )
    pin_limit: Quantity | None = Field(
        None, description="Bytes of the group's pages that drivers may pin for each of these pods."
    )


class SharedMemoryGroupSpec(Model):
    """What a namespace's author asks for."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self.backing == oldSelf.backing",
                    "backing cannot be changed: make another group",
                    ".backing",
                ),
                cel(
                    "self.management == oldSelf.management",
                    "management cannot be changed: make another group",
                    ".management",
                ),
                cel(
                    "self.management != 'Create' || has(self.backing.tmpfs) || has(self.backing.hugetlbfs) || has(self.backing.sysvShm)",
                    "management: Create is for tmpfs, hugetlbfs and sysvShm",
                    ".management",
                ),
                cel(
                    "self.management != 'Create' || (has(self.capacity) && "
                    "(!isQuantity(string(self.capacity)) || quantity(string(self.capacity)).isGreaterThan(quantity('0'))))",
                    "management: Create needs a capacity above 0",
                    ".management",
                ),
                cel(
                    "self.management == 'Create' || !has(self.owner)",
                    "owner goes with management: Create only",
                    ".management",
                ),
                cel(
                    "!has(self.backing.tmpfs) || (self.management == 'Adopt') == has(self.backing.tmpfs.path)",
                    "tmpfs needs a path with management: Adopt, and takes none with Create",
                    ".backing",
                ),
                cel(
                    "!has(self.backing.hugetlbfs) || (self.management == 'Adopt') == has(self.backing.hugetlbfs.path)",
                    "hugetlbfs needs a path with management: Adopt, and takes none with Create",
                    ".backing",
                ),
                cel(
                    "self.management == 'Adopt' || !has(self.backing.sysvShm) || self.backing.sysvShm.ipcNamespace == 'Host'",
                    "a segment can be created in the node's IPC namespace only: give ipcNamespace: Host",
                    ".backing",
                ),
                cel(
                    "self.management == 'Adopt' || !has(self.backing.sysvShm) || !string(self.backing.sysvShm.key).matches('[*-]')",
                    "a segment is created with one key",
                    ".backing",
                ),
                cel(
                    "self.accounting == 'Borrow' || !self.members.exists(one, has(one.borrowLimit))",
                    "a borrowLimit needs accounting: Borrow",
                    ".accounting",
                ),
                cel(
                    "self.accounting == 'Borrow' || !has(self.fairShare) || self.fairShare == 'Charge'",
                    "fairShare: Borrow needs accounting: Borrow",
                    ".accounting",
                ),
            ]
        }
    )

    backing: Backing
    management: Management = Field(
        Management.ADOPT,
        description="Adopt finds objects that programs make; Create makes the object on each node that has a member pod.",
    )
    owner: Owner | None = Field(None, description="With management: Create, whose the object is.")
    prefault: bool = Field(
        True,
        description="With management: Create, take all pages at once, charged to a cgroup of its own; else who touches a page first pays.",
    )
    capacity: Quantity | None = Field(
        None, description="Bytes that the object may hold; Create makes it so large, Adopt reports an excess."
    )
    accounting: Accounting = Field(
        Accounting.CHARGE,
        description="Charge counts what the object holds; Borrow also what each pod has mapped of it.",
    )
    fair_share: Accounting | None = Field(
        None,
        description="What counts as a pod's in the fair view: what it borrows, or the whole charge; absent follows accounting.",
    )
    members: list[Member] = Field(
        min_length=1,
        max_length=16,
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self.all(one, self.exists_one(other, other.podSelector == one.podSelector))",
                    "give each podSelector once",
                )
            ]
        },
        description="The pods that may borrow; no others are attached.",
    )
    enforcement: Enforcement = Field(
        Enforcement.ENFORCE,
        description="Enforce refuses what can be refused; Audit evaluates and touches nothing.",
    )
    minimum_level: Level = Field(
        Level.CONVERGE, description="The weakest level at which a pod counts as held to its borrow limit."
    )
    deletion_policy: DeletionPolicy = Field(
        DeletionPolicy.DRAIN,
        description="Drain lets nobody borrow anew, waits until nobody has it mapped, and then removes what was created; Orphan "
        "leaves all as it is.",
    )


class Borrower(Model):
    """What one pod borrows."""

    pod: str
    namespace: str
    node: str
    member: bool = Field(description="Whether the group has it as a member; others may only be seen.")
    borrowed_bytes: int | None = Field(
        None, ge=0, description="The object's resident pages that it has mapped."
    )
    mapped_bytes: int | None = Field(None, ge=0, description="The extent that it has mapped.")
    limit_bytes: int | None = Field(None, ge=0, description="The least of its limits, absent without one.")
    level: Level | None = Field(None, description="The level at which it is held to its limits.")
    reason: str | None = Field(None, description="Why it is not held at a higher level.")
    denials: int | None = Field(None, ge=0, description="Calls that a gate refused; absent where none sees.")


class GroupNode(Model):
    """The instance on one node."""

    node: str
    phase: Phase
    reason: str = ""
    message: str = ""
    objects: int | None = Field(None, ge=0, description="How many objects there are.")
    charge_bytes: int | None = Field(None, ge=0)
    orphaned_bytes: int | None = Field(None, ge=0)
    sampled_at: datetime | None = None


class SharedMemoryGroupStatus(Model):
    """What the agents report, summed up; sampled, and absent where it cannot be known (H2)."""

    observed_generation: int | None = None
    conditions: list[Condition] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Ready, Accepted, Applied, Available, Enforced, Complete, WithinLimit, Drained.",
    )
    phase: Phase | None = Field(None, description="The worst of the nodes' phases.")
    backing: str | None = Field(None, description="The kind of the object.")
    matched_pods: int | None = Field(None, ge=0, description="Pods that are attached.")
    node_count: NodeCount | None = None
    charge_bytes: int | None = Field(
        None, ge=0, description="What the objects of all nodes hold, also swapped out."
    )
    charge: ReadableAmount | None = Field(None, description="`chargeBytes` in short, with its unit: `40Mi`.")
    borrowed_bytes: int | None = Field(
        None,
        ge=0,
        description="What all pods borrow, added up: a page that two pods have mapped counts twice.",
    )
    borrowed: ReadableAmount | None = Field(
        None, description="`borrowedBytes` in short, with its unit: `40Mi`."
    )
    pinned_bytes: int | None = Field(
        None, ge=0, description="What drivers have pinned of it; absent, as nothing counts it yet."
    )
    orphaned_bytes: int | None = Field(None, ge=0, description="What no pod has mapped.")
    orphaned: ReadableAmount | None = Field(
        None, description="`orphanedBytes` in short, with its unit: `40Mi`."
    )
    dead_cgroup_bytes: int | None = Field(
        None,
        ge=0,
        description="What is charged to cgroups that are gone; absent where that is not looked at.",
    )
    borrower_count: int | None = Field(None, ge=0, description="Pods that have some of it mapped.")
    borrowers: list[Borrower] = Field(
        default_factory=list, max_length=100, description="The pods that borrow, largest first."
    )
    omitted: int | None = Field(None, ge=0, description="How many more borrowers there are.")
    nodes: list[GroupNode] = Field(
        default_factory=list, max_length=100, description="One instance per node, the worst first."
    )


class SharedMemoryGroup(Resource):
    """An object of shared memory with an owner of its own, and what each pod borrows of it."""

    plural = "sharedmemorygroups"
    short_names: ClassVar[list[str]] = ["smg"]
    namespaced = True
    printer_columns: ClassVar[list[dict[str, Any]]] = [
        printer_column("Backing", "string", ".status.backing", "Kind of the object"),
        printer_column("Capacity", "string", ".spec.capacity", "Bytes that the object may hold"),
        printer_column("Charge", "string", ".status.charge", "Memory that the objects hold"),
        printer_column("Borrowed", "string", ".status.borrowed", "Memory of it that pods have mapped"),
        printer_column("Orphaned", "string", ".status.orphaned", "Memory that no pod has mapped"),
        printer_column("Borrowers", "integer", ".status.borrowerCount", "Pods that have some of it mapped"),
        printer_column("Phase", "string", ".status.phase", "The worst of the nodes' phases"),
        printer_column("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
    ]
    rules: ClassVar[list[JsonDict]] = [NAME_RULE]

    kind: Literal["SharedMemoryGroup"] = "SharedMemoryGroup"
    spec: SharedMemoryGroupSpec
    status: SharedMemoryGroupStatus | None = None
