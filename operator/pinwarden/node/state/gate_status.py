"""`gate.json`: the state that the gate publishes to the agent and the accountant.

The gate writes the file (`gate.publisher`). A newer gate can write more fields.
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
    """The content of the file.

    `containers` are the containers with a listener, by id: the uid of the pod, the name of the
    container and the id of the sandbox. `lost` are the ids of containers whose listener is lost.
    `inexact` are the reasons, per pod, why its limits are not enforced exactly. `denials` counts
    the denied calls per pod and uid of a limit. `recent` are the latest of them in the wire form of
    `DenialReport`, and `number` is the number of the last one. `group_denials` counts the denied
    mappings per uid of a group and pod, which are in no other count. `mapping` are the ids of
    containers whose profile gates mappings. `held` is the fingerprint of the policy that the gate
    enforces, per pod with limits (`pods.policy`). `failures` counts failed items by kind.
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
    """The schema of the file."""

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
    """Return the content, None without a file that is understood. Raises OSError."""
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
