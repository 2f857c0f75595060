"""PinLimit and ClusterPinLimit: how much memory the selected pods may pin.

A limit is a constraint (P13): the sum over its sources, in its scope, in its way of counting, stays at or under `limit`. It takes and
never gives, unless it is also a grant (P14). What a schema can refuse, the schema refuses, with a message that names the field; what it
cannot see ends as the condition Accepted=False with a reason.
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

ContainerName = Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


ReadableAmount = Annotated[str, StringConstraints(max_length=16)]
"""An amount of bytes as people read it: exact, or with `>` in front where it is cut after one decimal (`>40.0Mi`)."""


class Source(StrEnum):
    """What pins memory (P2)."""

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
    """Over what a limit sums (P1). Node is for ClusterPinLimit alone."""

    POD = "Pod"
    CONTAINER = "Container"
    NODE = "Node"


class Counting(StrEnum):
    """How a page that is pinned more than once counts (P7)."""

    EVERY_PIN = "EveryPin"
    ONCE_PER_POD = "OncePerPod"


class Enforcement(StrEnum):
    """Whether a limit refuses or only evaluates (P13)."""

    ENFORCE = "Enforce"
    AUDIT = "Audit"


class Level(StrEnum):
    """What happens when a pin would pass the limit, from the strongest to the weakest (H1)."""

    DENY = "Deny"
    KILL = "Kill"
    CONVERGE = "Converge"
    OBSERVE = "Observe"

    @property
    def rank(self) -> int:
        """0 for the strongest; a level holds a minimum when its rank is not higher."""
        return list(Level).index(self)


class Contention(StrEnum):
    """How what is left is dealt among the processes of a pod (rlimit gate)."""

    SHARE = "Share"
    RESERVE = "Reserve"


class OnOvershoot(StrEnum):
    """What happens to a pod that a race took past its limit."""

    REPORT = "Report"
    KILL = "Kill"


_SUBSET: JsonDict = {"minItems": 1}
"""Of a list whose absence means all: an empty one says nothing and is refused. Stored objects may have one."""
_SUBSETS = ("containers", "sources")
_COMMON_RULES: list[JsonValue] = [
    cel(
        "self.scope == 'Container' || !has(self.containers) || size(self.containers) == 0",
        "containers goes with scope: Container only",
        ".containers",
    ),
    cel(
        "self.enforcement == 'Enforce' || self.onOvershoot == 'Report'",
        "onOvershoot: Kill needs enforcement: Enforce",
        ".onOvershoot",
    ),
    cel(
        "self.enforcement == 'Enforce' || !self.grant",
        "a grant needs enforcement: Enforce, because Audit touches nothing",
        ".grant",
    ),
]


class PinLimitSpec(Model):
    """What a namespace's author asks for."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": _COMMON_RULES})

    pod_selector: LabelSelector = Field(
        description="The pods that the limit holds for, by their labels. An empty selector selects every pod of the namespace."
    )
    limit: Quantity = Field(
        description="How much memory may be pinned and locked, in whole bytes; 0 forbids. The kernel compares whole pages: "
        "a limit that is not a multiple of the page size acts as the next lower multiple."
    )
    scope: Literal[Scope.POD, Scope.CONTAINER] = Field(
        Scope.POD,
        description="Over what the limit sums: the whole pod, or each selected container by itself.",
    )
    containers: list[ContainerName] = Field(
        default_factory=list,
        max_length=64,
        json_schema_extra=_SUBSET | {"x-kubernetes-validations": [cel(ONCE, "name each container once")]},
        description="With scope Container: the names of the containers; absent means each container of the pod.",
    )
    counting: Counting = Field(
        Counting.EVERY_PIN,
        description="EveryPin counts each pin operation, also a second one on the same page; OncePerPod counts a page once per pod. "
        "OncePerPod is not supported yet: such a limit is not accepted, and its status says so.",
    )
    sources: list[Source] = Field(
        default_factory=list,
        max_length=32,
        json_schema_extra=_SUBSET | {"x-kubernetes-validations": [cel(ONCE, "name each source once")]},
        description="What is counted; absent means every source.",
    )
    enforcement: Enforcement = Field(
        Enforcement.ENFORCE,
        description="Enforce refuses what would pass the limit; Audit evaluates and touches nothing.",
    )
    minimum_level: Level = Field(
        Level.CONVERGE,
        description="The weakest level at which a pod counts as held: Deny (refused at the call), Kill (the task ends before it "
        "returns), Converge (a race can overshoot for a moment), Observe (counted only). With Deny, gated pods are also refused "
        "calls after which they could not be held so.",
    )
    contention: Contention = Field(
        Contention.SHARE,
        description="How a pod's processes compete: with Share nobody is refused early and a race can overshoot; with Reserve "
        "allowances never sum past the limit and a process can be refused early.",
    )
    on_overshoot: OnOvershoot = Field(
        OnOvershoot.REPORT,
        description="What happens when a race passes the limit: it is reported, or the task is killed. Kill is not supported yet: such a "
        "limit is not accepted, and its status says so.",
    )
    grant: bool = Field(
        False,
        description="Also raise what the runtime gave the processes up to the limit, as far as a ClusterPinLimit's maxGrant allows.",
    )

    @model_serializer(mode="wrap")
    def _without_empty_subsets(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty list whose absence means all: the API server refuses it."""
        wire: dict[str, Any] = serialize(self)
        return {field: value for field, value in wire.items() if value != [] or field not in _SUBSETS}


class ClusterPinLimitSpec(PinLimitSpec):
    """What an administrator asks for: a ceiling that a namespace cannot lift."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                *_COMMON_RULES,
                cel("self.scope != 'Node' || !self.grant", "a grant needs scope: Pod or Container", ".grant"),
                cel(
                    "!has(self.maxGrant) || !isQuantity(string(self.maxGrant)) || !isQuantity(string(self.limit)) || "
                    "quantity(string(self.maxGrant)).compareTo(quantity(string(self.limit))) <= 0",
                    "maxGrant must not be above limit: this ceiling holds against the grant too",
                    ".maxGrant",
                ),
            ]
        }
    )

    pod_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="The pods that the limit holds for, by their labels; empty selects every pod.",
    )
    namespace_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="The namespaces whose pods are meant; empty selects every namespace but kube-system and pinwarden's own, "
        "which must be named by the label kubernetes.io/metadata.name.",
    )
    node_selector: LabelSelector = Field(
        default_factory=LabelSelector, description="The nodes whose pods are meant; empty selects every node."
    )
    scope: Scope = Field(  # type: ignore[assignment]  # the cluster-wide kind has one scope more
        Scope.POD,
        description="Over what the limit sums: the whole pod, each selected container by itself, or all matching pods of a node.",
    )
    max_grant: Quantity | None = Field(
        None,
        description="How far the grants of matching namespaces reach, in bytes; absent lets no grant through.",
    )


class NodeCount(Model):
    """How many nodes a limit concerns."""

    desired: int = Field(ge=0, description="Nodes with a matching pod.")
    applied: int = Field(ge=0, description="Nodes whose agent acknowledged this spec.")


class PodUsage(Model):
    """One pod among those that pin most."""

    namespace: str
    name: str
    node: str
    pinned_bytes: int = Field(
        ge=0, description="What the pod has pinned and locked, in bytes, as last sampled."
    )
    level: Level | None = Field(
        None, description="The level at which the pod is held; absent while no agent reported it."
    )
    reason: str | None = Field(None, description="Why the pod is not held at a higher level.")
    denials: int | None = Field(
        None,
        ge=0,
        description="Calls of the pod that a gate refused for this limit; absent where none sees it.",
    )


class Overshoot(Model):
    """The worst moment past the limit: sampled, hence a lower bound (H2)."""

    peak_bytes: int = Field(
        ge=0, description="The most that was seen above the limit, in bytes: a lower bound."
    )
    seconds: float = Field(
        ge=0, description="For how long use was seen above the limit, in seconds: a lower bound."
    )
    count: int = Field(ge=0, description="How often use was seen to pass the limit.")


class PinLimitStatus(Model):
    """What the agents report, summed up; everything is sampled, and what cannot be known is absent (H2)."""

    observed_generation: int | None = Field(
        None, description="The generation of the spec that this status speaks of."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Ready, Accepted, Applied, Enforced, Complete, WithinLimit, Granted.",
    )
    matched_pods: int | None = Field(None, ge=0, description="How many pods the selectors match.")
    nodes: NodeCount | None = None
    pinned_bytes: int | None = Field(
        None, ge=0, description="What the matching pods have pinned and locked together, in bytes."
    )
    pinned: ReadableAmount | None = Field(None, description="`pinnedBytes` in short, with its unit: `40Mi`.")
    denials: int | None = Field(
        None,
        ge=0,
        description="Calls that gates refused for this limit in the pods that match now: a lower bound, as what the kernel itself refuses "
        "is not seen; absent where no gate that sees refusals holds any of them. A pod's count goes with the pod, and begins anew when "
        "the gate does.",
    )
    overshoot: Overshoot | None = None
    top_pods: list[PodUsage] = Field(
        default_factory=list, max_length=10, description="The pods that pin most, largest first."
    )
    recommendation: Quantity | None = Field(
        None,
        description="A limit that the observed use would have fitted in, with headroom; from samples, so a lower bound.",
    )


class Resource(Model):
    """A whole object; its class says what the CRD generator needs."""

    plural: ClassVar[str]
    short_names: ClassVar[list[str]]
    namespaced: ClassVar[bool]
    printer_columns: ClassVar[list[dict[str, Any]]]
    rules: ClassVar[list[JsonDict]] = []

    api_version: Literal["pinwarden.io/v1alpha1"] = "pinwarden.io/v1alpha1"
    kind: str
    metadata: ObjectMeta


def printer_column(name: str, kind: str, path: str, description: str, priority: int = 0) -> dict[str, Any]:
    """One entry of `additionalPrinterColumns`; columns of priority 1 show with `-o wide`."""
    return {"name": name, "type": kind, "jsonPath": path, "description": description, "priority": priority}


NAME_RULE = cel("size(self.metadata.name) <= 63", "metadata.name must be at most 63 characters")
_COLUMNS = [
    printer_column("Limit", "string", ".spec.limit", "Bytes that may be pinned"),
    printer_column("Scope", "string", ".spec.scope", "Over what the limit sums"),
    printer_column("Mode", "string", ".spec.enforcement", "Enforce or Audit"),
    printer_column("Pods", "integer", ".status.matchedPods", "Pods that the selectors match"),
    printer_column("Pinned", "string", ".status.pinned", "Memory pinned by the matching pods"),
    printer_column("Denied", "integer", ".status.denials", "Refused pins, where they can be seen"),
    printer_column(
        "Enforced", "string", ".status.conditions[?(@.type=='Enforced')].status", "Whether every pod is held"
    ),
    printer_column("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
]


class PinLimit(Resource):
    """Limits the memory that the selected pods of a namespace may pin and lock."""

    plural = "pinlimits"
    short_names: ClassVar[list[str]] = ["pinl"]
    namespaced = True
    printer_columns = _COLUMNS
    rules: ClassVar[list[JsonDict]] = [NAME_RULE]

    kind: Literal["PinLimit"] = "PinLimit"
    spec: PinLimitSpec
    status: PinLimitStatus | None = None


class ClusterPinLimit(Resource):
    """Limits the memory that the selected pods of the selected namespaces and nodes may pin and lock."""

    plural = "clusterpinlimits"
    short_names: ClassVar[list[str]] = ["cpinl"]
    namespaced = False
    printer_columns = _COLUMNS
    rules: ClassVar[list[JsonDict]] = [NAME_RULE]

    kind: Literal["ClusterPinLimit"] = "ClusterPinLimit"
    spec: ClusterPinLimitSpec
    status: PinLimitStatus | None = None
