"""Finds cgroup directories by shell pattern, as `Path.glob` does; `**` is any number of them.

A user who can create cgroups in a matched tree chooses its depth and names. So the search does not
recurse, and a pattern costs at most its parts times the directories. A tree deeper than the longest
path is searched to the depth of this path. A limit on a match includes all processes below. So only
the outermost `MOST_NESTED` of nested matches are returned.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

MOST_NESTED = 8
_ANY_DEPTH = "**"
_WILDCARDS = frozenset("*?[")
_VANISHED = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.ENAMETOOLONG)


def parts_of(pattern: str) -> tuple[str, ...]:
    """Return the parts of a pattern, with or without a slash at its beginning."""
    return PurePosixPath(pattern.strip("/")).parts


def directories(root: Path, pattern: str) -> list[Path]:
    """Return the matching directories below `root` in order, at most `MOST_NESTED` nested.

    Raises OSError, except for a vanished directory.
    """
    found, around = [], list[str]()
    for path in sorted(_find(os.fspath(root), parts_of(pattern)), key=lambda path: path.split("/")):
        while around and not path.startswith(f"{around[-1]}/"):
            around.pop()
        if len(around) < MOST_NESTED:
            found.append(Path(path))
        around.append(path)
    return found


def _find(root: str, parts: Sequence[str]) -> set[str]:
    found: set[str] = set()
    seen: set[tuple[str, int]] = set()
    pending = [(root, 0)]
    while pending:
        step = path, at = pending.pop()
        if step in seen:
            continue
        seen.add(step)
        if at == len(parts):
            found.add(path)
        elif parts[at] == _ANY_DEPTH:
            pending.append((path, at + 1))
            pending += [(child, at) for child, _ in _children(path)]
        elif _WILDCARDS.isdisjoint(parts[at]):
            child = f"{path}/{parts[at]}"
            if os.path.isdir(child):
                pending.append((child, at + 1))
        else:
            pending += [
                (child, at + 1) for child, name in _children(path) if fnmatchcase(name, parts[at])
            ]
    return found


def _children(path: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of each subdirectory; none of a vanished directory or too long path."""
    try:
        with os.scandir(path) as entries:
            yield from [
                (entry.path, entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)
            ]
    except OSError as error:
        if error.errno not in _VANISHED:
            raise
