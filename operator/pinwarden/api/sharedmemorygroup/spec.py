"""The spec of a SharedMemoryGroup."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from pinwarden.api.cel import cel
from pinwarden.api.meta import LabelSelector, Model
from pinwarden.api.pinlimit import Enforcement, Level
from pinwarden.api.quantity import Quantity
from pinwarden.api.sharedmemorygroup.backing import Backing


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
