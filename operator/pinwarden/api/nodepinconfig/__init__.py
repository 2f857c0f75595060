"""NodePinConfig: the limits of one node, and the report of its agent.

One object per node, cluster-scoped and named after it. Only the operator writes the spec, only the
agent the status. The spec is one atomic map, so an apply also reverts fields of other clients. A
limit is in the spec once, and pods refer to its name, which keeps the object small with many pods.
Pods have the UID of their cgroup; the spec has no names of pods.

An agent may read a spec of a newer operator: `NodePinConfigSpec.parse` sets limits of another
version aside, and keeps the rest.
"""

from typing import Any, ClassVar, Literal

from pinwarden.api.nodepinconfig.spec import (
    Mode,
    NodeGroup,
    NodeLimit,
    NodeMember,
    NodePinConfigSpec,
    NodePod,
    PodContainer,
    UnsupportedLimit,
)
from pinwarden.api.nodepinconfig.status import (
    AppliedLimit,
    BorrowReport,
    ContainerReport,
    DenialReport,
    FairReport,
    GroupReport,
    LimitDenials,
    NodePinConfigStatus,
    OvershootReport,
    PodReport,
    SourceLevel,
    UnsupportedReport,
)
from pinwarden.api.pinlimit import Resource, printer_column

__all__ = [
    "AppliedLimit",
    "BorrowReport",
    "ContainerReport",
    "DenialReport",
    "FairReport",
    "GroupReport",
    "LimitDenials",
    "Mode",
    "NodeGroup",
    "NodeLimit",
    "NodeMember",
    "NodePinConfig",
    "NodePinConfigSpec",
    "NodePinConfigStatus",
    "NodePod",
    "OvershootReport",
    "PodContainer",
    "PodReport",
    "SourceLevel",
    "UnsupportedLimit",
    "UnsupportedReport",
]


class NodePinConfig(Resource):
    """The limits of one node and the report of its agent. Only pinwarden writes this object."""

    plural = "nodepinconfigs"
    short_names: ClassVar[list[str]] = ["npc"]
    namespaced = False
    printer_columns: ClassVar[list[dict[str, Any]]] = [
        printer_column("Mode", "string", ".spec.mode", "Active or Release"),
        printer_column(
            "Observed", "integer", ".status.observedGeneration", "Last acknowledged generation"
        ),
        printer_column("Agent", "string", ".status.agentVersion", "Version of the agent"),
        printer_column("Kernel", "string", ".status.kernelVersion", "Kernel of the node", 1),
        printer_column("Sampled", "date", ".status.sampledAt", "Time since the report"),
    ]

    kind: Literal["NodePinConfig"] = "NodePinConfig"
    spec: NodePinConfigSpec
    status: NodePinConfigStatus | None = None
