"""What the agent was told to hold, and the memory of it: the last configuration outlives the agent and the API server (H3).

A configuration comes from the node's NodePinConfig, from local files, or from disk at start. `Configuration.parse` reads it; a limit that
this version does not understand is set aside, and a spec that it cannot read at all is an error, on which the last good one stays.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pinwarden.api.nodepinconfig import NodePinConfigSpec, UnsupportedLimit
from pinwarden.node.state.statefile import UNUSABLE, PolledFile, StateFile

_VERSION = 1
LONGEST_MESSAGE = 1024
"""Characters of why a configuration or a part of it cannot be taken, as a report has room for."""


class ConfigurationError(ValueError):
    """A configuration that cannot be read; the message names where, for people."""


@dataclass(frozen=True)
class Problem:
    """Why the newest configuration could not be taken, so that the last good one stays. `uid` is that of its NodePinConfig, if any."""

    message: str
    uid: str | None = None


@dataclass(frozen=True)
class Configuration:
    """A spec that was understood, and what of it was not.

    `uid` and `generation` are those of the NodePinConfig, None for local files. `raw` is the spec as it came. `gone` are the pods in it
    that the operator lists no longer (`gone.Retainer`).
    """

    spec: NodePinConfigSpec
    raw: Mapping[str, Any]
    unsupported: tuple[UnsupportedLimit, ...] = ()
    uid: str | None = None
    generation: int | None = None
    gone: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, raw: object, uid: str | None, generation: int | None) -> "Configuration":
        """Read a NodePinConfig's spec. Raises ConfigurationError when more than single limits is not understood."""
        if not isinstance(raw, Mapping):
            raise ConfigurationError("spec: not an object")
        if not isinstance(raw.get("limits", []), list):
            raise ConfigurationError("spec.limits: not a list")
        try:
            spec, unsupported = NodePinConfigSpec.parse(raw)
        except ValidationError as error:
            raise ConfigurationError(first_problem(error, "spec")) from error
        except UNUSABLE as error:
            raise ConfigurationError(f"spec: {error}") from error
        return cls(spec, raw, tuple(unsupported), uid, generation)


def first_problem(error: ValidationError, root: str) -> str:
    """The first of a validation's errors as `field.path[index]: message`."""
    first = error.errors(include_url=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    return f"{(root + path).lstrip('.') or 'content'}: {first['msg']}"


def config_path(state_dir: Path, *, local: bool) -> Path:
    """The file of the last configuration, one for local files and one for an API server: agent and gate must mean the same."""
    return state_dir / ("local.json" if local else "nodepinconfig.json")


class ConfigFile:
    """The last configuration, on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = StateFile(path, _VERSION)
        self._written: tuple[int, int, int] | None = None

    def save(self, configuration: Configuration) -> None:
        """Keeps it; it is on disk on return. Raises OSError."""
        self._file.save(
            {
                "uid": configuration.uid,
                "generation": configuration.generation,
                "spec": dict(configuration.raw),
            }
        )
        self._written = self._identity()

    @property
    def intact(self) -> bool:
        """Whether the file is still the one that was saved last: gate and accountant go by it, also those that start later."""
        return self._written is None or self._written == self._identity()

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def load(self) -> Configuration | None:
        """What was kept last; None when there is nothing usable, and what is not usable is set aside. Raises OSError."""
        content = self._file.load()
        if content is None:
            return None
        try:
            uid, generation = content["uid"], content["generation"]
            if not isinstance(uid, str | None) or not isinstance(generation, int | None):
                raise ConfigurationError("its uid or generation is none")
            configuration = Configuration.parse(content["spec"], uid, generation)
            configuration.spec.model_dump_json()  # as for a local file
        except UNUSABLE as error:
            self._file.set_aside(str(error))
            return None
        return configuration


class ConfigFollower:
    """The last configuration as the processes beside the agent follow it: by looking whether the file is another one."""

    def __init__(self, path: Path) -> None:
        self._glance = PolledFile(path)
        self._file = ConfigFile(path)

    def read_if_changed(self) -> Configuration | None:
        """What the file says, if it is another one and can be read; what is not usable is the agent's to set aside."""
        return self._glance.read_if_changed(lambda _: self._file.load())
