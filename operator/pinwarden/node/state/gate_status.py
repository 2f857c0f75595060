"""`gate.json`: the state that the gate publishes to the agent and the accountant.

The gate writes the file (`gate.publisher`). A newer gate can write more fields.
"""

import json
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PlainSerializer, Strict
from pydantic.alias_generators import to_camel

from pinwarden.common.guard import shown
from pinwarden.node.state.statefile import UNUSABLE, read_whole

NAME = "gate.json"
_log = logging.getLogger(__name__)

_Ids = Annotated[frozenset[str], Strict(False), PlainSerializer(sorted)]
_Counts = dict[str, dict[str, NonNegativeInt]]


class GateStatus(BaseModel):
    """The content of the file.

    `containers` are the containers with a listener, by id: the uid of the pod, the name of the
    container and the id of the sandbox. `lost` are the ids of containers whose listener is lost.
    `inexact` are the reasons, per pod, why its limits are not enforced exactly. `denials` counts
    the denied calls per pod and uid of a limit. `recent` are the latest denied calls in the wire
    form of `DenialReport`, and `number` is the last of their numbers. `group_denials` counts the
    denied mappings per uid of a group and pod; no other count includes them. `mapping` are the ids
    of containers whose profile gates mappings. `fingerprints` are of the policies in force, per pod
    with limits (`pods.policy`). `failures` counts failed items by kind.
    """

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, strict=True)

    version: Literal[1]
    containers: dict[str, Annotated[tuple[str, str, str], Strict(False)]]
    lost: _Ids
    inexact: dict[str, Annotated[tuple[str, ...], Strict(False)]] = Field(alias="loosened")
    denials: _Counts
    recent: Annotated[tuple[dict[str, Any], ...], Strict(False)]
    number: NonNegativeInt
    group_denials: _Counts = {}
    mapping: _Ids = frozenset()
    fingerprints: dict[str, str] = Field(default={}, alias="held")
    failures: dict[str, NonNegativeInt] = {}

    def dump(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(self.model_dump(by_alias=True)).encode()


def empty() -> GateStatus:
    """Return the status of a gate without containers."""
    return GateStatus(
        version=1, containers={}, lost=frozenset(), inexact={}, denials={}, recent=(), number=0
    )


def load(path: Path) -> GateStatus | None:
    """Return the content, None without a file that can be parsed. Raises OSError."""
    try:
        return GateStatus.model_validate(json.loads(read_whole(path)), by_name=False)
    except FileNotFoundError:
        return None
    except UNUSABLE as error:
        _log.warning("%s cannot be parsed and is ignored: %s", path, shown(str(error)))
        return None
