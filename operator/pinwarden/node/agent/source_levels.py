"""What the node reaches for each source in an ordinary pod (H1): whether the per-process counters see it, and what the rlimit gate does.

A pod that was created with the seccomp gate's profile may be held better than its node: its own level says so.
"""

from collections.abc import Mapping
from typing import Final

from pinwarden.api.nodepinconfig import SourceLevel
from pinwarden.api.pinlimit import Level, Source
from pinwarden.node.linux.prlimit import GateAbility

GATE: Final = "RlimitGate"
NO_GATE: Final = "GateUnavailable"
NOT_COUNTED: Final = "NotCounted"
DENY: Final = "Deny in pods that have the seccomp gate's profile"

_COUNTED: Final[Mapping[Source, str]] = {
    Source.MLOCK: "counted in VmLck",
    Source.MEMFD_SECRET: "counted in VmLck",
    Source.VFIO: "counted in VmLck",
    Source.IO_URING: "counted in VmPin; the kernel compares the uid's counter, which all pods with that uid share",
    Source.RDMA: "counted in VmPin",
    Source.IOMMUFD: "counted in VmPin",
    Source.VDPA: "counted in VmPin",
}


def source_levels(ability: GateAbility, *, gated: bool = False) -> list[SourceLevel]:
    """A line for every source, in the order of `Source`; `gated` says that the seccomp gate answers on the node."""
    return [_level(source, ability, gated=gated) for source in Source]


def _level(source: Source, ability: GateAbility, *, gated: bool) -> SourceLevel:
    counter = _COUNTED.get(source)
    if counter is not None and gated and source is Source.MLOCK:
        counter = f"{counter}; {DENY}"
    if counter is None:
        return SourceLevel(
            source=source,
            counted=False,
            level=Level.OBSERVE,
            reason=NOT_COUNTED,
            message="in no per-process counter of the kernel",
        )
    if not ability.available:
        return SourceLevel(
            source=source,
            counted=True,
            level=Level.OBSERVE,
            reason=NO_GATE,
            message=f"{counter}; {ability.reason}",
        )
    return SourceLevel(source=source, counted=True, level=Level.CONVERGE, reason=GATE, message=counter)
