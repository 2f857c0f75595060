"""The file `nri.json`: the state of the NRI plugin, and the containers left ungated.

Standard library only, because the plugin writes the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pinwarden.node.state.statefile import StateFile

NAME: Final = "nri.json"
MOST_UNGATED: Final = 1024
"""The most ungated containers in the file; the latest stay."""
RENEWAL_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 15.0
"""The plugin writes the file this often; the plugin of an older file has ended."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class NriStatus:
    """The content of the file.

    `runtime` is the runtime's name and version while the plugin is connected, else empty, and then
    `failure` says why. `ungated` has the reason for each wanted but ungated container,
    by container id.
    """

    runtime: str = ""
    failure: str = ""
    ungated: Mapping[str, str] = field(default_factory=dict)


def save(path: Path, status: NriStatus) -> None:
    """Replace the file. Raises OSError."""
    StateFile(path, _VERSION).save(
        {"runtime": status.runtime, "failure": status.failure, "ungated": dict(status.ungated)}
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
    return NriStatus(runtime, failure, ungated)
