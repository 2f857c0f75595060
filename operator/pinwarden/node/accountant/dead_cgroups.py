"""The bytes of a group with a charge to removed cgroups (M9).

Only on v2: no process can be in a cgroup with the memory controller enabled for its children. So a
charge of such a cgroup is left from a removed child. On v1 such a cgroup may have processes.

The measurement takes about a second for 4 GiB, so measurements are rare. A child process measures,
because a file truncated meanwhile ends the reader (SIGBUS).
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from pinwarden.node.linux.cgroupfs import Layout, detect_layout
from pinwarden.node.linux.kpagecgroup import bytes_by_cgroup
from pinwarden.node.linux.namespaces import run_in_namespaces

FRESH_SECONDS: Final = 30.0
_TIMES_ITS_COST: Final = 100


class DeadCgroups:
    """Measures each group at most every `FRESH_SECONDS`, and at most a hundredth of the time."""

    def __init__(self, cgroup_root: Path) -> None:
        self._root = cgroup_root
        self._v2 = detect_layout(cgroup_root) is Layout.V2
        self._measured: dict[str, tuple[int | None, float]] = {}

    def retain(self, uids: Collection[str]) -> None:
        """Forget all other groups."""
        self._measured = {uid: measured for uid, measured in self._measured.items() if uid in uids}

    def charged(self, uid: str, files: Callable[[], Iterator[int]], now: float) -> int | None:
        """Return the bytes of a group's files charged to removed cgroups.

        The amount is the last measured one; None on v1. `now` is monotonic. Raises OSError.
        """
        if not self._v2:
            return None
        amount, due = self._measured.get(uid, (None, now))
        if now < due:
            return amount
        began = time.monotonic()
        amount = None
        try:
            charges: Counter[int] = Counter()
            for descriptor in files():
                charges.update(run_in_namespaces([], partial(bytes_by_cgroup, descriptor)))
            amount = charged_to_dead(charges, self._root)
        finally:
            cost = time.monotonic() - began
            self._measured[uid] = amount, now + max(FRESH_SECONDS, cost * _TIMES_ITS_COST)
        return amount


def charged_to_dead(charges: Mapping[int, int], hierarchy: Path) -> int:
    """Return the bytes of `bytes_by_cgroup` whose cgroups are gone from this v2 hierarchy."""
    alive = set()
    for folder, _, _ in os.walk(hierarchy):
        with suppress(FileNotFoundError):
            control = Path(folder, "cgroup.subtree_control").read_text()
            if "memory" not in control.split() or folder == os.fspath(hierarchy):
                alive.add(os.stat(folder).st_ino)
    return sum(amount for cgroup, amount in charges.items() if cgroup and cgroup not in alive)
