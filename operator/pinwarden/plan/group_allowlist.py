"""What an administrator lets the SharedMemoryGroups of a namespace name on the nodes.

The annotation `ANNOTATION` of a Namespace has entries, set apart by white space:

| entry | allows |
| --- | --- |
| `path:/run/team-a` | a path of a tmpfs, hugetlbfs or file that is this one or below it |
| `posixShm:team-a-*` | names of POSIX shared memory of the node; * and ? stand for any characters |
| `sysvShm:0x5000-0x5fff` | keys of System V segments of the node, or one key; decimal or hexadecimal |
| `create:256Mi` | objects that pinwarden makes, on each node up to this sum of their capacities |

An entry that cannot be read allows nothing. What is found in the processes and IPC namespaces of the group's own member pods needs none.
Paths are compared as text, without links: the agent follows none below the allowed folder.
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
from pinwarden.api.sharedmemorygroup import IpcNamespace, Management, Path, SharedMemoryGroupSpec, key_range
from pinwarden.common.text import compared, exact, short
from pinwarden.plan.conditions import Rejection

ANNOTATION: Final = "pinwarden.io/allow-shared-memory"
_PATH: Final = TypeAdapter[str](Path)
_SPACE: Final = re.compile(r"\s")
_SPACE_OR_WILD: Final = re.compile(r"[\s*?]")
_MOST_ENTRY: Final = 64
_KINDS: Final = "it must begin with path:, posixShm:, sysvShm: or create:"


@dataclass(frozen=True, slots=True)
class Allowed:
    """An annotation as it was understood. `create` is in bytes, the largest where there are several; `problems` are of bad entries."""

    folders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    keys: tuple[tuple[int, int], ...] = ()
    create: int = 0
    problems: tuple[str, ...] = ()

    def folder(self, path: str) -> str | None:
        """The longest of the folders that `path` is, or is below of."""
        above = (folder for folder in self.folders if path == folder or path.startswith(f"{folder}/"))
        return max(above, key=len, default=None)

    def allows_name(self, name: str) -> bool:
        """Whether every name that `name` stands for is allowed."""
        return any(covers(entry, name) for entry in self.names)

    def allows_keys(self, lowest: int, highest: int) -> bool:
        """Whether all these keys are in one of the ranges."""
        return any(low <= lowest and highest <= high for low, high in self.keys)


@dataclass(frozen=True, slots=True)
class Permission:
    """That a group may name what it names; `folder` is the allowed one of a backing that has a path.

    `ending`: it may no more, and only ends what it has.
    """

    folder: str | None = None
    ending: bool = False


@lru_cache(maxsize=4096)
def parse(text: str) -> Allowed:
    """What the text of an annotation allows; never fails."""
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
                    problems.append(f"entry {_short(entry)!r} cannot be read: {_KINDS}")
        except ValueError as error:
            problems.append(f"entry {_short(entry)!r} cannot be read: {error}")
    return Allowed(tuple(folders), tuple(names), tuple(keys), create, tuple(problems))


def covers(entry: str, name: str) -> bool:
    """Whether the pattern `entry` surely matches whatever `name` matches, which may be a pattern too."""
    if entry == name:
        return True
    if not _is_pattern(name):
        return fnmatchcase(name, entry.replace("[", "[[]"))
    prefix = entry.removesuffix("*")
    return prefix != entry and not _is_pattern(prefix) and name.startswith(prefix)


def permission(spec: SharedMemoryGroupSpec, allowed: Allowed) -> Permission | Rejection:
    """Whether a group may name its object; the capacities of created ones are for `admit`."""
    backing = spec.backing
    if mount := backing.tmpfs or backing.hugetlbfs:
        if mount.path is None:
            return Permission()
        folder = allowed.folder(mount.path)
        return Permission(folder) if folder else _path_refused(backing.kind, mount.path, mount.path, allowed)
    if backing.file:
        path = backing.file.path
        folder, parent = allowed.folder(path), path.rpartition("/")[0]
        if folder == path:
            folder = parent or None
        return Permission(folder) if folder else _path_refused("file", path, parent, allowed)
    shm, segment = backing.posix_shm, backing.sysv_shm
    if shm and shm.ipc_namespace is IpcNamespace.HOST and not allowed.allows_name(shm.name):
        entry = f"posixShm:{_without_space(shm.name)}"
        return _refused("spec.backing.posixShm.name", f"{shm.name!r}", entry, allowed)
    if segment and segment.ipc_namespace is IpcNamespace.HOST and not allowed.allows_keys(*segment.keys):
        keys = "-".join(f"{key:#x}" for key in dict.fromkeys(segment.keys))
        return _refused("spec.backing.sysvShm.key", keys, f"sysvShm:{keys}", allowed)
    return Permission()


def admit(creating: Iterable[tuple[str, int]], allowed: Allowed) -> dict[str, Rejection]:
    """Why some of the groups with management: Create get no room; these come by name with their capacity, the oldest first.

    One that does not fit takes no room from those after it.
    """
    taken = 0
    refused = {}
    for name, capacity in creating:
        if taken + capacity <= allowed.create:
            taken += capacity
            continue
        used, most = compared(taken, allowed.create)
        left = f"{used} of {most} are taken by older groups" if allowed.create else ""
        what = f"{short(capacity)}{f' ({left})' if left else ''}"
        refused[name] = _refused("spec.capacity", what, f"create:{exact(taken + capacity)}", allowed)
    return refused


def creates(spec: SharedMemoryGroupSpec) -> int | None:
    """Bytes that pinwarden is asked to make, None where it shall find what others make."""
    return spec.capacity.bytes if spec.management is Management.CREATE and spec.capacity is not None else None


def _without_space(name: str) -> str:
    """A pattern that covers the name and can stand in an annotation."""
    if not _SPACE.search(name):
        return name
    return f"{_SPACE_OR_WILD.split(name)[0]}*" if _is_pattern(name) else _SPACE.sub("?", name)


def _path_refused(kind: str, path: str, wanted: str, allowed: Allowed) -> Rejection:
    parts = wanted.split("/")[1:]
    bad = (number for number, part in enumerate(parts) if _is_pattern(part) or part.split() != [part])
    wanted = "".join(f"/{part}" for part in parts[: next(bad, None)])
    return _refused(f"spec.backing.{kind}.path", path, f"path:{wanted}" if wanted else "", allowed)


def _refused(field: str, what: str, entry: str, allowed: Allowed) -> Rejection:
    advice = f": an administrator may add {entry!r} to the annotation {ANNOTATION} of the Namespace"
    if not entry:
        advice = ": no folder above it can be allowed"
    return Rejection(
        NOT_ALLOWED, "; ".join([f"{field}: {what} is not allowed{advice}", *allowed.problems[:1]])
    )


def _folder(text: str) -> str:
    if _is_pattern(text):
        raise ValueError("a folder is given without * and ?")
    try:
        return _PATH.validate_python(text[:-1] if len(text) > 1 and text.endswith("/") else text)
    except ValidationError:
        raise ValueError("it must be an absolute path below /, without '.' and '..'") from None


def _name(text: str) -> str:
    if not text or "/" in text:
        raise ValueError("it must be a name without a slash")
    return text


def _amount(text: str) -> int:
    amount = Quantity(text).bytes
    if amount > MAX_BYTES:
        raise ValueError("it is above 4Pi")
    return amount


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text


def _short(text: str) -> str:
    return text if len(text) <= _MOST_ENTRY else f"{text[:_MOST_ENTRY]}..."
