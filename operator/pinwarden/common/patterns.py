"""Shell patterns of cgroup directories, as `Path.glob` matches them: each part by itself, and `**`
any number of directories.

Who may make cgroups in a matched tree chooses its depth and names. So nothing here recurses, a
pattern costs at most its parts times the directories, and a tree deeper than a path can name is
followed as far as that. Each match is sampled with all that lies below it. So of matches inside
each other only `MOST_NESTED` are told: the limit of the outermost one, over more processes, implies
it for those within.
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
    """The parts of a pattern, which begins below the root with or without a slash."""
    return PurePosixPath(pattern.strip("/")).parts


def directories(root: Path, pattern: str) -> list[Path]:
    """The directories below `root` that the pattern matches, in order, not more than `MOST_NESTED`
    inside each other.

    Raises OSError but for what vanished.
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
            pending += [(child, at + 1) for child, name in _children(path) if fnmatchcase(name, parts[at])]
    return found


def _children(path: str) -> Iterator[tuple[str, str]]:
    """Path and name of each directory in this one; none where it vanished, or where its path is too
    long to open.
    """
    try:
        with os.scandir(path) as entries:
            yield from [(each.path, each.name) for each in entries if each.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno not in _VANISHED:
            raise
