"""The status of a SharedMemoryGroup."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from pinwarden.api.meta import Condition, Model
from pinwarden.api.pinlimit import Level, NodeCount, ReadableAmount


class Phase(StrEnum):
    """How far an instance is, from the worst to the best."""

    PENDING = "Pending"
    DRAINING = "Draining"
    ACTIVE = "Active"
    RELEASED = "Released"


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
