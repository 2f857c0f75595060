"""Counts refused calls and overshoots, from what the reports of nodes add to the ones before.

A report has a count for each pod, which goes with the pod, and begins anew with the gate's journal or the agent: a sum of them falls, and a
rate of it would be wrong. So what each report adds is counted here, and never falls while the operator runs. What a node had counted before
the operator's first look at it is not counted: a new replica does not tell old refusals as new ones.

A stolen agent's token could name anything: only limits and groups that exist are counted. No I/O; for one thread.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pinwarden.plan.node_view import NodeView

_Key = tuple[str, str]
"""The UID that the pod's cgroup bears, empty with scope Node; and that of the limit or group."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """What a node counted so far, of pods that it still reports; `denied` is None where no gate sees refusals."""

    denied: int | None = None
    denials: Mapping[_Key, int] = field(default_factory=dict)
    overshoots: Mapping[_Key, int] = field(default_factory=dict)


_NONE: Final = _Counts()


class ReportCounters:
    """Since the operator's first look at each node: refusals on all of them, and by the UID of a limit or group that `exists`."""

    def __init__(self, exists: Callable[[str], bool]) -> None:
        self.denied = 0
        self._exists = exists
        self._denials: dict[str, int] = {}
        self._overshoots: dict[str, int] = {}
        self._last: dict[str, _Counts] = {}

    def denials(self, uid: str) -> int:
        """How many calls were refused for this limit or group."""
        return self._denials.get(uid, 0)

    def overshoots(self, uid: str) -> int:
        """How often use was seen to pass this limit."""
        return self._overshoots.get(uid, 0)

    def observe(self, view: NodeView) -> None:
        """A node's report came."""
        before = self._last.get(view.name)
        last = before or _NONE
        now = _Counts(
            denied=view.denied,
            denials=_with(last.denials, _denials(view), view),
            overshoots=_with(last.overshoots, _overshoots(view), view),
        )
        self._last[view.name] = now
        if before is None:
            return
        if last.denied is not None and now.denied is not None:
            self.denied += _added(last.denied, now.denied)
        self._count(self._denials, last.denials, now.denials)
        self._count(self._overshoots, last.overshoots, now.overshoots)

    def forget(self, uid: str) -> None:
        """The limit or group is gone."""
        self._denials.pop(uid, None)
        self._overshoots.pop(uid, None)

    def forget_node(self, name: str) -> None:
        """The node is gone."""
        self._last.pop(name, None)

    def _count(self, totals: dict[str, int], last: Mapping[_Key, int], now: Mapping[_Key, int]) -> None:
        for key, count in now.items():
            uid = key[1]
            if (added := _added(last.get(key, 0), count)) and self._exists(uid):
                totals[uid] = totals.get(uid, 0) + added


def _added(before: int, now: int) -> int:
    """What came since; a count that fell began anew."""
    return now - before if now >= before else now


def _with(last: Mapping[_Key, int], now: Iterator[tuple[_Key, int]], view: NodeView) -> dict[_Key, int]:
    """The counts now, and the last ones that a list which was cut does not have for the moment."""
    kept = {key: count for key, count in last.items() if key[0] in view.pods} if view.truncated else {}
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
    for each in view.overshoots:
        yield (each.pod or "", each.limit), each.count
