"""The accountant's status for the agent and the gate: a file in a tmpfs, replaced as a whole.

The accountant renews the file's time until its next round is due, but not after a failed round. A
file older than `SILENT_SECONDS` means: no accountant works on the node (H2).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt
from pydantic.alias_generators import to_camel

from pinwarden.api.nodepinconfig import FairReport, GroupReport
from pinwarden.common.guard import shown
from pinwarden.node.shm.objects import ObjectId, ObjectSet
from pinwarden.node.state.statefile import UNUSABLE, read_whole, write_atomically

NAME = "shared.json"
SILENT_SECONDS = 30.0
_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AccountantStatus:
    """The objects of each group, by the UID of its resource, and the reports for the agent.

    `failures` counts failed items by kind (`guard`).
    """

    objects: Mapping[str, ObjectSet] = field(default_factory=dict)
    groups: tuple[GroupReport, ...] = ()
    fair_view: tuple[FairReport, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)


class _Objects(BaseModel):
    devices: list[NonNegativeInt]
    objects: list[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]]
    sizes: list[tuple[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], NonNegativeInt]]


class _StatusFile(BaseModel):
    """The content of the file. A newer accountant can write more fields."""

    model_config = ConfigDict(alias_generator=to_camel)

    version: Literal[1]
    extents: dict[str, _Objects]
    groups: list[GroupReport]
    fair_view: list[FairReport]
    failures: dict[str, NonNegativeInt] = {}


def load(path: Path) -> AccountantStatus | None:
    """Return the file's content; None without a file that can be parsed. Raises OSError."""
    try:
        content = _StatusFile.model_validate(json.loads(read_whole(path)))
    except FileNotFoundError:
        return None
    except UNUSABLE as error:
        _log.warning("%s cannot be parsed and is ignored: %s", path, shown(str(error)))
        return None
    return AccountantStatus(
        objects={
            uid: ObjectSet(
                frozenset(wire.devices),
                frozenset(ObjectId(*identity) for identity in wire.objects),
                frozenset((ObjectId(*identity), size) for identity, size in wire.sizes),
            )
            for uid, wire in content.extents.items()
        },
        groups=tuple(content.groups),
        fair_view=tuple(content.fair_view),
        failures=content.failures,
    )


def save(path: Path, status: AccountantStatus) -> None:
    """Replace the file. Raises OSError."""
    content = {
        "version": _VERSION,
        "extents": {
            uid: {
                "devices": sorted(objects.devices),
                "objects": sorted(objects.objects),
                "sizes": sorted(objects.sizes),
            }
            for uid, objects in status.objects.items()
        },
        "groups": [report.to_wire() for report in status.groups],
        "fairView": [report.to_wire() for report in status.fair_view],
        "failures": dict(status.failures),
    }
    write_atomically(path, json.dumps(content).encode())
