"""The file `nri.json`: the state of the NRI plugin, and what it did to containers.

Standard library only, because the plugin writes the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from pinwarden.node.linux.prlimit import UNLIMITED, Limits
from pinwarden.node.state.statefile import StateFile

NAME: Final = "nri.json"
MOST_UNGATED: Final = 1024
"""The most ungated containers in the file; the latest stay."""
MOST_LOWERED: Final = 4096
"""The most containers with lowered limits in the file; the latest stay."""
RENEWAL_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 15.0
"""The plugin writes the file this often; the plugin of an older file has ended."""
_VERSION: Final = 1


class LoweredLimits(NamedTuple):
    """The RLIMIT_MEMLOCK `applied` by the plugin at the creation of a container.

    `pod` is the pod's UID. Without the plugin, the container would have the `inherited` limits.
    """

    pod: str
    inherited: Limits
    applied: Limits


@dataclass(frozen=True, slots=True)
class NriStatus:
    """The content of the file.

    `runtime` is the runtime's name and version while the plugin is connected, else empty, and then
    `failure` says why. `ungated` has the reason for each wanted but ungated container,
    by container id. `lowered` has the limits of containers, also after a failure.
    """

    runtime: str = ""
    failure: str = ""
    ungated: Mapping[str, str] = field(default_factory=dict)
    lowered: Mapping[str, LoweredLimits] = field(default_factory=dict)


def save(path: Path, status: NriStatus) -> None:
    """Replace the file. Raises OSError."""
    StateFile(path, _VERSION).save(
        {
            "runtime": status.runtime,
            "failure": status.failure,
            "ungated": dict(status.ungated),
            "lowered": {
                identity: [pod, *inherited, *applied]
                for identity, (pod, inherited, applied) in status.lowered.items()
            },
        }
    )


def load(path: Path) -> NriStatus:
    """Return the content of the file. Raises OSError, and ValueError for an unusable file."""
    content: Any = StateFile(path, _VERSION).read()
    fields = content if isinstance(content, dict) else {}
    runtime, failure, ungated = (fields.get(name) for name in ("runtime", "failure", "ungated"))
    if not isinstance(runtime, str) or not isinstance(failure, str):
        raise ValueError("runtime or failure is no text")
    if not isinstance(ungated, dict) or not all(
        isinstance(reason, str) for reason in ungated.values()
    ):
        raise ValueError("ungated is no object of texts")
    return NriStatus(runtime, failure, ungated, _lowered(fields.get("lowered", {})))


def _lowered(content: Any) -> dict[str, LoweredLimits]:
    """Read the lowered limits, absent in files of an earlier plugin. Raises ValueError."""
    if not isinstance(content, dict):
        raise ValueError("lowered is no object")
    return {identity: _lowered_limits(entry) for identity, entry in content.items()}


def _lowered_limits(entry: Any) -> LoweredLimits:
    try:
        pod, *amounts = entry
        soft, hard, applied_soft, applied_hard = amounts
    except (TypeError, ValueError) as error:
        raise ValueError("lowered has no object of limits") from error
    if not isinstance(pod, str) or not all(
        type(amount) is int and 0 <= amount <= UNLIMITED for amount in amounts
    ):
        raise ValueError("lowered has no object of texts and amounts")
    return LoweredLimits(pod, Limits(soft, hard), Limits(applied_soft, applied_hard))
