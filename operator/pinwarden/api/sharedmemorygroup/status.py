"""The status of a SharedMemoryGroup."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from pinwarden.api.meta import Condition, Model
from pinwarden.api.pinlimit import Level, NodeCount, ReadableAmount


class Phase(StrEnum):
    """The state of the group on a node, from worst to best."""

    PENDING = "Pending"
    DRAINING = "Draining"
    ACTIVE = "Active"
    RELEASED = "Released"


class Borrower(Model):
    """The borrow of a pod."""

    pod: str
    namespace: str
    node: str
    member: bool = Field(description="Whether the pod is a member of the group.")
    borrowed_bytes: int | None = Field(
        None, ge=0, description="Resident bytes of the object that the pod has mapped."
    )
    mapped_bytes: int | None = Field(None, ge=0, description="Size of its mappings.")
    limit_bytes: int | None = Field(
        None, ge=0, description="Least of its limits; absent without a limit."
    )
    level: Level | None = Field(None, description="Level of its limits.")
    reason: str | None = Field(None, description="Why the level is not higher.")
    denials: int | None = Field(
        None, ge=0, description="Calls that a gate denied; absent without a gate."
    )


class GroupNode(Model):
    """The group on one node."""

    node: str
    phase: Phase
    reason: str = ""
    message: str = ""
    objects: int | None = Field(None, ge=0, description="Number of objects.")
    charge_bytes: int | None = Field(None, ge=0)
    orphaned_bytes: int | None = Field(None, ge=0)
    sampled_at: datetime | None = None


class SharedMemoryGroupStatus(Model):
    """The sums of the agents' reports; sampled, and absent if unknown (H2)."""

    observed_generation: int | None = None
    conditions: list[Condition] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Ready, Accepted, Applied, Available, Enforced, Complete, WithinLimit, "
        "Drained.",
    )
    phase: Phase | None = Field(None, description="Worst phase of all nodes.")
    backing: str | None = Field(None, description="Kind of the object.")
    matched_pods: int | None = Field(None, ge=0, description="Number of member pods.")
    node_count: NodeCount | None = None
    charge_bytes: int | None = Field(
        None, ge=0, description="Memory of the objects on all nodes, also swapped out."
    )
    charge: ReadableAmount | None = Field(
        None, description="`chargeBytes` rounded, with a unit: `40Mi`."
    )
    borrowed_bytes: int | None = Field(
        None, ge=0, description="Sum of all borrows; a page that two pods have mapped counts twice."
    )
    borrowed: ReadableAmount | None = Field(
        None, description="`borrowedBytes` rounded, with a unit: `40Mi`."
    )
    pinned_bytes: int | None = Field(
        None,
        ge=0,
        description="Bytes that drivers have pinned; always absent, because nothing counts it yet.",
    )
    orphaned_bytes: int | None = Field(None, ge=0, description="Bytes that no pod has mapped.")
    orphaned: ReadableAmount | None = Field(
        None, description="`orphanedBytes` rounded, with a unit: `40Mi`."
    )
    dead_cgroup_bytes: int | None = Field(
        None, ge=0, description="Bytes charged to deleted cgroups; absent if not examined."
    )
    borrower_count: int | None = Field(None, ge=0, description="Number of pods that borrow.")
    borrowers: list[Borrower] = Field(
        default_factory=list, max_length=100, description="Pods that borrow, largest first."
    )
    omitted: int | None = Field(None, ge=0, description="Number of further borrowers.")
    nodes: list[GroupNode] = Field(
        default_factory=list, max_length=100, description="The group on each node, worst first."
    )
