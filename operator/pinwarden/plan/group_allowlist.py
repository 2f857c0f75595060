"""The objects of nodes for the SharedMemoryGroups of a namespace, as an administrator allows.

The annotation `ANNOTATION` of a Namespace has entries, separated by white space:

| entry | allows |
| --- | --- |
| `path:/run/team-a` | this path, and paths below it, of a tmpfs, hugetlbfs or file |
| `posixShm:team-a-*` | names of POSIX shared memory of the node; * and ? stand for any characters |
| `sysvShm:0x5000-0x5fff` | a key or a range of keys of System V segments of the node |
| `create:256Mi` | objects created by pinwarden, up to this sum of capacities on each node |

An invalid entry allows nothing. Objects in the processes and IPC namespaces of the group's own
member pods need no entry. Paths are compared as text: the agent follows no symbolic link below the
allowed folder.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from pydantic import TypeAdapter, ValidationError

from pinwarden.api.quantity import MAX_BYTES, Quantity
from pinwarden.api.reasons import NOT_ALLOWED
from pinwarden.api.sharedmemorygroup import (
    IpcNamespace,
    Management,
    Path,
    SharedMemoryGroupSpec,
    key_range,
)
from pinwarden.common.text import compared, exact, short
from pinwarden.plan.conditions import Rejection

ANNOTATION: Final = "pinwarden.io/allow-shared-memory"
_PATH: Final = TypeAdapter[str](Path)
_SPACE: Final = re.compile(r"\s")
_SPACE_OR_WILD: Final = re.compile(r"[\s*?]")
_MOST_ENTRY: Final = 64
_KINDS: Final = "must begin with path:, posixShm:, sysvShm: or create:"


@dataclass(frozen=True, slots=True)
class Allowed:
    """A parsed annotation. `create` is the largest amount in bytes; `problems`: invalid entries."""

    folders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    keys: tuple[tuple[int, int], ...] = ()
    create: int = 0
    problems: tuple[str, ...] = ()

    def folder(self, path: str) -> str | None:
        """Return the longest allowed folder that is or contains `path`, None if there is none."""
        above = (
            folder for folder in self.folders if path == folder or path.startswith(f"{folder}/")
        )
        return max(above, key=len, default=None)

    def allows_name(self, name: str) -> bool:
        """Return whether every name with the pattern `name` is allowed."""
        return any(covers(entry, name) for entry in self.names)

    def allows_keys(self, lowest: int, highest: int) -> bool:
        """Return whether one range contains all these keys."""
        return any(low <= lowest and highest <= high for low, high in self.keys)


@dataclass(frozen=True, slots=True)
class Permission:
    """The permission of a group to name its object.

    `folder` is the allowed folder of a backing with a path. `ending`: the group lost its
    permission, and may only release its objects.
    """

    folder: str | None = None
    ending: bool = False


@lru_cache(maxsize=4096)
def parse(text: str) -> Allowed:
    """Return the parsed text of an annotation; never fail."""
    folders: list[str] = []
    names: list[str] = []
    keys: list[tuple[int, int]] = []
    create = 0
    problems: list[str] = []
    for entry in text.split():
        kind, _, pattern = entry.partition(":")
        try:
            match kind:
                case "path":
                    folders.append(_folder(pattern))
                case "posixShm":
                    names.append(_name(pattern))
                case "sysvShm":
                    keys.append(key_range(pattern))
                case "create":
                    create = max(create, _amount(pattern))
                case _:
                    problems.append(f"entry {_short(entry)!r} is invalid: {_KINDS}")
        except ValueError as error:
            problems.append(f"entry {_short(entry)!r} is invalid: {error}")
    return Allowed(tuple(folders), tuple(names), tuple(keys), create, tuple(problems))


def covers(entry: str, name: str) -> bool:
    """Return whether the pattern `entry` certainly matches every name with the pattern `name`."""
    if entry == name:
        return True
    if not _is_pattern(name):
        return fnmatchcase(name, entry.replace("[", "[[]"))
    prefix = entry.removesuffix("*")
    return prefix != entry and not _is_pattern(prefix) and name.startswith(prefix)


def permission(spec: SharedMemoryGroupSpec, allowed: Allowed) -> Permission | Rejection:
    """Return whether a group may name its object; `admit` decides about capacities to create."""
    backing = spec.backing
    if mount := backing.tmpfs or backing.hugetlbfs:
        if mount.path is None:
            return Permission()
        folder = allowed.folder(mount.path)
        return (
            Permission(folder)
            if folder
            else _path_rejected(backing.kind, mount.path, mount.path, allowed)
        )
    if backing.file:
        path = backing.file.path
        folder, parent = allowed.folder(path), path.rpartition("/")[0]
        if folder == path:
            folder = parent or None
        return Permission(folder) if folder else _path_rejected("file", path, parent, allowed)
    shm, segment = backing.posix_shm, backing.sysv_shm
    if shm and shm.ipc_namespace is IpcNamespace.HOST and not allowed.allows_name(shm.name):
        entry = f"posixShm:{_without_space(shm.name)}"
        return _rejected("spec.backing.posixShm.name", f"{shm.name!r}", entry, allowed)
    if (
        segment
        and segment.ipc_namespace is IpcNamespace.HOST
        and not allowed.allows_keys(*segment.keys)
    ):
        keys = "-".join(f"{key:#x}" for key in dict.fromkeys(segment.keys))
        return _rejected("spec.backing.sysvShm.key", keys, f"sysvShm:{keys}", allowed)
    return Permission()


def admit(creating: Iterable[tuple[str, int]], allowed: Allowed) -> dict[str, Rejection]:
    """Return the rejections of groups with `management: Create` above their namespace's quota.

    `creating` has names and capacities, the oldest group first. A rejected group takes nothing from
    others.
    """
    taken = 0
    rejected = {}
    for name, capacity in creating:
        if taken + capacity <= allowed.create:
            taken += capacity
            continue
        used, most = compared(taken, allowed.create)
        left = f"{used} of {most} are taken by older groups" if allowed.create else ""
        asked = f"{short(capacity)}{f' ({left})' if left else ''}"
        rejected[name] = _rejected(
            "spec.capacity", asked, f"create:{exact(taken + capacity)}", allowed
        )
    return rejected


def creates(spec: SharedMemoryGroupSpec) -> int | None:
    """Return the bytes to create, None if programs create the object."""
    return (
        spec.capacity.bytes
        if spec.management is Management.CREATE and spec.capacity is not None
        else None
    )


def _without_space(name: str) -> str:
    """Return a pattern for the name without white space."""
    if not _SPACE.search(name):
        return name
    return f"{_SPACE_OR_WILD.split(name)[0]}*" if _is_pattern(name) else _SPACE.sub("?", name)


def _path_rejected(kind: str, path: str, wanted: str, allowed: Allowed) -> Rejection:
    parts = wanted.split("/")[1:]
    bad = (
        number for number, part in enumerate(parts) if _is_pattern(part) or part.split() != [part]
    )
    wanted = "".join(f"/{part}" for part in parts[: next(bad, None)])
    return _rejected(f"spec.backing.{kind}.path", path, f"path:{wanted}" if wanted else "", allowed)


def _rejected(field: str, value: str, entry: str, allowed: Allowed) -> Rejection:
    advice = f": an administrator may add {entry!r} to the annotation {ANNOTATION} of the Namespace"
    if not entry:
        advice = ": no parent folder can be allowed"
    return Rejection(
        NOT_ALLOWED, "; ".join([f"{field}: {value} is not allowed{advice}", *allowed.problems[:1]])
    )


def _folder(text: str) -> str:
    if _is_pattern(text):
        raise ValueError("a folder must not contain * or ?")
    try:
        return _PATH.validate_python(text[:-1] if len(text) > 1 and text.endswith("/") else text)
    except ValidationError:
        raise ValueError(
            "a folder must be an absolute path below /, without '.' and '..'"
        ) from None


def _name(text: str) -> str:
    if not text or "/" in text:
        raise ValueError("a name must have a character and no slash")
    return text


def _amount(text: str) -> int:
    amount = Quantity(text).bytes
    if amount > MAX_BYTES:
        raise ValueError("the amount is above the maximum of 4Pi")
    return amount


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text


def _short(text: str) -> str:
    return text if len(text) <= _MOST_ENTRY else f"{text[:_MOST_ENTRY]}..."
