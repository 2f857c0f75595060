"""A pod's own memory, as its cgroup tells: one half of the fair view (M11)."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_V2 = ("memory.current", "anon ")
_V1 = ("memory.usage_in_bytes", "total_rss ")


class Own(NamedTuple):
    """Bytes: all that is charged to the pod, and its anonymous memory of that."""

    current: int
    anonymous: int


def own_memory(paths: Iterable[Path]) -> Own | None:
    """What the kernel says of a pod with these cgroup directories; None where it has no memory controller, or has gone."""
    found = [own for path in paths if (own := _of(path))]
    return Own(sum(each.current for each in found), sum(each.anonymous for each in found)) if found else None


def _of(path: Path) -> Own | None:
    for current, field in (_V2, _V1):
        try:
            amount = int((path / current).read_text())
            lines = (path / "memory.stat").read_text().splitlines()
        except OSError:
            continue
        anonymous = next((int(line.split()[1]) for line in lines if line.startswith(field)), None)
        if anonymous is not None:
            return Own(amount, anonymous)
    return None
