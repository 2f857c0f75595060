"""The level of each source in an ordinary pod of the node (H1).

The level depends on whether the per-process counters include the source, and on whether the rlimit
gate works. A pod with the profile of the seccomp gate can have a better level, which the pod
reports.
"""

from collections.abc import Mapping
from typing import Final

from pinwarden.api.nodepinconfig import SourceLevel
from pinwarden.api.pinlimit import Level, Source
from pinwarden.api.reasons import GATE_UNAVAILABLE, RLIMIT_GATE
from pinwarden.node.linux.prlimit import GateAbility

NOT_COUNTED: Final = "NotCounted"
DENY: Final = "Deny in pods that have the seccomp gate's profile"

_COUNTED: Final[Mapping[Source, str]] = {
    Source.MLOCK: "counted in VmLck",
    Source.MEMFD_SECRET: "counted in VmLck",
    Source.VFIO: "counted in VmLck",
    Source.IO_URING: "counted in VmPin; the kernel compares the uid's counter, which all pods with "
    "that uid share",
    Source.RDMA: "counted in VmPin",
    Source.IOMMUFD: "counted in VmPin",
    Source.VDPA: "counted in VmPin",
}


def source_levels(ability: GateAbility, *, gated: bool = False) -> list[SourceLevel]:
    """Return the level of every source, in the order of `Source`.

    `gated`: the seccomp gate answers.
    """
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
            reason=GATE_UNAVAILABLE,
            message=f"{counter}; {ability.reason}",
        )
    return SourceLevel(
        source=source, counted=True, level=Level.CONVERGE, reason=RLIMIT_GATE, message=counter
    )
