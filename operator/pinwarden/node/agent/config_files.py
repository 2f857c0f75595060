"""Reads the configuration from local files, for hosts without Kubernetes and without an API server.

A file is YAML or JSON: the spec of a NodePinConfig, or a whole NodePinConfig. A directory stands
for all its `*.yaml`, `*.yml` and `*.json` files together. The name of a limit and the uid of a pod
may occur once. Any other field may occur again only with the same value.

Users may write less than the operator. `limit`, `grant` and `unknownPods` may be quantities such as
`64Mi`. `scope` defaults to Pod, and `uid` to the name or a digest of a long name.

The files are one state. While a file cannot be read, the last good state of all files stays in
force, and the log names the file and the field. The files are checked every `POLL_SECONDS`. They
are read after `SETTLE_SECONDS` without a change, so that no half-written file is read.
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
    """Return the configuration of the file, or of all files in the directory.

    Raises ConfigurationError, which names the file and the field.
    """
    try:
        files = _files(path)
        specs = [(file.name, spec) for file in files for spec in _read(file)]
    except OSError as error:
        raise ConfigurationError(f"{error.filename or path}: {error.strerror}") from error
    merged = merge(specs)
    return Configuration(merged, merged.to_wire())


def merge(specs: Iterable[tuple[str, NodePinConfigSpec]]) -> NodePinConfigSpec:
    """Merge specs, each with the name of its file. Raises ConfigurationError if two conflict."""
    seen: dict[tuple[str, str], tuple[str, Any]] = {}

    def add(kind: str, name: str, value: Any, file: str) -> None:
        if (kind, name) not in seen:
            seen[kind, name] = (file, value)
        elif kind != "field" or seen[kind, name][1] != value:
            raise ConfigurationError(f"{file}: {kind} {name!r} is already in {seen[kind, name][0]}")

    for file, spec in specs:
        for field in sorted(spec.model_fields_set - {"limits", "pods"}):
            add("field", field, getattr(spec, field), file)
        for limit in spec.limits:
            add("limit", limit.name, limit, file)
        for pod in spec.pods:
            add("pod", pod.uid, pod, file)

    def values(kind: str) -> dict[str, Any]:
        return {name: value for (of, name), (_, value) in seen.items() if of == kind}

    fields = {
        "limits": [*values("limit").values()],
        "pods": [*values("pod").values()],
        **values("field"),
    }
    try:
        return NodePinConfigSpec(**fields)
    except ValidationError as error:  # for example, more limits than an object may have
        raise ConfigurationError(first_problem(error, "all files together")) from error


class ConfigFileWatcher:
    """Posts each good state of the files once, and saves it. `failed` counts bad states."""

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
        """Follow the files for ever. Bad files are logged and counted."""
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
        _log.info(
            "configuration read from %s: %d limits", self._path, len(configuration.spec.limits)
        )

    def _remember(self) -> None:
        if self._unsaved is None or time.monotonic() < self._save_due:
            return
        try:
            self._memory.save(self._unsaved)
        except OSError as error:
            self._failed("remember")
            _log.warning(
                "cannot save the configuration in force for a restart or the gate: %s", error
            )
            self._save_due = time.monotonic() + SAVE_AGAIN_SECONDS
            return
        self._unsaved = None


def signature(path: Path) -> Signature:
    """Return a value for the current state of all files, empty without files."""
    entries = []
    try:
        for file in _files(path):
            stat = file.stat()
            entries.append((file.name, stat.st_mtime_ns, stat.st_ino, stat.st_size))
    except OSError:  # a file vanished: the next check follows
        return ()
    return tuple(entries)


def _files(path: Path) -> list[Path]:
    """Return the files to read. Raises OSError if `path` cannot be read."""
    if not path.is_dir():
        path.stat()
        return [path]
    return sorted(
        file
        for file in path.iterdir()
        if file.suffix in _SUFFIXES and not file.name.startswith(".")
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
        validated = NodePinConfigSpec.model_validate(_completed(spec))
        validated.model_dump_json()  # JSON can have half of a surrogate pair, which cannot be saved
    except ValidationError as error:
        raise ConfigurationError(
            f"{name}: {first_problem(error, 'spec' if whole else '')}"
        ) from error
    except UNUSABLE as error:
        raise ConfigurationError(f"{name}: {error}") from error
    return validated


def _completed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec with all defaults and amounts in bytes.

    Raises ValueError for a bad amount.
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
        field: _bytes(f"limits[{index}].{field}", limit[field])
        for field in _AMOUNTS
        if field in limit
    }
    return {"uid": uid, "scope": "Pod", **limit, **amounts}


def _bytes(field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return Quantity(value).bytes
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
