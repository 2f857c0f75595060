"""What the accountant of shared memory tells the agent and the seccomp gate: a file in a tmpfs, replaced as a whole.

Its time is renewed with every round and until the next one, but not after one that failed: `SILENT_SECONDS` later nobody accounts (H2).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pinwarden.agent.shared.objects import Extent, ObjectId
from pinwarden.agent.statefile import write_atomically
from pinwarden.api.nodepinconfig import FairReport, GroupReport

NAME = "shared.json"
SILENT_SECONDS = 30.0
_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """The file's content: what belongs to each group, by the UID of its resource, and what the agent reports of them."""

    extents: Mapping[str, Extent] = field(default_factory=dict)
    groups: tuple[GroupReport, ...] = ()
    fair_view: tuple[FairReport, ...] = ()


def load(path: Path) -> Told | None:
    """What the file tells; None when there is none, or none that is understood. Raises OSError."""
    try:
        content: Any = json.loads(path.read_bytes())
        if content["version"] != _VERSION:
            return None
        return Told(
            extents={
                uid: Extent(
                    frozenset(each["devices"]),
                    frozenset(ObjectId(*one) for one in each["objects"]),
                    frozenset((ObjectId(*one), size) for one, size in each["sizes"]),
                )
                for uid, each in content["extents"].items()
            },
            groups=tuple(GroupReport.model_validate(each) for each in content["groups"]),
            fair_view=tuple(FairReport.model_validate(each) for each in content["fairView"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        _log.warning("%s is not understood: %r", path, error)
        return None


def save(path: Path, told: Told) -> None:
    """Replaces the file. Raises OSError."""
    content = {
        "version": _VERSION,
        "extents": {
            uid: {
                "devices": sorted(extent.devices),
                "objects": sorted(extent.objects),
                "sizes": sorted(extent.sizes),
            }
            for uid, extent in told.extents.items()
        },
        "groups": [each.to_wire() for each in told.groups],
        "fairView": [each.to_wire() for each in told.fair_view],
    }
    write_atomically(path, json.dumps(content).encode())
