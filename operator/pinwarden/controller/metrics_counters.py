"""Counters of denied calls and overshoots, from the increase between two reports of a node.

A report has a count per pod. The count disappears with the pod and restarts with the gate's journal
or the agent, so the sum may fall, and a rate of the sum would be wrong. The counters here add each
increase and never fall while the operator runs. The first report of a node adds nothing, because a
new replica must not count old denials again.

A stolen token of an agent could name any UID, so only existing limits and groups are counted. No
I/O; for one thread.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pinwarden.plan.node_view import NodeView

_Key = tuple[str, str]
"""The UID of the pod's cgroup, empty with scope Node; and the UID of the limit or group."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """The counts of a node for its reported pods; `denied` is None without a gate."""

    denied: int | None = None
    denials: Mapping[_Key, int] = field(default_factory=dict)
    overshoots: Mapping[_Key, int] = field(default_factory=dict)


_NO_COUNTS: Final = _Counts()


class ReportCounters:
    """Increases since the first report of each node: denials in total, and by the UID of a limit or
    group.
    """

    def __init__(self, exists: Callable[[str], bool]) -> None:
        self.denied = 0
        self._exists = exists
        self._denials: dict[str, int] = {}
        self._overshoots: dict[str, int] = {}
        self._last: dict[str, _Counts] = {}

    def denials(self, uid: str) -> int:
        """Return how many calls were denied for this limit or group."""
        return self._denials.get(uid, 0)

    def overshoots(self, uid: str) -> int:
        """Return how often a sample exceeded this limit."""
        return self._overshoots.get(uid, 0)

    def observe(self, view: NodeView) -> None:
        """Add the increase in a node's report."""
        before = self._last.get(view.name)
        last = before or _NO_COUNTS
        now = _Counts(
            denied=view.denied,
            denials=_merge(last.denials, _denials(view), view),
            overshoots=_merge(last.overshoots, _overshoots(view), view),
        )
        self._last[view.name] = now
        if before is None:
            return
        if last.denied is not None and now.denied is not None:
            self.denied += _increase(last.denied, now.denied)
        self._count(self._denials, last.denials, now.denials)
        self._count(self._overshoots, last.overshoots, now.overshoots)

    def forget(self, uid: str) -> None:
        """Forget a deleted limit or group."""
        self._denials.pop(uid, None)
        self._overshoots.pop(uid, None)

    def forget_node(self, name: str) -> None:
        """Forget a deleted node."""
        self._last.pop(name, None)

    def _count(
        self, totals: dict[str, int], last: Mapping[_Key, int], now: Mapping[_Key, int]
    ) -> None:
        for key, count in now.items():
            uid = key[1]
            if (added := _increase(last.get(key, 0), count)) and self._exists(uid):
                totals[uid] = totals.get(uid, 0) + added


def _increase(before: int, now: int) -> int:
    """Return the increase; a count that fell has restarted from zero."""
    return now - before if now >= before else now


def _merge(
    last: Mapping[_Key, int], now: Iterator[tuple[_Key, int]], view: NodeView
) -> dict[_Key, int]:
    """Return the new counts, and the last counts that a truncated report may lack."""
    kept = (
        {key: count for key, count in last.items() if key[0] in view.pods} if view.truncated else {}
    )
    return {**kept, **dict(now)}


def _denials(view: NodeView) -> Iterator[tuple[_Key, int]]:
    for pod, use in view.pods.items():
        for uid, count in (use.denials or {}).items():
            yield (pod, uid), count
    for uid, report in view.groups.items():
        for borrow in report.borrowers:
            if borrow.denials is not None:
                yield (borrow.pod, uid), borrow.denials


def _overshoots(view: NodeView) -> Iterator[tuple[_Key, int]]:
    for overshoot in view.overshoots:
        yield (overshoot.pod or "", overshoot.limit), overshoot.count
