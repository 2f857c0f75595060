"""The last configuration on disk: it outlives the agent and an outage of the API server (H3).

A configuration comes from the NodePinConfig of the node, from local files, or at start from disk.
`Configuration.parse` reads its spec. A limit of an unknown kind is left out. An unreadable spec is
an error, and the last good configuration stays in force.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pinwarden.api.nodepinconfig import NodePinConfigSpec, UnsupportedLimit
from pinwarden.node.state.config_path import CONFIG_VERSION
from pinwarden.node.state.statefile import UNUSABLE, PolledFile, StateFile

LONGEST_MESSAGE = 1024
"""The longest message about a rejected configuration or limit in a report, in characters."""


class ConfigurationError(ValueError):
    """A configuration cannot be read. The message names the field."""


@dataclass(frozen=True)
class Problem:
    """Why the newest configuration was rejected. `uid` identifies its NodePinConfig, if any."""

    message: str
    uid: str | None = None


@dataclass(frozen=True)
class Configuration:
    """A spec, and its limits of an unknown kind.

    `uid` and `generation` identify the NodePinConfig, None for local files. `raw` is the spec as
    received. `gone` are its pods that the operator no longer lists (`retainer`).
    """

    spec: NodePinConfigSpec
    raw: Mapping[str, Any]
    unsupported: tuple[UnsupportedLimit, ...] = ()
    uid: str | None = None
    generation: int | None = None
    gone: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, raw: object, uid: str | None, generation: int | None) -> "Configuration":
        """Read the spec of a NodePinConfig.

        Raises ConfigurationError if more than single limits are invalid.
        """
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
    """Return the first error of a validation as `field.path[index]: message`."""
    first = error.errors(include_url=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    return f"{(root + path).lstrip('.') or 'content'}: {first['msg']}"


class ConfigFile:
    """The last configuration on disk. The gate and the accountant read the file too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = StateFile(path, CONFIG_VERSION)
        self._written: tuple[int, int, int] | None = None

    def save(self, configuration: Configuration) -> None:
        """Write the configuration and sync the file. Raises OSError."""
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
        """Whether the file is unchanged since the last `save`."""
        return self._written is None or self._written == self._identity()

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def load(self) -> Configuration | None:
        """Return the last configuration, None without a usable file. Raises OSError."""
        return self._file.load(_parse)


def _parse(content: Any) -> Configuration:
    uid, generation = content["uid"], content["generation"]
    if not isinstance(uid, str | None) or not isinstance(generation, int | None):
        raise ConfigurationError("the uid or the generation has another type")
    configuration = Configuration.parse(content["spec"], uid, generation)
    configuration.spec.model_dump_json()  # a local file is checked the same way
    return configuration


class ConfigFollower:
    """Reads the agent's last configuration in another process, whenever the file changes."""

    def __init__(self, path: Path) -> None:
        self._polled = PolledFile(path)
        self._file = ConfigFile(path)

    def read_if_changed(self) -> Configuration | None:
        """Return the configuration if the file changed and is usable, else None."""
        return self._polled.read_if_changed(lambda _: self._file.load())
