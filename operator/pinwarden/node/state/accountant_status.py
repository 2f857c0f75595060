"""What the accountant of shared memory tells the agent and the seccomp gate: a file in a tmpfs, replaced as a whole.

Its time is renewed with every round and until the next one, but not after one that failed: `SILENT_SECONDS` later nobody accounts (H2).
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
    """The file's content: what belongs to each group, by the UID of its resource, and what the agent reports of them.

    `failures` counts by kind the items whose work failed (`guard`).
    """

    extents: Mapping[str, ObjectSet] = field(default_factory=dict)
    groups: tuple[GroupReport, ...] = ()
    fair_view: tuple[FairReport, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)


class _Objects(BaseModel):
    devices: list[NonNegativeInt]
    objects: list[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]]
    sizes: list[tuple[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], NonNegativeInt]]


class _Content(BaseModel):
    """The file. A newer accountant may write more."""

    model_config = ConfigDict(alias_generator=to_camel)

    version: Literal[1]
    extents: dict[str, _Objects]
    groups: list[GroupReport]
    fair_view: list[FairReport]
    failures: dict[str, NonNegativeInt] = {}


def load(path: Path) -> AccountantStatus | None:
    """What the file tells; None when there is none, or none that is understood. Raises OSError."""
    try:
        content = _Content.model_validate(json.loads(read_whole(path)))
    except FileNotFoundError:
        return None
    except UNUSABLE as error:
        _log.warning("%s is not understood: %s", path, shown(str(error)))
        return None
    return AccountantStatus(
        extents={
            uid: ObjectSet(
                frozenset(each.devices),
                frozenset(ObjectId(*one) for one in each.objects),
                frozenset((ObjectId(*one), size) for one, size in each.sizes),
            )
            for uid, each in content.extents.items()
        },
        groups=tuple(content.groups),
        fair_view=tuple(content.fair_view),
        failures=content.failures,
    )


def save(path: Path, told: AccountantStatus) -> None:
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
        "failures": dict(told.failures),
    }
    write_atomically(path, json.dumps(content).encode())
