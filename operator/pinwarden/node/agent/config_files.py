"""Configuration from local files, for hosts without Kubernetes and without an API server.

A file is YAML or JSON: the spec of a NodePinConfig, or a whole NodePinConfig. A directory stands
for all its `*.yaml`, `*.yml` and `*.json` files together: a limit's name and a pod's uid may stand
there once, another field only with one value. What a person writes is shorter than what the
operator writes: `limit`, `grant` and `unknownPods` may be quantities such as `64Mi`, `scope` may be
left out (Pod) and `uid` too (the name, or a digest of a long one).

The files are one state: while any of them cannot be read, the last good state of all stays in
force, and the log says which file and field. They are looked at every `POLL_SECONDS`, and read once
nothing changed for `SETTLE_SECONDS`, so that a file half written in place is not taken for a whole
one.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from pinwarden.api.nodepinconfig import NodePinConfigSpec
from pinwarden.api.quantity import Quantity
from pinwarden.common.guard import shown
from pinwarden.node.state.config import (
    LONGEST_MESSAGE,
    ConfigFile,
    Configuration,
    ConfigurationError,
    Problem,
    first_problem,
)
from pinwarden.node.state.statefile import UNUSABLE, read_whole

POLL_SECONDS = 0.2
SETTLE_SECONDS = 0.03
SAVE_AGAIN_SECONDS = 5.0
_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_AMOUNTS = ("limit", "grant")
_UID_LENGTH = 64
_log = logging.getLogger(__name__)

Signature = tuple[tuple[str, int, int, int], ...]


def read_files(path: Path) -> Configuration:
    """What the file, or the files of the directory, say together.

    Raises ConfigurationError, naming file and field.
    """
    try:
        files = _files(path)
        specs = [(file.name, spec) for file in files for spec in _read(file)]
    except OSError as error:
        raise ConfigurationError(f"{error.filename or path}: {error.strerror}") from error
    merged = merge(specs)
    return Configuration(merged, merged.to_wire())


def merge(specs: Iterable[tuple[str, NodePinConfigSpec]]) -> NodePinConfigSpec:
    """One spec of several, each with its file's name.

    Raises ConfigurationError when two do not go together.
    """
    seen: dict[tuple[str, str], tuple[str, Any]] = {}

    def add(kind: str, name: str, value: Any, file: str) -> None:
        if (kind, name) not in seen:
            seen[kind, name] = (file, value)
        elif kind != "field" or seen[kind, name][1] != value:
            raise ConfigurationError(f"{file}: {kind} {name!r} stands in {seen[kind, name][0]} already")

    for file, spec in specs:
        for field in sorted(spec.model_fields_set - {"limits", "pods"}):
            add("field", field, getattr(spec, field), file)
        for limit in spec.limits:
            add("limit", limit.name, limit, file)
        for pod in spec.pods:
            add("pod", pod.uid, pod, file)

    def values(kind: str) -> dict[str, Any]:
        return {name: value for (of, name), (_, value) in seen.items() if of == kind}

    fields = {"limits": [*values("limit").values()], "pods": [*values("pod").values()], **values("field")}
    try:
        return NodePinConfigSpec(**fields)
    except ValidationError as error:  # more of something than an object may have
        raise ConfigurationError(first_problem(error, "all files together")) from error


class ConfigFileWatcher:
    """Posts what the files say, once for each good state; `failed` counts bad ones.

    What was posted is kept on disk too.
    """

    def __init__(
        self,
        path: Path,
        memory: ConfigFile,
        *,
        post: Callable[[Configuration | Problem], None],
        failed: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._memory = memory
        self._post = post
        self._failed = failed
        self._sleep = sleep
        self._posted: Configuration | None = None
        self._unsaved: Configuration | None = None
        self._save_due = float("-inf")

    def run(self) -> NoReturn:
        """Never returns; bad files are no exception."""
        taken: Signature | None = None
        while True:
            seen = signature(self._path)
            if seen != taken:
                self._sleep(SETTLE_SECONDS)
                if signature(self._path) != seen:
                    continue
                self._take()
                taken = seen
            if not self._memory.intact:
                self._unsaved = self._posted
            self._remember()
            self._sleep(POLL_SECONDS)

    def _take(self) -> None:
        try:
            configuration = read_files(self._path)
        except ConfigurationError as error:
            self._failed("local")
            problem = shown(str(error), LONGEST_MESSAGE)
            _log.error("%s; the last good state stays in force", problem)
            self._post(Problem(problem))
            return
        self._post(configuration)
        if configuration == self._posted:
            return
        self._posted = self._unsaved = configuration
        self._save_due = float("-inf")
        _log.info("configuration of %s taken: %d limits", self._path, len(configuration.spec.limits))

    def _remember(self) -> None:
        if self._unsaved is None or time.monotonic() < self._save_due:
            return
        try:
            self._memory.save(self._unsaved)
        except OSError as error:
            self._failed("remember")
            _log.warning("the configuration in force is not on disk, for a restart or a gate: %s", error)
            self._save_due = time.monotonic() + SAVE_AGAIN_SECONDS
            return
        self._unsaved = None


def signature(path: Path) -> Signature:
    """Changes when a file is changed, added or removed; empty when nothing is there."""
    found = []
    try:
        for file in _files(path):
            stat = file.stat()
            found.append((file.name, stat.st_mtime_ns, stat.st_ino, stat.st_size))
    except OSError:  # vanished between two looks: another look follows
        return ()
    return tuple(found)


def _files(path: Path) -> list[Path]:
    """Raises OSError when `path` cannot be read."""
    if not path.is_dir():
        path.stat()
        return [path]
    return sorted(
        file for file in path.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith(".")
    )


def _read(file: Path) -> list[NodePinConfigSpec]:
    return [_spec(file.name, document) for document in _documents(file) if document is not None]


def _documents(file: Path) -> list[Any]:
    try:
        text = read_whole(file).decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file.name}: not UTF-8: {error.reason}") from error
    except ValueError as error:
        raise ConfigurationError(f"{file.name}: {error}") from error
    if file.suffix != ".json":
        return _yaml_documents(file.name, text)
    try:
        return [json.loads(text)]
    except UNUSABLE as error:
        raise ConfigurationError(f"{file.name}: not JSON: {error}") from error


def _yaml_documents(name: str, text: str) -> list[Any]:
    import yaml  # costs memory that an agent with an API server does not need

    try:
        return list(yaml.safe_load_all(text))
    except (yaml.YAMLError, *UNUSABLE) as error:
        raise ConfigurationError(f"{name}: not YAML: {' '.join(str(error).split())}") from error


def _spec(name: str, document: Any) -> NodePinConfigSpec:
    if not isinstance(document, Mapping):
        raise ConfigurationError(f"{name}: not an object")
    whole = "kind" in document or "apiVersion" in document
    if whole and document.get("kind") != "NodePinConfig":
        raise ConfigurationError(f"{name}: kind: not NodePinConfig")
    spec = document.get("spec") if whole else document
    if not isinstance(spec, Mapping):
        raise ConfigurationError(f"{name}: spec: not an object")
    try:
        found = NodePinConfigSpec.model_validate(_completed(spec))
        found.model_dump_json()  # a half of a surrogate pair, as JSON may have it, is no text that could be told or kept
    except ValidationError as error:
        raise ConfigurationError(f"{name}: {first_problem(error, 'spec' if whole else '')}") from error
    except UNUSABLE as error:
        raise ConfigurationError(f"{name}: {error}") from error
    return found


def _completed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with what a person may leave out or write shorter.

    Raises ValueError for an amount that is none.
    """
    completed = dict(spec)
    if "unknownPods" in spec:
        completed["unknownPods"] = _bytes("unknownPods", spec["unknownPods"])
    if isinstance(limits := spec.get("limits"), list):
        completed["limits"] = [_completed_limit(index, limit) for index, limit in enumerate(limits)]
    return completed


def _completed_limit(index: int, limit: Any) -> Any:
    if not isinstance(limit, Mapping):
        return limit
    name = str(limit.get("name", ""))
    uid = name if len(name) <= _UID_LENGTH else hashlib.sha256(name.encode()).hexdigest()
    amounts = {
        field: _bytes(f"limits[{index}].{field}", limit[field]) for field in _AMOUNTS if field in limit
    }
    return {"uid": uid, "scope": "Pod", **limit, **amounts}


def _bytes(field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return Quantity(value).bytes
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
