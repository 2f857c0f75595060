"""What an explanation is made of: findings, each with a cause for programs, words for people, and one next step.

`Cause` stands in the order in which causes are told: what makes all else unknown comes first, then what explains a refusal, then what is
only worth knowing. The first finding is the answer to "why"; its next step is what to do.
"""

from datetime import datetime
from enum import StrEnum

from pinwarden.api.meta import Model
from pinwarden.api.nodepinconfig import OvershootReport, SourceLevel
from pinwarden.api.pinlimit import Enforcement, Level, Scope


class Cause(StrEnum):
    """Why a pod is held as it is, one CamelCase word each."""

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
        """0 for what is told first."""
        return list(Cause).index(self)


class NextStep(Model):
    """One thing to do, and the command that does it or shows more."""

    text: str
    command: str


class Finding(Model):
    """One thing that explains how the pod is held. `problem`: something is not as somebody asked."""

    cause: Cause
    problem: bool
    message: str
    next: NextStep


class Standing(StrEnum):
    """What a limit whose selectors match is to the pod: `Pending` until its node said to hold the pod to it."""

    STRICTEST = "Strictest"
    HOLDS = "Holds"
    OVERRIDDEN = "Overridden"
    AUDIT = "Audit"
    PENDING = "Pending"
    REJECTED = "Refused"


class LimitUse(Model):
    """A limit whose selectors match the pod; amounts in bytes, and absent where they are not known (H2).

    `used` and `peak` are in the scope of the limit: the fullest container with scope Container; absent with scope Node, which sums over
    other pods too. `because` says why it stands so. `acknowledged` is of this pod: whether its node said to hold it to the limit.
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
    """What the pod was last seen to pin, in bytes and sampled, and how it is held. Without `level` that is not known (H1)."""

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
    """A refusal as the node lists it, or an Event told it."""

    time: datetime
    text: str


class GroupUse(Model):
    """What the pod borrows of a SharedMemoryGroup, in bytes; absent where it is not known."""

    name: str
    member: bool
    borrowed: int | None = None
    mapped: int | None = None
    limit: int | None = None
    level: Level | None = None
    denials: int | None = None


class Explanation(Model):
    """All that is to say of a pod. `findings` is never empty, the most important one first."""

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
