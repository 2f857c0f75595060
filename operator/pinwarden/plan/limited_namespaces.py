"""The namespaces whose pods a limit or group may select.

A pod can start before the spec of its node lists the pod. The NRI plugin puts the gate into such a
pod only if a limit or group may select pods of its namespace.
"""

from collections import Counter
from collections.abc import Set
from typing import Final, NamedTuple

from pinwarden.api.pinlimit import PinLimit
from pinwarden.plan.dirty import CLEAN, Dirty
from pinwarden.plan.group_compiler import Group
from pinwarden.plan.limit_compiler import Limit, LimitSettings
from pinwarden.plan.selectors import named_values
from pinwarden.plan.types import NAME_LABEL

MAX_NAMESPACES: Final = 128
_NOWHERE: Final = frozenset[str]()


class NamespaceScope(NamedTuple):
    """The `limited` namespaces of each node's spec; None means all except the `exempt`."""

    limited: tuple[str, ...] | None = ()
    exempt: tuple[str, ...] = ()


class LimitedNamespaces:
    """Counts the limits and groups that may select pods of each namespace."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._selected: dict[str, frozenset[str] | None] = {}
        self._counts: Counter[str] = Counter()
        self._unbounded = 0
        self.scope = self._compute()

    def put_limit(self, name: str, limit: Limit | None) -> Dirty:
        """Add or replace a limit, or remove it (None); the answer has all nodes on a new scope."""
        return self._put(name, limit)

    def put_group(self, name: str, group: Group | None) -> Dirty:
        """Add, replace or remove a group likewise. A group may have the name of a PinLimit."""
        return self._put(f"group {name}", group)

    def _put(self, key: str, source: Limit | Group | None) -> Dirty:
        old = self._selected.pop(key, _NOWHERE)
        new = _NOWHERE if source is None else _selectable(source)
        if source is not None:
            self._selected[key] = new
        if old == new:
            return CLEAN
        self._count(old, -1)
        self._count(new, 1)
        before, self.scope = self.scope, self._compute()
        return Dirty(all_nodes=self.scope != before)

    def _count(self, namespaces: frozenset[str] | None, change: int) -> None:
        if namespaces is None:
            self._unbounded += change
            return
        for name in namespaces:
            self._counts[name] += change
            if not self._counts[name]:
                del self._counts[name]

    def _compute(self) -> NamespaceScope:
        """Return the scope; the limit for unknown pods (`unknown_pods`) is for all namespaces."""
        if self._settings.unknown_pods is not None:
            return NamespaceScope(None)
        exempt = self._settings.exempt - self._counts.keys()
        watched = self._settings.watched
        limited: Set[str] | None = None if self._unbounded else self._counts.keys()
        if watched is not None:
            limited = watched - exempt if limited is None else watched & limited
        if limited is None or len(limited) > MAX_NAMESPACES:
            return NamespaceScope(None, tuple(sorted(exempt)))
        return NamespaceScope(tuple(sorted(limited)))


def _selectable(source: Limit | Group) -> frozenset[str] | None:
    """Return the namespaces whose pods the limit or group may select, None for any namespace."""
    if isinstance(source, Group):
        return frozenset([source.namespace])
    if isinstance(source, PinLimit):
        return frozenset([source.metadata.namespace or ""])
    return named_values(source.spec.namespace_selector, NAME_LABEL)
