"""The parts of an explanation: findings, each with a cause, a message, and a next step.

`Cause` is for programs, in order of importance: first causes that make everything else unknown,
then causes of a denial, then remarks. The first finding answers "why", its next step "and now".
"""

from datetime import datetime
from enum import StrEnum

from pinwarden.api.meta import Model
from pinwarden.api.nodepinconfig import OvershootReport, SourceLevel
from pinwarden.api.pinlimit import Enforcement, Level, Scope


class Cause(StrEnum):
    """Why a pod is limited so, in one CamelCase word."""

    POD_ENDED = "PodEnded"
    ON_WINDOWS = "OnWindows"
    NOT_SCHEDULED = "NotScheduled"
    LIMIT_NOT_UNDERSTOOD = "LimitNotUnderstood"
    EXEMPT_NAMESPACE = "ExemptNamespace"
    NO_LIMIT = "NoLimitMatches"
    NODE_UNKNOWN = "NodeUnknown"
    NO_CONFIG = "NoNodePinConfig"
    RELEASED = "NodeReleased"
    AGENT_MISSING = "AgentMissing"
    AGENT_SILENT = "AgentSilent"
    GATE_LOST = "GateLost"
    UNSUPPORTED = "UnsupportedOnNode"
    NO_ROOM = "TooManyLimits"
    NOT_WRITTEN = "NotWritten"
    NOT_ACKNOWLEDGED = "NotAcknowledged"
    NOT_STARTED = "NotStarted"
    OVER_LIMIT = "OverLimit"
    DENIED_BY_GATE = "RefusedByGate"
    LIMIT_REJECTED = "LimitRefused"
    NOT_ENFORCEABLE = "NotEnforceable"
    NOT_REPORTED = "NotReported"
    AT_LIMIT = "LikelyRefusedByKernel"
    LEVEL_TOO_LOW = "LevelTooLow"
    HELD_IN_PART = "HeldInPart"
    GRANT_LIMITED = "GrantBeyondMaxGrant"
    OVERSHOT = "Overshot"
    BORROW_DENIED = "BorrowRefused"
    BORROW_OVER = "BorrowOverLimit"
    GROUP_REJECTED = "GroupRefused"
    NOT_MEMBER = "NotMember"
    AUDIT = "Audit"
    OVERRIDDEN = "Overridden"
    GRANTED = "Granted"
    HELD_BY_RLIMIT = "HeldByRlimit"
    HELD_EXACTLY = "HeldExactly"
    COUNTED = "CountedOnly"

    @property
    def rank(self) -> int:
        """The position in order of importance, from 0."""
        return list(Cause).index(self)


class NextStep(Model):
    """An action, and its command."""

    text: str
    command: str


class Finding(Model):
    """A fact about the limits of the pod. `problem`: something is not as requested."""

    cause: Cause
    problem: bool
    message: str
    next: NextStep


def problem(cause: Cause, message: str, step: NextStep) -> Finding:
    """Return a finding about something that is not as requested."""
    return Finding(cause=cause, problem=True, message=message, next=step)


def remark(cause: Cause, message: str, step: NextStep) -> Finding:
    """Return a finding that is no problem."""
    return Finding(cause=cause, problem=False, message=message, next=step)


class Standing(StrEnum):
    """The effect of a matching limit on the pod; `Pending` until acknowledged by the node."""

    STRICTEST = "Strictest"
    HOLDS = "Holds"
    OVERRIDDEN = "Overridden"
    AUDIT = "Audit"
    PENDING = "Pending"
    REJECTED = "Refused"


class LimitUse(Model):
    """A limit whose selectors match the pod; amounts are in bytes, and absent if unknown (H2).

    `used` and `peak` are in the scope of the limit: those of the fullest container with scope
    Container, absent with scope Node. `because` explains `standing`. `acknowledged`: the node
    acknowledged the limit for this pod.
    """

    kind: str
    name: str
    limit: int | None
    scope: Scope
    enforcement: Enforcement
    minimum_level: Level
    grant: int | None = None
    standing: Standing
    because: str = ""
    used: int | None = None
    peak: int | None = None
    denials: int | None = None
    acknowledged: bool | None = None


class PodUse(Model):
    """The last sample of the pod in bytes; `level` is absent if unknown (H1)."""

    locked: int
    pinned: int
    total: int
    peak: int
    processes: int
    level: Level | None = None
    reason: str = ""
    message: str = ""
    denials: int | None = None
    sampled_at: datetime | None = None
    stale: bool = False


class DeniedCall(Model):
    """A denied call, from the node's report or from an Event."""

    time: datetime
    text: str


class GroupUse(Model):
    """The borrow of the pod from a SharedMemoryGroup, in bytes; absent if unknown."""

    name: str
    member: bool
    borrowed: int | None = None
    mapped: int | None = None
    limit: int | None = None
    level: Level | None = None
    denials: int | None = None


class Explanation(Model):
    """The explanation of a pod. `findings` is never empty, and starts with the most important."""

    namespace: str
    pod: str
    uid: str
    node: str | None = None
    findings: list[Finding]
    use: PodUse | None = None
    limits: list[LimitUse]
    sources: list[SourceLevel]
    refused: list[DeniedCall]
    overshoots: list[OvershootReport]
    groups: list[GroupUse]
