"""The status of a NodePinConfig: the report of the node's agent."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, Field, StringConstraints, WithJsonSchema

from pinwarden.api.meta import Model
from pinwarden.api.pinlimit import Level, Source
from pinwarden.api.sharedmemorygroup import Phase

Count = Annotated[int, Field(ge=0, le=2**62)]
"""A number that an agent reports: any that a node can reach, and no more, so that an int64 holds it."""
Word = Annotated[str, StringConstraints(max_length=63, pattern=r"^([A-Za-z][A-Za-z0-9]*)?$")]
"""A reason that an agent gives, in CamelCase, or nothing."""
_MOST_TEXT = 4096
_CUT = " ... (cut)"


def _fit(text: Any) -> Any:
    """Cut a text that is too long, and say so in it (H2): a long path must not cost an agent its whole report."""
    too_long = isinstance(text, str) and len(text) > _MOST_TEXT
    return text[: _MOST_TEXT - len(_CUT)] + _CUT if too_long else text


Text = Annotated[str, BeforeValidator(_fit), WithJsonSchema({"type": "string", "maxLength": _MOST_TEXT})]
"""A message, cut to fit. A constraint of pydantic's would refuse a path in it whose bytes are no text."""
Uid = Annotated[str, WithJsonSchema({"type": "string", "maxLength": 1024})]
"""A UID that an agent reports, bounded by the API server alone.

On a host without Kubernetes it is the path of a cgroup: any bytes, as `os.fsdecode` gives them, of any length.
"""


class AppliedLimit(Model):
    """An acknowledgement: the limit with this hash is dealt to every process that it governs."""

    uid: Uid
    hash: str = Field(max_length=63)


class UnsupportedReport(Model):
    """A limit that the agent could not take, and why."""

    uid: Uid
    reason: Word
    message: Text


class SourceLevel(Model):
    """What the node reaches for one source (H1)."""

    source: Source
    counted: bool = Field(description="Whether the ledger in place sees what this source pins.")
    level: Level
    reason: Word
    message: Text = ""


class ContainerReport(Model):
    """A container of a governed pod; amounts in bytes, sampled (H2)."""

    name: str = Field(max_length=63)
    pinned: Count = Field(description="What it has locked and pinned together (VmLck + VmPin).")
    peak: Count = Field(description="The most that was seen: a lower bound.")


class LimitDenials(Model):
    """How many calls of a pod were refused for one limit."""

    uid: str = Field(max_length=64, description="UID of the resource behind the limit, or unknownPods.")
    count: int = Field(ge=1, le=2**62, description="Every one that the gate refused since it holds the pod.")


class PodReport(Model):
    """A governed pod whose cgroup exists; amounts in bytes, sampled (H2).

    `denials` tells limits apart, because several may hold for a pod and the status of each counts only what was refused for it. It goes by
    UID, because the name of a limit changes with what it grants.
    """

    uid: Uid
    vm_lck: Count = Field(description="Sum of mm->locked_vm over the pod's address spaces (VmLck).")
    vm_pin: Count = Field(description="Sum of mm->pinned_vm over the pod's address spaces (VmPin).")
    peak: Count = Field(description="The most that was seen together: a lower bound.")
    processes: Count
    level: Level = Field(
        description="How the pod is held over everything that it can use or has used, whatever the node reaches for others (H1)."
    )
    reason: Word = ""
    message: Text = ""
    denials: list[LimitDenials] | None = Field(
        None,
        max_length=32,
        description="Calls that the gate refused, by limit, as far as the limit still holds for the pod; empty where it refused none, "
        "absent where no gate that sees refusals holds the pod (H2). What the kernel itself refuses is in none.",
    )
    containers: list[ContainerReport] = Field(
        default_factory=list,
        max_length=64,
        description="Listed where a limit of scope Container holds for the pod: the running ones that it governs.",
    )


class OvershootReport(Model):
    """Use seen above a limit; a sampled lower bound (H2)."""

    limit: Uid = Field(description="UID of the limit.")
    pod: Uid | None = Field(None, description="UID of the pod; absent with scope Node.")
    peak: Count = Field(description="Most bytes seen above the limit.")
    seconds: float = Field(ge=0, le=2**40)
    count: Count
    last_time: AwareDatetime


class DenialReport(Model):
    """A call that the gate refused, and why. What does not apply and what cannot be known is absent (H2)."""

    number: int = Field(
        ge=1,
        le=2**62,
        description="Counts the refusals on the node, from 1 again when the gate's journal begins anew; told apart by it and the time.",
    )
    time: AwareDatetime
    pod: str = Field(max_length=1024, description="UID that the pod's cgroup bears.")
    container: str = Field(max_length=63)
    process: str = Field(
        max_length=16,
        description="The name that the process gave itself (comm): any characters, to be shown with care.",
    )
    pid: int = Field(
        ge=1, le=2**31 - 1, description="Its process id as the node's initial PID namespace has it."
    )
    source: Source
    asked: int | None = Field(
        None,
        ge=0,
        le=2**62,
        description="Bytes that it would have added, told up to 4Ei; absent where that cannot be known.",
    )
    used: Count | None = Field(
        None, description="Bytes that counted towards the limit then; absent without a limit."
    )
    limit: Count | None = Field(
        None,
        description="Bytes of the limit that it did not fit in; absent where the cause is another.",
    )
    name: str = Field("", max_length=384, description="Name of that limit in the spec, or unknownPods.")
    uid: str = Field("", max_length=64, description="UID of the resource behind it, or unknownPods.")
    message: str = Field("", max_length=256, description="The cause in words where it is not a limit.")
    call: str = Field(
        "",
        max_length=128,
        description="The system call with the flags that matter, such as mlockall(MCL_FUTURE); empty from a gate that does not say it.",
    )


class BorrowReport(Model):
    """What one pod borrows of a group; amounts in bytes, sampled (H2)."""

    pod: str = Field(max_length=64, description="UID that the pod's cgroup bears.")
    member: bool = Field(description="Whether the group has it as a member here.")
    borrowed: Count | None = Field(
        None,
        description="Resident pages that it has mapped, each once; absent where that is not known.",
    )
    mapped: Count | None = Field(None, description="The extent that it has mapped, resident or not.")
    level: Level | None = Field(
        None, description="How it is held to its borrow limits; absent where it has none."
    )
    reason: Word = ""
    denials: Count | None = Field(
        None,
        description="Calls that the gate refused for this group; absent where no gate sees them (H2).",
    )


class GroupReport(Model):
    """A group on this node; amounts in bytes, sampled at `sampledAt` or later, absent where they cannot be known (H2)."""

    uid: str = Field(max_length=64)
    hash: str = Field(
        "", max_length=12, description="Of the spec that this is by: the acknowledgement of it."
    )
    phase: Phase = Field(
        description="Pending while there is no object; Draining while it waits for the last borrower; Released when nothing of it is left "
        "here that pinwarden made, and nobody borrows."
    )
    reason: Word = ""
    message: str = Field("", max_length=1024)
    objects: Count = 0
    charge: Count | None = Field(None, description="What the objects hold (M3).")
    orphaned: Count | None = Field(
        None, description="What of the charge no pod has mapped (M9): exact with accounting Borrow."
    )
    dead: Count | None = Field(None, description="What is charged to cgroups that are gone (M9).")
    own: Count | None = Field(None, description="What is charged to the group's own cgroup (memory.current).")
    truncated: bool = Field(
        False,
        description="Whether there are more objects or borrowers than are looked at or listed, a process could not be read, or a /dev/shm "
        "holds what no process shows.",
    )
    borrowers: list[BorrowReport] = Field(default_factory=list, max_length=100)
    omitted: Count = Field(0, description="How many more borrowers there are.")
    sampled_at: AwareDatetime | None = Field(None, description="When the oldest of these figures was taken.")


class FairReport(Model):
    """The fair view of a pod that is attached to a group (M11); amounts in bytes."""

    pod: str = Field(max_length=64, description="UID that the pod's cgroup bears.")
    current: Count = Field(description="The kernel's memory.current.")
    anonymous: Count = Field(description="Its own anonymous memory (memory.stat, anon).")
    shared: Count = Field(
        description="What counts as its own of its groups: what it borrows, or the whole charge, by the policy of each.",
    )


class NodePinConfigStatus(Model):
    """What the node's agent reports; written only by the agent, lists are replaced as a whole."""

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
        description="Calls refused lately on the node, newest last; the operator makes Events of them.",
    )
    denials_dropped: Count | None = Field(
        None,
        description="Refusals since the gate's journal began that recentDenials does not list: it has newer ones instead, or others "
        "where many were alike. Absent where no gate sees refusals (H2).",
    )
    groups: list[GroupReport] = Field(default_factory=list, max_length=256)
    fair_view: list[FairReport] = Field(
        default_factory=list, max_length=1024, description="The pods that are attached to groups (M11)."
    )
    truncated: bool = Field(False, description="Whether a list was cut at its longest length.")
    sampled_at: AwareDatetime | None = None
