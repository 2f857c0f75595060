"""The spec of a SharedMemoryGroup."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from pinwarden.api.cel import cel
from pinwarden.api.meta import LabelSelector, Model
from pinwarden.api.pinlimit import Enforcement, Level
from pinwarden.api.quantity import Quantity
from pinwarden.api.sharedmemorygroup.backing import Backing


class Management(StrEnum):
    """Whether programs or pinwarden create the object."""

    ADOPT = "Adopt"
    CREATE = "Create"


class Accounting(StrEnum):
    """The counted amounts (M4)."""

    CHARGE = "Charge"
    BORROW = "Borrow"


class LimitOn(StrEnum):
    """The compared amount of a borrow: the size of the mappings, or their resident pages."""

    MAPPED = "Mapped"
    RESIDENT = "Resident"


class DeletionPolicy(StrEnum):
    """Whether the deletion of the group waits for its last borrower (M10)."""

    DRAIN = "Drain"
    ORPHAN = "Orphan"


class Owner(Model):
    """Owner and permissions of a created object."""

    user: int = Field(0, ge=0, le=2**31 - 1, description="User id.")
    group: int = Field(0, ge=0, le=2**31 - 1, description="Group id.")
    mode: int = Field(
        0o770,
        ge=0,
        le=0o777,
        description="Permissions as a number (0770 in octal is 504); execute bits apply only to "
        "the folder.",
    )


class Member(Model):
    """Pods that may borrow, and how much each may borrow."""

    pod_selector: LabelSelector = Field(
        description="Labels of the member pods in the group's namespace; empty selects every pod."
    )
    borrow_limit: Quantity | None = Field(
        None, description="Bytes that each of these pods may borrow; absent means no limit."
    )
    borrow_limit_on: LimitOn = Field(
        LimitOn.MAPPED,
        description="Mapped compares the size of the pod's mappings, Resident compares their pages "
        "in memory.",
    )
    pin_limit: Quantity | None = Field(
        None, description="Bytes of the group that drivers may pin for each of these pods."
    )


class SharedMemoryGroupSpec(Model):
    """The desired state of a group."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self.backing == oldSelf.backing",
                    "backing cannot be changed: create another group",
                    ".backing",
                ),
                cel(
                    "self.management == oldSelf.management",
                    "management cannot be changed: create another group",
                    ".management",
                ),
                cel(
                    "self.management != 'Create' || has(self.backing.tmpfs) || "
                    "has(self.backing.hugetlbfs) || has(self.backing.sysvShm)",
                    "management: Create needs tmpfs, hugetlbfs or sysvShm",
                    ".management",
                ),
                cel(
                    "self.management != 'Create' || (has(self.capacity) && "
                    "(!isQuantity(string(self.capacity)) || "
                    "quantity(string(self.capacity)).isGreaterThan(quantity('0'))))",
                    "management: Create needs a capacity above 0",
                    ".management",
                ),
                cel(
                    "self.management == 'Create' || !has(self.owner)",
                    "owner needs management: Create",
                    ".management",
                ),
                cel(
                    "!has(self.backing.tmpfs) || "
                    "(self.management == 'Adopt') == has(self.backing.tmpfs.path)",
                    "tmpfs needs a path with management: Adopt, and no path with Create",
                    ".backing",
                ),
                cel(
                    "!has(self.backing.hugetlbfs) || "
                    "(self.management == 'Adopt') == has(self.backing.hugetlbfs.path)",
                    "hugetlbfs needs a path with management: Adopt, and no path with Create",
                    ".backing",
                ),
                cel(
                    "self.management == 'Adopt' || !has(self.backing.sysvShm) || "
                    "self.backing.sysvShm.ipcNamespace == 'Host'",
                    "a created segment needs ipcNamespace: Host",
                    ".backing",
                ),
                cel(
                    "self.management == 'Adopt' || !has(self.backing.sysvShm) || "
                    "!string(self.backing.sysvShm.key).matches('[*-]')",
                    "a created segment needs exactly one key",
                    ".backing",
                ),
                cel(
                    "self.accounting == 'Borrow' || "
                    "!self.members.exists(one, has(one.borrowLimit))",
                    "a borrowLimit needs accounting: Borrow",
                    ".accounting",
                ),
                cel(
                    "self.accounting == 'Borrow' || "
                    "!has(self.fairShare) || self.fairShare == 'Charge'",
                    "fairShare: Borrow needs accounting: Borrow",
                    ".accounting",
                ),
            ]
        }
    )

    backing: Backing
    management: Management = Field(
        Management.ADOPT,
        description="Adopt finds objects that programs create. Create creates the object on each "
        "node with a member pod.",
    )
    owner: Owner | None = Field(
        None, description="With management: Create, the owner of the object."
    )
    prefault: bool = Field(
        True,
        description="With management: Create, allocate all pages at once, charged to a separate "
        "cgroup. Else the first user of a page is charged.",
    )
    capacity: Quantity | None = Field(
        None,
        description="Maximum bytes of the object. Create creates it with this size; Adopt reports "
        "an excess.",
    )
    accounting: Accounting = Field(
        Accounting.CHARGE,
        description="Charge counts the memory of the object; Borrow also counts the part mapped by "
        "each pod.",
    )
    fair_share: Accounting | None = Field(
        None,
        description="Share of a pod in the fair view: its borrow, or the whole charge; absent "
        "means the same as accounting.",
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
        description="The pods that may borrow; no other pod is a member.",
    )
    enforcement: Enforcement = Field(
        Enforcement.ENFORCE,
        description="Enforce denies what a gate can deny; Audit evaluates and changes nothing.",
    )
    minimum_level: Level = Field(
        Level.CONVERGE,
        description="Weakest level at which a borrow limit of a pod counts as enforced.",
    )
    deletion_policy: DeletionPolicy = Field(
        DeletionPolicy.DRAIN,
        description="Drain denies new borrows, waits until no pod has the object mapped, and then "
        "removes a created object. Orphan leaves everything in place.",
    )
