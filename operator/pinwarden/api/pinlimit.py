"""PinLimit and ClusterPinLimit: how much memory the selected pods may pin.

A limit is a constraint (P13): the sum over its sources, in its scope and counting, stays at or
under `limit`. A limit raises nothing unless it is a grant (P14). The schema rejects most errors
with a message and the name of the field. Other errors lead to the condition Accepted=False with a
reason.
"""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)
from pydantic.config import JsonDict, JsonValue

from pinwarden.api.cel import ONCE, cel
from pinwarden.api.meta import Condition, LabelSelector, Model, ObjectMeta
from pinwarden.api.quantity import Quantity

ContainerName = Annotated[
    str, StringConstraints(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]


ReadableAmount = Annotated[str, StringConstraints(max_length=16)]
"""An amount of bytes with a unit: exact, or cut after one decimal and marked: `>40.0Mi`."""


class Source(StrEnum):
    """The kernel interface of a pin (P2)."""

    MLOCK = "Mlock"
    SHM_LOCK = "ShmLock"
    MEMFD_SECRET = "MemfdSecret"  # noqa: S105 - the system call memfd_secret(2), not a password
    IO_URING = "IoUring"
    RDMA = "Rdma"
    VFIO = "Vfio"
    IOMMUFD = "Iommufd"
    XDP = "Xdp"
    PERF = "Perf"
    UDMABUF = "Udmabuf"
    VDPA = "Vdpa"
    ZERO_COPY = "ZeroCopy"


class Scope(StrEnum):
    """The subject of a limit (P1). Only a ClusterPinLimit may have Node."""

    POD = "Pod"
    CONTAINER = "Container"
    NODE = "Node"


class Counting(StrEnum):
    """How a page with several pins counts (P7)."""

    EVERY_PIN = "EveryPin"
    ONCE_PER_POD = "OncePerPod"


class Enforcement(StrEnum):
    """Whether a limit denies calls, or is only evaluated (P13)."""

    ENFORCE = "Enforce"
    AUDIT = "Audit"


class Level(StrEnum):
    """The effect on a pin above the limit, from strongest to weakest (H1)."""

    DENY = "Deny"
    KILL = "Kill"
    CONVERGE = "Converge"
    OBSERVE = "Observe"

    @property
    def rank(self) -> int:
        """The position, 0 for the strongest; a level meets a minimum if its rank is not higher."""
        return list(Level).index(self)


class Contention(StrEnum):
    """How the allowance is divided among the processes of a pod (`RLIMIT_MEMLOCK`)."""

    SHARE = "Share"
    RESERVE = "Reserve"


class OnOvershoot(StrEnum):
    """The reaction if a race exceeds the limit."""

    REPORT = "Report"
    KILL = "Kill"


_SUBSET: JsonDict = {"minItems": 1}
"""For a list whose absence means all: an empty list is rejected, but may be stored already."""
_SUBSETS = ("containers", "sources")
_COMMON_RULES: list[JsonValue] = [
    cel(
        "self.scope == 'Container' || !has(self.containers) || size(self.containers) == 0",
        "containers needs scope: Container",
        ".containers",
    ),
    cel(
        "self.enforcement == 'Enforce' || self.onOvershoot == 'Report'",
        "onOvershoot: Kill needs enforcement: Enforce",
        ".onOvershoot",
    ),
    cel(
        "self.enforcement == 'Enforce' || !self.grant",
        "a grant needs enforcement: Enforce, because Audit changes nothing",
        ".grant",
    ),
]


class PinLimitSpec(Model):
    """The desired state of a limit."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": _COMMON_RULES})

    pod_selector: LabelSelector = Field(
        description="Labels of the limited pods. An empty selector selects every pod of the "
        "namespace."
    )
    limit: Quantity = Field(
        description="Maximum of pinned and locked memory in whole bytes; 0 forbids pinning. The "
        "kernel compares whole pages, so the limit is rounded down to a multiple of the page size."
    )
    scope: Literal[Scope.POD, Scope.CONTAINER] = Field(
        Scope.POD,
        description="Subject of the limit: the whole pod, or each selected container separately.",
    )
    containers: list[ContainerName] = Field(
        default_factory=list,
        max_length=64,
        json_schema_extra=_SUBSET
        | {"x-kubernetes-validations": [cel(ONCE, "name each container once")]},
        description="With scope Container: names of the containers; absent selects all containers "
        "of the pod.",
    )
    counting: Counting = Field(
        Counting.EVERY_PIN,
        description="EveryPin counts each pin operation, also a second pin of the same page. "
        "OncePerPod counts a page once per pod; such a limit is rejected, because OncePerPod is "
        "not implemented yet.",
    )
    sources: list[Source] = Field(
        default_factory=list,
        max_length=32,
        json_schema_extra=_SUBSET
        | {"x-kubernetes-validations": [cel(ONCE, "name each source once")]},
        description="The counted sources; absent means all.",
    )
    enforcement: Enforcement = Field(
        Enforcement.ENFORCE,
        description="Enforce denies calls above the limit; Audit evaluates and changes nothing.",
    )
    minimum_level: Level = Field(
        Level.CONVERGE,
        description="Weakest level at which the limit counts as enforced: Deny (the call is "
        "denied), Kill (the task ends before the call returns), Converge (a race can exceed the "
        "limit for a moment), Observe (counted only). With Deny, the gate also denies calls after "
        "which it could not limit the pod exactly.",
    )
    contention: Contention = Field(
        Contention.SHARE,
        description="How the processes of a pod compete. With Share, no call is denied early, and "
        "a race can exceed the limit. With Reserve, the sum of all allowances never exceeds the "
        "limit, and a call can be denied early.",
    )
    on_overshoot: OnOvershoot = Field(
        OnOvershoot.REPORT,
        description="Reaction if a race exceeds the limit: Report reports the overshoot. A limit "
        "with Kill is rejected, because Kill is not implemented yet.",
    )
    grant: bool = Field(
        False,
        description="Also raise the original limit of the processes up to this limit, as far as "
        "the maxGrant of a ClusterPinLimit allows.",
    )

    @model_serializer(mode="wrap")
    def _without_empty_subsets(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty list whose absence means all, because the API server rejects it."""
        wire: dict[str, Any] = serialize(self)
        return {
            field: value for field, value in wire.items() if value != [] or field not in _SUBSETS
        }


class ClusterPinLimitSpec(PinLimitSpec):
    """The desired state of a limit that a namespace cannot raise."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                *_COMMON_RULES,
                cel(
                    "self.scope != 'Node' || !self.grant",
                    "a grant needs scope: Pod or Container",
                    ".grant",
                ),
                cel(
                    "!has(self.maxGrant) || !isQuantity(string(self.maxGrant)) || "
                    "!isQuantity(string(self.limit)) || "
                    "quantity(string(self.maxGrant)).compareTo(quantity(string(self.limit))) <= 0",
                    "maxGrant must not be above limit, because the limit applies to granted memory "
                    "too",
                    ".maxGrant",
                ),
            ]
        }
    )

    pod_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="Labels of the limited pods; empty selects every pod.",
    )
    namespace_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="Labels of the pods' namespaces. Empty selects every namespace except "
        "kube-system and pinwarden's own, which must be named by the label "
        "kubernetes.io/metadata.name.",
    )
    node_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="Labels of the pods' nodes; empty selects every node.",
    )
    scope: Scope = Field(  # type: ignore[assignment]  # the cluster-wide kind has one scope more
        Scope.POD,
        description="Subject of the limit: the whole pod, each selected container separately, or "
        "all matching pods of a node.",
    )
    max_grant: Quantity | None = Field(
        None,
        description="Maximum bytes of a PinLimit's grant to the matching pods; absent allows no "
        "grant.",
    )


class NodeCount(Model):
    """The number of nodes with matching pods."""

    desired: int = Field(ge=0, description="Nodes with a matching pod.")
    applied: int = Field(ge=0, description="Nodes whose agent acknowledged this spec.")


class PodUsage(Model):
    """A pod with much pinned memory."""

    namespace: str
    name: str
    node: str
    pinned_bytes: int = Field(ge=0, description="Pinned and locked bytes at the last sample.")
    level: Level | None = Field(
        None, description="Level of the pod; absent if no agent reports it."
    )
    reason: str | None = Field(None, description="Why the level is not higher.")
    denials: int | None = Field(
        None,
        ge=0,
        description="Calls of the pod that a gate denied for this limit; absent without a gate.",
    )


class Overshoot(Model):
    """The worst use above the limit; sampled, so a lower bound (H2)."""

    peak_bytes: int = Field(
        ge=0, description="Highest sampled bytes above the limit: a lower bound."
    )
    seconds: float = Field(
        ge=0, description="Longest time above the limit in seconds: a lower bound."
    )
    count: int = Field(ge=0, description="How often use was seen above the limit.")


class PinLimitStatus(Model):
    """The sums of the agents' reports; sampled, and absent if unknown (H2)."""

    observed_generation: int | None = Field(
        None, description="Generation of the spec that this status is about."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Ready, Accepted, Applied, Enforced, Complete, WithinLimit, Granted.",
    )
    matched_pods: int | None = Field(None, ge=0, description="Number of matching pods.")
    nodes: NodeCount | None = None
    pinned_bytes: int | None = Field(
        None, ge=0, description="Sum of pinned and locked bytes of the matching pods."
    )
    pinned: ReadableAmount | None = Field(
        None, description="`pinnedBytes` rounded, with a unit: `40Mi`."
    )
    denials: int | None = Field(
        None,
        ge=0,
        description="Calls that gates denied for this limit in the pods that match now; absent if "
        "no gate manages any of them. A lower bound: calls that the kernel denies are not counted, "
        "and the count of a pod ends with the pod or its gate.",
    )
    overshoot: Overshoot | None = None
    top_pods: list[PodUsage] = Field(
        default_factory=list, max_length=10, description="Pods that pin most, largest first."
    )
    recommendation: Quantity | None = Field(
        None,
        description="A limit that would have sufficed for the observed use, with headroom; "
        "sampled, so a lower bound.",
    )


class Resource(Model):
    """An object of the API; its class has constants for the CRD generator."""

    plural: ClassVar[str]
    short_names: ClassVar[list[str]]
    namespaced: ClassVar[bool]
    printer_columns: ClassVar[list[dict[str, Any]]]
    rules: ClassVar[list[JsonDict]] = []

    api_version: Literal["pinwarden.io/v1alpha1"] = "pinwarden.io/v1alpha1"
    kind: str
    metadata: ObjectMeta


def printer_column(
    name: str, kind: str, path: str, description: str, priority: int = 0
) -> dict[str, Any]:
    """Return an entry of `additionalPrinterColumns`; columns of priority 1 show with `-o wide`."""
    return {
        "name": name,
        "type": kind,
        "jsonPath": path,
        "description": description,
        "priority": priority,
    }


NAME_RULE = cel("size(self.metadata.name) <= 63", "metadata.name must be at most 63 characters")
_COLUMNS = [
    printer_column("Limit", "string", ".spec.limit", "Maximum of pinned bytes"),
    printer_column("Scope", "string", ".spec.scope", "Subject of the limit"),
    printer_column("Mode", "string", ".spec.enforcement", "Enforce or Audit"),
    printer_column("Pods", "integer", ".status.matchedPods", "Matching pods"),
    printer_column("Pinned", "string", ".status.pinned", "Memory pinned by the matching pods"),
    printer_column("Denied", "integer", ".status.denials", "Denied calls, if a gate counts them"),
    printer_column(
        "Enforced",
        "string",
        ".status.conditions[?(@.type=='Enforced')].status",
        "Whether the limit is enforced on every pod",
    ),
    printer_column("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
]


class PinLimit(Resource):
    """Limits pinned and locked memory of the selected pods of a namespace."""

    plural = "pinlimits"
    short_names: ClassVar[list[str]] = ["pinl"]
    namespaced = True
    printer_columns = _COLUMNS
    rules: ClassVar[list[JsonDict]] = [NAME_RULE]

    kind: Literal["PinLimit"] = "PinLimit"
    spec: PinLimitSpec
    status: PinLimitStatus | None = None


class ClusterPinLimit(Resource):
    """Limits pinned and locked memory of the selected pods of the selected namespaces and nodes."""

    plural = "clusterpinlimits"
    short_names: ClassVar[list[str]] = ["cpinl"]
    namespaced = False
    printer_columns = _COLUMNS
    rules: ClassVar[list[JsonDict]] = [NAME_RULE]

    kind: Literal["ClusterPinLimit"] = "ClusterPinLimit"
    spec: ClusterPinLimitSpec
    status: PinLimitStatus | None = None
