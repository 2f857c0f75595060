"""`gate.json`: what the gate tells the agent and the accountant, as one file, so that each may die alone.

The gate writes it (`gate.publisher`). A newer gate may write more.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, Strict
from pydantic.alias_generators import to_camel

from pinwarden.common.guard import shown
from pinwarden.node.state.statefile import UNUSABLE, read_whole

NAME = "gate.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateStatus:
    """The file's content.

    `containers` are those with a listener, by id: the pod's uid, the container's name and the sandbox's id. `lost` are ids. `inexact` has
    per pod why it is not held exactly. `denials` counts per pod and limit (by uid), `recent` are the latest in the wire form of
    `DenialReport`, and `number` is that of the last one. `group_denials` counts per group (by uid) and pod the mappings that were refused;
    they are in no other count. `mapping` are ids of containers whose profile gates mappings. `held` has for each of their pods that is
    not free the fingerprint of what the gate holds it to (`pods.policy`). `failures` counts the items whose work failed, by kind.
    """

    containers: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    inexact: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    denials: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    recent: tuple[Mapping[str, Any], ...] = ()
    number: int = 0
    group_denials: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    mapping: frozenset[str] = frozenset()
    held: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)


class _Content(BaseModel):
    """The file. A newer gate may write more."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, strict=True)

    version: Literal[1]
    containers: dict[str, Annotated[tuple[str, str, str], Strict(False)]]
    lost: list[str]
    loosened: dict[str, list[str]]
    denials: dict[str, dict[str, NonNegativeInt]]
    recent: list[dict[str, Any]]
    number: NonNegativeInt
    group_denials: dict[str, dict[str, NonNegativeInt]] = {}
    mapping: list[str] = []
    held: dict[str, str] = {}
    failures: dict[str, NonNegativeInt] = {}


def load(path: Path) -> GateStatus | None:
    """What the file tells; None when there is none, or none that is understood. Raises OSError."""
    try:
        content = _Content.model_validate(json.loads(read_whole(path)))
    except FileNotFoundError:
        return None
    except UNUSABLE as error:
        _log.warning("%s is not understood: %s", path, shown(str(error)))
        return None
    return GateStatus(
        containers=content.containers,
        lost=frozenset(content.lost),
        inexact={pod: tuple(reasons) for pod, reasons in content.loosened.items()},
        denials=content.denials,
        recent=tuple(content.recent),
        number=content.number,
        group_denials=content.group_denials,
        mapping=frozenset(content.mapping),
        held=content.held,
        failures=content.failures,
    )
