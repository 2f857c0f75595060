"""What the node reaches for each source (H1): whether the per-process counters see it, and what the rlimit gate then makes of it."""

from collections.abc import Mapping
from typing import Final

from pinwarden.agent.gates.rlimit import GateAbility
from pinwarden.api.nodepinconfig import SourceLevel
from pinwarden.api.pinlimit import Level, Source

GATE: Final = "RlimitGate"
NO_GATE: Final = "GateUnavailable"
NOT_COUNTED: Final = "NotCounted"

_COUNTED: Final[Mapping[Source, str]] = {
    Source.MLOCK: "counted in VmLck",
    Source.MEMFD_SECRET: "counted in VmLck",
    Source.VFIO: "counted in VmLck",
    Source.IO_URING: "counted in VmPin; the kernel compares the uid's counter, which all pods with that uid share",
    Source.RDMA: "counted in VmPin",
    Source.IOMMUFD: "counted in VmPin",
    Source.VDPA: "counted in VmPin",
}


def source_levels(ability: GateAbility) -> list[SourceLevel]:
    """A line for every source, in the order of `Source`."""
    return [_level(source, ability) for source in Source]


def _level(source: Source, ability: GateAbility) -> SourceLevel:
    counter = _COUNTED.get(source)
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
