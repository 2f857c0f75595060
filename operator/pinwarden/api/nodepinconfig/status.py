"""The status of a NodePinConfig: the report of the node's agent."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, Field, StringConstraints, WithJsonSchema

from pinwarden.api.meta import Model
from pinwarden.api.pinlimit import Level, Source
from pinwarden.api.sharedmemorygroup import Phase

Count = Annotated[int, Field(ge=0, le=2**62)]
"""A number in a report of an agent, within the range of an int64."""
Word = Annotated[str, StringConstraints(max_length=63, pattern=r"^([A-Za-z][A-Za-z0-9]*)?$")]
"""A reason in a report of an agent: CamelCase, or empty."""
_MOST_TEXT = 4096
_CUT = " ... (cut)"


def _fit(text: Any) -> Any:
    """Return the text, cut with a mark if too long (H2); a long path must not end a report."""
    too_long = isinstance(text, str) and len(text) > _MOST_TEXT
    return text[: _MOST_TEXT - len(_CUT)] + _CUT if too_long else text


Text = Annotated[
    str, BeforeValidator(_fit), WithJsonSchema({"type": "string", "maxLength": _MOST_TEXT})
]
"""A message, cut to fit. A length constraint of pydantic would reject a path with invalid UTF-8."""
Uid = Annotated[str, WithJsonSchema({"type": "string", "maxLength": 1024})]
"""A UID in a report of an agent, bounded only by the API server.

On a host without Kubernetes, the UID is the path of a cgroup as `os.fsdecode` returns it.
"""


class AppliedLimit(Model):
    """An acknowledgement: the limit with this hash is applied to all its processes."""

    uid: Uid
    hash: str = Field(max_length=63)


class UnsupportedReport(Model):
    """A limit that the agent cannot apply, and why."""

    uid: Uid
    reason: Word
    message: Text


class SourceLevel(Model):
    """The level of the node for one source (H1)."""

    source: Source
    counted: bool = Field(description="Whether the node counts what this source pins.")
    level: Level
    reason: Word
    message: Text = ""


class ContainerReport(Model):
    """A container of a pod with limits; amounts are in bytes and sampled (H2)."""

    name: str = Field(max_length=63)
    pinned: Count = Field(description="Locked and pinned bytes (VmLck + VmPin).")
    peak: Count = Field(description="Highest sampled value: a lower bound.")


class LimitDenials(Model):
    """The number of denied calls of a pod for one limit."""

    uid: str = Field(max_length=64, description="UID of the resource, or unknownPods.")
    count: int = Field(
        ge=1, le=2**62, description="Calls that the gate denied since it manages the pod."
    )


class PodReport(Model):
    """A pod with limits whose cgroup exists; amounts are in bytes and sampled (H2).

    `denials` has an entry for each limit, because the status of each limit counts only its own
    denials. The key is the UID, because the name of a limit changes with the granted amount.
    """

    uid: Uid
    vm_lck: Count = Field(description="Sum of mm->locked_vm over the pod's address spaces (VmLck).")
    vm_pin: Count = Field(description="Sum of mm->pinned_vm over the pod's address spaces (VmPin).")
    peak: Count = Field(description="Highest sampled sum of both: a lower bound.")
    processes: Count
    level: Level = Field(
        description="Level of the pod over every source that it can use or has used, whatever the "
        "level of other pods (H1)."
    )
    reason: Word = ""
    message: Text = ""
    denials: list[LimitDenials] | None = Field(
        None,
        max_length=32,
        description="Calls that the gate denied, by limit that still applies to the pod. Empty "
        "without a denied call; absent if no gate manages the pod (H2). Calls that the kernel "
        "denies are not counted.",
    )
    containers: list[ContainerReport] = Field(
        default_factory=list,
        max_length=64,
        description="Listed if a limit with scope Container applies to the pod: its running "
        "containers.",
    )


class OvershootReport(Model):
    """Use above a limit; a sampled lower bound (H2)."""

    limit: Uid = Field(description="UID of the limit.")
    pod: Uid | None = Field(None, description="UID of the pod; absent with scope Node.")
    peak: Count = Field(description="Highest sampled bytes above the limit.")
    seconds: float = Field(ge=0, le=2**40)
    count: Count
    last_time: AwareDatetime


class DenialReport(Model):
    """A denied call and its cause. An unknown or inapplicable field is absent (H2)."""

    number: int = Field(
        ge=1,
        le=2**62,
        description="Number of the denial on the node; restarts at 1 with a new journal of the "
        "gate. Number and time identify a denial.",
    )
    time: AwareDatetime
    pod: str = Field(max_length=1024, description="UID in the name of the pod's cgroup.")
    container: str = Field(max_length=63)
    process: str = Field(
        max_length=16,
        description="Name of the process (comm), chosen by the process: it may have any "
        "characters.",
    )
    pid: int = Field(
        ge=1, le=2**31 - 1, description="Process id in the node's initial PID namespace."
    )
    source: Source
    asked: int | None = Field(
        None,
        ge=0,
        le=2**62,
        description="Bytes that the call would have added, at most 4Ei; absent if unknown.",
    )
    used: Count | None = Field(
        None, description="Bytes in use at that time; absent without a limit."
    )
    limit: Count | None = Field(
        None, description="Bytes of the limit; absent if the cause is not a limit."
    )
    name: str = Field(
        "", max_length=384, description="Name of the limit in the spec, or unknownPods."
    )
    uid: str = Field("", max_length=64, description="UID of the resource, or unknownPods.")
    message: str = Field("", max_length=256, description="Cause in words if it is not a limit.")
    call: str = Field(
        "",
        max_length=128,
        description="System call with its relevant flags, such as mlockall(MCL_FUTURE); empty from "
        "an older gate.",
    )


class BorrowReport(Model):
    """The borrow of a pod from a group; amounts are in bytes and sampled (H2)."""

    pod: str = Field(max_length=64, description="UID in the name of the pod's cgroup.")
    member: bool = Field(description="Whether the pod is a member of the group.")
    borrowed: Count | None = Field(
        None,
        description="Resident pages that the pod has mapped, each counted once; absent if unknown.",
    )
    mapped: Count | None = Field(None, description="Size of its mappings, resident or not.")
    level: Level | None = Field(
        None, description="Level of its borrow limits; absent without a limit."
    )
    reason: Word = ""
    denials: Count | None = Field(
        None, description="Calls that the gate denied for this group; absent without a gate (H2)."
    )


class GroupReport(Model):
    """A group on this node; amounts are in bytes, sampled, and absent if unknown (H2)."""

    uid: str = Field(max_length=64)
    hash: str = Field("", max_length=12, description="Hash of the acknowledged spec of the group.")
    phase: Phase = Field(
        description="Pending while there is no object. Draining while it waits for the last "
        "borrower. Released without a borrower and without an object created by pinwarden."
    )
    reason: Word = ""
    message: str = Field("", max_length=1024)
    objects: Count = 0
    charge: Count | None = Field(None, description="Memory of the objects (M3).")
    orphaned: Count | None = Field(
        None,
        description="Part of the charge that no pod has mapped (M9); exact with accounting Borrow.",
    )
    dead: Count | None = Field(None, description="Bytes charged to deleted cgroups (M9).")
    own: Count | None = Field(
        None, description="Bytes charged to the group's own cgroup (memory.current)."
    )
    truncated: bool = Field(
        False,
        description="True if some objects or borrowers were not examined or listed, if a process "
        "could not be read, or if a /dev/shm has files that no process shows.",
    )
    borrowers: list[BorrowReport] = Field(default_factory=list, max_length=100)
    omitted: Count = Field(0, description="Number of further borrowers.")
    sampled_at: AwareDatetime | None = Field(
        None, description="Time of the oldest of these figures."
    )


class FairReport(Model):
    """The fair view of a member pod (M11); amounts are in bytes."""

    pod: str = Field(max_length=64, description="UID in the name of the pod's cgroup.")
    current: Count = Field(description="memory.current of the kernel.")
    anonymous: Count = Field(description="Anonymous memory (anon in memory.stat).")
    shared: Count = Field(
        description="Share of its groups: what the pod borrows, or the whole charge, as fairShare "
        "of each group says."
    )


class NodePinConfigStatus(Model):
    """The report of the node's agent; only the agent writes it, and replaces lists as a whole."""

    observed_generation: Count | None = None
    agent_version: str | None = Field(None, max_length=253)
    kernel_version: str | None = Field(None, max_length=253)
    cgroup_version: Literal["v2", "v1", "hybrid"] | None = None
    applied_limits: list[AppliedLimit] = Field(default_factory=list, max_length=1024)
    unsupported_limits: list[UnsupportedReport] = Field(default_factory=list, max_length=1024)
    sources: list[SourceLevel] = Field(default_factory=list, max_length=32)
    pods: list[PodReport] = Field(default_factory=list, max_length=4096)
    overshoots: list[OvershootReport] = Field(default_factory=list, max_length=32)
    recent_denials: list[DenialReport] = Field(
        default_factory=list,
        max_length=32,
        description="Recently denied calls on the node, newest last; the operator sends Events "
        "about them.",
    )
    denials_dropped: Count | None = Field(
        None,
        description="Denials since the gate's journal began that recentDenials does not list, "
        "because newer or different ones are there. Absent without a gate (H2).",
    )
    gated_pods: list[Uid] | None = Field(
        None,
        max_length=1024,
        description="UIDs in the names of the cgroups of pods with a gated container, with or "
        "without limits. Absent without a gate (H2).",
    )
    groups: list[GroupReport] = Field(default_factory=list, max_length=256)
    fair_view: list[FairReport] = Field(
        default_factory=list, max_length=1024, description="The member pods of groups (M11)."
    )
    truncated: bool = Field(False, description="Whether a list was cut at its maximum length.")
    sampled_at: AwareDatetime | None = None
